//! The server's side of delta xDS, and the shells that serve it and certificates over gRPC.
//!
//! The world is published as a chain of immutable [`Snapshot`]s, each the previous one with some changes: a resource is
//! encoded once, when its [`Entry`] is made, and every response that carries it holds the same bytes. One [`Session`]
//! stands behind each client's stream. It keeps what the client asked for and what it is still owed, not what it has:
//! memory is for changes and subscriptions, not for the world once per client.

use std::sync::Arc;

use thiserror::Error;

mod ads;
mod authenticate;
mod ca;
mod door;
mod entry;
mod listen;
mod node;
mod registry;
mod resume;
mod session;
mod shards;
mod snapshot;
mod status;
mod subscription;

pub use ads::{AdsService, Feed};
pub use authenticate::{AuthenticateError, Authenticator};
pub use ca::{CaService, IssueError, IssueRequest, Issuer, Subject};
pub use door::Strangers;
pub use entry::Entry;
pub use listen::{Listen, ListenError, Services, serve};
pub use node::NodeId;
pub use registry::{Proxy, Registry};
pub use session::{Acknowledged, Limits, ProtocolError, Session};
pub use snapshot::{Change, Snapshot};
pub use status::{Nack, Status};

use crate::TypeUrl;

/// Who is at the other end of a stream, as its bearer token proves.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// The namespace of the service account.
    pub namespace: Arc<str>,
    /// The service account.
    pub service_account: Arc<str>,
    /// The node that the token is bound to, where it is bound to one.
    pub node: Option<Arc<str>>,
}

/// Says who may see what.
pub trait Visibility: Send + Sync + 'static {
    /// Whether a peer may know of a resource. The answer must not change while a stream stands.
    fn sees(&self, peer: &Peer, type_url: TypeUrl, entry: &Entry) -> bool;
}

/// Everyone may see everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Everything;

impl Visibility for Everything {
    fn sees(&self, _: &Peer, _: TypeUrl, _: &Entry) -> bool {
        true
    }
}

/// Hears of what happens on all streams: the hook for metrics and logs. Called on the stream's task; must not block.
pub trait Observer: Send + Sync + 'static {
    /// A proxy has opened a stream.
    fn connected(&self, peer: &Peer) {
        let _ = peer;
    }

    /// A proxy's stream has ended.
    fn disconnected(&self, peer: &Peer) {
        let _ = peer;
    }

    /// A response goes out.
    fn pushed(&self, push: &Push) {
        let _ = push;
    }

    /// A response was accepted, wholly or in part.
    fn acknowledged(&self, acknowledged: &Acknowledged) {
        let _ = acknowledged;
    }

    /// A connection was ended, or never taken up.
    fn turned_away(&self, why: TurnedAway) {
        let _ = why;
    }

    /// A certificate was asked for; `error` says why there is none.
    fn issued(&self, peer: &Peer, error: Option<&IssueError>) {
        let _ = (peer, error);
    }
}

/// Hears nothing.
impl Observer for () {}

/// Why a connection is not served any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TurnedAway {
    /// TLS failed.
    #[error("the TLS handshake failed")]
    Tls,
    /// No call with a good token came in time.
    #[error("nobody proved in time who he is")]
    Late,
    /// Too many had not proved who they are yet, and whoever this is had the most of them.
    #[error("there are too many who have not proved who they are")]
    Displaced,
    /// Too many frames came that carry nothing.
    #[error("it was flooded")]
    Flood,
}

impl TurnedAway {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Tls, Self::Late, Self::Displaced, Self::Flood];

    /// The word in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Late => "late",
            Self::Displaced => "displaced",
            Self::Flood => "flood",
        }
    }
}

/// A response that goes out.
#[derive(Clone, Copy, Debug)]
pub struct Push {
    /// Its type.
    pub type_url: TypeUrl,
    /// How many resources it carries.
    pub resources: usize,
    /// How many names it removes.
    pub removed: usize,
    /// How long the oldest change in it has waited.
    pub queued: std::time::Duration,
}
