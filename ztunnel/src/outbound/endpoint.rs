//! Which endpoints of a service to try, and in which order.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use index::World;
use model::{
    Health, HealthPolicy, IpFamilies, LoadBalancingMode, Locality, NetworkId, Scope, Service, TunnelProtocol,
    Workload,
};
use rand::Rng;
use rand::seq::SliceRandom;
use thiserror::Error;

use crate::departures::Departures;
use crate::names::{Known, Resolved};

/// The most endpoints that one connection tries.
pub const ALTERNATIVES: usize = 5;

/// Where the client stands, as far as the choice asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client<'a> {
    pub(crate) network: &'a NetworkId,
    pub(crate) node: &'a str,
    pub(crate) cluster_id: &'a str,
    /// Nothing while the control plane has not told of the client; then it shares no place with any endpoint.
    pub(crate) locality: Option<&'a Locality>,
    /// Whether it dialled a v4 address, so that v4 is to be preferred.
    pub(crate) v4: bool,
    /// What the node's agent knows before the control plane tells.
    pub(crate) departures: &'a Departures,
    /// Whether endpoints in other networks count, which a gateway leads to.
    pub(crate) beyond: bool,
    /// What is known of the names of endpoints without addresses; nothing where such endpoints do not count.
    pub(crate) names: Option<&'a Resolved>,
}

/// An endpoint to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Its address, and the port that stands behind the one that the client dialled; nothing where it is in another
    /// network, behind a gateway.
    pub addr: Option<SocketAddr>,
}

/// Why no endpoint of a service can be used: what the endpoint that came furthest lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Error)]
pub enum NoEndpoint {
    /// There are none at all.
    #[error("no workload is selected by it")]
    None,
    /// They are in other networks, and no gateway leads to them.
    #[error("its endpoints are in other networks, without a gateway or a tunnel of their own")]
    OtherNetwork,
    /// The gateways to their networks cannot be used.
    #[error("its endpoints are in other networks, whose gateways are not known or not ready")]
    NoGateway,
    /// They have a host name and no address, where one is needed: a waypoint, or the gateway of a network.
    #[error("its endpoints have only a host name: give them addresses")]
    NameOnly,
    /// Their host names have no address.
    #[error("the host names of its endpoints cannot be looked up")]
    Unresolved,
    /// None has an address of the service's IP families.
    #[error("no endpoint has an address of the service's IP families")]
    IpFamily,
    /// The target port is a name that none of them has.
    #[error("its target port is a name that no endpoint's container ports have")]
    TargetPort,
    /// Their identities cannot be written.
    #[error("no endpoint has a valid identity")]
    NoIdentity,
    /// All of them are unhealthy.
    #[error("no endpoint is ready")]
    Unhealthy,
    /// All of them have a capacity of 0.
    #[error("all endpoints have the capacity 0")]
    Drained,
    /// None of them is where traffic has to stay.
    #[error(
        "no ready endpoint is where the service keeps its traffic: see its internalTrafficPolicy and traffic distribution"
    )]
    OutOfScope,
}

/// An endpoint and how much it is wanted: smaller is better.
struct Candidate<'a> {
    /// It is about to end.
    last_resort: bool,
    /// How much of the routing preference it misses.
    tier: usize,
    /// Its turn among those of its tier.
    turn: f64,
    workload: &'a Arc<Workload>,
    place: Place<'a>,
}

/// Where an endpoint is.
enum Place<'a> {
    At(SocketAddr),
    /// At all that its name stands for.
    Resolved(&'a [IpAddr], u16),
    /// Where its name says, which has not been asked for.
    Named(&'a Arc<str>),
    /// Behind a gateway.
    Beyond,
}

/// What can be said of a service's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Those to try, best first.
    Endpoints(Vec<Endpoint>),
    /// It depends on where these names lead.
    Need(BTreeSet<Arc<str>>),
}

