//! The waypoint that stands before a service or a workload.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use index::{World, target_port};
use model::{GatewayAddress, GatewayDestination, NetworkAddr, Service, SpiffeId, Workload};
use rand::Rng;

use super::endpoint::{Client, Endpoint, NoEndpoint, choose_by_address};
use super::reason::Reason;
use crate::local::LocalPod;

/// What a waypoint stands before.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Guarded<'a> {
    /// Traffic to the service's virtual addresses.
    Service(&'a Service),
    /// Traffic to the workload's own addresses.
    Workload(&'a Workload),
}

impl<'a> Guarded<'a> {
    /// All waypoints that may stand before it. Several share a service's traffic by weight.
    pub(crate) fn gateways(self) -> impl Iterator<Item = &'a GatewayAddress> {
        let (one, several) = match self {
            Self::Service(service) => (&service.waypoint, &service.weighted_waypoints[..]),
            Self::Workload(workload) => (&workload.waypoint, &[][..]),
        };
        several.iter().map(|w| &w.destination).chain(one)
    }

    /// The waypoints for one connection, in the order in which to take them: several as drawn by weight, or the only one. One
    /// without weight takes nothing.
    fn drawn(self, rng: &mut impl Rng) -> Vec<&'a GatewayAddress> {
        let service = match self {
            Self::Service(service) => service,
            Self::Workload(workload) => return workload.waypoint.iter().collect(),
        };
        let weighty = service.weighted_waypoints.iter().filter(|w| w.weight > 0);
        // An exponential race: who arrives first is drawn by weight, and so is who comes second of the rest.
        let mut drawn: Vec<_> = weighty
            .map(|w| (-(1.0 - rng.random::<f64>()).ln() / f64::from(w.weight), &w.destination))
            .collect();
        if drawn.is_empty() {
            let first = service.weighted_waypoints.first().map(|w| &w.destination);
            return service.waypoint.as_ref().or(first).into_iter().collect();
        }
        drawn.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        drawn.into_iter().map(|(_, gateway)| gateway).collect()
    }
}

impl fmt::Display for Guarded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(service) => write!(f, "service {}", service.key()),
            Self::Workload(workload) => write!(f, "workload {}/{}", workload.namespace, workload.name),
        }
    }
}

/// A waypoint that is known, and that the client is not itself.
#[derive(Debug)]
pub(crate) struct Waypoint<'a> {
    gateway: &'a GatewayAddress,
    guarded: Guarded<'a>,
    at: At<'a>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum At<'a> {
    Service(&'a Arc<Service>),
    Workload(&'a Arc<Workload>),
}

/// Whether an identity is that of a waypoint: of any of the workloads that it is made of, ready or not.
pub(crate) fn is_made_of(world: &World, viewer: &str, gateway: &GatewayAddress, identity: &SpiffeId) -> bool {
    let is = |w: &Arc<Workload>| w.identity().as_ref() == Some(identity);
    match locate(world, viewer, gateway) {
        Some(At::Service(service)) => world.endpoints(&service.key()).iter().any(is),
        Some(At::Workload(workload)) => is(workload),
        None => false,
    }
}

/// What stands behind a gateway's address or name.
pub(super) fn locate<'a>(world: &'a World, viewer: &str, gateway: &GatewayAddress) -> Option<At<'a>> {
    match &gateway.destination {
        GatewayDestination::Hostname(key) => world.service(key).map(At::Service),
        GatewayDestination::Address(addr) => match (world.pod_at(addr), world.service_at(addr, viewer)) {
            (Some(pod), _) => Some(At::Workload(pod)),
            (None, Some(service)) => Some(At::Service(service)),
            (None, None) => world.workload_at(addr).map(At::Workload),
        },
    }
}

impl<'a> Waypoint<'a> {
    /// Finds the waypoints for one connection, of which the first that can be used is to be passed. None where there is none,
    /// or where the client is a waypoint of the same destination: a waypoint does not go through itself. An error for one
    /// that is not known.
    pub(crate) fn before(
        world: &'a World,
        pod: &LocalPod,
        guarded: Guarded<'a>,
        rng: &mut impl Rng,
    ) -> Vec<Result<Self, Reason>> {
        let viewer = pod.identity.namespace();
        if guarded.gateways().any(|g| is_made_of(world, viewer, g, &pod.identity)) {
            return Vec::new();
        }
        let find = |gateway: &'a GatewayAddress| match locate(world, viewer, gateway) {
            Some(at) => Ok(Self { gateway, guarded, at }),
            None => Err(Reason::UnknownWaypoint {
                waypoint: gateway.destination.clone(),
                guarded: guarded.to_string(),
            }),
        };
        guarded.drawn(rng).into_iter().map(find).collect()
    }

    /// The waypoint's own service, where it has one.
    pub(crate) fn service(&self) -> Option<&Service> {
        match self.at {
            At::Service(service) => Some(service),
            At::Workload(_) => None,
        }
    }

    /// The waypoint's workloads to try, best first, each with the address that takes HBONE.
    pub(crate) fn endpoints(
        &self,
        world: &World,
        client: &Client<'_>,
        rng: &mut impl Rng,
    ) -> Result<Vec<Endpoint>, Reason> {
        let port = self.gateway.hbone_port;
        match self.at {
            At::Service(service) => {
                // A waypoint's service need not list the port that takes HBONE.
                let port_on = |w: &Workload| match service.port(port) {
                    Some(_) => target_port(service, w, port),
                    None => Some(port),
                };
                // A waypoint is passed in the client's own network.
                let client = Client { beyond: false, ..*client };
                choose_by_address(world, service, &client, port_on, rng).map_err(|why| self.unusable(why))
            }
            At::Workload(workload) => {
                let GatewayDestination::Address(NetworkAddr { network, ip }) = &self.gateway.destination
                else {
                    return Err(self.unusable(NoEndpoint::None));
                };
                if network != client.network {
                    return Err(self.unusable(NoEndpoint::OtherNetwork));
                }
                Ok(vec![Endpoint { workload: workload.clone(), addr: Some(SocketAddr::new(*ip, port)) }])
            }
        }
    }

    /// Why it cannot be used.
    pub(crate) fn unusable(&self, why: NoEndpoint) -> Reason {
        Reason::UnusableWaypoint {
            waypoint: self.gateway.destination.clone(),
            guarded: self.guarded.to_string(),
            why,
        }
    }
}
