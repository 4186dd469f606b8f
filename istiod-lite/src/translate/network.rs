//! The gateways between networks.

use std::collections::BTreeMap;
use std::net::IpAddr;

use manifest::gateway::{ReachedAt, SERVICE_ACCOUNT};
use manifest::kinds::Gateway;
use manifest::{Kind, ObjectKey, annotation};
use model::{
    GatewayAddress, GatewayDestination, Health, Locality, NetworkAddr, NetworkId, NetworkMode,
    TunnelProtocol, Uid, Workload, WorkloadKind,
};
use xds::Resource;

use super::{Note, Translated, canonical};
use crate::store::Store;

/// The gateway that leads to a network: the first by name that has an address.
pub(super) fn gateway(store: &Store, network: &str) -> Option<GatewayAddress> {
    let mut gateways = store.gateways().leading_to(network);
    gateways.find_map(|name| {
        let gateway = store.gateway(&name.namespace, &name.name)?;
        let ip = addresses(gateway).into_iter().next()?;
        let destination = GatewayDestination::Address(NetworkAddr::new(NetworkId::new(network), ip));
        Some(GatewayAddress { destination, hbone_port: gateway.hbone_port() })
    })
}

/// A gateway as proxies see it: a workload of its network that ends tunnels itself. Who it is follows from its account, which
/// is that of its name where nothing else is said.
pub(super) fn workload(store: &Store, gateway: &Gateway) -> Translated {
    let Some(network) = gateway.leads_to() else { return Translated::default() };
    let namespace = gateway.metadata.namespace.as_deref().unwrap_or_default();
    let name = gateway.metadata.name.as_deref().unwrap_or_default();
    let addresses = addresses(gateway);
    if addresses.is_empty() {
        let message =
            format!("it has no IP address, so that nobody finds the way to network {network} by it");
        let note = Note { object: ObjectKey::new(Kind::Gateway, namespace, name), message };
        return Translated { resources: Vec::new(), notes: vec![note] };
    }
    let none = BTreeMap::new();
    let (canonical_name, canonical_revision) =
        canonical(gateway.metadata.labels.as_ref().unwrap_or(&none), name);
    let account = annotation(&gateway.metadata, SERVICE_ACCOUNT).filter(|account| !account.is_empty());
    let cluster = &store.settings().cluster_id;
    Translated::resource(Resource::from(Workload {
        uid: Uid::new(format!("{cluster}/gateway.networking.k8s.io/Gateway/{namespace}/{name}")),
        name: name.into(),
        namespace: namespace.into(),
        addresses,
        hostname: None,
        network: NetworkId::new(network),
        tunnel: TunnelProtocol::Hbone,
        trust_domain: store.mesh().trust_domain.clone(),
        service_account: account.unwrap_or(name).into(),
        waypoint: None,
        network_gateway: None,
        node: "".into(),
        canonical_name,
        canonical_revision,
        kind: WorkloadKind::Pod,
        workload_name: name.into(),
        native_tunnel: true,
        application_tunnel: None,
        services: BTreeMap::new(),
        authorization_policies: Vec::new(),
        health: Health::Healthy,
        cluster_id: cluster.clone(),
        locality: Locality::default(),
        network_mode: NetworkMode::Standard,
        capacity: 1,
    }))
}

fn addresses(gateway: &Gateway) -> Vec<IpAddr> {
    let ip = |at| match at {
        ReachedAt::Ip(ip) => Some(ip),
        ReachedAt::Host(_) => None,
    };
    gateway.addresses().into_iter().filter_map(ip).collect()
}
