//! What decisions need to have been told of, where the control plane is asked for single addresses and not for all.
//!
//! What a decision rests on follows from the connection and from what is known already: a destination that turns out to
//! be a service with a waypoint needs the waypoint too. So it is asked again with each news, until all is there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use index::World;
use model::{GatewayAddress, GatewayDestination, NetworkAddr, Service, Workload};
use parking_lot::Mutex;
use tokio::sync::Notify;
use xds::client::Demand;
use zds::PodUid;

use crate::local::LocalPod;
use crate::mesh::Mesh;
use crate::outbound::Guarded;

/// A name as the control plane is asked for it: a workload's uid, `network/address`, or `namespace/hostname`.
type Name = Arc<str>;

/// What is needed of the mesh, for the connections that come and for the pods of this node. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Needs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    demand: Demand,
    pods: Mutex<BTreeMap<PodUid, LocalPod>>,
    changed: Notify,
}

impl Needs {
    /// What is needed is asked for by the one who holds the stream to the control plane.
    pub fn new(demand: Demand) -> Self {
        Self(Arc::new(Inner { demand, pods: Mutex::default(), changed: Notify::new() }))
    }

    /// The names that are asked for.
    pub fn demand(&self) -> &Demand {
        &self.0.demand
    }

    /// A pod is served from now on.
    pub fn came(&self, uid: &PodUid, local: &LocalPod) {
        self.0.pods.lock().insert(uid.clone(), local.clone());
        self.0.changed.notify_one();
    }

    /// It is served no more.
    pub fn left(&self, uid: &PodUid) {
        self.0.pods.lock().remove(uid);
        self.0.changed.notify_one();
    }

    /// Whether all is told that a connection from a pod to an address rests on. What is not is asked for.
    pub fn has_outbound(&self, world: &World, pod: &LocalPod, destination: IpAddr) -> bool {
        let (told, rest): (Vec<_>, Vec<_>) =
            outbound(world, pod, destination).into_iter().partition(|(_, is_told)| *is_told);
        let names = |of: Vec<(Name, bool)>| of.into_iter().map(|(name, _)| name);
        // What is there already is told of further only if it is asked for.
        self.0.demand.use_names(names(told));
        self.0.demand.use_names(names(rest))
    }

    /// Sees for ever that what the pods need is asked for.
    pub async fn follow(&self, mesh: &Mesh) {
        let mut news = mesh.news();
        loop {
            news.mark_unchanged();
            let names = {
                let (world, pods) = (mesh.load(), self.0.pods.lock());
                pods.values().flat_map(|pod| standing(&world, pod)).collect()
            };
            self.0.demand.hold(names);
            tokio::select! {
                () = self.0.changed.notified() => {}
                changed = news.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// What a pod needs whether or not connections come: itself, with the policies that select it, and those who may speak for
/// others to it.
fn standing(world: &World, pod: &LocalPod) -> BTreeSet<Name> {
    let mut names = BTreeSet::from([own(pod)]);
    if let Some(workload) = pod.workload(world) {
        names.extend(workload.services.keys().map(|key| Name::from(key.to_string())));
        let services = workload.services.keys().filter_map(|key| world.service(key));
        names.extend(services.flat_map(|s| waypoints(Guarded::Service(s))));
        names.extend(waypoints(Guarded::Workload(workload)));
    }
    names
}

/// What the plan for a connection rests on, as far as can be said yet; and of each whether it is there already, by
/// whatever name it came. A service is not there before its endpoints are, so that its own names have to be answered.
fn outbound(world: &World, pod: &LocalPod, destination: IpAddr) -> Vec<(Name, bool)> {
    let mut names = vec![(own(pod), pod.workload(world).is_some())];
    let ip = destination.to_canonical();
    // There everything is its own affair.
    if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
        return names;
    }
    let addr = NetworkAddr::new(pod.network.clone(), ip);
    names.push((addr.to_string().into(), world.pod_at(&addr).is_some()));
    // Whoever the plan takes it for.
    let service: Option<&Arc<Service>> = world.service_at(&addr, pod.identity.namespace());
    let of_service = service.into_iter().flat_map(|s| waypoints(Guarded::Service(s)));
    let workloads = world.workloads_at(&addr);
    let of_workloads = workloads.flat_map(|w: &Arc<Workload>| waypoints(Guarded::Workload(w)));
    let of_networks = service.into_iter().flat_map(|s| gateways(world, pod, s));
    names.extend(of_service.chain(of_workloads).chain(of_networks).map(|name| (name, false)));
    names
}

/// Those who stand before the endpoints of a service in other networks.
fn gateways(world: &World, pod: &LocalPod, service: &Service) -> BTreeSet<Name> {
    let elsewhere = world.endpoints(&service.key()).iter().filter(|w| w.network != pod.network);
    elsewhere.filter_map(|w| w.network_gateway.as_ref()).map(gateway).collect()
}

/// A pod's own name.
fn own(pod: &LocalPod) -> Name {
    format!("{}//Pod/{}/{}", pod.cluster_id, pod.name.namespace, pod.name.name).into()
}

fn waypoints(guarded: Guarded<'_>) -> impl Iterator<Item = Name> {
    guarded.gateways().map(gateway)
}

fn gateway(gateway: &GatewayAddress) -> Name {
    match &gateway.destination {
        GatewayDestination::Hostname(key) => key.to_string().into(),
        GatewayDestination::Address(addr) => addr.to_string().into(),
    }
}
