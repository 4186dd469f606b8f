//! A byte stream that remembers what it failed with.
//!
//! The HTTP/2 library keeps of an I/O error its kind and its text. The reason why a TLS session failed is worth more: it
//! tells a wrong identity from a cable. So the stream keeps the error itself, for whoever reports it.

use std::cell::OnceCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::TransportError;

/// What a stream failed with first.
#[derive(Clone, Debug, Default)]
pub(crate) struct FirstError(Rc<OnceCell<Arc<io::Error>>>);

impl FirstError {
    /// The library's error, with the stream's own in the place of its shadow.
    pub(crate) fn resolve(&self, e: h2::Error) -> TransportError {
        match self.0.get() {
            Some(first) if e.is_io() => TransportError::Io(Arc::clone(first)),
            _ => e.into(),
        }
    }

    /// Keeps the error and gives its shadow.
    fn keep(&self, e: io::Error) -> io::Error {
        let shadow = io::Error::new(e.kind(), e.to_string());
        let _ = self.0.set(Arc::new(e));
        shadow
    }
}

/// The byte stream.
///
/// A failed write tells what the peer said last: under TLS 1.3 a client may write before the server has looked at its
/// certificate. A server that refuses it sends an alert and closes, and what the client notices first is that it can no
/// longer write. The reason waits to be read.
pub(crate) struct Witness<Io> {
    io: Io,
    first: FirstError,
}

impl<Io> Witness<Io> {
    pub(crate) fn new(io: Io) -> (Self, FirstError) {
        let first = FirstError::default();
        (Self { io, first: first.clone() }, first)
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Witness<Io> {
    fn written<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let Poll::Ready(Err(failed)) = result else { return result };
        let last_word = self.last_word(cx).unwrap_or(failed);
        Poll::Ready(Err(self.first.keep(last_word)))
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
        Pin::new(&mut this.io).poll_read(cx, buf).map_err(|e| this.first.keep(e))
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Witness<Io> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.io).poll_write(cx, buf);
        this.written(cx, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.written(cx, result)
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
