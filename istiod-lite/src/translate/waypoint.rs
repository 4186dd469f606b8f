//! The waypoints before services and workloads.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use manifest::gateway::{self, GATEWAY_NAME, ReachedAt, WaypointFor, Waypoints};
use manifest::kinds::Gateway;
use manifest::{ObjectKey, label};
use model::{
    ApplicationTunnel, GatewayAddress, GatewayDestination, NamespacedName, NetworkAddr, NetworkId,
    ServiceKey, WeightedWaypoint,
};

use super::{Note, default_network};
use crate::store::Store;

/// The waypoints before a service.
#[derive(Debug, Default)]
pub(super) struct Before {
    pub(super) waypoint: Option<GatewayAddress>,
    pub(super) weighted: Vec<WeightedWaypoint>,
    pub(super) notes: Vec<Note>,
}

/// The waypoints before a service that an object declares.
pub(super) fn before_service(store: &Store, object: &ObjectKey, meta: &ObjectMeta) -> Before {
    let namespace = store.namespace(&object.namespace).map(|namespace| &namespace.metadata);
    let Waypoints { main: Some(main), canary } = Waypoints::of(meta, namespace) else {
        return Before::default();
    };
    // What a waypoint is made of has none before it.
    let own = label(meta, GATEWAY_NAME).unwrap_or(&object.name);
    if store.gateway(&object.namespace, own).is_some_and(|gateway| gateway.waypoint().is_some()) {
        return Before::default();
    }
    let note = |message: String| Note { object: object.clone(), message };
    let find = |named: &NamespacedName| find(store, named, &object.namespace, WaypointFor::services);
    let main = match find(&main) {
        Ok(Some(waypoint)) => waypoint,
        Ok(None) => return Before::default(),
        Err(why) => return Before { notes: vec![note(why)], ..Before::default() },
    };
    let (mut weighted, mut notes) = (Vec::new(), Vec::new());
    if let Some((named, weight)) = canary {
        match find(&named) {
            Ok(Some(canary)) => {
                weighted.push(WeightedWaypoint { destination: main.clone(), weight: 100 - weight.min(100) });
                weighted.push(WeightedWaypoint { destination: canary, weight });
            }
            Ok(None) => {
                notes.push(note(format!("the waypoint {named} is not for services and takes nothing")))
            }
            Err(why) => notes.push(note(why)),
        }
    }
    Before { waypoint: Some(main), weighted, notes }
}

/// The waypoint before a workload, by its labels and its namespace's.
///
/// # Errors
/// Why the one that it names itself is none.
pub(super) fn before_workload(
    store: &Store,
    namespace: &str,
    labels: &BTreeMap<String, String>,
) -> Result<Option<GatewayAddress>, String> {
    let inherited = store.namespace(namespace).map(|namespace| &namespace.metadata);
    let Some(named) = gateway::waypoint_of(labels, inherited, namespace) else { return Ok(None) };
    if part_of(store, namespace, labels).is_some_and(|gateway| gateway.waypoint().is_some()) {
        return Ok(None);
    }
    match find(store, &named, namespace, WaypointFor::workloads) {
        // Of the namespace's word its services' notes tell.
        Err(why) if labels.contains_key(gateway::USE_WAYPOINT) => Err(why),
        found => Ok(found.unwrap_or_default()),
    }
}

/// How a workload that is a part of a Gateway takes connections behind the node's proxy.
pub(super) fn application_tunnel(
    store: &Store,
    namespace: &str,
    labels: &BTreeMap<String, String>,
) -> Option<ApplicationTunnel> {
    part_of(store, namespace, labels)?.inbound_binding()
}

fn part_of<'s>(store: &'s Store, namespace: &str, labels: &BTreeMap<String, String>) -> Option<&'s Gateway> {
    store.gateway(namespace, labels.get(GATEWAY_NAME)?)
}

/// A waypoint by its name; nothing where it is for other traffic.
fn find(
    store: &Store,
    named: &NamespacedName,
    user: &str,
    wanted: fn(WaypointFor) -> bool,
) -> Result<Option<GatewayAddress>, String> {
    let NamespacedName { namespace, name } = named;
    let gateway = store
        .gateway(namespace, name)
        .ok_or_else(|| format!("there is no waypoint {named}: traffic passes without it"))?;
    let listener = gateway.waypoint().ok_or_else(|| {
        format!("the Gateway {named} is no waypoint, for no listener speaks HBONE: traffic passes without it")
    })?;
    if !wanted(gateway.waypoint_for()) {
        return Ok(None);
    }
    if !listener.is_open_to(user, namespace) {
        return Err(format!(
            "the waypoint {named} takes nothing of namespace {user} by its `allowedRoutes`: traffic passes without it"
        ));
    }
    let destination = match gateway.addresses().into_iter().next() {
        Some(ReachedAt::Ip(ip)) => {
            GatewayDestination::Address(NetworkAddr::new(NetworkId::new(default_network(store)), ip))
        }
        Some(ReachedAt::Host(host)) => GatewayDestination::Hostname(ServiceKey::new(namespace, &*host)),
        // Nobody has told yet; whoever makes it of pods makes a Service of its name.
        None => {
            let host = format!("{name}.{namespace}.svc.{}", store.settings().cluster_domain);
            GatewayDestination::Hostname(ServiceKey::new(namespace, &*host))
        }
    };
    Ok(Some(GatewayAddress { destination, hbone_port: gateway.hbone_port() }))
}
