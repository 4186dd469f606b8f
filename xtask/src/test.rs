//! `cargo xtask test`: every test, by tiers, from one build.
//!
//! All tiers but fuzz share the dev profile and the workspace's features, so their tests are built once, together with the
//! programs that the netns tier starts. A tier is a nextest filter.

mod fuzz;
mod junit;
mod tally;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use crate::command::Run;
use crate::{repo, setup, stage};
use tally::Tally;

#[derive(Args)]
pub(crate) struct Options {
    /// Only these tiers; all where none is named.
    #[arg(long = "tier", value_name = "NAME")]
    tiers: Vec<Tier>,
    /// Soaks and fuzzers run their full length, a tenth otherwise; and what is drawn by chance is drawn anew.
    #[arg(long)]
    full: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Tier {
    /// Pure cores, and shells against in-memory peers.
    Unit,
    /// A mesh on virtual time.
    Sim,
    /// Real processes in real network namespaces; needs root.
    Netns,
    /// Some of the same by the redirection of kernels that take no eBPF programs, all in a full run; needs root.
    Fallback,
    /// Parsers that a peer can reach, against what a fuzzer thinks of.
    Fuzz,
}

/// The environment variable that tells tests to soak for their full length.
const FULL: &str = "AMBIT_FULL";

/// Where chance begins in a run that is not a full one, so that it says the same of the same sources whenever it is run:
/// for proptest, and for the seeds of simulations.
const ORIGINS: [(&str, &str); 2] = [("PROPTEST_RNG_SEED", "1"), ("AMBIT_SEED_ORIGIN", "1")];

const SIM: &str = "binary(=sim) or test(/(^|::)sim::/)";
const NETNS: &str = "binary(=netns) or test(/(^|::)netns::/)";

/// The tests that bring up a whole lab, which all can do by either redirection.
const LABS: &str = "binary(=netns) and package(ambit-tests)";
/// Those of them that see most of what differs between the two.
const FALLBACK: &str = "binary(=netns) and package(ambit-tests) and \
                        (test(/^capture::/) or test(/^enrolment::/) or test(/^probes::/) or test(/^protocols::/) or \
                        test(/^families::/) or test(/^dns::/) or test(/^swap::/) or test(/^policy::peer/))";
/// What the lab passes on to its agents.
const BY_NFTABLES: (&str, &str) = ("AMBIT_REDIRECTION", "nftables");

impl Tier {
    const ALL: [Self; 5] = [Self::Unit, Self::Sim, Self::Netns, Self::Fallback, Self::Fuzz];

    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Sim => "sim",
            Self::Netns => "netns",
            Self::Fallback => "fallback",
            Self::Fuzz => "fuzz",
        }
    }

    fn run(self, full: bool) -> anyhow::Result<Tally> {
        match self {
            Self::Unit => {
                let mut tally = nextest(&format!("not ({SIM} or {NETNS})"), full, &[])?;
                tally.add(doc_tests()?);
                Ok(tally)
            }
            Self::Sim => nextest(&format!("({SIM}) and not ({NETNS})"), full, &[]),
            Self::Netns => nextest(NETNS, full, &[]),
            Self::Fallback => nextest(if full { LABS } else { FALLBACK }, full, &[BY_NFTABLES]),
            Self::Fuzz => fuzz::run(full),
        }
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let tiers: Vec<Tier> =
        Tier::ALL.into_iter().filter(|t| options.tiers.is_empty() || options.tiers.contains(t)).collect();
    let nextest_needed = tiers.iter().any(|t| *t != Tier::Fuzz);
    if tiers.iter().any(|tier| matches!(tier, Tier::Netns | Tier::Fallback)) {
        stage::run("packages", || setup::packages(&[setup::LAB, setup::TESTS]));
        stage::run("envoy", setup::envoy::install);
    }
    if nextest_needed {
        stage::run("nextest", || setup::install(setup::NEXTEST))?;
        stage::run("build the programs", || {
            Run::cargo().args(["build", "--quiet", "--workspace", "--bins"]).check()
        })?;
        stage::run("build the tests", || {
            Run::cargo().args(["nextest", "run", "--cargo-quiet", "--workspace", "--no-run"]).check()
        })?;
    }
    let mut results = Vec::new();
    for tier in tiers {
        let tally = stage::run(&format!("tier {}", tier.name()), || tier.run(options.full));
        results.push((tier.name(), tally.unwrap_or_else(|error| Tally::broken(tier.name(), &error))));
    }
    Ok(conclude(&results))
}

/// Reasons first, then one line a tier, then the verdict.
fn conclude(results: &[(&str, Tally)]) -> ExitCode {
    println!();
    for (tier, tally) in results {
        for (test, reason) in &tally.ignored {
            println!("{tier}: ignored: {test}: {reason}");
        }
        for (test, said) in &tally.wavered {
            println!("{tier}: WAVERED: {test}: passed only the second time; the first time: {said}");
        }
        for test in &tally.failed {
            println!("{tier}: FAILED: {test}");
        }
    }
    let mut all = Tally::default();
    for (tier, tally) in results {
        println!("{tier}: {}", tally.line());
        all.add(tally.clone());
    }
    if all.failed.is_empty() {
        println!("test: all passed ({})", all.line());
        return ExitCode::SUCCESS;
    }
    println!("test: FAILED ({})", all.line());
    ExitCode::FAILURE
}

fn nextest(filter: &str, full: bool, settings: &[(&str, &str)]) -> anyhow::Result<Tally> {
    let profile = if full { "full" } else { "tiers" };
    // nextest keeps its reports below the workspace, wherever the build goes (`[store]` in .config/nextest.toml).
    let report = repo::root().join(format!("target/nextest/{profile}/junit.xml"));
    // Whatever is read afterwards is of this run.
    let _ = std::fs::remove_file(&report);
    let mut run = Run::cargo().args(["nextest", "run", "--cargo-quiet", "--workspace"]);
    run = run.args(["--profile", profile, "-E", filter]);
    if full {
        run = run.env(FULL, "1");
    } else {
        run = ORIGINS.into_iter().fold(run, |run, (name, value)| run.env(name, value));
    }
    run = settings.iter().fold(run, |run, (name, value)| run.env(name, value));
    let status = run.status()?;
    // A tier without a test has no report either, and is as wrong.
    let xml = std::fs::read_to_string(&report)
        .with_context(|| format!("nextest ended with {status} and left no {}", report.display()))?;
    let mut tally = junit::read(&xml);
    if !status.success() && tally.failed.is_empty() {
        tally.failed.push(format!("nextest itself ({status})"));
    }
    Ok(tally)
}

/// Examples in the documentation, which nextest does not run.
fn doc_tests() -> anyhow::Result<Tally> {
    let output = Run::cargo().args(["test", "--quiet", "--workspace", "--doc", "--no-fail-fast"]).output();
    match output {
        Ok(text) => Ok(tally::of_libtest(&text)),
        Err(error) => Ok(Tally::broken("documentation examples", &error)),
    }
}
