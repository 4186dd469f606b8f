//! ztunnel's side: learning which pods to serve.

mod client;
mod session;

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use net::Netns;

pub use self::client::{Answer, Client};
pub use self::session::{Received, Session, SessionError};
use crate::{Exemption, Kept, PodInfo, PodState, PodUid, Turn};

/// What the agent says. Each is to be answered before the next comes.
#[derive(Debug)]
pub enum Event {
    /// How this node redirects; first, and only from an agent that speaks the extension.
    Redirection {
        /// The mark of captured sockets.
        mark: u32,
        /// The mask under which marks are compared.
        mask: u32,
        /// What exempts a socket from capture.
        exempt: Exemption<OwnedFd>,
    },
    /// A pod is to be served from now on, or is told again.
    Add {
        /// The pod.
        uid: PodUid,
        /// Who it is.
        info: PodInfo,
        /// Its network namespace.
        netns: Netns,
        /// The map into which its listeners go; only from an agent that speaks the extension.
        listener_map: Option<OwnedFd>,
        /// Its listeners, if an earlier ztunnel has left some: to be used instead of new ones.
        kept: Kept,
        /// Whether what it asks resolvers is steered to ztunnel.
        dns: bool,
    },
    /// Whether to accept on pods' listeners.
    Turn(Turn),
    /// A pod is to be served as before. Refuse it if there is none.
    Keep(PodUid),
    /// A pod is not to be served any more.
    Del(PodUid),
    /// A pod comes to its end; only from an agent that speaks the extension. Refuse it if there is none.
    State(PodState),
    /// All pods there are were named; others are to be let go.
    SnapshotSent {
        /// Those that were.
        named: BTreeSet<PodUid>,
    },
}
