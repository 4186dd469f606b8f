//! `cargo xtask mechanisms`: takes each protection away in turn, in a copy of the sources, and sees its tests fail.
//!
//! A test that passes without what it is about proves nothing, and nobody sees that from its colour. So each promise is
//! written down with the few words of source that keep it ([`table`]), what stands there without, and the tests that must
//! notice. The unit tests below hold the table to the sources; this chore, which takes an hour, holds it to the truth.

mod table;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use clap::Args;

use crate::command::Run;
use crate::{repo, setup, stage};

/// Something that protects, and how it is taken away.
#[derive(Debug)]
pub(crate) struct Mechanism {
    pub(crate) name: &'static str,
    /// What users are promised.
    pub(crate) promise: &'static str,
    pub(crate) file: &'static str,
    /// What keeps the promise: stands in the file exactly once.
    pub(crate) on: &'static str,
    /// What stands there without it. It must build.
    pub(crate) off: &'static str,
    /// Each must fail then.
    pub(crate) tests: &'static [&'static str],
}

#[derive(Args)]
pub(crate) struct Options {
    /// Only these mechanisms; all where none is named.
    names: Vec<String>,
    /// Says what there is, and takes nothing away.
    #[arg(long)]
    list: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let wanted = |m: &&Mechanism| options.names.is_empty() || options.names.iter().any(|name| name == m.name);
    let chosen: Vec<&Mechanism> = table::all().filter(wanted).collect();
    if let Some(unknown) = options.names.iter().find(|name| chosen.iter().all(|m| m.name != **name)) {
        bail!("there is no mechanism {unknown}: `cargo xtask mechanisms --list` names all");
    }
    if options.list {
        chosen.iter().for_each(|m| println!("{}: {}", m.name, m.promise));
        return Ok(ExitCode::SUCCESS);
    }
    setup::packages(&[setup::LAB, setup::TESTS]);
    setup::install(setup::NEXTEST)?;
    let copy = Copy::make()?;
    stage::run("build with all mechanisms", || copy.build())?;
    let mut kept = 0;
    for mechanism in &chosen {
        match stage::run(mechanism.name, || copy.without(mechanism)) {
            Ok(()) => kept += 1,
            Err(error) => println!("{}: {error:#}", mechanism.name),
        }
    }
    println!("mechanisms: {kept} of {} are missed when they are gone", chosen.len());
    Ok(if kept == chosen.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A copy of the sources as they are committed, with a build of its own; removed when it is dropped, the build is kept.
struct Copy {
    root: PathBuf,
    target: PathBuf,
}

impl Copy {
    fn make() -> anyhow::Result<Self> {
        let target = repo::target().join("mechanisms-build");
        let root = repo::target().join("mechanisms");
        // Left by one that was interrupted.
        let _ = Run::new("git").args(["worktree", "remove", "--force"]).args([&root]).output();
        Run::new("git").args(["worktree", "add", "--quiet", "--force", "--detach"]).args([&root]).check()?;
        Ok(Self { root, target })
    }

    fn cargo(&self, args: &[&str]) -> Run {
        Run::cargo().args(args).within(&self.root).env("CARGO_TARGET_DIR", &self.target)
    }

    fn build(&self) -> anyhow::Result<()> {
        self.cargo(&["build", "--quiet", "--workspace", "--bins"]).check()?;
        self.cargo(&["nextest", "run", "--cargo-quiet", "--workspace", "--no-run"]).check()
    }

    /// Takes a mechanism away, runs its tests, and puts it back.
    fn without(&self, mechanism: &Mechanism) -> anyhow::Result<()> {
        let path = self.root.join(mechanism.file);
        let with = fs::read_to_string(&path).with_context(|| mechanism.file.to_owned())?;
        fs::write(&path, removed(mechanism, &with)?)?;
        let told = self
            .build()
            .context("what stands there without it does not build")
            .and_then(|()| self.test(mechanism));
        fs::write(&path, with)?;
        let told = told?;
        let missed: Vec<_> = mechanism.tests.iter().filter(|test| !fails(&told, test)).collect();
        ensure!(missed.is_empty(), "PASSED WITHOUT ITS MECHANISM: {missed:?}");
        for failure in told {
            println!("{}: fails as it should: {}: {}", mechanism.name, failure.test, failure.message);
        }
        Ok(())
    }

    fn test(&self, mechanism: &Mechanism) -> anyhow::Result<Vec<Failure>> {
        let report = self.root.join("target/nextest/mechanisms/junit.xml");
        let _ = fs::remove_file(&report);
        let filter: Vec<_> = mechanism.tests.iter().map(|test| format!("test(/(^|::){test}$/)")).collect();
        let args = ["nextest", "run", "--cargo-quiet", "--workspace", "--profile", "mechanisms", "-E"];
        // Its status says no more than the report.
        self.cargo(&args).args([filter.join(" or ")]).status()?;
        Ok(failures(&fs::read_to_string(&report).context("nextest left no report")?))
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = Run::new("git").args(["worktree", "remove", "--force"]).args([&self.root]).output();
    }
}

fn removed(mechanism: &Mechanism, source: &str) -> anyhow::Result<String> {
    let places = source.matches(mechanism.on).count();
    ensure!(places == 1, "{} has what is to be taken away {places} times, not once", mechanism.file);
    Ok(source.replacen(mechanism.on, mechanism.off, 1))
}

/// A test that failed, and the first it said about it.
#[derive(Debug, PartialEq, Eq)]
struct Failure {
    test: String,
    message: String,
}

fn fails(failures: &[Failure], test: &str) -> bool {
    failures.iter().any(|f| f.test == test || f.test.ends_with(&format!("::{test}")))
}

fn failures(report: &str) -> Vec<Failure> {
    let cases = report.split("<testcase ").skip(1);
    let failed = cases.filter_map(|case| {
        let case = case.split("</testcase>").next().unwrap_or(case);
        let (tag, rest) = case.split_once("<failure")?;
        let value = |text: &str, name: &str| {
            let (_, rest) = text.split_once(&format!("{name}=\""))?;
            rest.split_once('"').map(|(value, _)| value.to_owned())
        };
        let message = value(rest, "message").unwrap_or_default();
        Some(Failure { test: value(&format!(" {tag}"), " name")?, message: message.replace("&#10;", " ") })
    });
    failed.collect()
}

/// What the sources hold, for the tests of the table.
#[cfg(test)]
fn sources(folder: &std::path::Path, found: &mut String) {
    for entry in fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry").path()) {
        let name = entry.file_name().unwrap_or_default().to_string_lossy();
        if entry.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&entry, found);
        } else if name.ends_with(".rs") && !entry.ends_with("mechanisms/table.rs") {
            found.push_str(&fs::read_to_string(&entry).expect("text"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mechanism_is_where_the_table_says_and_its_tests_exist() {
        let mut all = String::new();
        sources(repo::root(), &mut all);
        let mut names = std::collections::BTreeSet::new();
        for mechanism in table::all() {
            let Mechanism { name, file, tests, .. } = mechanism;
            assert!(names.insert(name), "{name} is there twice");
            let source =
                fs::read_to_string(repo::root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
            let without = removed(mechanism, &source).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_ne!(without, source, "{name} takes nothing away");
            assert!(!tests.is_empty(), "{name}: nobody would notice");
            for test in *tests {
                assert!(all.contains(&format!("fn {test}(")), "{name}: there is no test {test}");
            }
        }
    }

    #[test]
    fn a_report_tells_who_failed_and_what_was_said() {
        let report = r#"<testcase name="live::ends" classname="ambit-tests::sim" time="1">
            <failure message="panicked at &quot;x&quot;&#10;it stands" type="test failure">…</failure></testcase>
            <testcase name="live::stays" classname="ambit-tests::sim"></testcase>"#;
        let told = failures(report);
        assert_eq!(
            told,
            [Failure { test: "live::ends".into(), message: "panicked at &quot;x&quot; it stands".into() }]
        );
        assert!(fails(&told, "ends") && fails(&told, "live::ends") && !fails(&told, "stays"));
    }
}
