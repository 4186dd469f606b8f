//! What to do with a connection that a pod opens.
//!
//! A pure function of one snapshot: nothing here waits, looks anything up elsewhere, or reads a clock.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use hbone::Authority;
use index::{World, target_port};
use model::{
    IdentitySet, LoadBalancingMode, Locality, NetworkAddr, NetworkMode, Service, SpiffeId, TunnelProtocol,
    Workload,
};
use rand::Rng;

use super::endpoint::{ALTERNATIVES, Choice, Client, Endpoint, NoEndpoint, choose};
use super::gateway::beyond;
use super::reason::Reason;
use super::waypoint::{Guarded, Waypoint};
use crate::departures::Departures;
use crate::local::LocalPod;
use crate::names::Resolved;
use crate::ports;

/// What is known about a connection when it is accepted.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The pod that opened it.
    pub pod: &'a LocalPod,
    /// The client's end of it: the pod's own address.
    pub source: SocketAddr,
    /// Where the application was going.
    pub destination: SocketAddr,
    /// The pods of the node that are about to end.
    pub departures: &'a Departures,
    /// Where names lead that were asked for.
    pub names: &'a Resolved,
}

/// What to do with a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// The mesh has no part in it: connect to where the application was going.
    Passthrough {
        /// The service that was addressed, where there is one that balances nothing.
        service: Option<Arc<Service>>,
    },
    /// Connect to the first of the hops that takes the connection. A hop may be given up for the next only as long as no
    /// byte of the application has been sent to it.
    Forward(Route),
    /// Look these names up, and plan again with what they lead to. It is not said a second time.
    Need(BTreeSet<Arc<str>>),
    /// Reset it, and say why.
    Refuse(Reason),
}

/// The ways to a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The service that was addressed; nothing where it was a pod.
    pub service: Option<Arc<Service>>,
    /// Whom to try, best first: at least one, all different.
    pub hops: Vec<Hop>,
}

/// One way to a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hop {
    /// Plain TCP to a workload that is not in the mesh.
    Direct {
        /// The workload.
        workload: Arc<Workload>,
        /// Where to connect.
        addr: SocketAddr,
    },
    /// A tunnel.
    Hbone(Hbone),
    /// A tunnel within a tunnel, into another network.
    Beyond(Box<Beyond>),
}

impl Hop {
    /// Where it is connected to.
    pub fn addr(&self) -> SocketAddr {
        match self {
            Self::Direct { addr, .. } => *addr,
            Self::Hbone(hbone) => hbone.next_hop,
            Self::Beyond(beyond) => beyond.gateway.next_hop,
        }
    }

    fn is_by(&self, gateway: &Hbone) -> bool {
        matches!(self, Self::Beyond(beyond) if beyond.gateway == *gateway)
    }
}

/// A tunnel to a workload, or to a waypoint before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hbone {
    /// Whose tunnel it is: the destination, or the waypoint.
    pub workload: Arc<Workload>,
    /// Where to connect with mutual TLS.
    pub next_hop: SocketAddr,
    /// The identities of which the far end must prove one.
    pub expect_ids: IdentitySet,
    /// Where the CONNECT goes: the workload's address and port; for a waypoint, what the application dialled.
    pub authority: Authority,
    /// Whether the far end is a waypoint.
    pub waypoint: bool,
}

/// A tunnel to an endpoint of a service in another network, within a tunnel to the gateway of that network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beyond {
    /// The tunnel to the gateway. Its authority is that of the tunnel within: the service's host name and port.
    pub gateway: Hbone,
    /// The endpoint that was chosen. The gateway may choose another one of its network.
    pub workload: Arc<Workload>,
    /// The identities of which the far end must prove one: the gateway's is not among them.
    pub expect_ids: IdentitySet,
}

