//! Host names to services.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service as ServiceObject;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use manifest::gateway::INGRESS_USE_WAYPOINT;
use manifest::kinds::{ServiceEntry, ServiceEntrySpec};
use manifest::{Kind, ObjectKey, label};
use model::{
    IpFamilies, LoadBalancing, NetworkAddr, NetworkBlock, NetworkId, Service, ServiceKey, Visibility,
};

use super::{Note, Translated, balancing, default_network, ports, waypoint};
use crate::store::{Store, addresses};

/// The hosts that an object declares and that it is the one to declare.
pub(super) fn winning_hosts(store: &Store, key: &ObjectKey) -> Vec<ServiceKey> {
    let Some(object) = store.object(key.kind, &key.namespace, &key.name) else { return Vec::new() };
    let mut hosts = crate::store::declared(object, &store.settings().cluster_domain);
    hosts.retain(|host| store.hosts().winner(host) == Some(key));
    hosts
}

/// The service of a host name, by the object whose word counts; the others are noted, and so are addresses that it
/// names and that are a Service's or a pod's.
pub(super) fn service(store: &Store, host: &ServiceKey) -> Translated {
    let mut declarers = store.hosts().declarers(host);
    let Some(winner) = declarers.next() else { return Translated::default() };
    let note = |loser: &ObjectKey| Note {
        object: loser.clone(),
        message: format!("the host {} is declared by {winner} already, whose word counts", host.hostname),
    };
    let mut notes: Vec<Note> = declarers.map(note).collect();
    let service = match winner.kind {
        Kind::Service => store.service(&winner.namespace, &winner.name).map(|s| of_service(store, s, host)),
        _ => store.service_entry(&winner.namespace, &winner.name).map(|entry| {
            let (free, taken) = divided(store, entry);
            notes.extend(taken.into_iter().map(|(ip, holder)| Note {
                object: winner.clone(),
                message: format!(
                    "the address {ip} of the host {} is left out: it is that of {holder}",
                    host.hostname
                ),
            }));
            of_entry(store, entry, host, free)
        }),
    };
    let Some(service) = service else { return Translated { resources: Vec::new(), notes } };
    let meta = store.object(winner.kind, &winner.namespace, &winner.name).map(|object| object.metadata());
    let before = meta.map(|meta| waypoint::before_service(store, winner, meta)).unwrap_or_default();
    notes.extend(before.notes);
    let service = Service {
        waypoint: before.waypoint,
        weighted_waypoints: before.weighted,
        ingress_use_waypoint: meta.is_some_and(|meta| ingress_uses_waypoint(store, meta)),
        ..service
    };
    Translated::noted(service, notes)
}

/// Whether gateways send to the waypoint too: by the object's own label, else its namespace's.
fn ingress_uses_waypoint(store: &Store, meta: &ObjectMeta) -> bool {
    let namespace = store.namespace(meta.namespace.as_deref().unwrap_or_default());
    let inherited = || label(&namespace?.metadata, INGRESS_USE_WAYPOINT);
    label(meta, INGRESS_USE_WAYPOINT).or_else(inherited) == Some("true")
}

fn of_service(store: &Store, object: &ServiceObject, host: &ServiceKey) -> Service {
    let spec = object.spec.as_ref();
    let families = spec.and_then(|spec| spec.ip_families.as_deref()).unwrap_or_default();
    Service {
        name: object.metadata.name.as_deref().unwrap_or_default().into(),
        addresses: in_network(addresses::of_service(object), default_network(store)),
        ports: ports::of_service_itself(object),
        subject_alt_names: Vec::new(),
        ip_families: match families.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["IPv4"] => IpFamilies::V4Only,
            ["IPv6"] => IpFamilies::V6Only,
            [_, _] => IpFamilies::Dual,
            _ => IpFamilies::Automatic,
        },
        load_balancing: balancing::of_service(store, object),
        visibility: Visibility::Public,
        ..blank(store, host)
    }
}

/// The addresses that a ServiceEntry names: those that are free, and those that a Service or a pod has, with that one.
/// Who could take another's address would be sent what is meant for the other.
fn divided(store: &Store, entry: &ServiceEntry) -> (Vec<IpAddr>, Vec<(IpAddr, ObjectKey)>) {
    let (mut free, mut taken) = (Vec::new(), Vec::new());
    for ip in addresses::of_entry(entry) {
        match store.addresses().holder(&ip) {
            Some(holder) => taken.push((ip, holder)),
            None => free.push(ip),
        }
    }
    (free, taken)
}

/// `free` are the addresses that it names and that nobody else has.
fn of_entry(store: &Store, object: &ServiceEntry, host: &ServiceKey, free: Vec<IpAddr>) -> Service {
    let spec: &ServiceEntrySpec = &object.spec;
    let own_only = spec.export_to.iter().any(|namespace| namespace == ".")
        && !spec.export_to.iter().any(|namespace| namespace == "*");
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let network = NetworkId::new(default_network(store));
    let block = |block| NetworkBlock::new(network.clone(), block);
    Service {
        name: name.into(),
        addresses: in_network(free.into_iter().chain(store.vips().of(host, name)), network.as_str()),
        blocks: addresses::blocks_of_entry(object).into_iter().map(block).collect(),
        ports: ports::of_entry(spec, &ports::Nobody),
        subject_alt_names: spec.subject_alt_names.iter().map(|name| name.as_str().into()).collect(),
        ip_families: IpFamilies::Automatic,
        load_balancing: balancing::of_entry(store, object),
        visibility: if own_only { Visibility::Namespace } else { Visibility::Public },
        ..blank(store, host)
    }
}

/// A service of which only the name is known.
fn blank(store: &Store, host: &ServiceKey) -> Service {
    Service {
        name: "".into(),
        namespace: host.namespace.clone(),
        hostname: host.hostname.clone(),
        addresses: Vec::new(),
        blocks: Vec::new(),
        ports: Vec::new(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        load_balancing: LoadBalancing::default(),
        ip_families: IpFamilies::default(),
        canonical: store.hosts().canonical(&host.hostname) == Some(host),
        ingress_use_waypoint: false,
        weighted_waypoints: Vec::new(),
        visibility: Visibility::Public,
    }
}

/// Addresses in the network of services.
fn in_network(addresses: impl IntoIterator<Item = IpAddr>, network: &str) -> Vec<NetworkAddr> {
    let network = NetworkId::new(network);
    addresses.into_iter().map(|ip| NetworkAddr::new(network.clone(), ip)).collect()
}
