//! What chores need beyond the toolchain: Debian packages and cargo's tools, each installed by name and announced.

pub(crate) mod envoy;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::ExitCode;

use crate::command::Run;
use crate::repo;

/// A program and the Debian package that has it.
type Need = (&'static str, &'static str);

/// What `ambit lab` and the demo run.
pub(crate) const LAB: &[Need] = &[
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("nft", "nftables"),
    ("tcpdump", "tcpdump"),
    ("curl", "curl"),
    ("redis-server", "redis-server"),
    ("redis-cli", "redis-tools"),
];

/// What the tests run beyond that.
pub(crate) const TESTS: &[Need] = &[
    ("nginx", "nginx-light"),
    ("iperf3", "iperf3"),
    ("wrk", "wrk"),
    ("h2load", "nghttp2-client"),
    ("openssl", "openssl"),
    ("dig", "bind9-dnsutils"),
    // cargo-deny fetches the advisories with it.
    ("git", "git"),
];

/// What the benchmark runs beyond the lab.
pub(crate) const BENCH: &[Need] = &[("iperf3", "iperf3"), ("wrk", "wrk"), ("nginx", "nginx-light")];

/// A tool that cargo installs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tool {
    crate_name: &'static str,
    version: &'static str,
    features: &'static [&'static str],
    /// The arguments that make it print its version.
    probe: &'static [&'static str],
}

/// Runs tests, each in a process of its own.
pub(crate) const NEXTEST: Tool = Tool {
    crate_name: "cargo-nextest",
    version: "0.9.143",
    // Without the part that would update itself.
    features: &["--no-default-features", "--features", "default-no-update"],
    probe: &["nextest", "--version"],
};

/// Checks licences, sources, bans and advisories of dependencies.
pub(crate) const DENY: Tool =
    Tool { crate_name: "cargo-deny", version: "0.20.2", features: &[], probe: &["deny", "--version"] };

/// `cargo xtask setup`: everything at once.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let mut missing = packages(&[LAB, TESTS, BENCH]);
    for tool in [NEXTEST, DENY] {
        if let Err(error) = install(tool) {
            missing.push(format!("{}: {error:#}", tool.crate_name));
        }
    }
    missing.extend(envoy::install());
    if missing.is_empty() {
        eprintln!("setup: everything is there");
        return Ok(ExitCode::SUCCESS);
    }
    for what in &missing {
        eprintln!("setup: not installed: {what}");
    }
    Ok(ExitCode::FAILURE)
}

/// Installs the packages of which a program is missing. What could not be installed is announced and returned; the chore
/// goes on, and the test that needs it says so.
pub(crate) fn packages(needs: &[&[Need]]) -> Vec<String> {
    let lacking = |need: &&Need| repo::which(need.0).is_none();
    let mut wanted: Vec<&str> =
        needs.iter().flat_map(|n| n.iter()).filter(lacking).map(|need| need.1).collect();
    wanted.sort_unstable();
    wanted.dedup();
    if wanted.is_empty() {
        return Vec::new();
    }
    eprintln!("installing Debian packages: {}", wanted.join(" "));
    if let Err(error) = apt(&wanted) {
        eprintln!("installing them together failed, trying one by one: {error:#}");
        for package in &wanted {
            if let Err(error) = apt(&[package]) {
                eprintln!("cannot install {package}: {error:#}");
            }
        }
    }
    let missing = needs.iter().flat_map(|n| n.iter()).filter(lacking);
    let mut missing: Vec<String> =
        missing.map(|(program, package)| format!("{program} (Debian package {package})")).collect();
    missing.sort_unstable();
    missing.dedup();
    for what in &missing {
        eprintln!("NOT INSTALLED: {what}; what needs it will be ignored or fail");
    }
    missing
}

fn apt(packages: &[&str]) -> anyhow::Result<()> {
    let _quiet = NoServices::begin();
    let apt = || {
        let root = fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
        let run = if root { Run::new("apt-get") } else { Run::new("sudo").args(["-n", "apt-get"]) };
        run.env("DEBIAN_FRONTEND", "noninteractive")
    };
    let install = || apt().args(["install", "-qq", "--yes", "--no-install-recommends"]).args(packages);
    // The lists are fresh enough where the install succeeds; where it does not, they may never have been fetched.
    if install().output().is_ok() {
        return Ok(());
    }
    apt().args(["update", "-qq"]).output()?;
    install().output().map(drop)
}

/// Keeps packages from starting the services they bring, while it lives.
struct NoServices {
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn begin() -> Self {
        let ours = !Path::new(POLICY).exists()
            && fs::write(POLICY, "#!/bin/sh\nexit 101\n").is_ok()
            && fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755)).is_ok();
        Self { ours }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(POLICY);
        }
    }
}

/// Installs a tool unless it is there, in any version.
///
/// # Errors
/// If cargo cannot install it.
pub(crate) fn install(tool: Tool) -> anyhow::Result<()> {
    if Run::cargo().args(tool.probe).output().is_ok() {
        return Ok(());
    }
    eprintln!("installing {} {} into {}", tool.crate_name, tool.version, repo::tools().display());
    Run::cargo()
        // Not optimized: it is built once and run briefly.
        .args([
            "install",
            "--quiet",
            "--locked",
            "--debug",
            "--force",
            tool.crate_name,
            "--version",
            tool.version,
        ])
        .args(tool.features)
        .args(["--root".as_ref(), repo::tools().as_os_str()])
        // Its build must not lie among ours.
        .without_env("CARGO_TARGET_DIR")
        .check()
}
