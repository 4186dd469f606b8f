//! Objects to what proxies are told. Pure: each translation looks at one origin and at what the store leads to from it.

mod balancing;
mod endpoints;
mod entry;
mod network;
mod owner;
mod pod;
mod ports;
mod service;
mod waypoint;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use manifest::gateway::NETWORK_LABEL;
use manifest::{Kind, ObjectKey, label, policy};
use model::{Locality, PolicyKey, PortMapping, ServiceKey};
use serde::Serialize;
use xds::Resource;

use crate::store::{Origin, Store};

pub(crate) use entry::labels as entry_labels;
pub(crate) use pod::service_account;

/// What an origin gives.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Translated {
    /// What proxies are told.
    pub resources: Vec<Resource>,
    /// What is done otherwise than the objects say.
    pub notes: Vec<Note>,
}

/// Something that is done otherwise than an object says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// The object.
    pub object: ObjectKey,
    /// What is done.
    pub message: String,
}

impl Translated {
    fn resource(resource: impl Into<Resource>) -> Self {
        Self::noted(resource, Vec::new())
    }

    fn noted(resource: impl Into<Resource>, notes: Vec<Note>) -> Self {
        Self { resources: vec![resource.into()], notes }
    }
}

/// Makes what an origin gives as the store now stands; nothing where its object is gone.
pub fn translate(store: &Store, origin: &Origin) -> Translated {
    match origin {
        Origin::Pod(name) => {
            let pod = store.pod(&name.namespace, &name.name);
            pod.and_then(|pod| pod::workload(store, pod)).unwrap_or_default()
        }
        Origin::WorkloadEntry(name) => {
            let entry = store.workload_entry(&name.namespace, &name.name);
            entry.and_then(|e| entry::workload(store, e)).unwrap_or_default()
        }
        Origin::EndpointSlice(name) => {
            let slice = store.endpoint_slice(&name.namespace, &name.name);
            let workloads = slice.map(|slice| endpoints::workloads(store, slice)).unwrap_or_default();
            Translated { resources: workloads.into_iter().map(Resource::from).collect(), notes: Vec::new() }
        }
        Origin::ServiceEntry(name) => {
            let entry = store.service_entry(&name.namespace, &name.name);
            let workloads = entry.map(|entry| entry::written_out(store, entry)).unwrap_or_default();
            Translated { resources: workloads.into_iter().map(Resource::from).collect(), notes: Vec::new() }
        }
        Origin::Gateway(name) => {
            let gateway = store.gateway(&name.namespace, &name.name);
            gateway.map(|gateway| network::workload(store, gateway)).unwrap_or_default()
        }
        Origin::Host(key) => service::service(store, key),
        Origin::AuthorizationPolicy(name) => {
            let Some(object) = store.authorization_policy(&name.namespace, &name.name) else {
                return Translated::default();
            };
            let translation = policy::translate(object, store.mesh());
            let object = ObjectKey::new(Kind::AuthorizationPolicy, &*name.namespace, &*name.name);
            let note = |note: policy::Note| Note { object: object.clone(), message: note.to_string() };
            Translated {
                resources: translation.policy.map(Resource::from).into_iter().collect(),
                notes: translation.notes.into_iter().map(note).collect(),
            }
        }
        Origin::PeerAuthentication(name) => {
            let object = store.peer_authentication(&name.namespace, &name.name);
            let wider = store.peer_mode(&name.namespace);
            let policy = object.and_then(|object| policy::converted_policy(object, wider));
            policy.map(Translated::resource).unwrap_or_default()
        }
        Origin::StaticStrict => Translated::resource(policy::static_strict(&store.mesh().root_namespace)),
    }
}

/// The policies that a workload names: those that select it, and the one about plaintext.
fn policies(store: &Store, namespace: &str, labels: &BTreeMap<String, String>) -> Vec<PolicyKey> {
    let root = &store.mesh().root_namespace;
    let mut keys = store.selecting(Kind::AuthorizationPolicy, namespace, labels);
    if namespace != root {
        keys.extend(store.selecting(Kind::AuthorizationPolicy, root, labels));
    }
    let mut policies: Vec<PolicyKey> =
        keys.into_iter().map(|key| PolicyKey::new(key.namespace, key.name)).collect();
    let selecting = store.selecting(Kind::PeerAuthentication, namespace, labels);
    let selecting = selecting.iter().filter_map(|key| store.peer_authentication(&key.namespace, &key.name));
    let governing = policy::governing(selecting, Some(labels));
    policies.extend(policy::workload_policy(governing, store.peer_mode(namespace), root));
    policies
}

/// The services that select a workload, each with its ports there; `named` resolves the name of a port.
fn selecting_services(
    store: &Store,
    namespace: &str,
    labels: &BTreeMap<String, String>,
    ports: &dyn ports::Resolve,
) -> BTreeMap<ServiceKey, Vec<PortMapping>> {
    let mut services = BTreeMap::new();
    for key in store.selecting(Kind::Service, namespace, labels) {
        let Some(object) = store.service(&key.namespace, &key.name) else { continue };
        let mappings = ports::of_service(object, ports);
        for host in service::winning_hosts(store, &key) {
            services.insert(host, mappings.clone());
        }
    }
    for key in store.selecting(Kind::ServiceEntry, namespace, labels) {
        let Some(object) = store.service_entry(&key.namespace, &key.name) else { continue };
        let mappings = ports::of_entry(&object.spec, ports);
        for host in service::winning_hosts(store, &key) {
            services.insert(host, mappings.clone());
        }
    }
    services
}

/// The canonical service of a workload, for telemetry; `fallback` is the name of what manages it.
fn canonical(labels: &BTreeMap<String, String>, fallback: &str) -> (Arc<str>, Arc<str>) {
    let first = |keys: [&str; 3]| keys.iter().find_map(|key| labels.get(*key)).filter(|v| !v.is_empty());
    let name = first(["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
    let revision = first(["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
    (name.map_or(fallback, String::as_str).into(), revision.map_or("latest", String::as_str).into())
}

/// The network of workloads that name none.
fn default_network(store: &Store) -> &str {
    let root = store.namespace(&store.mesh().root_namespace);
    root.and_then(|namespace| label(&namespace.metadata, NETWORK_LABEL)).unwrap_or_default()
}

/// Region, zone and part of the zone, as a node's labels tell them.
pub(crate) fn locality_labels(node: &ObjectMeta) -> [&str; 3] {
    ["topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"]
        .map(|key| label(node, key).unwrap_or_default())
}

fn locality([region, zone, subzone]: [&str; 3]) -> Locality {
    Locality { region: region.into(), zone: zone.into(), subzone: subzone.into() }
}

/// Whether labels say that a workload speaks HBONE itself.
fn has_native_tunnel(labels: &BTreeMap<String, String>) -> bool {
    labels.get("networking.istio.io/tunnel").is_some_and(|value| value == "http")
}
