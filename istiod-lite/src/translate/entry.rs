//! WorkloadEntries, and the endpoints that ServiceEntries write out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use manifest::kinds::{ServiceEntry, WorkloadEntry, WorkloadEntrySpec};
use manifest::{Kind, ObjectKey};
use model::{
    Health, Locality, NetworkId, NetworkMode, PortMapping, ServiceKey, TunnelProtocol, Uid, Workload,
    WorkloadKind,
};

use super::{
    Note, Translated, canonical, default_network, has_native_tunnel, network, policies, ports,
    selecting_services, service, waypoint,
};
use crate::store::Store;

/// The labels of a WorkloadEntry: those of the object, and those that its specification adds or overrides.
pub(crate) fn labels(entry: &WorkloadEntry) -> BTreeMap<String, String> {
    let mut labels = entry.metadata.labels.clone().unwrap_or_default();
    labels.extend(entry.spec.labels.clone());
    labels
}

/// An entry names its ports by the services' names for them.
impl ports::Resolve for WorkloadEntrySpec {
    fn named(&self, name: &str) -> Option<u16> {
        self.own(name)
    }

    fn own(&self, service_port: &str) -> Option<u16> {
        self.ports.get(service_port).and_then(|port| u16::try_from(*port).ok())
    }
}

/// The workload of a WorkloadEntry.
pub(super) fn workload(store: &Store, entry: &WorkloadEntry) -> Option<Translated> {
    let namespace = entry.metadata.namespace.as_deref().unwrap_or_default();
    let name = entry.metadata.name.as_deref().unwrap_or_default();
    let labels = labels(entry);
    let services = selecting_services(store, namespace, &labels, &entry.spec);
    let uid = format!("{}/networking.istio.io/WorkloadEntry/{namespace}/{name}", store.settings().cluster_id);
    let workload = build(store, Uid::new(uid), namespace, name, &entry.spec, &labels, services)?;
    let none = BTreeMap::new();
    let own = entry.metadata.labels.as_ref().unwrap_or(&none);
    let (waypoint, notes) = match waypoint::before_workload(store, namespace, own) {
        Ok(waypoint) => (waypoint, Vec::new()),
        Err(message) => {
            (None, vec![Note { object: ObjectKey::new(Kind::WorkloadEntry, namespace, name), message }])
        }
    };
    let application_tunnel = waypoint::application_tunnel(store, namespace, own);
    let workload = Workload { waypoint, application_tunnel, ..workload };
    Some(Translated::noted(workload, notes))
}

/// The workloads of the endpoints that a ServiceEntry writes out. One address is one workload.
pub(super) fn written_out(store: &Store, entry: &ServiceEntry) -> Vec<Workload> {
    let namespace = entry.metadata.namespace.as_deref().unwrap_or_default();
    let name = entry.metadata.name.as_deref().unwrap_or_default();
    let hosts = service::winning_hosts(store, &ObjectKey::new(Kind::ServiceEntry, namespace, name));
    if hosts.is_empty() {
        return Vec::new();
    }
    let prefix =
        format!("{}/networking.istio.io/ServiceEntry/{namespace}/{name}", store.settings().cluster_id);
    let none = BTreeMap::new();
    // What is wrong with its word is told of the hosts.
    let own = entry.metadata.labels.as_ref().unwrap_or(&none);
    let waypoint = waypoint::before_workload(store, namespace, own).unwrap_or_default();
    let mut workloads: BTreeMap<Uid, Workload> = BTreeMap::new();
    let mut endpoint_of = |endpoint: &WorkloadEntrySpec, hosts: &[ServiceKey]| {
        let mappings = ports::of_entry(&entry.spec, endpoint);
        let services = hosts.iter().map(|host| (host.clone(), mappings.clone())).collect();
        let uid = Uid::new(format!("{prefix}/{}", endpoint.address));
        if let Some(workload) = build(store, uid, namespace, name, endpoint, &endpoint.labels, services) {
            let workload = Workload { waypoint: waypoint.clone(), ..workload };
            workloads.entry(workload.uid.clone()).or_insert(workload);
        }
    };
    entry.spec.endpoints.iter().for_each(|endpoint| endpoint_of(endpoint, &hosts));
    if entry.spec.is_its_own_endpoint() {
        for host in &hosts {
            let itself = WorkloadEntrySpec { address: host.hostname.to_string(), ..Default::default() };
            endpoint_of(&itself, std::slice::from_ref(host));
        }
    }
    workloads.into_values().collect()
}

fn build(
    store: &Store,
    uid: Uid,
    namespace: &str,
    name: &str,
    spec: &WorkloadEntrySpec,
    labels: &BTreeMap<String, String>,
    services: BTreeMap<ServiceKey, Vec<PortMapping>>,
) -> Option<Workload> {
    let ip = spec.address.parse::<IpAddr>();
    // What is no address is the name of a host.
    let hostname =
        ip.is_err().then(|| spec.address.to_lowercase().into()).filter(|name: &Arc<str>| !name.is_empty());
    let (canonical_name, canonical_revision) = canonical(labels, name);
    let native_tunnel = has_native_tunnel(labels);
    let or =
        |value: &str, default: &str| if value.is_empty() { default.to_owned() } else { value.to_owned() };
    let network = or(&spec.network, default_network(store));
    let mut places = spec.locality.split('/').map(Into::into);
    Some(Workload {
        uid,
        name: name.into(),
        namespace: namespace.into(),
        addresses: ip.into_iter().collect(),
        hostname,
        network: NetworkId::new(&*network),
        tunnel: if native_tunnel { TunnelProtocol::Hbone } else { TunnelProtocol::None },
        trust_domain: store.mesh().trust_domain.clone(),
        service_account: or(&spec.service_account, "default").into(),
        waypoint: None,
        network_gateway: network::gateway(store, &network),
        node: "".into(),
        canonical_name,
        canonical_revision,
        kind: WorkloadKind::Pod,
        workload_name: name.into(),
        native_tunnel,
        application_tunnel: None,
        services,
        authorization_policies: policies(store, namespace, labels),
        health: Health::Healthy,
        cluster_id: store.settings().cluster_id.clone(),
        locality: Locality {
            region: places.next().unwrap_or_default(),
            zone: places.next().unwrap_or_default(),
            subzone: places.next().unwrap_or_default(),
        },
        network_mode: NetworkMode::Standard,
        capacity: spec.weight.unwrap_or(1),
    })
}
