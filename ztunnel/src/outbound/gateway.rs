//! The way to endpoints in another network: a tunnel to its gateway, and within that a tunnel to the endpoint.

use std::net::SocketAddr;
use std::sync::Arc;

use hbone::Authority;
use index::{World, target_port};
use model::{GatewayDestination, IdentitySet, Service, SpiffeId, Workload};
use rand::Rng;

use super::endpoint::{Client, Endpoint, NoEndpoint, choose_by_address};
use super::plan::{Beyond, Hbone, Hop, tunnel};
use super::waypoint::{At, locate};
use crate::local::LocalPod;

/// The way to an endpoint in another network.
///
/// The gateway is asked for the service by name and may choose any of its endpoints there, so any of these may answer.
pub(super) fn beyond(
    world: &World,
    pod: &LocalPod,
    client: &Client<'_>,
    service: &Service,
    port: u16,
    workload: &Arc<Workload>,
    rng: &mut impl Rng,
) -> Result<Hop, NoEndpoint> {
    let authority = Authority::named(&service.hostname, port).map_err(|_| NoEndpoint::OtherNetwork)?;
    let gateway = gateway(world, pod, client, workload, authority, rng).ok_or(NoEndpoint::NoGateway)?;
    let there = world.endpoints(&service.key()).iter().filter(|w| w.network == workload.network);
    let named = service.subject_alt_names.iter().filter_map(|name| name.parse::<SpiffeId>().ok());
    let expect_ids =
        IdentitySet::of(there.filter_map(|w| w.identity()).chain(named)).ok_or(NoEndpoint::NoIdentity)?;
    Ok(Hop::Beyond(Box::new(Beyond { gateway, workload: workload.clone(), expect_ids })))
}

/// The tunnel to the gateway of a workload's network. Its identity is checked like any other's.
fn gateway(
    world: &World,
    pod: &LocalPod,
    client: &Client<'_>,
    workload: &Workload,
    authority: Authority,
    rng: &mut impl Rng,
) -> Option<Hbone> {
    let gateway = workload.network_gateway.as_ref()?;
    let port = gateway.hbone_port;
    match locate(world, pod.identity.namespace(), gateway)? {
        // Its address is one of its own network that ours leads to, or there would be no way at all.
        At::Workload(of) => {
            let GatewayDestination::Address(at) = &gateway.destination else { return None };
            tunnel(of, None, SocketAddr::new(at.ip, port), authority)
        }
        At::Service(of) => {
            let client = Client { beyond: false, ..*client };
            let port_on = |w: &Workload| match of.port(port) {
                Some(_) => target_port(of, w, port),
                None => Some(port),
            };
            let Endpoint { workload, addr } =
                choose_by_address(world, of, &client, port_on, rng).ok()?.into_iter().next()?;
            tunnel(&workload, Some(of), addr?, authority)
        }
    }
}
