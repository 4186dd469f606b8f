//! Copying bytes both ways between two streams.

mod buffer;

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use self::buffer::Buffer;

/// How many bytes a direction passes before others get their turn.
const TURN: usize = 256 * 1024;

/// Hears of bytes as they pass.
pub trait Meter {
    /// Bytes of the client were written to the server.
    fn count_received(&self, bytes: u64);

    /// Bytes of the server were written to the client.
    fn count_sent(&self, bytes: u64);

    /// One direction has ended, and its end was passed on.
    fn half_closed(&self) {}

    /// Whether few bytes are to be read at a time, because many wait for their readers already.
    fn is_scarce(&self) -> bool {
        false
    }

    /// A buffer of so many bytes waits for a slow reader, until [`Self::let_go`] or until the meter is dropped.
    fn hold(&self, _bytes: usize) {}

    /// It waits no more.
    fn let_go(&self, _bytes: usize) {}
}

impl<M: Meter> Meter for &M {
    fn count_received(&self, bytes: u64) {
        (**self).count_received(bytes);
    }

    fn count_sent(&self, bytes: u64) {
        (**self).count_sent(bytes);
    }

    fn half_closed(&self) {
        (**self).half_closed();
    }

    fn is_scarce(&self) -> bool {
        (**self).is_scarce()
    }

    fn hold(&self, bytes: usize) {
        (**self).hold(bytes);
    }

    fn let_go(&self, bytes: usize) {
        (**self).let_go(bytes);
    }
}

/// The simplest meter: two sums. Readable while the relay runs, and after it was dropped.
#[derive(Debug, Default)]
pub struct Traffic {
    received: AtomicU64,
    sent: AtomicU64,
}

impl Traffic {
    /// Bytes that the client sent and the server was given.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Bytes that the server sent and the client was given.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Meter for Traffic {
    fn count_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    fn count_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// One of the two ends of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who made the connection.
    Client,
    /// Whom it was made to.
    Server,
}

/// Which end failed, and how.
#[derive(Debug, Error)]
#[error("the {} end failed while {}", match side { Side::Client => "client's", Side::Server => "server's" }, if *reading { "reading" } else { "writing" })]
pub struct RelayError {
    /// Which end.
    pub side: Side,
    /// Whether it was read from, else written to.
    pub reading: bool,
    /// How.
    #[source]
    pub source: io::Error,
}

/// Relays until both directions have ended, or one end fails.
///
/// The end of one direction is passed on (half-close) and leaves the other open. A direction holds a buffer only while
/// it has bytes in hand: an idle relay holds none. After some bytes the task lets others go first, however fast both
/// ends are. On failure the streams are as they are; who wants the other end to
/// notice calls [`Stream::reset_on_drop`](crate::Stream::reset_on_drop). Dropping the future stops at a byte that
/// `meter` was told of.
pub async fn relay<C, S>(client: &mut C, server: &mut S, meter: impl Meter) -> Result<(), RelayError>
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut upward = Flow::new(Side::Client);
    let mut downward = Flow::new(Side::Server);
    poll_fn(|cx| {
        let up = upward.poll(cx, Pin::new(client), Pin::new(server), &meter)?;
        let down = downward.poll(cx, Pin::new(server), Pin::new(client), &meter)?;
        match (up.is_ready(), down.is_ready()) {
            (true, true) => return Poll::Ready(Ok(())),
            // A client that has said its last is not read any more, so that only a flush tells that it has gone: it could
            // leave servers that stay silent behind it without end. A server that has gone is left to the client's next
            // byte, because what it said last may still be on its way.
            (true, false) => still_there(cx, Pin::new(client), &downward)?,
            (false, _) => {}
        }
        Poll::Pending
    })
    .await
}

/// Fails where the end that a direction writes to is known to have gone.
fn still_there<W: AsyncWrite>(cx: &mut Context<'_>, to: Pin<&mut W>, into: &Flow) -> Result<(), RelayError> {
    match to.poll_flush(cx) {
        Poll::Ready(Err(error)) => Err(into.write_failed(error)),
        Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
    }
}

