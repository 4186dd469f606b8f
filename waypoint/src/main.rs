//! The L7 proxy of a namespace or service, which does not exist yet.
//!
//! The program is here so that everything that starts one (a lab, a deployment) says the same thing instead of failing
//! in a way of its own.

#![expect(clippy::print_stderr, reason = "a program that only says why it ends has no log")]

use std::process::ExitCode;

/// `EX_UNAVAILABLE` of sysexits(3): the service asked for is not available.
const UNAVAILABLE: u8 = 69;

fn main() -> ExitCode {
    eprintln!(
        "waypoint: L7 waypoints are not available in this version of Ambit ({}); L4 policy and mutual TLS need none",
        env!("CARGO_PKG_VERSION")
    );
    ExitCode::from(UNAVAILABLE)
}
