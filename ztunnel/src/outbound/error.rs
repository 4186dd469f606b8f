//! Why an outbound connection failed.

use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hbone::TransportError;
use hbone::client::OpenError;
use identity::{PeerError, TlsFailure};
use model::ServiceKey;
use telemetry::metrics::ResponseFlags;
use thiserror::Error;

use super::inside::InsideError;
use super::reason::Reason;
use super::via::DialError;
use crate::mesh::NotSynced;
use crate::quota::Excess;
use crate::relay::BrokenOff;

/// Why an outbound connection failed.
#[derive(Debug, Error)]
pub enum OutboundError {
    /// Nothing can be decided.
    #[error(transparent)]
    NotSynced(#[from] NotSynced),
    /// The pod has as much of the proxy as it may.
    #[error(transparent)]
    Quota(#[from] Excess),
    /// It must not be made.
    #[error(transparent)]
    Refused(#[from] Reason),
    /// The host names of the service's endpoints lead nowhere.
    #[error("service {service} port {port} has no usable endpoint: {failures}")]
    Lookup {
        /// The service.
        service: ServiceKey,
        /// The port that was dialled.
        port: u16,
        /// Each name, and why it leads nowhere.
        failures: String,
    },
    /// Nobody says where host names lead.
    #[error("{names} cannot be looked up within {limit:?}: check the resolvers of the node")]
    LookupTimeout {
        /// The names.
        names: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The destination cannot be connected to.
    #[error("cannot connect to {to}")]
    Connect {
        /// Where to.
        to: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The destination does not answer.
    #[error("{to} does not answer within {limit:?}")]
    ConnectTimeout {
        /// Where to.
        to: SocketAddr,
        /// How long it was waited for.
        limit: Duration,
    },
    /// There is no tunnel to the destination.
    #[error("no tunnel to {to}")]
    Tunnel {
        /// Where to.
        to: SocketAddr,
        /// Why not.
        #[source]
        source: OpenError<DialError>,
    },
    /// There is no tunnel to the destination within one to the gateway of its network.
    #[error("no tunnel beyond the gateway {gateway}")]
    Inside {
        /// The gateway.
        gateway: SocketAddr,
        /// Why not.
        #[source]
        source: OpenError<InsideError>,
    },
    /// A route without hops, which the plan does not make.
    #[error("there is no way to the destination")]
    NoHops,
    /// It stood, and ended otherwise than by both ends' will.
    #[error(transparent)]
    Broken(#[from] BrokenOff),
}

impl OutboundError {
    /// Whether another endpoint may well take the connection. Nothing of the client's was sent yet.
    pub(super) fn another_may_do(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::ConnectTimeout { .. } => true,
            Self::Tunnel { source, .. } => another_may_answer(source, another_may_dial),
            Self::Inside { source, .. } => another_may_answer(source, |error| match error {
                InsideError::Gateway(error) => another_may_answer(error, another_may_dial),
                InsideError::Identity(_) => false,
                _ => true,
            }),
            _ => false,
        }
    }

    /// Where the tunnel was to go that there is not.
    pub(super) fn tunnel(&self) -> Option<SocketAddr> {
        match self {
            Self::Tunnel { to, .. } => Some(*to),
            Self::Inside { gateway, .. } => Some(*gateway),
            _ => None,
        }
    }

    /// Why the tunnel that is in no other was not opened, where it was not.
    fn opening(&self) -> Option<&OpenError<DialError>> {
        match self {
            Self::Tunnel { source, .. } => Some(source),
            Self::Inside { source: OpenError::Connect(error), .. } => match &**error {
                InsideError::Gateway(source) => Some(source),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether the destination refused for the moment: its application takes no connection, or it is about to end.
    pub(super) fn is_unavailable(&self) -> bool {
        matches!(self, Self::Inside { source: OpenError::Refused { status: 503 }, .. })
            || matches!(self.opening(), Some(OpenError::Refused { status: 503 }))
    }

    /// Whether there was not so much as a refusal.
    pub(super) fn is_silence(&self) -> bool {
        match self {
            Self::ConnectTimeout { .. } => true,
            Self::Connect { source, .. } => is_unreachable(source),
            _ => match self.opening() {
                Some(OpenError::NotYet | OpenError::Silent | OpenError::ConnectTimeout) => true,
                Some(OpenError::Connect(error)) => match &**error {
                    DialError::ConnectTimeout(_) => true,
                    DialError::Connect(error) => is_unreachable(error),
                    _ => false,
                },
                _ => false,
            },
        }
    }

    /// Whether the destination listens for no tunnels, as one that enters the mesh or leaves it does for a moment, or its
    /// proxy died before it answered, and will be there again; or the pod's own address is not known yet.
    pub(super) fn is_transitional(&self) -> bool {
        let Some(source) = self.opening() else { return false };
        match source {
            OpenError::Connect(error) => match &**error {
                DialError::Connect(e) => e.kind() == io::ErrorKind::ConnectionRefused || is_cut_off(e),
                DialError::Tls(e) => is_cut_off(e),
                // The control plane may tell of the pod's new address in a moment.
                DialError::Unbound(_) => true,
                _ => false,
            },
            OpenError::Handshake(TransportError::Io(e)) | OpenError::Lost(TransportError::Io(e)) => {
                is_cut_off(e)
            }
            _ => false,
        }
    }

    /// How metrics tell it.
    pub fn response_flags(&self) -> ResponseFlags {
        match self {
            Self::Refused(reason) => reason.response_flags(),
            Self::NotSynced(_)
            | Self::Lookup { .. }
            | Self::LookupTimeout { .. }
            | Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::NoHops => ResponseFlags::Connect,
            Self::Tunnel { source, .. } => tunnel_flags(source, dial_flags),
            Self::Inside { source, .. } => tunnel_flags(source, |error, tls| match error {
                InsideError::Gateway(error) => tunnel_flags(error, dial_flags),
                InsideError::Identity(_) | InsideError::Nobody => ResponseFlags::IdentityError,
                InsideError::Disbelieved(why) => disbelief_flags(why),
                InsideError::Tls(_) | InsideError::TlsTimeout(_) => tls.unwrap_or(ResponseFlags::TlsFailure),
            }),
            Self::Quota(_) => ResponseFlags::Quota,
            Self::Broken(why) => why.response_flags(),
        }
    }
}

fn is_unreachable(error: &io::Error) -> bool {
    use io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
    matches!(error.kind(), HostUnreachable | NetworkUnreachable | TimedOut)
}

/// Whether the peer went away in the middle of it. What it refuses, it refuses by words.
fn is_cut_off(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof
    )
}

/// Whether another endpoint may take what one did not.
fn another_may_answer<E>(error: &OpenError<E>, may: impl FnOnce(&E) -> bool) -> bool {
    match error {
        // Its answer is about who asks, not about the endpoint.
        OpenError::Refused { status } => *status != 401,
        OpenError::Connect(error) => may(error),
        OpenError::Authority | OpenError::Closed => false,
        _ => true,
    }
}

/// Not where it is ours that is lacking.
fn another_may_dial(error: &DialError) -> bool {
    !matches!(error, DialError::Identity(_) | DialError::Unbound(_) | DialError::Quota(_))
}

fn dial_flags(error: &DialError, tls: Option<ResponseFlags>) -> ResponseFlags {
    match error {
        DialError::Quota(_) => ResponseFlags::Quota,
        DialError::Identity(_) | DialError::Unbound(_) | DialError::Nobody => ResponseFlags::IdentityError,
        DialError::Connect(_) | DialError::ConnectTimeout(_) => ResponseFlags::Connect,
        DialError::Disbelieved(why) => disbelief_flags(why),
        DialError::Tls(_) | DialError::TlsTimeout(_) => tls.unwrap_or(ResponseFlags::TlsFailure),
    }
}

fn disbelief_flags(why: &PeerError) -> ResponseFlags {
    match why {
        PeerError::Revoked => ResponseFlags::CertRevoked,
        _ => ResponseFlags::IdentityError,
    }
}

fn tunnel_flags<E: std::error::Error + 'static>(
    error: &OpenError<E>,
    reaching: impl FnOnce(&E, Option<ResponseFlags>) -> ResponseFlags,
) -> ResponseFlags {
    let tls = error.source().and_then(by_tls);
    match error {
        OpenError::Refused { status: 401 } => ResponseFlags::Deny,
        OpenError::Connect(error) => reaching(error, tls),
        OpenError::Handshake(_) => tls.unwrap_or(ResponseFlags::H2HandshakeFailure),
        _ => tls.unwrap_or(ResponseFlags::Connect),
    }
}

fn by_tls(error: &(dyn std::error::Error + 'static)) -> Option<ResponseFlags> {
    let failure = TlsFailure::find(error)?;
    Some(match failure {
        _ if failure.is_revocation() => ResponseFlags::CertRevoked,
        _ if failure.is_identity() => ResponseFlags::IdentityError,
        _ => ResponseFlags::TlsFailure,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn lost(error: io::Error) -> OutboundError {
        let to = ([10, 0, 0, 1], 15008).into();
        OutboundError::Tunnel { to, source: OpenError::Lost(TransportError::Io(Arc::new(error))) }
    }

    #[test]
    fn a_tunnel_whose_peer_dies_before_its_answer_is_tried_again() {
        for kind in [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe, io::ErrorKind::UnexpectedEof]
        {
            assert!(lost(kind.into()).is_transitional(), "{kind}");
        }
    }

    #[test]
    fn what_a_peer_has_answered_is_not_tried_again() {
        // A refusal of this side's certificate.
        assert!(!lost(io::Error::new(io::ErrorKind::InvalidData, "an alert")).is_transitional());
        for status in [400, 401, 503] {
            let to = ([10, 0, 0, 1], 15008).into();
            let refused = OutboundError::Tunnel { to, source: OpenError::Refused { status } };
            assert!(!refused.is_transitional(), "{status}");
        }
    }
}
