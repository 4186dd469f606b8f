//! Who has which address.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Pod, Service};
use manifest::kinds::ServiceEntry;
use manifest::{Kind, Object, ObjectKey};
use model::NamespacedName;

use super::{name_of, take_out};

/// The Services and pods that have an address, and the ServiceEntries that name it. The cluster gives out a Service's
/// address and a pod's; a ServiceEntry's is whatever its author writes, so the others' word counts.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    pods: HashMap<IpAddr, BTreeSet<NamespacedName>>,
    services: HashMap<IpAddr, BTreeSet<NamespacedName>>,
    entries: HashMap<IpAddr, BTreeSet<NamespacedName>>,
}

/// The virtual addresses of a Service, each once; `None` of a headless one is none, and one by name only has none.
pub(crate) fn of_service(service: &Service) -> Vec<IpAddr> {
    let Some(spec) = &service.spec else { return Vec::new() };
    if spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let listed = spec.cluster_ips.as_deref().unwrap_or_default().iter();
    each_once(listed.chain(spec.cluster_ip.as_ref()))
}

/// The virtual addresses that a ServiceEntry names, each once.
pub(crate) fn of_entry(entry: &ServiceEntry) -> Vec<IpAddr> {
    each_once(entry.spec.addresses.iter().filter(|text| block(text).is_none()))
}

/// The blocks of addresses that a ServiceEntry names.
pub(crate) fn blocks_of_entry(entry: &ServiceEntry) -> BTreeSet<IpNet> {
    entry.spec.addresses.iter().filter_map(|text| block(text)).collect()
}

/// A block of one is its address, and no block.
fn block(text: &str) -> Option<IpNet> {
    let block: IpNet = text.parse().ok()?;
    (block.prefix_len() < block.max_prefix_len()).then(|| block.trunc())
}

/// A pod's addresses, each once; one that has ended has none, and they may be others' by now.
pub(crate) fn of_pod(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = pod.status.as_ref().filter(|_| !is_over(pod)) else { return Vec::new() };
    each_once(status.pod_ips.iter().flatten().map(|ip| &ip.ip).chain(&status.pod_ip))
}

/// Whether a pod has run to its end.
pub(crate) fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn each_once<'t>(texts: impl Iterator<Item = &'t String>) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for text in texts {
        let Ok(ip) = text.split('/').next().unwrap_or_default().parse::<IpAddr>() else { continue };
        // As proxies compare them.
        let ip = ip.to_canonical();
        if !addresses.contains(&ip) {
            addresses.push(ip);
        }
    }
    addresses
}

impl Addresses {
    pub(super) fn insert(&mut self, key: &ObjectKey, object: &Object) {
        let (index, addresses) = match object {
            Object::Pod(pod) => (&mut self.pods, of_pod(pod)),
            Object::Service(service) => (&mut self.services, of_service(service)),
            Object::ServiceEntry(entry) => (&mut self.entries, of_entry(entry)),
            _ => return,
        };
        for ip in addresses {
            index.entry(ip).or_default().insert(name_of(key));
        }
    }

    pub(super) fn remove(&mut self, key: &ObjectKey, object: &Object) {
        let (index, addresses) = match object {
            Object::Pod(pod) => (&mut self.pods, of_pod(pod)),
            Object::Service(service) => (&mut self.services, of_service(service)),
            Object::ServiceEntry(entry) => (&mut self.entries, of_entry(entry)),
            _ => return,
        };
        for ip in addresses {
            take_out(index, &ip, &name_of(key));
        }
    }

    /// The Service or pod that has an address; the first by namespace and name where several say so.
    pub(crate) fn holder(&self, ip: &IpAddr) -> Option<ObjectKey> {
        let first = |kind, index: &HashMap<IpAddr, BTreeSet<NamespacedName>>| {
            let name = index.get(ip)?.first()?;
            Some(ObjectKey::new(kind, &*name.namespace, &*name.name))
        };
        first(Kind::Service, &self.services).or_else(|| first(Kind::Pod, &self.pods))
    }

    /// The ServiceEntries that name an address.
    pub(super) fn entries(&self, ip: &IpAddr) -> impl Iterator<Item = &NamespacedName> {
        self.entries.get(ip).into_iter().flatten()
    }
}