/// Decides what to do with a connection.
///
/// The destination is looked up among the pods first, whose addresses nobody else can have, then among the services,
/// then among the other workloads. A service or a workload with
/// a waypoint is reached through it by everyone but the waypoint itself, and not at all while the waypoint is missing or
/// not ready. What the mesh does not know passes.
pub fn plan(world: &World, facts: &Facts<'_>, rng: &mut impl Rng) -> Plan {
    let destination = canonical(facts.destination);
    let own = destination.ip().is_loopback() || destination.ip() == facts.source.ip().to_canonical();
    if own && ports::is_own(destination.port()) {
        return Plan::Refuse(Reason::OwnPort(destination));
    }
    let addr = NetworkAddr::new(facts.pod.network.clone(), destination.ip());
    let planned = if let Some(pod) = world.pod_at(&addr) {
        to_workload(world, facts, pod, destination, rng)
    } else if let Some(service) = world.service_at(&addr, facts.pod.identity.namespace()) {
        to_service(world, facts, service, destination, rng)
    } else if let Some(workload) = world.workload_at(&addr) {
        to_workload(world, facts, workload, destination, rng)
    } else {
        Ok(Plan::Passthrough { service: None })
    };
    planned.unwrap_or_else(Plan::Refuse)
}

fn to_service(
    world: &World,
    facts: &Facts<'_>,
    service: &Arc<Service>,
    destination: SocketAddr,
    rng: &mut impl Rng,
) -> Result<Plan, Reason> {
    let forward = |hops| Plan::Forward(Route { service: Some(service.clone()), hops });
    let port = destination.port();
    // Such a service is a name for addresses that clients choose themselves.
    let passes = service.load_balancing.mode == LoadBalancingMode::Passthrough;
    let guarded = Guarded::Service(service);
    if service.port(port).is_none() {
        return match passes && guarded.gateways().next().is_none() {
            true => to_address(world, facts, None, destination),
            false => Err(Reason::NoSuchPort { service: service.key(), port }),
        };
    }
    if let Some(hops) = through_waypoint(world, facts, guarded, destination, rng) {
        return Ok(forward(hops?));
    }
    if passes {
        return to_address(world, facts, Some(service), destination);
    }
    let client = client(world, facts, destination);
    let no_endpoint = |why| Reason::NoEndpoint { service: service.key(), port, why };
    let chosen =
        choose(world, service, &client, |w| target_port(service, w, port), rng).map_err(no_endpoint)?;
    let endpoints = match chosen {
        Choice::Endpoints(endpoints) => endpoints,
        Choice::Need(names) => return Ok(Plan::Need(names)),
    };
    let mut hops: Vec<Hop> = Vec::with_capacity(endpoints.len());
    let mut lack = NoEndpoint::NoIdentity;
    for Endpoint { workload, addr } in endpoints {
        let hop = match addr {
            Some(addr) => to_endpoint(&workload, addr, Some(service)).map_err(|_| NoEndpoint::NoIdentity),
            None => beyond(world, facts.pod, &client, service, port, &workload, rng),
        };
        match hop {
            // Several endpoints behind one gateway are one way: which of them it leads to is the gateway's choice.
            Ok(Hop::Beyond(way)) if hops.iter().any(|hop| hop.is_by(&way.gateway)) => {}
            Ok(hop) => hops.push(hop),
            Err(why) => lack = why,
        }
    }
    if hops.is_empty() { Err(no_endpoint(lack)) } else { Ok(forward(hops)) }
}

fn to_workload(
    world: &World,
    facts: &Facts<'_>,
    workload: &Arc<Workload>,
    destination: SocketAddr,
    rng: &mut impl Rng,
) -> Result<Plan, Reason> {
    let forward = |hops| Plan::Forward(Route { service: None, hops });
    if let Some(hops) = through_waypoint(world, facts, Guarded::Workload(workload), destination, rng) {
        return Ok(forward(hops?));
    }
    Ok(forward(vec![to_endpoint(workload, destination, None)?]))
}

