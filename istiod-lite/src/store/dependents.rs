//! Who depends on an object.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Namespace;
use manifest::gateway::{self, NETWORK_LABEL};
use manifest::{Kind, Object, ObjectKey, TRAFFIC_DISTRIBUTION, annotation, label};
use model::NamespacedName;

use super::{ChangeSet, Origin, SERVICE_NAME_LABEL, Store, addresses, hosts, pods_in, selectors};
use crate::translate::locality_labels;

/// The origin of an object of some kind.
type OfName = fn(NamespacedName) -> Origin;

/// Whether nothing that depends on an object can tell two states of it apart.
pub(super) fn is_same_to_all(old: &Object, new: &Object) -> bool {
    match (old, new) {
        (Object::Namespace(old), Object::Namespace(new)) => {
            let labels = [
                manifest::DATAPLANE_MODE_LABEL,
                NETWORK_LABEL,
                gateway::USE_WAYPOINT,
                gateway::USE_WAYPOINT_NAMESPACE,
                gateway::CANARY,
                gateway::CANARY_NAMESPACE,
                gateway::INGRESS_USE_WAYPOINT,
            ];
            let annotations = [TRAFFIC_DISTRIBUTION, gateway::CANARY_WEIGHT];
            let (old, new) = (&old.metadata, &new.metadata);
            labels.iter().all(|key| label(old, key) == label(new, key))
                && annotations.iter().all(|key| annotation(old, key) == annotation(new, key))
        }
        (Object::Node(old), Object::Node(new)) => {
            locality_labels(&old.metadata) == locality_labels(&new.metadata)
        }
        (Object::Deployment(_) | Object::ServiceAccount(_), _) => true,
        (old, new) => old == new,
    }
}

/// Whether a namespace says something of the services in it.
fn is_about_hosts(of: &Namespace) -> bool {
    annotation(&of.metadata, TRAFFIC_DISTRIBUTION).is_some()
        || label(&of.metadata, gateway::INGRESS_USE_WAYPOINT).is_some()
}

impl Store {
    /// Adds all that depends on an object as the store now stands.
    pub(super) fn dependents(&self, object: &Object, changes: &mut ChangeSet) {
        let namespace = object.namespace();
        let name = NamespacedName::new(namespace, object.name());
        match object {
            Object::Namespace(of) => {
                let name = object.name();
                if name == self.mesh.root_namespace && label(&of.metadata, NETWORK_LABEL).is_some() {
                    changes.everything = true;
                }
                let pods = self.pods(name).filter_map(|pod| pod.metadata.name.as_deref());
                changes.origins.extend(pods.map(|pod| Origin::Pod(NamespacedName::new(name, pod))));
                if gateway::named_waypoints(object).names().next().is_some() {
                    self.all_of(name, changes);
                } else if is_about_hosts(of) {
                    changes.origins.extend(self.hosts.declared_in(name).cloned().map(Origin::Host));
                }
            }
            Object::Node(_) => {
                let pods = self.pods_on.get(object.name()).into_iter().flatten();
                changes.origins.extend(pods.cloned().map(Origin::Pod));
            }
            Object::Pod(pod) => {
                changes.origins.insert(Origin::Pod(name));
                self.claimants(addresses::of_pod(pod), changes);
            }
            Object::WorkloadEntry(_) => drop(changes.origins.insert(Origin::WorkloadEntry(name))),
            Object::Gateway(gateway) => {
                // What is in a network is not looked up by that: such gateways change seldom.
                changes.everything |= gateway.leads_to().is_some();
                for key in self.gateways.users(&name).chain(self.gateways.parts(&name)) {
                    self.guarded(key, changes);
                }
                changes.origins.insert(Origin::Gateway(name));
            }
            Object::EndpointSlice(slice) => {
                changes.origins.extend(pods_in(slice, namespace).map(Origin::Pod));
                changes.origins.insert(Origin::EndpointSlice(name));
            }
            Object::Service(service) => {
                self.declarations(object, changes);
                self.claimants(addresses::of_service(service), changes);
            }
            Object::ServiceEntry(_) => self.declarations(object, changes),
            Object::AuthorizationPolicy(_) => {
                changes.origins.insert(Origin::AuthorizationPolicy(name));
                if let Some(labels) = selectors::selector(object) {
                    if namespace == self.mesh.root_namespace {
                        let namespaces: Vec<String> = self.workload_namespaces();
                        namespaces.iter().for_each(|ns| self.selected(ns, labels, changes));
                    } else {
                        self.selected(namespace, labels, changes);
                    }
                }
            }
            Object::PeerAuthentication(_) => match selectors::selector(object) {
                Some(labels) => {
                    changes.origins.insert(Origin::PeerAuthentication(name));
                    self.selected(namespace, labels, changes);
                }
                None => {
                    changes.peer_modes.insert(namespace.to_owned());
                    changes.mesh_peer_mode |= namespace == self.mesh.root_namespace;
                }
            },
            Object::ConfigMap(_) | Object::Deployment(_) | Object::ServiceAccount(_) => {}
        }
    }

