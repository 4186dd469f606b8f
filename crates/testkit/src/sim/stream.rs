//! A connection.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::link::Link;
use super::pipe::Pipe;

/// One end of a connection. Dropping it ends it as closing a socket does: in order, unless something was left unread or
/// [`net::Stream::reset_on_drop`] was asked for.
#[derive(Debug)]
pub struct SimStream {
    local: SocketAddr,
    peer: SocketAddr,
    from_peer: Arc<Pipe>,
    to_peer: Arc<Pipe>,
    timer: Option<Pin<Box<Sleep>>>,
    resets: AtomicBool,
}

impl SimStream {
    /// Both ends of a new connection, the client's first.
    pub(super) fn pair(link: &Arc<Link>, client: SocketAddr, server: SocketAddr) -> (Self, Self) {
        let (there, back) = (Pipe::new(link), Pipe::new(link));
        let end = |local, peer, from_peer: &Arc<Pipe>, to_peer: &Arc<Pipe>| Self {
            local,
            peer,
            from_peer: from_peer.clone(),
            to_peer: to_peer.clone(),
            timer: None,
            resets: AtomicBool::new(false),
        };
        (end(client, server, &back, &there), end(server, client, &there, &back))
    }

    /// This end's address.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The other end's address, as this end sees it.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }
}

impl net::Stream for SimStream {
    fn reset_on_drop(&self) {
        self.resets.store(true, Ordering::Relaxed);
    }
}

impl AsyncRead for SimStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.from_peer.poll_read(cx, &mut this.timer, buf)
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.to_peer.poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.to_peer.finish();
        Poll::Ready(Ok(()))
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        let unread = self.from_peer.abandon();
        if unread || self.resets.load(Ordering::Relaxed) {
            self.to_peer.reset();
            self.from_peer.reset();
        } else {
            self.to_peer.finish();
        }
    }
}