/// The endpoints of a service to try, best first: up to [`ALTERNATIVES`], all different.
///
/// Left out are those that the service's health policy, address families and strict scopes exclude, those in networks that
/// no gateway leads to, and those of capacity 0. Those that are about to end and still serve are left out unless there are
/// no others. Under failover, endpoints that share more with the client come before those that share less. Among equals the
/// order is drawn, each with a chance in proportion to its capacity. `port_on` tells the port on an endpoint, if it has the
/// one that is wanted. Endpoints by name count where the client's [`Client::names`] are there; of one whose name stands for
/// several addresses, each is an endpoint.
pub(crate) fn choose(
    world: &World,
    service: &Service,
    client: &Client<'_>,
    port_on: impl Fn(&Workload) -> Option<u16>,
    rng: &mut impl Rng,
) -> Result<Choice, NoEndpoint> {
    let best = ranked(world, service, client, port_on, rng)?;
    let names: BTreeSet<_> = best.iter().filter_map(|c| c.place.is_named().cloned()).collect();
    if !names.is_empty() {
        return Ok(Choice::Need(names));
    }
    let mut endpoints = Vec::with_capacity(best.len());
    for Candidate { workload, place, .. } in best {
        let at = |addr| Endpoint { workload: workload.clone(), addr };
        match place {
            Place::At(addr) => endpoints.push(at(Some(addr))),
            Place::Beyond => endpoints.push(at(None)),
            Place::Named(_) => {}
            Place::Resolved(addresses, port) => {
                let mut addresses: Vec<_> =
                    addresses.iter().filter(|ip| is_of(ip, service.ip_families)).collect();
                addresses.shuffle(rng);
                addresses.sort_by_key(|ip| ip.is_ipv4() != client.v4);
                endpoints.extend(addresses.into_iter().map(|ip| at(Some(SocketAddr::new(*ip, port)))));
            }
        }
    }
    endpoints.truncate(ALTERNATIVES);
    Ok(Choice::Endpoints(endpoints))
}

/// The same where endpoints by name do not count.
pub(crate) fn choose_by_address(
    world: &World,
    service: &Service,
    client: &Client<'_>,
    port_on: impl Fn(&Workload) -> Option<u16>,
    rng: &mut impl Rng,
) -> Result<Vec<Endpoint>, NoEndpoint> {
    match choose(world, service, &Client { names: None, ..*client }, port_on, rng)? {
        Choice::Endpoints(endpoints) => Ok(endpoints),
        Choice::Need(_) => Err(NoEndpoint::NameOnly),
    }
}

fn ranked<'a>(
    world: &'a World,
    service: &Service,
    client: &Client<'a>,
    port_on: impl Fn(&Workload) -> Option<u16>,
    rng: &mut impl Rng,
) -> Result<Vec<Candidate<'a>>, NoEndpoint> {
    let mut best: Vec<Candidate<'_>> = Vec::with_capacity(ALTERNATIVES);
    let mut obstacle = NoEndpoint::None;
    for workload in world.endpoints(&service.key()) {
        match reach(service, workload, client, &port_on) {
            Err(lacks) => obstacle = obstacle.max(lacks),
            Ok(Reached { place, last_resort, tier }) => {
                // An exponential race: who arrives first is drawn by weight, and so is who comes second of the rest.
                let turn = -(1.0 - rng.random::<f64>()).ln() / f64::from(workload.capacity);
                let at = best.partition_point(|held| {
                    (held.last_resort, held.tier, held.turn) <= (last_resort, tier, turn)
                });
                if at < ALTERNATIVES {
                    best.truncate(ALTERNATIVES - 1);
                    best.insert(at, Candidate { last_resort, tier, turn, workload, place });
                }
            }
        }
    }
    if best.is_empty() {
        return Err(obstacle);
    }
    let lasting = best.partition_point(|held| !held.last_resort);
    if lasting > 0 {
        best.truncate(lasting);
    }
    Ok(best)
}

impl<'a> Place<'a> {
    fn is_named(&self) -> Option<&'a Arc<str>> {
        match self {
            Self::Named(name) => Some(name),
            _ => None,
        }
    }
}

/// Where an endpoint is reached.
struct Reached<'a> {
    place: Place<'a>,
    last_resort: bool,
    /// How much of the routing preference it misses.
    tier: usize,
}

