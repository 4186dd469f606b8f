//! Whether a connection to a pod of this node may reach the application.
//!
//! Pure functions of one snapshot, asked when a connection comes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use authz::{Connection, Effect, Judgement};
use hbone::Authority;
use index::World;
use model::{NamespacedName, NetworkAddr, NetworkMode, SpiffeId, Workload};
use telemetry::metrics::ResponseFlags;
use thiserror::Error;

use crate::local::LocalPod;
use crate::outbound::{Guarded, is_made_of};
use crate::ports;

/// What is known about a connection that comes to a pod.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The identity that TLS proved; nothing for plaintext.
    pub peer: Option<&'a SpiffeId>,
    /// The address that the connection comes from.
    pub source: IpAddr,
    /// The pod.
    pub pod: &'a LocalPod,
    /// The pod's address and the application's port.
    pub destination: SocketAddr,
}

/// Whether a connection may reach the application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may.
    Allow {
        /// The rule that allows it, or that nothing restricts it.
        judgement: Judgement,
        /// Where policies in trial would deny it, how.
        dry_run: Option<Judgement>,
    },
    /// It may not.
    Deny(Denial),
}

/// Why a connection may not reach the application.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Denial {
    /// Policy says so.
    #[error("{judgement}")]
    Policy {
        /// How it was judged.
        judgement: Judgement,
        /// Where policies in trial would allow it, how.
        dry_run: Option<Judgement>,
    },
    /// The control plane has not told yet which policies select the pod. Nobody is let in by guess.
    #[error("the policies of pod {0} are not known yet: the control plane has not told of the pod")]
    UnknownPod(NamespacedName),
    /// The port is the proxy's own.
    #[error("port {0} is the mesh's own in this pod: connect to the application's port")]
    OwnPort(u16),
}

impl Denial {
    /// Whether the next snapshot may well say otherwise. A new connection should wait a bounded moment for it before it
    /// is refused, and a live one should not be ended before that moment has passed.
    pub fn is_provisional(&self) -> bool {
        match self {
            Self::Policy { judgement, .. } => judgement.is_provisional(),
            Self::UnknownPod(_) => true,
            Self::OwnPort(_) => false,
        }
    }

    /// How metrics tell it.
    pub fn response_flags(&self) -> ResponseFlags {
        match self {
            Self::Policy { .. } | Self::UnknownPod(_) => ResponseFlags::Deny,
            Self::OwnPort(_) => ResponseFlags::Connect,
        }
    }
}

/// Decides whether a connection may reach the application. PERMISSIVE and STRICT need no mention: STRICT comes as a
/// policy that denies those without identity.
pub fn admit(world: &World, facts: &Facts<'_>) -> Admission {
    let port = facts.destination.port();
    if ports::is_own(port) {
        return Admission::Deny(Denial::OwnPort(port));
    }
    let Some(workload) = facts.pod.workload(world) else {
        return Admission::Deny(Denial::UnknownPod(facts.pod.name.clone()));
    };
    let policies = world.policies_for(workload);
    if policies.is_empty() {
        return Admission::Allow { judgement: Judgement::Unrestricted, dry_run: None };
    }
    let verdict = policies.decide(&Connection::new(facts.peer, facts.source, facts.destination));
    let dry_run = verdict.would_become().cloned();
    let judgement = verdict.judgement;
    match judgement.effect() {
        Effect::Allow => Admission::Allow { judgement, dry_run },
        Effect::Deny => Admission::Deny(Denial::Policy { judgement, dry_run }),
    }
}

/// Why the target of a CONNECT is none of the pod's. All are the peer's mistake: status 400.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WrongTarget {
    /// A name that is none of the pod's services', or a port that the service does not have.
    #[error("CONNECT to {0}: the pod is not behind such a service and port")]
    Name(Authority),
    /// Another address than the one that the tunnel came to.
    #[error("CONNECT to {asked}: the tunnel came to {came_to}")]
    Elsewhere {
        /// What was asked for.
        asked: SocketAddr,
        /// The address that the tunnel was made to.
        came_to: IpAddr,
    },
    /// Port 0, which nothing listens on.
    #[error("CONNECT to {0}: there is no port 0")]
    NoPort(SocketAddr),
}

/// The application's address that a CONNECT asks for, if it is the pod that the tunnel came to. Each tunnel is made to the
/// address that it is for, so that a peer's right to reach one pod is no way into another.
pub fn target(authority: &Authority, tunnel_came_to: IpAddr) -> Result<SocketAddr, WrongTarget> {
    let asked = authority.socket_addr().ok_or_else(|| WrongTarget::Name(authority.clone()))?;
    let came_to = tunnel_came_to.to_canonical();
    if asked.ip().to_canonical() != came_to {
        return Err(WrongTarget::Elsewhere { asked, came_to });
    }
    if asked.port() == 0 {
        return Err(WrongTarget::NoPort(asked));
    }
    Ok(SocketAddr::new(came_to, asked.port()))
}

/// Whether what a peer says about the client behind it (`forwarded`, `baggage`) is to be believed: only from a waypoint
/// that is bound to the pod, or to a service that the pod is an endpoint of. From anyone else it is the peer's claim about
/// itself, and what the mesh knows of the peer's address and identity stands above it.
pub fn speaks_for_others(world: &World, pod: &LocalPod, peer: &SpiffeId) -> bool {
    let Some(workload) = pod.workload(world) else { return false };
    let viewer = pod.identity.namespace();
    let services = workload.services.keys().filter_map(|key| world.service(key));
    let guarded = services.map(|s| Guarded::Service(s)).chain([Guarded::Workload(workload)]);
    guarded.flat_map(Guarded::gateways).any(|gateway| is_made_of(world, viewer, gateway, peer))
}

/// The workload that a connection comes from, as far as that is certain.
///
/// With an identity: the workload at the address, if that is the identity it has. Without: the workload at the address,
/// unless that is the node's own, which any pod on the node's network shares.
pub fn source<'a>(
    world: &'a World,
    pod: &LocalPod,
    source: IpAddr,
    peer: Option<&SpiffeId>,
) -> Option<&'a Arc<Workload>> {
    let addr = NetworkAddr::new(pod.network.clone(), source);
    match peer {
        Some(peer) => {
            world.workloads_at(&addr).find(|w| w.identity().is_some_and(|id| id.is_account_of(peer)))
        }
        None => world.workload_at(&addr).filter(|w| w.network_mode == NetworkMode::Standard),
    }
}

#[cfg(test)]
mod tests;
