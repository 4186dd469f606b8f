//! The opening end: a pool of connections, and the streams opened on them.
//!
//! A pool belongs to one source workload on one thread. It opens connections as streams need them, keeps them for
//! [`Settings::idle_release`](crate::Settings::idle_release), and replaces those whose peer is leaving.

mod connection;
mod core;
mod pool;

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use model::{IdentitySet, NetworkId, SpiffeId, Uid};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

pub(crate) use pool::Slot;
pub use pool::{Pool, PoolCounts};

use crate::{Authority, Baggage, BaggageHeader, Forwarded, Traceparent, TransportError, Tunnel};

/// What a connection is opened for, and all that may share it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Who opens it.
    pub source: SpiffeId,
    /// Who may answer.
    pub destinations: IdentitySet,
    /// Where it goes, port included.
    pub address: SocketAddr,
    /// The address it comes from.
    pub source_ip: IpAddr,
    /// Who holds the address, as the opener has been told. Addresses are used again, by workloads of the same identity
    /// too: what was opened to one holder is not used for the next.
    pub holder: Holder,
}

/// One tenancy of an address: whose, and a number that differs whenever the same one has come to it anew.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    /// The workload.
    pub uid: Uid,
    /// Which of its tenancies.
    pub tenancy: u64,
}

/// How a pool reaches its peers: TCP and TLS with the identities of the [`Key`], or a test's pipe.
pub trait Connector: 'static {
    /// The byte stream on which HTTP/2 will be spoken.
    type Io: AsyncRead + AsyncWrite + Unpin + 'static;
    /// What is known of a peer that was reached; each stream to it gets a clone.
    type Peer: Clone + 'static;
    /// Why there is none. All streams that waited for the connection get the same one.
    type Error: StdError + 'static;

    /// Opens a byte stream to the key's address, proving the source's identity and checking the destination's. The pool
    /// drops the future after [`Settings::connect_timeout`](crate::Settings::connect_timeout).
    fn connect(&self, key: &Key) -> impl Future<Output = Result<Reached<Self::Io, Self::Peer>, Self::Error>>;

    /// Whether a peer that was reached would still be accepted. Asked before each stream, so it should cost little.
    fn holds(&self, peer: &Self::Peer) -> bool;

    /// Hears that a connection that stood has ended before its time. Must not block.
    fn lost(&self, key: &Key, why: &TransportError) {
        let _ = (key, why);
    }
}

/// A peer that was reached.
#[derive(Debug)]
pub struct Reached<Io, Peer> {
    /// The byte stream.
    pub io: Io,
    /// What is known of the peer.
    pub peer: Peer,
    /// When the connection is to take no more streams: the next stream opens another, and those that it has run on. It
    /// closes with the last of them.
    pub until: Option<Instant>,
    /// How many bytes may be in flight to this side on the connection, where that is not what the settings say.
    pub window: Option<u32>,
    /// What is to be dropped when the byte stream has been, and not before.
    pub held: Option<Box<dyn Any>>,
}

impl<Io, Peer> Reached<Io, Peer> {
    /// Takes streams without end, within the settings.
    pub fn new(io: Io, peer: Peer) -> Self {
        Self { io, peer, until: None, window: None, held: None }
    }
}

/// A CONNECT request to send. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectRequest {
    /// Where the tunnel is to end.
    pub authority: Authority,
    /// Who the client's workload is.
    pub baggage: Option<BaggageHeader>,
    /// Which client the tunnel is for.
    pub forwarded: Option<Forwarded>,
    /// The trace it belongs to.
    pub traceparent: Option<Traceparent>,
    /// Whether the client goes elsewhere if it is refused with 503, so that a peer that is about to end may refuse it; and
    /// where reaching the peer takes longer than [`Settings::hurry`](crate::Settings::hurry).
    pub alternatives: bool,
    /// The network that the client's address holds in, where that is told: to a destination in another one.
    pub network: Option<NetworkId>,
}

impl ConnectRequest {
    /// A request that tells nothing but its target.
    pub fn to(authority: Authority) -> Self {
        Self {
            authority,
            baggage: None,
            forwarded: None,
            traceparent: None,
            alternatives: false,
            network: None,
        }
    }
}

/// An open tunnel, and what the peer said when it opened.
#[derive(Debug)]
pub struct Opened<Peer> {
    /// The tunnel.
    pub tunnel: Tunnel,
    /// What the connector knows of the peer.
    pub peer: Peer,
    /// Who the destination's workload says it is; empty where it says nothing.
    pub baggage: Baggage,
}

/// Why no tunnel was opened. No byte of the tunnelled connection was sent, so another endpoint may be tried.
#[derive(Debug)]
pub enum OpenError<E> {
    /// The peer could not be reached, or proved the wrong identity: the connector's error.
    Connect(Shared<E>),
    /// Reaching the peer took longer than [`Settings::connect_timeout`](crate::Settings::connect_timeout).
    ConnectTimeout,
    /// The peer was reached and HTTP/2 did not start.
    Handshake(TransportError),
    /// The peer answered with another status than 200.
    Refused {
        /// 401 denied by policy, 503 application unreachable, 400 not this peer's target.
        status: u16,
    },
    /// The connection or stream was lost before the answer; retried once already where that could help. A peer that
    /// refuses this side's certificate shows here too, as TLS 1.3 tells the client so only afterwards.
    Lost(TransportError),
    /// There are alternatives, and the connection does not stand after
    /// [`Settings::hurry`](crate::Settings::hurry). It goes on being opened.
    NotYet,
    /// The peer answers neither the CONNECT nor a PING for [`Settings::doubt`](crate::Settings::doubt).
    Silent,
    /// No answer within [`Settings::answer_timeout`](crate::Settings::answer_timeout).
    AnswerTimeout,
    /// The request cannot be written as HTTP/2.
    Authority,
    /// The pool is closed.
    Closed,
}

impl<E> fmt::Display for OpenError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(_) => f.write_str("the peer cannot be reached"),
            Self::ConnectTimeout => f.write_str("the peer cannot be reached in time"),
            Self::Handshake(_) => f.write_str("HTTP/2 does not start"),
            Self::Refused { status } => write!(f, "the peer refuses the tunnel with status {status}"),
            Self::Lost(_) => f.write_str("the tunnel was lost before the peer's answer"),
            Self::NotYet => f.write_str("the peer is not reached at once"),
            Self::Silent => f.write_str("the peer is silent"),
            Self::AnswerTimeout => f.write_str("the peer gives no answer in time"),
            Self::Authority => f.write_str("the authority cannot be sent"),
            Self::Closed => f.write_str("the pool is closed"),
        }
    }
}

// By hand, as the source is what is shared and not the sharing.
impl<E: StdError + 'static> StdError for OpenError<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Connect(e) => Some(&**e),
            Self::Handshake(e) | Self::Lost(e) => Some(e),
            _ => None,
        }
    }
}

/// An error that several waiters share.
pub struct Shared<E>(Arc<E>);

impl<E> Shared<E> {
    pub(crate) fn new(e: E) -> Self {
        Self(Arc::new(e))
    }
}

impl<E> Clone for Shared<E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<E> std::ops::Deref for Shared<E> {
    type Target = E;

    fn deref(&self) -> &E {
        &self.0
    }
}

impl<E: fmt::Debug> fmt::Debug for Shared<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
