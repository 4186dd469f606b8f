//! A byte stream that remembers what it failed with, and what its peer sends.
//!
//! The HTTP/2 library keeps of an I/O error its kind and its text. The reason why a TLS session failed is worth more: it
//! tells a wrong identity from a cable. So the stream keeps the error itself, for whoever reports it. And it has a
//! [`Meter`] read along: once the peer floods, nothing more is read, and who drives the connection is to end it.

use std::cell::{OnceCell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::frames::{End, Flood, Meter};
use crate::{Settings, TransportError};

/// What was noticed on a stream. Clones are of the same.
#[derive(Clone, Debug)]
pub(crate) struct Notes(Rc<Noticed>);

#[derive(Debug)]
struct Noticed {
    /// What it failed with first.
    first: OnceCell<Arc<io::Error>>,
    meter: RefCell<Meter>,
}

impl Notes {
    fn new(end: End, settings: &Settings) -> Self {
        let meter = Meter::new(end, settings.empty_frames, settings.fruitless, Instant::now());
        Self(Rc::new(Noticed { first: OnceCell::new(), meter: RefCell::new(meter) }))
    }

    /// The library's error, with the stream's own in the place of its shadow; and a flood, whoever found it, by its name.
    pub(crate) fn resolve(&self, e: h2::Error) -> TransportError {
        if let Some(flood) = self.flood() {
            return flood.into();
        }
        match self.0.first.get() {
            Some(first) if e.is_io() => TransportError::Io(Arc::clone(first)),
            _ if is_calm_asked_for(&e) => self.0.meter.borrow().suspect().into(),
            _ => e.into(),
        }
    }

    /// Whether the peer floods. The connection is to end.
    pub(crate) fn flood(&self) -> Option<Flood> {
        self.0.meter.borrow().flood()
    }

    /// This end opened a stream.
    pub(crate) fn opened(&self) {
        self.0.meter.borrow_mut().opened();
    }

    /// A request was shown.
    pub(crate) fn shown(&self) {
        self.0.meter.borrow_mut().shown();
    }

    /// The peer took back a request before it was answered.
    pub(crate) fn withdrew(&self) {
        self.0.meter.borrow_mut().withdrew(Instant::now());
    }

    /// Keeps the error and gives its shadow.
    fn keep(&self, e: io::Error) -> io::Error {
        let shadow = io::Error::new(e.kind(), e.to_string());
        let _ = self.0.first.set(Arc::new(e));
        shadow
    }
}

/// Whether the library itself ends the connection because the peer sends too much.
fn is_calm_asked_for(e: &h2::Error) -> bool {
    e.is_go_away() && !e.is_remote() && e.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM)
}

/// The byte stream.
///
/// A failed write tells what the peer said last: under TLS 1.3 a client may write before the server has looked at its
/// certificate. A server that refuses it sends an alert and closes, and what the client notices first is that it can no
/// longer write. The reason waits to be read.
pub(crate) struct Witness<Io> {
    io: Io,
    notes: Notes,
}

impl<Io> Witness<Io> {
    pub(crate) fn new(io: Io, end: End, settings: &Settings) -> (Self, Notes) {
        let notes = Notes::new(end, settings);
        (Self { io, notes: notes.clone() }, notes)
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Witness<Io> {
    fn written<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let Poll::Ready(Err(failed)) = result else { return result };
        let last_word = self.last_word(cx).unwrap_or(failed);
        Poll::Ready(Err(self.notes.keep(last_word)))
    }

    /// The same, where the result is how much was written.
    fn wrote(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(n)) = &result {
            self.notes.0.meter.borrow_mut().wrote(*n);
        }
        self.written(cx, result)
    }

    /// The error at the end of what can be read now. What stands before it is lost with the connection.
    fn last_word(&mut self, cx: &mut Context<'_>) -> Option<io::Error> {
        let mut bytes = [0; 1024];
        // A peer that sends much is not listened to for long.
        for _ in 0..64 {
            let mut read = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.io).poll_read(cx, &mut read) {
                Poll::Ready(Err(e)) => return Some(e),
                Poll::Ready(Ok(())) if !read.filled().is_empty() => {}
                Poll::Ready(Ok(())) | Poll::Pending => break,
            }
        }
        None
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Witness<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Who drives the connection looks at the notes after each time it was polled, so nobody needs to be woken.
        if this.notes.flood().is_some() {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf)).map_err(|e| this.notes.keep(e))?;
        this.notes.0.meter.borrow_mut().read(&buf.filled()[before..], Instant::now());
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Witness<Io> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.io).poll_write(cx, buf);
        this.wrote(cx, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.wrote(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.io).poll_flush(cx);
        this.written(cx, result)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