/// The ways to the waypoint of a destination that has one. Where several share its traffic, the ways to the others come
/// last: if the one that is drawn cannot be used, they do what is to be done on the way.
fn through_waypoint(
    world: &World,
    facts: &Facts<'_>,
    guarded: Guarded<'_>,
    destination: SocketAddr,
    rng: &mut impl Rng,
) -> Option<Result<Vec<Hop>, Reason>> {
    let waypoints = Waypoint::before(world, facts.pod, guarded, rng);
    let client = client(world, facts, destination);
    let (mut hops, mut reason) = (Vec::new(), None);
    for waypoint in waypoints {
        match waypoint.and_then(|waypoint| waypoint.hops(world, &client, destination, rng)) {
            Ok(more) => hops.extend(more),
            Err(why) => drop(reason.get_or_insert(why)),
        }
    }
    hops.truncate(ALTERNATIVES);
    if hops.is_empty() { reason.map(Err) } else { Some(Ok(hops)) }
}

/// To the very address that the application dialled, for a service that balances nothing.
fn to_address(
    world: &World,
    facts: &Facts<'_>,
    service: Option<&Arc<Service>>,
    destination: SocketAddr,
) -> Result<Plan, Reason> {
    let addr = NetworkAddr::new(facts.pod.network.clone(), destination.ip());
    let service = service.cloned();
    match world.workload_at(&addr) {
        Some(workload) => {
            let hops = vec![to_endpoint(workload, destination, service.as_deref())?];
            Ok(Plan::Forward(Route { service, hops }))
        }
        None => Ok(Plan::Passthrough { service }),
    }
}

/// The way to a workload itself.
fn to_endpoint(workload: &Arc<Workload>, addr: SocketAddr, service: Option<&Service>) -> Result<Hop, Reason> {
    // On the node's own network nothing is captured, whatever is said of tunnels, unless the workload ends them itself.
    let on_node = workload.network_mode == NetworkMode::HostNetwork && !workload.native_tunnel;
    if workload.tunnel == TunnelProtocol::None || on_node {
        return Ok(Hop::Direct { workload: workload.clone(), addr });
    }
    tunnel(workload, service, SocketAddr::new(addr.ip(), ports::INBOUND_HBONE), addr)
        .map(Hop::Hbone)
        .ok_or_else(|| Reason::NoIdentity(workload.uid.clone()))
}

/// A tunnel to a workload, which must prove its own identity or one that the service it was chosen for stands for.
pub(super) fn tunnel(
    workload: &Arc<Workload>,
    service: Option<&Service>,
    next_hop: SocketAddr,
    authority: impl Into<Authority>,
) -> Option<Hbone> {
    // A subject alternative name of another form names no workload, so that no workload could prove it.
    let names = service.map_or(&[][..], |s| &s.subject_alt_names);
    let own = workload.identity()?;
    let expect_ids = match names {
        [] => IdentitySet::one(own),
        names => IdentitySet::of(names.iter().filter_map(|n| n.parse::<SpiffeId>().ok()).chain([own]))?,
    };
    Some(Hbone {
        workload: workload.clone(),
        next_hop,
        expect_ids,
        authority: authority.into(),
        waypoint: false,
    })
}

impl Waypoint<'_> {
    /// The ways to the waypoint, for what the application dialled.
    fn hops(
        &self,
        world: &World,
        client: &Client<'_>,
        destination: SocketAddr,
        rng: &mut impl Rng,
    ) -> Result<Vec<Hop>, Reason> {
        let hop = |e: Endpoint| {
            let hbone = tunnel(&e.workload, self.service(), e.addr?, destination)?;
            Some(Hop::Hbone(Hbone { waypoint: true, ..hbone }))
        };
        let hops: Vec<Hop> = self.endpoints(world, client, rng)?.into_iter().filter_map(hop).collect();
        if hops.is_empty() { Err(self.unusable(NoEndpoint::NoIdentity)) } else { Ok(hops) }
    }
}

fn client<'a>(world: &'a World, facts: &Facts<'a>, destination: SocketAddr) -> Client<'a> {
    let locality: Option<&Locality> = facts.pod.workload(world).map(|w| &w.locality);
    Client {
        network: &facts.pod.network,
        node: &facts.pod.node,
        cluster_id: &facts.pod.cluster_id,
        locality,
        v4: destination.is_ipv4(),
        departures: facts.departures,
        beyond: true,
        names: Some(facts.names),
    }
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

#[cfg(test)]
mod tests;