/// Where an endpoint is reached and how much it is wanted, if it can be used. The checks stand in
/// the order of [`NoEndpoint`], so that the obstacle told is the one of the endpoint that came furthest.
fn reach<'a>(
    service: &Service,
    workload: &'a Workload,
    client: &Client<'a>,
    port_on: impl Fn(&Workload) -> Option<u16>,
) -> Result<Reached<'a>, NoEndpoint> {
    let place = if workload.network == *client.network {
        within(service, workload, client, port_on)?
    } else if client.beyond && workload.network_gateway.is_some() && workload.tunnel == TunnelProtocol::Hbone
    {
        Place::Beyond
    } else {
        return Err(NoEndpoint::OtherNetwork);
    };
    let balancing = &service.load_balancing;
    // One that has ended answers nobody, whatever the service asks for.
    let health = client.departures.health(client.node, workload).ok_or(NoEndpoint::Unhealthy)?;
    let last_resort = match (health, balancing.health_policy) {
        (Health::Healthy, _) | (_, HealthPolicy::AllowAll) => false,
        (Health::Terminating, HealthPolicy::OnlyHealthy) => true,
        (Health::Unhealthy, HealthPolicy::OnlyHealthy) => return Err(NoEndpoint::Unhealthy),
    };
    if workload.capacity == 0 {
        return Err(NoEndpoint::Drained);
    }
    let scopes = &balancing.routing_preference;
    let shared = scopes.iter().take_while(|s| shares(workload, client, **s)).count();
    let tier = match balancing.mode {
        LoadBalancingMode::Unspecified | LoadBalancingMode::Passthrough => 0,
        LoadBalancingMode::Failover => scopes.len() - shared,
        LoadBalancingMode::Strict if shared < scopes.len() => return Err(NoEndpoint::OutOfScope),
        LoadBalancingMode::Strict => 0,
    };
    Ok(Reached { place, last_resort, tier })
}

/// Where an endpoint of the client's own network is reached.
fn within<'a>(
    service: &Service,
    workload: &'a Workload,
    client: &Client<'a>,
    port_on: impl Fn(&Workload) -> Option<u16>,
) -> Result<Place<'a>, NoEndpoint> {
    let port = || port_on(workload).ok_or(NoEndpoint::TargetPort);
    if workload.addresses.is_empty() {
        let (Some(name), Some(names)) = (&workload.hostname, client.names) else {
            return Err(NoEndpoint::NameOnly);
        };
        return match names.of(name) {
            Known::NotYet => port().map(|_| Place::Named(name)),
            Known::Nowhere => Err(NoEndpoint::Unresolved),
            Known::At(all) if all.iter().any(|ip| is_of(ip, service.ip_families)) => {
                Ok(Place::Resolved(all, port()?))
            }
            Known::At(_) => Err(NoEndpoint::IpFamily),
        };
    }
    let ip = address(workload, service.ip_families, client.v4).ok_or(NoEndpoint::IpFamily)?;
    Ok(Place::At(SocketAddr::new(ip, port()?)))
}

fn is_of(ip: &IpAddr, families: IpFamilies) -> bool {
    match families {
        IpFamilies::V4Only => ip.is_ipv4(),
        IpFamilies::V6Only => ip.is_ipv6(),
        IpFamilies::Automatic | IpFamilies::Dual => true,
    }
}

/// An address of the families that the service has; of these, one of the family that the client dialled comes first.
fn address(workload: &Workload, families: IpFamilies, v4: bool) -> Option<IpAddr> {
    let mut addresses = workload.addresses.iter().map(IpAddr::to_canonical).filter(|ip| is_of(ip, families));
    let first = addresses.next()?;
    if first.is_ipv4() == v4 {
        return Some(first);
    }
    Some(addresses.find(|ip| ip.is_ipv4() == v4).unwrap_or(first))
}

/// Whether an endpoint and the client are alike in a scope. A zone is one only within its region, a node only within its
/// cluster. Two places that are both unknown are alike: a cluster without zones is one zone.
fn shares(workload: &Workload, client: &Client<'_>, scope: Scope) -> bool {
    let in_cluster = || *workload.cluster_id == *client.cluster_id;
    let here = &workload.locality;
    let region = |l: &Locality| here.region == l.region;
    let zone = |l: &Locality| region(l) && here.zone == l.zone;
    let subzone = |l: &Locality| zone(l) && here.subzone == l.subzone;
    match scope {
        Scope::Network => workload.network == *client.network,
        Scope::Cluster => in_cluster(),
        Scope::Node => in_cluster() && *workload.node == *client.node,
        Scope::Region => client.locality.is_some_and(region),
        Scope::Zone => client.locality.is_some_and(zone),
        Scope::Subzone => client.locality.is_some_and(subzone),
    }
}

#[cfg(test)]
mod tests;
