//! The agent's side: what ztunnel should know, and telling it.

mod desired;
mod server;
mod session;
mod state;
mod turns;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use net::Netns;

pub use self::desired::Desired;
pub use self::server::Server;
pub use self::session::{Handled, Outgoing, Sent, Session, SessionError};
pub use self::state::{AddError, Peer, RemoveError, Standing};
pub use self::turns::Role;
use crate::{Exemption, PodInfo, PodUid};

/// A pod that ztunnel is to serve.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The pod.
    pub uid: PodUid,
    /// Who it is.
    pub info: PodInfo,
    /// Its network namespace; nothing where the agent has lost it and ztunnel should keep the one that it has.
    pub netns: Option<Netns>,
    /// The map into which ztunnel puts its listeners.
    pub listener_map: Option<Arc<OwnedFd>>,
    /// Whether what it asks resolvers is to be steered to ztunnel.
    pub dns: bool,
}

/// How this node redirects.
#[derive(Clone, Debug)]
pub struct Redirection {
    /// The mark of captured sockets.
    pub mark: u32,
    /// The mask under which marks are compared.
    pub mask: u32,
    /// What exempts a socket from capture.
    pub exempt: Exemption<Arc<OwnedFd>>,
}
