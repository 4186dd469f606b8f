//! ztunnel.

#![expect(
    clippy::print_stderr,
    reason = "before the log is set up there is nowhere else to say what is wrong"
)]

use std::process::ExitCode;

use runtime::Env;
use runtime::hardening::{Program, harden};
use telemetry::access::Chain;
use ztunnel::config::Config;
use ztunnel::program;

fn main() -> ExitCode {
    let config = match Config::read(Env::of_process()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("ztunnel: {error}");
            return ExitCode::from(2);
        }
    };
    let log = match telemetry::log::init(config.log.clone()) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("ztunnel: {error}");
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = harden(Program::Ztunnel, config.seccomp) {
        tracing::error!(error = %Chain(&error), "ztunnel does not start");
        return ExitCode::FAILURE;
    }
    match program::run(config, log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %Chain(&error), "ztunnel ends");
            ExitCode::FAILURE
        }
    }
}
