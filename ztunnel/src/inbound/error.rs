//! Why an inbound connection failed.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hbone::TransportError;
use hbone::server::Refusal;
use identity::{FetchError, TlsFailure};
use telemetry::metrics::ResponseFlags;
use thiserror::Error;

use super::admit::{Denial, WrongTarget};
use crate::binding::Unbound;
use crate::connections::Ending;
use crate::mesh::NotSynced;
use crate::quota::Excess;
use crate::relay::BrokenOff;

/// Why an inbound connection failed.
#[derive(Debug, Error)]
pub enum InboundError {
    /// The pod has as much of the proxy as it may.
    #[error(transparent)]
    Quota(#[from] Excess),
    /// Nothing can be decided.
    #[error(transparent)]
    NotSynced(#[from] NotSynced),
    /// It may not reach the application.
    #[error(transparent)]
    Denied(#[from] Denial),
    /// The CONNECT is for somebody else.
    #[error(transparent)]
    Target(#[from] WrongTarget),
    /// The pod is about to end, and the client has others to go to.
    #[error("the pod is about to end, and the client has other endpoints")]
    Ending,
    /// The application takes no connection.
    #[error("cannot connect to the application at {addr}")]
    Application {
        /// Where.
        addr: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The application does not answer.
    #[error("the application at {addr} does not answer within {limit:?}")]
    ApplicationTimeout {
        /// Where.
        addr: SocketAddr,
        /// How long it was waited for.
        limit: Duration,
    },
    /// What the application is to be told does not fit into a PROXY header.
    #[error(transparent)]
    Header(#[from] net::proxy_v2::TooLong),
    /// The pod has no certificate. Nobody is let in without.
    #[error("the pod has no certificate")]
    Identity(#[source] FetchError),
    /// The pod is not where it is said to be.
    #[error(transparent)]
    Unbound(#[from] Unbound),
    /// TLS fails: among others where the client proves no identity of the mesh.
    #[error("the TLS handshake fails")]
    Tls(#[source] io::Error),
    /// The client does not finish its handshake.
    #[error("the TLS handshake takes longer than {0:?}")]
    TlsTimeout(Duration),
    /// The session has no identity, which the verifier does not let happen.
    #[error("the client proved no identity")]
    Nobody,
    /// After TLS, no HTTP/2.
    #[error("HTTP/2 does not start")]
    Http2(#[source] TransportError),
    /// The client gave up before it was answered.
    #[error("the client gave up before it was answered")]
    Withdrawn,
    /// The client was gone when it was to be answered.
    #[error("the client was gone when it was to be answered")]
    Unanswered(#[source] TransportError),
    /// It is not to be any more, before it stood.
    #[error(transparent)]
    Ended(#[from] Ending),
    /// It stood, and ended otherwise than by both ends' will.
    #[error(transparent)]
    Broken(#[from] BrokenOff),
}

impl InboundError {
    /// How metrics tell it.
    pub fn response_flags(&self) -> ResponseFlags {
        match self {
            Self::Quota(_) => ResponseFlags::Quota,
            Self::Denied(denial) => denial.response_flags(),
            Self::NotSynced(_)
            | Self::Target(_)
            | Self::Ending
            | Self::Application { .. }
            | Self::ApplicationTimeout { .. }
            | Self::Header(_) => ResponseFlags::Connect,
            Self::Identity(_) | Self::Nobody | Self::Unbound(_) => ResponseFlags::IdentityError,
            Self::Tls(error) => match TlsFailure::find(error) {
                Some(failure) if failure.is_revocation() => ResponseFlags::CertRevoked,
                Some(failure) if failure.is_identity() => ResponseFlags::IdentityError,
                _ => ResponseFlags::TlsFailure,
            },
            Self::TlsTimeout(_) => ResponseFlags::TlsFailure,
            Self::Http2(_) => ResponseFlags::H2HandshakeFailure,
            Self::Ended(why) => why.response_flags(),
            Self::Broken(why) => why.response_flags(),
            Self::Withdrawn | Self::Unanswered(_) => ResponseFlags::None,
        }
    }

    /// How the client of a tunnel is told. 503 makes it try another endpoint.
    pub(super) fn refusal(&self) -> Refusal {
        match self {
            Self::Denied(Denial::Policy { .. })
            | Self::Ended(Ending::Denied(Denial::Policy { .. }) | Ending::Disbelieved(_)) => Refusal::Denied,
            Self::Target(_) | Self::Denied(Denial::OwnPort(_)) => Refusal::BadRequest,
            _ => Refusal::Unavailable,
        }
    }
}
