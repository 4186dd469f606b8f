//! The node protocol: how the agent tells ztunnel which pods it is to serve (`proto/zds.proto`).
//!
//! The agent listens on a sequenced-packet Unix socket and ztunnel connects. What the agent wants is one set of pods;
//! a [session](agent::Session) compares it with what its ztunnel has acknowledged and sends the difference, one message
//! at a time. So nothing queues up while ztunnel is away, a reconnect sends what is missing and no more, and changes
//! that undo each other are never sent.
//!
//! A ztunnel that dies refuses nobody: the agent holds the listeners of its pods ([`Kept`]), in whose queues connections
//! wait for the next ztunnel, which gets the same ones. A ztunnel that comes while another serves stands by until it is
//! ready, takes over, and only then the other hands over ([`Turn`]).
//!
//! Both sides are cores without I/O ([`agent::Session`], [`ztunnel::Session`]) under thin shells ([`agent::Server`],
//! [`ztunnel::Client`]). Nothing that a peer sends panics: a message that cannot be done is answered with the reason, bytes
//! that are no message end the connection.

pub mod agent;
mod kept;
mod wire;
pub mod ztunnel;

#[cfg(test)]
mod tests;

/// What exempts ztunnel's own sockets from capture.
#[derive(Clone, Debug)]
pub enum Exemption<F> {
    /// An entry in this storage (BPF_MAP_TYPE_SK_STORAGE): redirection is by eBPF.
    Storage(F),
    /// This mark: redirection is by packet filter, and original destinations are asked of connection tracking.
    Mark(u32),
}

pub use kept::{Kept, MOST_MEMBERS, NotKept};
pub use wire::{
    Add, Attached, DecodeError, Hello, ListenerKind, PodInfo, PodState, PodUid, Request, Stage, Turn, decode,
    decode_hello, decode_request, decode_response, encode_hello, encode_request, encode_response,
};

/// Where the agent listens unless it is told otherwise.
pub const DEFAULT_PATH: &str = "/var/run/ztunnel/ztunnel.sock";
