//! One tunnelled connection.

use std::future::poll_fn;
use std::io;
use std::marker::PhantomData;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::TransportError;
use crate::client::Slot;
use crate::error::stream_error;

/// The most that one write asks of the window, so that a large write leaves room for the connection's other streams.
const WRITE_MAX: usize = 64 << 10;

/// A TCP connection inside a tunnel connection, at either end.
///
/// Reads and writes like a socket. `poll_shutdown` closes the sending half and leaves the receiving half open; the end of
/// the peer's half reads as the end of the stream. A stream that the peer reset, or whose connection was lost, fails
/// with [`io::ErrorKind::ConnectionReset`] (or what the connection failed with). Dropping a tunnel whose halves are not
/// both closed resets it (CANCEL), which the peer's application sees as a reset connection.
///
/// Nothing is buffered without bound: what is read is granted to the peer again only then, and a write takes no more
/// than the peer's window and [`Settings::send_buffer`](crate::Settings::send_buffer) hold.
pub struct Tunnel {
    send: SendStream<Bytes>,
    recv: RecvStream,
    /// What was received and not yet handed out by `poll_read`.
    chunk: Bytes,
    end_sent: bool,
    /// A client's place on its connection, given back on drop.
    _slot: Option<Slot>,
    _on_one_thread: PhantomData<Rc<()>>,
}

impl Tunnel {
    pub(crate) fn new(send: SendStream<Bytes>, recv: RecvStream, slot: Option<Slot>) -> Self {
        Self { send, recv, chunk: Bytes::new(), end_sent: false, _slot: slot, _on_one_thread: PhantomData }
    }

    /// The next bytes as they came, without a copy; nothing at the end of the peer's half. Never an empty chunk.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        if !self.chunk.is_empty() {
            let chunk = std::mem::take(&mut self.chunk);
            self.grant(chunk.len());
            return Poll::Ready(Ok(Some(chunk)));
        }
        match ready!(self.poll_receive(cx))? {
            Some(chunk) => {
                self.grant(chunk.len());
                Poll::Ready(Ok(Some(chunk)))
            }
            None => Poll::Ready(Ok(None)),
        }
    }

    /// Like [`Self::poll_chunk`]; cancel-safe.
    pub async fn chunk(&mut self) -> io::Result<Option<Bytes>> {
        poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// Sends bytes off the front of `data` without a copy, as many as the window takes; ready once at least one went,
    /// or `data` is empty.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<usize>> {
        let room = ready!(self.poll_room(cx, data.len()))?;
        let part = data.split_to(room.min(data.len()));
        let n = part.len();
        if n > 0 {
            self.send.send_data(part, false).map_err(broken_pipe)?;
        }
        Poll::Ready(Ok(n))
    }

    /// Ends the tunnel at once, telling the peer that the connection behind it broke (CONNECT_ERROR, RFC 9113 8.5), as a
    /// reset from the application should be told.
    pub fn reset(mut self) {
        self.send.send_reset(Reason::CONNECT_ERROR);
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        loop {
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(chunk)) if chunk.is_empty() => {}
                Some(Ok(chunk)) => return Poll::Ready(Ok(Some(chunk))),
                Some(Err(e)) => return Poll::Ready(Err(stream_error(e))),
                None => return Poll::Ready(Ok(None)),
            }
        }
    }

    /// Lets the peer send as much again. It can only fail on a stream that is gone, whose next read will tell.
    fn grant(&mut self, n: usize) {
        let _ = self.recv.flow_control().release_capacity(n);
    }

    /// How much may be sent now, of `wanted`; 0 only where nothing is wanted.
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        if self.end_sent {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        let wanted = wanted.min(WRITE_MAX);
        self.send.reserve_capacity(wanted);
        loop {
            let room = self.send.capacity();
            if room > 0 {
                return Poll::Ready(Ok(room.min(wanted)));
            }
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(e)) => return Poll::Ready(Err(stream_error(e))),
                // The sending half is gone without our closing it: reset, or the connection is lost.
                None => return Poll::Ready(Err(self.lost(cx))),
            }
        }
    }

    fn lost(&mut self, cx: &mut Context<'_>) -> io::Error {
        match self.send.poll_reset(cx) {
            Poll::Ready(Ok(Reason::NO_ERROR)) => io::ErrorKind::BrokenPipe.into(),
            Poll::Ready(Ok(reason)) => broken_off(reason),
            Poll::Ready(Err(e)) => stream_error(e),
            Poll::Pending => io::ErrorKind::BrokenPipe.into(),
        }
    }
}

fn broken_off(reason: Reason) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, TransportError::Ended(reason.into()))
}

fn broken_pipe(e: h2::Error) -> io::Error {
    if e.is_io() { stream_error(e) } else { io::ErrorKind::BrokenPipe.into() }
}

impl AsyncRead for Tunnel {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if this.chunk.is_empty() {
            match ready!(this.poll_receive(cx))? {
                Some(chunk) => this.chunk = chunk,
                None => return Poll::Ready(Ok(())),
            }
        }
        let n = this.chunk.len().min(buf.remaining());
        buf.put_slice(&this.chunk[..n]);
        this.chunk.advance(n);
        this.grant(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let n = ready!(this.poll_room(cx, buf.len()))?;
        if n > 0 {
            this.send.send_data(Bytes::copy_from_slice(&buf[..n]), false).map_err(broken_pipe)?;
        }
        Poll::Ready(Ok(n))
    }

    /// What was written is on its way already: the connection's task sends it. Fails where the peer has broken the tunnel
    /// off, and wakes when that happens later: once the peer's half has ended, nothing else tells it.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match self.get_mut().send.poll_reset(cx) {
            // A peer that resets without an error wants no more of our half; what it has sent stands.
            Poll::Pending | Poll::Ready(Ok(Reason::NO_ERROR)) => Ok(()),
            Poll::Ready(Ok(reason)) => Err(broken_off(reason)),
            Poll::Ready(Err(e)) => Err(stream_error(e)),
        })
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.end_sent {
            this.end_sent = true;
            this.send.send_data(Bytes::new(), true).map_err(broken_pipe)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel").field("stream", &self.send.stream_id().as_u32()).finish_non_exhaustive()
    }
}