/// One direction of a relay.
struct Flow {
    reads_from: Side,
    buffer: Option<Buffer>,
    start: usize,
    end: usize,
    unflushed: bool,
    /// Bytes of the buffer that the meter was told of as waiting.
    held: usize,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    Open,
    Closing,
    Closed,
}

impl Flow {
    fn new(reads_from: Side) -> Self {
        Self { reads_from, buffer: None, start: 0, end: 0, unflushed: false, held: 0, state: State::Open }
    }

    fn poll<R: AsyncRead, W: AsyncWrite>(
        &mut self,
        cx: &mut Context<'_>,
        mut from: Pin<&mut R>,
        mut to: Pin<&mut W>,
        meter: &impl Meter,
    ) -> Poll<Result<(), RelayError>> {
        let mut passed = 0;
        loop {
            match self.state {
                State::Open if self.start < self.end => {
                    let before = self.start;
                    ready!(self.poll_write(cx, to.as_mut(), meter))?;
                    passed += self.start.saturating_sub(before);
                }
                State::Open if passed >= TURN => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                State::Open => match self.poll_read(cx, from.as_mut(), meter)? {
                    Poll::Ready(()) => {}
                    Poll::Pending => {
                        if self.unflushed {
                            ready!(to.as_mut().poll_flush(cx)).map_err(|e| self.write_failed(e))?;
                            self.unflushed = false;
                        }
                        return Poll::Pending;
                    }
                },
                State::Closing => {
                    ready!(to.as_mut().poll_shutdown(cx)).map_err(|e| self.write_failed(e))?;
                    self.state = State::Closed;
                    meter.half_closed();
                }
                State::Closed => return Poll::Ready(Ok(())),
            }
        }
    }

    fn poll_read<R: AsyncRead>(
        &mut self,
        cx: &mut Context<'_>,
        from: Pin<&mut R>,
        meter: &impl Meter,
    ) -> Poll<Result<(), RelayError>> {
        let kept = self.buffer.take();
        let mut buffer = match kept {
            _ if meter.is_scarce() => Buffer::small(),
            Some(buffer) if !buffer.is_small() => buffer,
            _ => Buffer::borrow(),
        };
        let mut space = ReadBuf::new(buffer.as_mut_slice());
        // Pending drops the buffer, which gives it back.
        ready!(from.poll_read(cx, &mut space)).map_err(|source| RelayError {
            side: self.reads_from,
            reading: true,
            source,
        })?;
        (self.start, self.end) = (0, space.filled().len());
        if self.end == 0 {
            self.state = State::Closing;
        } else {
            self.buffer = Some(buffer);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write<W: AsyncWrite>(
        &mut self,
        cx: &mut Context<'_>,
        to: Pin<&mut W>,
        meter: &impl Meter,
    ) -> Poll<Result<(), RelayError>> {
        let Some(buffer) = &self.buffer else {
            self.end = self.start;
            return Poll::Ready(Ok(()));
        };
        let size = buffer.as_slice().len();
        let Poll::Ready(written) = to.poll_write(cx, &buffer.as_slice()[self.start..self.end]) else {
            if self.held == 0 {
                self.held = size;
                meter.hold(size);
            }
            return Poll::Pending;
        };
        if self.held > 0 {
            meter.let_go(std::mem::take(&mut self.held));
        }
        let written = written.map_err(|e| self.write_failed(e))?;
        if written == 0 {
            return Poll::Ready(Err(self.write_failed(io::ErrorKind::WriteZero.into())));
        }
        self.start += written;
        self.unflushed = true;
        match self.reads_from {
            Side::Client => meter.count_received(written as u64),
            Side::Server => meter.count_sent(written as u64),
        }
        Poll::Ready(Ok(()))
    }

    fn write_failed(&self, source: io::Error) -> RelayError {
        let side = match self.reads_from {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        };
        RelayError { side, reading: false, source }
    }
}

#[cfg(test)]
mod tests;
