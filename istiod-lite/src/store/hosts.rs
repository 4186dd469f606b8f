//! Who declares a host name, and whose word counts.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use manifest::{Kind, Object, ObjectKey};
use model::ServiceKey;

/// The objects that declare host names. Of several that declare the same name in the same namespace one counts: a
/// Service before a ServiceEntry, then the oldest, then the first by name.
#[derive(Debug, Default)]
pub(crate) struct Hosts {
    declarers: HashMap<ServiceKey, BTreeMap<Rank, ObjectKey>>,
    namespaces: HashMap<Arc<str>, BTreeMap<Rank, ServiceKey>>,
}

/// What decides between declarers; the least wins.
type Rank = (bool, bool, Option<Timestamp>, String, String);

fn rank(key: &ObjectKey, object: &Object) -> Rank {
    let created = object.metadata().creation_timestamp.as_ref().map(|time| time.0);
    (key.kind != Kind::Service, created.is_none(), created, key.namespace.clone(), key.name.clone())
}

/// The host names that an object declares.
pub(crate) fn declared(object: &Object, cluster_domain: &str) -> Vec<ServiceKey> {
    let namespace = object.namespace();
    match object {
        Object::Service(service) => {
            let external =
                service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("ExternalName");
            let host = format!("{}.{namespace}.svc.{cluster_domain}", object.name());
            if external { Vec::new() } else { vec![ServiceKey::new(namespace, host)] }
        }
        Object::ServiceEntry(entry) => {
            let mut keys: Vec<ServiceKey> =
                entry.spec.hosts.iter().map(|host| ServiceKey::new(namespace, host.to_lowercase())).collect();
            keys.sort();
            keys.dedup();
            keys
        }
        _ => Vec::new(),
    }
}

impl Hosts {
    pub(super) fn insert(&mut self, key: &ObjectKey, object: &Object, cluster_domain: &str) {
        for host in declared(object, cluster_domain) {
            let rank = rank(key, object);
            self.namespaces.entry(host.hostname.clone()).or_default().insert(rank.clone(), host.clone());
            self.declarers.entry(host).or_default().insert(rank, key.clone());
        }
    }

    pub(super) fn remove(&mut self, key: &ObjectKey, object: &Object, cluster_domain: &str) {
        for host in declared(object, cluster_domain) {
            let rank = rank(key, object);
            if let Some(all) = self.namespaces.get_mut(&host.hostname) {
                all.remove(&rank);
                if all.is_empty() {
                    self.namespaces.remove(&host.hostname);
                }
            }
            if let Some(all) = self.declarers.get_mut(&host) {
                all.remove(&rank);
                if all.is_empty() {
                    self.declarers.remove(&host);
                }
            }
        }
    }

    /// The object whose word counts.
    pub(crate) fn winner(&self, host: &ServiceKey) -> Option<&ObjectKey> {
        self.declarers.get(host)?.first_key_value().map(|(_, key)| key)
    }

    /// All objects that declare a name.
    pub(crate) fn declarers(&self, host: &ServiceKey) -> impl Iterator<Item = &ObjectKey> {
        self.declarers.get(host).into_iter().flat_map(BTreeMap::values)
    }

    /// All namespaces' declarations of a host name.
    pub(crate) fn namesakes(&self, hostname: &str) -> impl Iterator<Item = &ServiceKey> {
        self.namespaces.get(hostname).into_iter().flat_map(BTreeMap::values)
    }

    /// Of all namespaces' declarations of a host name the one that counts where the namespace does not decide.
    pub(crate) fn canonical(&self, hostname: &str) -> Option<&ServiceKey> {
        self.namespaces.get(hostname)?.first_key_value().map(|(_, key)| key)
    }

    /// The names that objects of a namespace declare.
    pub(crate) fn declared_in(&self, namespace: &str) -> impl Iterator<Item = &ServiceKey> {
        self.declarers.keys().filter(move |host| &*host.namespace == namespace)
    }

    /// All names.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &ServiceKey> {
        self.declarers.keys()
    }
}
