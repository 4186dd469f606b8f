//! EndpointSlices of services without a selector.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use manifest::{Kind, ObjectKey};
use model::{
    Health, Locality, NetworkId, NetworkMode, PortMapping, ServiceKey, TunnelProtocol, Uid, Workload,
    WorkloadKind,
};

use super::{default_network, network, ports, service};
use crate::store::{Store, service_of};

/// The services that a slice belongs to, with the ports that it gives them; none where the service has a selector, which
/// says more, and earlier.
pub(super) fn services(store: &Store, slice: &EndpointSlice) -> BTreeMap<ServiceKey, Vec<PortMapping>> {
    let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
    let Some(name) = service_of(slice) else { return BTreeMap::new() };
    let Some(object) = store.service(namespace, name) else { return BTreeMap::new() };
    let selector = object.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    if selector.is_some_and(|selector| !selector.is_empty()) {
        return BTreeMap::new();
    }
    let target = |port_name: &str| {
        let mut given = slice.ports.iter().flatten();
        let port = given.find(|given| given.name.as_deref().unwrap_or_default() == port_name)?;
        ports::number(port.port?)
    };
    let mapping = |port| {
        let declared = ports::declared(port)?;
        Some(PortMapping { target_port: Some(target(port.name.as_deref().unwrap_or_default())?), ..declared })
    };
    let mappings: Vec<PortMapping> = ports::tcp_ports(object).filter_map(mapping).collect();
    let hosts = service::winning_hosts(store, &ObjectKey::new(Kind::Service, namespace, name));
    hosts.into_iter().map(|host| (host, mappings.clone())).collect()
}

/// Workloads for the addresses of a slice that belong to no pod.
pub(super) fn workloads(store: &Store, slice: &EndpointSlice) -> Vec<Workload> {
    let services = services(store, slice);
    if services.is_empty() {
        return Vec::new();
    }
    let endpoints = slice.endpoints.iter().filter(|endpoint| {
        let target = endpoint.target_ref.as_ref();
        target.is_none_or(|target| target.kind.as_deref() != Some("Pod"))
    });
    let mut workloads: BTreeMap<Uid, Workload> = BTreeMap::new();
    for endpoint in endpoints {
        for ip in endpoint.addresses.iter().filter_map(|text| text.parse().ok()) {
            let workload = workload(store, slice, endpoint, ip, &services);
            workloads.insert(workload.uid.clone(), workload);
        }
    }
    workloads.into_values().collect()
}

/// What an endpoint's conditions say (KEP-1669): nothing said about `ready` is ready, and nothing said about `serving` is
/// what `ready` says. Who is about to end is not ready, but may be serving.
pub(super) fn health(endpoint: &Endpoint) -> Health {
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
    let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
    let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
    match (ready, serving && terminating) {
        (true, _) => Health::Healthy,
        (false, true) => Health::Terminating,
        (false, false) => Health::Unhealthy,
    }
}

fn workload(
    store: &Store,
    slice: &EndpointSlice,
    endpoint: &Endpoint,
    ip: IpAddr,
    services: &BTreeMap<ServiceKey, Vec<PortMapping>>,
) -> Workload {
    let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
    let name = slice.metadata.name.as_deref().unwrap_or_default();
    let cluster = &store.settings().cluster_id;
    let network = default_network(store);
    let service = service_of(slice).unwrap_or_default();
    Workload {
        uid: Uid::new(format!("{cluster}/discovery.k8s.io/EndpointSlice/{namespace}/{name}/{ip}")),
        name: name.into(),
        namespace: namespace.into(),
        addresses: vec![ip],
        hostname: None,
        network: NetworkId::new(network),
        tunnel: TunnelProtocol::None,
        trust_domain: store.mesh().trust_domain.clone(),
        service_account: "default".into(),
        waypoint: None,
        network_gateway: network::gateway(store, network),
        node: endpoint.node_name.as_deref().unwrap_or_default().into(),
        canonical_name: service.into(),
        canonical_revision: "latest".into(),
        kind: WorkloadKind::Pod,
        workload_name: name.into(),
        native_tunnel: false,
        application_tunnel: None,
        services: services.clone(),
        authorization_policies: Vec::new(),
        health: health(endpoint),
        cluster_id: cluster.clone(),
        locality: Locality {
            zone: endpoint.zone.as_deref().unwrap_or_default().into(),
            ..Locality::default()
        },
        network_mode: NetworkMode::Standard,
        capacity: 1,
    }
}
