//! What ends a tunnel connection before its time.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use crate::frames::Flood;

/// Why a connection, or a stream on it, was lost.
#[derive(Clone, Debug)]
pub enum TransportError {
    /// Reading or writing failed. A TLS refusal by the peer arrives here too, as the TLS library's error inside.
    Io(Arc<io::Error>),
    /// The peer closed the connection, or ended the stream, giving an HTTP/2 reason.
    Ended(ErrorCode),
    /// The peer broke HTTP/2 and this side ended the connection or stream.
    Protocol(ErrorCode),
    /// A PING went unanswered.
    Silent(Duration),
    /// The start of HTTP/2 took too long.
    Slow(Duration),
    /// The peer sends more than it may of what carries nothing, and this side ended the connection.
    Flood(Flood),
}

impl From<Flood> for TransportError {
    fn from(flood: Flood) -> Self {
        Self::Flood(flood)
    }
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(_) => f.write_str("the connection failed"),
            Self::Ended(code) => write!(f, "the peer ended it: {code}"),
            Self::Protocol(code) => write!(f, "the peer does not speak HTTP/2 as it must: {code}"),
            Self::Silent(patience) => write!(f, "no answer to a PING for {patience:?}"),
            Self::Slow(limit) => write!(f, "HTTP/2 did not start within {limit:?}"),
            Self::Flood(flood) => flood.fmt(f),
        }
    }
}

// By hand, as the source is what is shared and not the sharing.
impl Error for TransportError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Io(e) => Some(&**e),
            _ => None,
        }
    }
}

/// An HTTP/2 error code (RFC 9113 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ErrorCode(pub u32);

impl From<h2::Reason> for ErrorCode {
    fn from(reason: h2::Reason) -> Self {
        Self(reason.into())
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = h2::Reason::from(self.0);
        write!(f, "{} (error code {})", reason.description(), self.0)
    }
}

impl From<h2::Error> for TransportError {
    fn from(e: h2::Error) -> Self {
        let code = e.reason().unwrap_or(h2::Reason::INTERNAL_ERROR).into();
        let remote = e.is_remote();
        match e.into_io() {
            Some(io) => Self::Io(Arc::new(io)),
            None if remote => Self::Ended(code),
            None => Self::Protocol(code),
        }
    }
}

/// A stream's error in the terms of a socket: a reset stream reads as a reset connection.
pub(crate) fn stream_error(e: h2::Error) -> io::Error {
    if e.is_io() {
        return e.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into());
    }
    io::Error::new(io::ErrorKind::ConnectionReset, TransportError::from(e))
}
