//! `cargo xtask lint`: what CI asks before it runs the tests. All of it is asked, whatever fails first.

mod layers;
mod manifests;
mod pages;

use std::net::{TcpStream, ToSocketAddrs as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use clap::builder::PossibleValuesParser;

use crate::command::Run;
use crate::{repo, setup, stage};

/// Workspaces of their own, which `--workspace` does not reach.
const OTHERS: [&str; 2] = ["ebpf/kern", "fuzz"];

/// A check's name and what does it.
type Check = (&'static str, fn() -> anyhow::Result<()>);

const CHECKS: [Check; 9] = [
    ("formatting", formatting),
    ("lockfiles", lockfiles),
    ("layers", layers::check),
    ("manifests", manifests::check),
    ("pages", pages::check),
    ("clippy", clippy),
    ("documentation", documentation),
    ("dependencies", dependencies),
    ("advisories", advisories),
];

#[derive(Args)]
pub(crate) struct Options {
    /// Only these checks; all where none is named.
    #[arg(value_name = "CHECK", value_parser = PossibleValuesParser::new(CHECKS.map(|(name, _)| name)))]
    checks: Vec<String>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let asked = |name: &str| options.checks.is_empty() || options.checks.iter().any(|check| check == name);
    let mut failed = Vec::new();
    for (name, check) in CHECKS.into_iter().filter(|(name, _)| asked(name)) {
        if let Err(error) = stage::run(name, check) {
            eprintln!("{name}: {error:#}");
            failed.push(name);
        }
    }
    if failed.is_empty() {
        println!("lint: all is well");
        return Ok(ExitCode::SUCCESS);
    }
    println!("lint: failed: {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

fn formatting() -> anyhow::Result<()> {
    Run::cargo().args(["fmt", "--all", "--check"]).check()?;
    for folder in OTHERS.map(|o| repo::root().join(o)).iter().filter(|f| f.join("Cargo.toml").exists()) {
        Run::cargo().args(["fmt", "--check"]).within(folder).check()?;
    }
    Ok(())
}

/// Lockfiles are committed with what changes them, also those of the workspaces that few people build.
fn lockfiles() -> anyhow::Result<()> {
    for folder in
        [""].into_iter().chain(OTHERS).map(|o| repo::root().join(o)).filter(|f| f.join("Cargo.toml").exists())
    {
        let read =
            Run::cargo().args(["metadata", "--locked", "--format-version", "1"]).within(&folder).output();
        read.with_context(|| {
            format!("{}: run `cargo metadata` there and commit Cargo.lock", folder.display())
        })?;
    }
    Ok(())
}

fn clippy() -> anyhow::Result<()> {
    Run::cargo().args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]).check()
}

/// Links between items lead somewhere.
fn documentation() -> anyhow::Result<()> {
    Run::cargo()
        .args(["doc", "--quiet", "--workspace", "--no-deps"])
        .env("RUSTDOCFLAGS", "-D warnings")
        .check()
}

fn dependencies() -> anyhow::Result<()> {
    setup::install(setup::DENY)?;
    Run::cargo().args(["deny", "--log-level", "error", "check", "bans", "licenses", "sources"]).check()
}

/// The advisory database comes from the internet. Where that is not to be had the check is skipped, and says so.
fn advisories() -> anyhow::Result<()> {
    if !reachable("github.com:443") {
        eprintln!(
            "*** ADVISORIES NOT CHECKED: github.com, where the database is, cannot be reached from here ***"
        );
        return Ok(());
    }
    setup::install(setup::DENY)?;
    Run::cargo().args(["deny", "--log-level", "error", "check", "advisories"]).check()
}

fn reachable(host: &str) -> bool {
    let Ok(mut addresses) = host.to_socket_addrs() else { return false };
    addresses.any(|address| TcpStream::connect_timeout(&address, Duration::from_secs(3)).is_ok())
}
