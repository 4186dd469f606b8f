//! What tests stand on: real namespaces and processes ([`lab`]), a simulated network ([`sim`]), and what the tiers share.

#![expect(clippy::print_stderr, reason = "tests speak to whoever runs them")]

pub mod ca;
pub mod fixtures;
pub mod lab;
pub mod sim;

/// Says that a test could not run here, in the words that `cargo xtask test` counts as *ignored*.
pub fn ignore(reason: &str) {
    eprintln!("ignored: {reason}");
}

/// Tells a figure or what happened: seen where a test fails, or where its output is asked for.
pub fn say(line: &str) {
    eprintln!("{line}");
}
