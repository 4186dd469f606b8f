//! The netns tier: real programs in real network namespaces, across two nodes, through the mesh.
//!
//! Every test brings up a lab of its own ([`testkit::lab::Lab`]) and asks the application, the wire or the proxy's own
//! words, never the code under test.

mod capture;
mod dns;
mod documents;
mod enrolment;
mod envoy;
mod fallback;
mod families;
mod faults;
mod floods;
mod hardening;
mod lifecycle;
mod live;
mod names;
mod on_demand;
mod papers;
mod policy;
mod probes;
mod protocols;
mod quota;
mod reboot;
mod rollout;
mod roots;
mod sandwich;
mod secrets;
mod swap;
mod threats;
mod tls;
mod world;

/// Whether soaks run their full length, as `cargo xtask test --full` has them; a tenth otherwise.
fn is_full() -> bool {
    std::env::var_os("AMBIT_FULL").is_some()
}
