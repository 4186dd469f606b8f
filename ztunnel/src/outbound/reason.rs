//! Why a connection that a pod opens is refused.

use std::net::SocketAddr;

use model::{GatewayDestination, ServiceKey, Uid};
use telemetry::metrics::ResponseFlags;
use thiserror::Error;

use super::endpoint::NoEndpoint;

/// Why a connection that a pod opens is refused before anything is dialled. Each says what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Reason {
    /// The service does not have the port, as kube-proxy would find too.
    #[error("service {service} has no port {port}: connect to one of its ports, or add this one to it")]
    NoSuchPort {
        /// The service.
        service: ServiceKey,
        /// The port that was dialled.
        port: u16,
    },
    /// The service has no endpoint that can be used.
    #[error("service {service} port {port} has no usable endpoint: {why}")]
    NoEndpoint {
        /// The service.
        service: ServiceKey,
        /// The port that was dialled.
        port: u16,
        /// What the endpoints lack.
        #[source]
        why: NoEndpoint,
    },
    /// The waypoint that traffic must pass is not known. Nothing goes around a waypoint.
    #[error(
        "waypoint {} of {guarded} is not known: create the waypoint, or take the label istio.io/use-waypoint away",
        named(waypoint)
    )]
    UnknownWaypoint {
        /// The waypoint.
        waypoint: GatewayDestination,
        /// What it stands before.
        guarded: String,
    },
    /// The waypoint that traffic must pass cannot be used at the moment. Nothing goes around a waypoint.
    #[error("waypoint {} of {guarded} cannot be used: {why}", named(waypoint))]
    UnusableWaypoint {
        /// The waypoint.
        waypoint: GatewayDestination,
        /// What it stands before.
        guarded: String,
        /// What its endpoints lack.
        #[source]
        why: NoEndpoint,
    },
    /// The destination takes HBONE, and its identity cannot be written, so that it cannot be checked.
    #[error("workload {0} has no valid identity: check its trust domain, namespace and service account")]
    NoIdentity(Uid),
    /// The pod dialled the proxy that stands in it.
    #[error("{0} is the mesh's own port in this pod: connect to the application's port")]
    OwnPort(SocketAddr),
    /// The connection is the proxy's own, come back.
    #[error(
        "{0} is an address of the pod itself that the mesh takes for another's: let no two hosts have it"
    )]
    Loop(SocketAddr),
}

fn named(waypoint: &GatewayDestination) -> String {
    match waypoint {
        GatewayDestination::Hostname(name) => name.to_string(),
        GatewayDestination::Address(addr) => addr.ip.to_string(),
    }
}

impl Reason {
    /// How metrics tell it.
    pub fn response_flags(&self) -> ResponseFlags {
        match self {
            Self::NoIdentity(_)
            | Self::NoEndpoint { why: NoEndpoint::NoIdentity, .. }
            | Self::UnusableWaypoint { why: NoEndpoint::NoIdentity, .. } => ResponseFlags::IdentityError,
            Self::NoSuchPort { .. }
            | Self::NoEndpoint { .. }
            | Self::UnknownWaypoint { .. }
            | Self::UnusableWaypoint { .. }
            | Self::OwnPort(_)
            | Self::Loop(_) => ResponseFlags::Connect,
        }
    }
}
