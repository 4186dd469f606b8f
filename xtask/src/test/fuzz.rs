//! The fuzz tier: libFuzzer on the stable toolchain.
//!
//! Coverage instrumentation is asked for by flags that `rustc` hands to LLVM, so no nightly is needed. They apply to the
//! fuzz targets' own workspace alone, which has a target directory of its own, and `--target` keeps them from build
//! scripts, which would not link.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use super::tally::Tally;
use crate::command::Run;
use crate::repo;

const RUSTFLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Ccodegen-units=1 --cfg fuzzing";

/// Seconds for each target.
const QUICK: u32 = 20;
const FULL: u32 = 200;
/// Targets that run at a time.
const AT_ONCE: usize = 2;

pub(crate) fn run(full: bool) -> anyhow::Result<Tally> {
    let folder = repo::root().join("fuzz");
    let built = build(&folder)?;
    let targets = targets(&folder)?;
    if targets.is_empty() {
        bail!("there is no target in {}", folder.join("targets").display());
    }
    let seconds = if full { FULL } else { QUICK };
    let mut tally = Tally::default();
    for group in targets.chunks(AT_ONCE) {
        let mut running = Vec::new();
        for target in group {
            running.push((target, Fuzzer::start(&folder, &built, target, seconds)?));
        }
        for (target, fuzzer) in running {
            match fuzzer.finish() {
                Ok(summary) => {
                    eprintln!("{target}: {summary}");
                    tally.passed += 1;
                }
                Err(error) => {
                    eprintln!("{target}: FAILED: {error:#}");
                    tally.failed.push(format!("{target}: {error:#}"));
                }
            }
        }
    }
    Ok(tally)
}

/// Builds all targets and gives the folder they are in.
fn build(folder: &Path) -> anyhow::Result<PathBuf> {
    let host = Run::new("rustc").args(["-vV"]).output()?;
    let host = host
        .lines()
        .find_map(|l| l.strip_prefix("host: "))
        .context("rustc does not name its host")?
        .to_owned();
    let target = repo::target().join("fuzz");
    Run::cargo()
        .args(["build", "--quiet", "--release", "--bins", "--target", &host])
        .args(["--target-dir".as_ref(), target.as_os_str()])
        .env("RUSTFLAGS", RUSTFLAGS)
        .within(folder)
        .check()?;
    Ok(target.join(host).join("release"))
}

/// The targets are the files in `fuzz/targets`.
fn targets(folder: &Path) -> anyhow::Result<Vec<String>> {
    let folder = folder.join("targets");
    let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let paths =
        entries.filter_map(Result::ok).map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "rs"));
    let mut names: Vec<_> = paths.filter_map(|p| Some(p.file_stem()?.to_str()?.to_owned())).collect();
    names.sort();
    Ok(names)
}

struct Fuzzer {
    child: std::process::Child,
    log: PathBuf,
    program: PathBuf,
    artifacts: PathBuf,
}

impl Fuzzer {
    fn start(folder: &Path, built: &Path, target: &str, seconds: u32) -> anyhow::Result<Self> {
        let program = built.join(target);
        let scratch = repo::target().join("fuzz-runs").join(target);
        let (grown, artifacts) = (scratch.join("corpus"), folder.join("artifacts").join(target));
        for folder in [&grown, &artifacts] {
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        let log = scratch.join("log");
        let output = fs::File::create(&log).with_context(|| log.display().to_string())?;
        // The first folder takes what is found; the committed corpus is only read.
        let child = Command::new(&program)
            .arg(format!("-max_total_time={seconds}"))
            .args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"])
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .args([&grown, &folder.join("corpus").join(target)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        Ok(Self { child, log, program, artifacts })
    }

    /// Waits for the end; an error names the input that reproduces it.
    fn finish(mut self) -> anyhow::Result<String> {
        let status = self.child.wait()?;
        let log = fs::read(&self.log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
        if status.success() {
            let stat = |name: &str| {
                let line = log.lines().rev().find_map(|l| l.strip_prefix(&format!("stat::{name}:")));
                line.map_or("?", str::trim).to_owned()
            };
            let coverage = log.lines().rev().find_map(|l| l.split("cov: ").nth(1)?.split(' ').next());
            let executions = stat("number_of_executed_units");
            return Ok(format!("{executions} inputs, {} edges, no panic", coverage.unwrap_or("?")));
        }
        let tail: Vec<_> =
            log.lines().filter(|l| l.contains("panicked at") || l.contains("ERROR:")).take(3).collect();
        let input = log.lines().find_map(|l| l.split("Test unit written to ").nth(1));
        match input {
            Some(input) => bail!(
                "{}\n  the input is {input}\n  run it again: {} {input}",
                tail.join("\n  "),
                self.program.display()
            ),
            None => bail!("{status}; log: {}, artifacts: {}", self.log.display(), self.artifacts.display()),
        }
    }
}