    /// The hosts that an object declares, and the endpoints of all who declare the same.
    fn declarations(&self, object: &Object, changes: &mut ChangeSet) {
        self.members(object, changes);
        for host in hosts::declared(object, &self.settings.cluster_domain) {
            let namesakes = self.hosts.namesakes(&host.hostname);
            changes.origins.extend(namesakes.cloned().map(Origin::Host));
            for rival in self.hosts.declarers(&host) {
                if let Some(rival) = self.object(rival.kind, &rival.namespace, &rival.name) {
                    self.members(rival, changes);
                }
            }
            changes.origins.insert(Origin::Host(host));
        }
    }

    /// What an object with a waypoint before it gives.
    fn guarded(&self, key: &ObjectKey, changes: &mut ChangeSet) {
        let name = NamespacedName::new(&key.namespace, &key.name);
        match key.kind {
            Kind::Namespace => self.all_of(&key.name, changes),
            Kind::Pod => drop(changes.origins.insert(Origin::Pod(name))),
            Kind::WorkloadEntry => drop(changes.origins.insert(Origin::WorkloadEntry(name))),
            _ => {
                if key.kind == Kind::ServiceEntry {
                    changes.origins.insert(Origin::ServiceEntry(name));
                }
                let object = self.object(key.kind, &key.namespace, &key.name);
                let hosts = object.map(|object| hosts::declared(object, &self.settings.cluster_domain));
                changes.origins.extend(hosts.into_iter().flatten().map(Origin::Host));
            }
        }
    }

    /// The workloads and services of a namespace.
    fn all_of(&self, namespace: &str, changes: &mut ChangeSet) {
        changes.origins.extend(self.workload_origins(namespace));
        changes.origins.extend(self.hosts.declared_in(namespace).cloned().map(Origin::Host));
    }

    /// The hosts of the ServiceEntries that name an address of a Service or a pod.
    fn claimants(&self, of: Vec<IpAddr>, changes: &mut ChangeSet) {
        for ip in of {
            for name in self.addresses.entries(&ip) {
                let entry = self.object(Kind::ServiceEntry, &name.namespace, &name.name);
                let hosts = entry.map(|entry| hosts::declared(entry, &self.settings.cluster_domain));
                changes.origins.extend(hosts.into_iter().flatten().map(Origin::Host));
            }
        }
    }

    /// The endpoints of a service.
    fn members(&self, object: &Object, changes: &mut ChangeSet) {
        let namespace = object.namespace();
        if let Some(labels) = selectors::selector(object) {
            self.selected(namespace, labels, changes);
            return;
        }
        match object {
            Object::Service(_) => {
                for slice in self.slices_of(namespace, object.name()) {
                    changes.origins.extend(pods_in(slice, namespace).map(Origin::Pod));
                    let name = slice.metadata.name.as_deref().unwrap_or_default();
                    changes.origins.insert(Origin::EndpointSlice(NamespacedName::new(namespace, name)));
                }
            }
            Object::ServiceEntry(_) => {
                changes.origins.insert(Origin::ServiceEntry(NamespacedName::new(namespace, object.name())));
            }
            _ => {}
        }
    }

