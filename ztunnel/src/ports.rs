//! The ports that this proxy takes in each pod's network namespace.

/// What the pod sends, captured.
pub const OUTBOUND: u16 = 15001;
/// Plaintext that comes from the network, captured.
pub const INBOUND_PLAINTEXT: u16 = 15006;
/// HBONE.
pub const INBOUND_HBONE: u16 = 15008;

/// What the pod asks resolvers, captured; in datagrams.
pub const DNS: u16 = 15053;

/// Whether a connection to this port of a pod would reach this proxy and not the application.
pub fn is_own(port: u16) -> bool {
    matches!(port, OUTBOUND | INBOUND_PLAINTEXT | INBOUND_HBONE)
}
