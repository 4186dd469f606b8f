//! istiod-lite: the control plane.

use std::process::ExitCode;

use clap::Parser;
use istiod_lite::config::{Config, Flags};
use istiod_lite::program;
use runtime::hardening::{Program, harden};
use runtime::{Env, Grace, Readiness, Tasks};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the log may not be set up, and this is the last word")]
            {
                eprintln!("istiod-lite: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let config = Config::new(Flags::parse(), Env::of_process())?;
    let _log = telemetry::log::init(config.log.clone())?;
    harden(Program::Istiod, config.seccomp)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let (tasks, readiness) = (Tasks::default(), Readiness::default());
        program::start(&config, &tasks, &readiness).await?;
        tasks.run_until_stopped(&readiness, Grace::default()).await?;
        Ok(())
    })
}