    /// The workloads of a namespace that have labels.
    fn selected(&self, namespace: &str, labels: &BTreeMap<String, String>, changes: &mut ChangeSet) {
        let name = |name: Option<&String>| NamespacedName::new(namespace, name.map_or("", String::as_str));
        for pod in self.pods(namespace) {
            if manifest::kinds::selects(labels, pod.metadata.labels.as_ref()) {
                changes.origins.insert(Origin::Pod(name(pod.metadata.name.as_ref())));
            }
        }
        for entry in self.workload_entries(namespace) {
            let own = crate::translate::entry_labels(entry);
            if manifest::kinds::selects(labels, Some(&own)) {
                changes.origins.insert(Origin::WorkloadEntry(name(entry.metadata.name.as_ref())));
            }
        }
        // Policies select written-out endpoints too.
        for entry in self.service_entries(namespace) {
            let mut endpoints = entry.spec.endpoints.iter();
            if endpoints.any(|endpoint| manifest::kinds::selects(labels, Some(&endpoint.labels))) {
                changes.origins.insert(Origin::ServiceEntry(name(entry.metadata.name.as_ref())));
            }
        }
    }

    /// The namespaces in which there may be workloads.
    pub(crate) fn workload_namespaces(&self) -> Vec<String> {
        self.namespaces_with(&[Kind::Pod, Kind::WorkloadEntry, Kind::ServiceEntry, Kind::EndpointSlice])
    }

    /// The namespaces in which something depends on the word about plaintext: workloads, and policies of ports.
    pub(crate) fn peer_mode_namespaces(&self) -> Vec<String> {
        let mut namespaces = self.workload_namespaces();
        namespaces.extend(self.namespaces_with(&[Kind::PeerAuthentication]));
        namespaces
    }

    fn namespaces_with(&self, kinds: &[Kind]) -> Vec<String> {
        let mut namespaces: Vec<String> = kinds
            .iter()
            .filter_map(|kind| self.objects.get(kind))
            .flat_map(BTreeMap::keys)
            .cloned()
            .collect();
        namespaces.sort();
        namespaces.dedup();
        namespaces
    }

    /// All workloads of a namespace.
    pub(crate) fn workload_origins(&self, namespace: &str) -> impl Iterator<Item = Origin> {
        let kinds: [(Kind, OfName); 4] = [
            (Kind::Pod, Origin::Pod),
            (Kind::WorkloadEntry, Origin::WorkloadEntry),
            (Kind::ServiceEntry, Origin::ServiceEntry),
            (Kind::EndpointSlice, Origin::EndpointSlice),
        ];
        kinds.into_iter().flat_map(move |(kind, origin)| self.names(kind, namespace).map(origin))
    }

    /// All that anything is made from.
    pub(crate) fn origins(&self) -> Vec<Origin> {
        let mut origins = vec![Origin::StaticStrict];
        for namespace in self.workload_namespaces() {
            origins.extend(self.workload_origins(&namespace));
        }
        origins.extend(self.hosts.keys().cloned().map(Origin::Host));
        let kinds: [(Kind, OfName); 3] = [
            (Kind::Gateway, Origin::Gateway),
            (Kind::AuthorizationPolicy, Origin::AuthorizationPolicy),
            (Kind::PeerAuthentication, Origin::PeerAuthentication),
        ];
        for (kind, origin) in kinds {
            for namespace in self.objects.get(&kind).into_iter().flat_map(BTreeMap::keys) {
                origins.extend(self.names(kind, namespace).map(origin));
            }
        }
        origins
    }

    fn names(&self, kind: Kind, namespace: &str) -> impl Iterator<Item = NamespacedName> {
        let names = self.objects.get(&kind).and_then(|all| all.get(namespace));
        let namespace = namespace.to_owned();
        names.into_iter().flat_map(BTreeMap::keys).map(move |name| NamespacedName::new(&namespace, name))
    }
}

/// The service that a slice belongs to.
pub(crate) fn service_of(slice: &k8s_openapi::api::discovery::v1::EndpointSlice) -> Option<&str> {
    label(&slice.metadata, SERVICE_NAME_LABEL).filter(|name| !name.is_empty())
}
