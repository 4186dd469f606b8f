//! Pods to workloads.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use manifest::gateway::NETWORK_LABEL;
use manifest::{Kind, ObjectKey, annotation, label};
use model::{
    Health, NamespacedName, NetworkId, NetworkMode, PortMapping, ServiceKey, TunnelProtocol, Uid, Workload,
};

use super::owner::owner;
use super::{
    Note, Translated, canonical, default_network, endpoints, has_native_tunnel, locality, locality_labels,
    network, policies, selecting_services, waypoint,
};
use crate::store::{Store, addresses, node_of};

/// What the node agent writes when a pod's traffic is captured.
const REDIRECTION_ANNOTATION: &str = "ambient.istio.io/redirection";

/// The workload of a pod; nothing where it has no address, or has ended.
pub(super) fn workload(store: &Store, pod: &Pod) -> Option<Translated> {
    let addresses = addresses::of_pod(pod);
    if addresses.is_empty() {
        return None;
    }
    let spec = pod.spec.as_ref()?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let none = BTreeMap::new();
    let labels = pod.metadata.labels.as_ref().unwrap_or(&none);
    let (kind, workload_name) = owner(pod);
    let (canonical_name, canonical_revision) = canonical(labels, &workload_name);
    let host_network = spec.host_network.unwrap_or(false);
    let native_tunnel = has_native_tunnel(labels) && !host_network;
    let node = store.node(node_of(pod));
    let mut services = selecting_services(store, namespace, labels, pod);
    services.extend(named_by_slices(store, &NamespacedName::new(namespace, name)));
    let network = label(&pod.metadata, NETWORK_LABEL).unwrap_or(default_network(store));
    let (waypoint, notes) = match waypoint::before_workload(store, namespace, labels) {
        Ok(waypoint) => (waypoint, Vec::new()),
        Err(message) => (None, vec![Note { object: ObjectKey::new(Kind::Pod, namespace, name), message }]),
    };
    let workload = Workload {
        uid: Uid::new(format!("{}//Pod/{namespace}/{name}", store.settings().cluster_id)),
        name: name.into(),
        namespace: namespace.into(),
        addresses,
        hostname: None,
        network: NetworkId::new(network),
        tunnel: if native_tunnel || is_captured(store, pod) {
            TunnelProtocol::Hbone
        } else {
            TunnelProtocol::None
        },
        trust_domain: store.mesh().trust_domain.clone(),
        service_account: service_account(pod).into(),
        waypoint,
        network_gateway: network::gateway(store, network),
        node: node_of(pod).into(),
        canonical_name,
        canonical_revision,
        kind,
        workload_name: workload_name.as_str().into(),
        native_tunnel,
        application_tunnel: waypoint::application_tunnel(store, namespace, labels),
        services,
        authorization_policies: policies(store, namespace, labels),
        health: health(pod),
        cluster_id: store.settings().cluster_id.clone(),
        locality: node.map(|node| locality(locality_labels(&node.metadata))).unwrap_or_default(),
        network_mode: if host_network { NetworkMode::HostNetwork } else { NetworkMode::Standard },
        capacity: 1,
    };
    Some(Translated::noted(workload, notes))
}

/// The account of a pod's identity.
pub(crate) fn service_account(pod: &Pod) -> &str {
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
    account.filter(|name| !name.is_empty()).unwrap_or("default")
}

/// Whether a pod takes HBONE: it belongs to the mesh, and nobody says that it is not captured yet.
fn is_captured(store: &Store, pod: &Pod) -> bool {
    let namespace = store.namespace(pod.metadata.namespace.as_deref().unwrap_or_default());
    let captured = annotation(&pod.metadata, REDIRECTION_ANNOTATION).is_none_or(|state| state == "enabled");
    captured && manifest::membership(pod, namespace).is_ok()
}

fn health(pod: &Pod) -> Health {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let is_serving = conditions.filter(|c| c.type_ == "Ready").any(|c| c.status == "True");
    match (is_serving, pod.metadata.deletion_timestamp.is_some()) {
        (true, false) => Health::Healthy,
        (true, true) => Health::Terminating,
        (false, _) => Health::Unhealthy,
    }
}

/// The services without a selector of which a slice names the pod as one that serves. Whether it is chosen then is for
/// its own health to say.
fn named_by_slices(store: &Store, pod: &NamespacedName) -> BTreeMap<ServiceKey, Vec<PortMapping>> {
    let is_named = |slice: &EndpointSlice| {
        let named = |endpoint: &&Endpoint| {
            let target = endpoint.target_ref.as_ref();
            target.is_some_and(|t| t.kind.as_deref() == Some("Pod") && t.name.as_deref() == Some(&*pod.name))
        };
        let mut named = slice.endpoints.iter().filter(named);
        named.any(|endpoint| endpoints::health(endpoint) != Health::Unhealthy)
    };
    let slices = store.slices_with(pod).filter(|slice| is_named(slice));
    slices.flat_map(|slice| endpoints::services(store, slice)).collect()
}
