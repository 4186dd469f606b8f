//! Every chore of this repository, under one front. `cargo xtask --help` is the contributor's guide.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "results go to stdout, the account of the work to stderr"
)]

mod bench;
mod command;
mod demo;
mod ebpf;
mod lab;
mod lint;
mod mechanisms;
mod repo;
mod setup;
mod stage;
mod test;
mod wire;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Every chore of this repository.
///
/// A change goes like this:
///
///   1. `cargo xtask test --tier unit` while you work; `cargo nextest run -p CRATE` is the quick way for one crate.
///   2. `cargo xtask lint`: formatting, clippy, layers, dependencies. CI asks it first.
///   3. `cargo xtask test`: all tiers. Those that need root say so and count as ignored without it.
///   4. Who adds a promise adds what keeps it to `cargo xtask mechanisms`, and sees its tests fail without.
///   5. `cargo xtask demo` shows the mesh at work; `cargo xtask demo --keep` leaves it up to play with.
///
/// Where things are: ARCHITECTURE.md is the map, STYLE.md says how code reads here, CHANGELOG.md is for users.
/// Change BPF programs in ebpf/kern, then `cargo xtask ebpf` writes the objects, which are committed.
/// Tools and Debian packages that a chore needs are installed by it, by name, and announced.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", verbatim_doc_comment)]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Brings up a mesh of two nodes on this machine, and shows and checks what it does; needs root.
    Demo(demo::Options),
    /// Runs the tests, tier by tier, and ends with one line each: passed, failed, ignored.
    Test(test::Options),
    /// Checks formatting, clippy, layers and dependencies.
    Lint(lint::Options),
    /// Takes each protection away in turn, in a copy of the sources, and sees its tests fail; takes an hour, needs root.
    Mechanisms(mechanisms::Options),
    /// Measures what the mesh costs; a table, and JSON in target/bench/.
    #[command(subcommand)]
    Bench(bench::Subject),
    /// Builds the BPF objects from ebpf/kern.
    Ebpf {
        /// Compares with the committed objects instead of writing them.
        #[arg(long)]
        check: bool,
    },
    /// Installs what the other chores need: Debian packages by name, cargo's tools below target/tools.
    Setup,
    /// Makes the benchmark's load, in a pod.
    #[command(subcommand, hide = true)]
    Load(bench::Load),
}

fn main() -> ExitCode {
    match run(Cli::parse().chore) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(chore: Chore) -> anyhow::Result<ExitCode> {
    match chore {
        Chore::Demo(options) => return demo::run(&options),
        Chore::Test(options) => return test::run(&options),
        Chore::Bench(subject) => return bench::run(&subject),
        Chore::Load(load) => load.run()?,
        Chore::Lint(options) => return lint::run(&options),
        Chore::Mechanisms(options) => return mechanisms::run(&options),
        Chore::Ebpf { check } => ebpf::run(check)?,
        Chore::Setup => return setup::run(),
    }
    Ok(ExitCode::SUCCESS)
}
