//! The seam between the data path and the network below it.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::tcp::{Bind, Dial};

/// A network as one workload sees it: its sockets, its routes, its addresses.
///
/// All errors are the operating system's. Dropping a future gives up what it was about.
pub trait Network: Clone + Send + Sync + 'static {
    /// A connection.
    type Stream: Stream;
    /// A listening socket.
    type Listener: Listener<Stream = Self::Stream>;

    /// Listens. Must be called within the runtime that will accept.
    fn listen(&self, bind: &Bind) -> impl Future<Output = io::Result<Self::Listener>> + Send;

    /// Connects. It has no deadline of its own.
    fn connect(&self, dial: &Dial) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// Whether an address is one of its own, so that a socket can be bound to it.
    fn holds(&self, address: IpAddr) -> io::Result<bool>;
}

/// A byte stream with an orderly end in each direction, and a disorderly one.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Makes dropping the stream tell the peer that it was cut off, not that it ended.
    fn reset_on_drop(&self);

    /// The packet mark that the connection carries (`SO_MARK`): one that was accepted has its SYN's where the network
    /// namespace says so (`tcp_fwmark_accept`). Nothing where the network has no marks.
    fn mark(&self) -> Option<u32> {
        None
    }
}

/// A listening socket.
pub trait Listener: Send + 'static {
    /// What it accepts.
    type Stream: Stream;

    /// The next connection. Cancel-safe: none is lost when the future is dropped.
    fn accept(&self) -> impl Future<Output = io::Result<Accepted<Self::Stream>>> + Send;
}

/// A connection that a peer made. Both addresses are v4 where the peer spoke v4.
#[derive(Debug)]
pub struct Accepted<S> {
    /// The connection.
    pub stream: S,
    /// Who made it.
    pub peer: SocketAddr,
    /// Where the peer was going, which need not be an address of ours.
    pub original_dst: SocketAddr,
}
