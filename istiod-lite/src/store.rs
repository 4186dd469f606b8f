//! The objects, and what depends on which of them.

pub(crate) mod addresses;
mod changes;
mod dependents;
mod gateways;
mod hosts;
mod selectors;
mod vips;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use manifest::kinds::{
    AuthorizationPolicy, Gateway, MeshConfig, MeshSettings, PeerAuthentication, ServiceEntry, WorkloadEntry,
};
use manifest::policy::{self, Mode};
use manifest::{Kind, Object, ObjectKey, label};
use model::NamespacedName;

use addresses::Addresses;
pub use changes::{ChangeSet, Origin};
pub(crate) use dependents::service_of;
use gateways::Gateways;
pub(crate) use hosts::{Hosts, declared};
use selectors::Selectors;
use vips::Vips;

/// The label by which an EndpointSlice names its service.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// What an installation fixes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The cluster's name, the first part of workloads' uids.
    pub cluster_id: Arc<str>,
    /// The domain of services' host names.
    pub cluster_domain: Arc<str>,
    /// The namespace of the mesh's ConfigMap; mesh-wide policies stand there too, where the ConfigMap does not say otherwise.
    pub config_namespace: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cluster_id: "Kubernetes".into(),
            cluster_domain: "cluster.local".into(),
            config_namespace: MeshSettings::default().root_namespace,
        }
    }
}

impl Settings {
    /// What holds where the mesh's ConfigMap says nothing.
    fn mesh_defaults(&self) -> MeshSettings {
        MeshSettings { root_namespace: self.config_namespace.clone(), ..MeshSettings::default() }
    }
}

/// The objects of the source, with the look-ups that translation needs.
#[derive(Debug, Default)]
pub struct Store {
    settings: Settings,
    mesh: MeshSettings,
    objects: HashMap<Kind, BTreeMap<String, BTreeMap<String, Arc<Object>>>>,
    /// What selects by label: Services, ServiceEntries, AuthorizationPolicies, PeerAuthentications.
    selectors: Selectors,
    hosts: Hosts,
    addresses: Addresses,
    vips: Vips,
    gateways: Gateways,
    pods_on: HashMap<String, BTreeSet<NamespacedName>>,
    slices_of: HashMap<NamespacedName, BTreeSet<String>>,
    slices_with: HashMap<NamespacedName, BTreeSet<String>>,
}

macro_rules! accessors {
    ($($one:ident $all:ident $kind:ident)*) => {
        $(
            #[doc = concat!("One ", stringify!($kind), ".")]
            pub fn $one(&self, namespace: &str, name: &str) -> Option<&$kind> {
                match &**self.object(Kind::$kind, namespace, name)? {
                    Object::$kind(object) => Some(object),
                    _ => None,
                }
            }

            #[doc = concat!("Every ", stringify!($kind), " of a namespace, by name.")]
            pub fn $all(&self, namespace: &str) -> impl Iterator<Item = &$kind> {
                let objects = self.objects.get(&Kind::$kind).and_then(|all| all.get(namespace));
                objects.into_iter().flat_map(BTreeMap::values).filter_map(|object| match &**object {
                    Object::$kind(object) => Some(&**object),
                    _ => None,
                })
            }
        )*
    };
}

impl Store {
    /// A store without objects.
    pub fn new(settings: Settings) -> Self {
        Self { mesh: settings.mesh_defaults(), settings, ..Self::default() }
    }

    accessors! {
        pod pods Pod
        service services Service
        endpoint_slice endpoint_slices EndpointSlice
        service_entry service_entries ServiceEntry
        workload_entry workload_entries WorkloadEntry
        gateway gateways_in Gateway
        authorization_policy authorization_policies AuthorizationPolicy
        peer_authentication peer_authentications PeerAuthentication
    }

    /// What the installation fixes.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What the mesh's ConfigMap says.
    pub fn mesh(&self) -> &MeshSettings {
        &self.mesh
    }

    /// An object.
    pub fn object(&self, kind: Kind, namespace: &str, name: &str) -> Option<&Arc<Object>> {
        self.objects.get(&kind)?.get(namespace)?.get(name)
    }

    /// All objects of a kind.
    pub fn objects(&self, kind: Kind) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.get(&kind).into_iter().flat_map(BTreeMap::values).flat_map(BTreeMap::values)
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.objects.values().flat_map(BTreeMap::values).map(BTreeMap::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A namespace.
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        match &**self.object(Kind::Namespace, "", name)? {
            Object::Namespace(namespace) => Some(namespace),
            _ => None,
        }
    }

    /// A node.
    pub fn node(&self, name: &str) -> Option<&Node> {
        match &**self.object(Kind::Node, "", name)? {
            Object::Node(node) => Some(node),
            _ => None,
        }
    }

    /// The pods of a node.
    pub fn pods_on(&self, node: &str) -> impl Iterator<Item = &Pod> {
        let names = self.pods_on.get(node).into_iter().flatten();
        names.filter_map(|pod| self.pod(&pod.namespace, &pod.name))
    }

    /// The slices of a service.
    pub fn slices_of(&self, namespace: &str, service: &str) -> impl Iterator<Item = &EndpointSlice> {
        let names = self.slices_of.get(&NamespacedName::new(namespace, service)).into_iter().flatten();
        let namespace = namespace.to_owned();
        names.filter_map(move |slice| self.endpoint_slice(&namespace, slice))
    }

    /// The slices that name a pod.
    pub fn slices_with(&self, pod: &NamespacedName) -> impl Iterator<Item = &EndpointSlice> {
        let namespace = pod.namespace.clone();
        let names = self.slices_with.get(pod).into_iter().flatten();
        names.filter_map(move |slice| self.endpoint_slice(&namespace, slice))
    }

    /// The objects of a kind and namespace that select these labels.
    pub(crate) fn selecting(
        &self,
        kind: Kind,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> BTreeSet<ObjectKey> {
        self.selectors.selecting(kind, namespace, labels)
    }

    /// Which objects declare which host names.
    pub(crate) fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    /// Which objects have which virtual addresses.
    pub(crate) fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Addresses of hosts whose ServiceEntries name none.
    pub(crate) fn vips(&self) -> &Vips {
        &self.vips
    }

    /// What leads to which Gateways.
    pub(crate) fn gateways(&self) -> &Gateways {
        &self.gateways
    }

    /// The peer policy without a selector that counts in a namespace.
    pub(crate) fn namespace_peer_policy(&self, namespace: &str) -> Option<&PeerAuthentication> {
        policy::oldest(self.peer_authentications(namespace).filter(|p| !p.spec.is_selective()))
    }

    /// Whether a namespace takes plaintext where no selector says otherwise.
    pub fn peer_mode(&self, namespace: &str) -> Mode {
        let mesh = self.namespace_peer_policy(&self.mesh.root_namespace);
        policy::effective_mode(mesh, self.namespace_peer_policy(namespace))
    }

    /// Puts objects in and takes objects out. The result names all whose translation may be another now.
    pub fn apply<'o>(
        &mut self,
        upserts: impl IntoIterator<Item = &'o Arc<Object>>,
        deletes: impl IntoIterator<Item = &'o ObjectKey>,
    ) -> ChangeSet {
        let mut changes = ChangeSet::default();
        for key in deletes {
            self.replace(key, None, &mut changes);
        }
        for object in upserts {
            self.replace(&object.key(), Some(object), &mut changes);
        }
        changes
    }

    fn replace(&mut self, key: &ObjectKey, new: Option<&Arc<Object>>, changes: &mut ChangeSet) {
        let old = self.object(key.kind, &key.namespace, &key.name).cloned();
        if let (Some(old), Some(new)) = (&old, new)
            && dependents::is_same_to_all(old, new)
        {
            self.put(key, new);
            return;
        }
        changes.note(key.kind);
        // What depended on the old object is found while it still stands, what depends on the new one afterwards.
        if let Some(old) = &old {
            self.dependents(old, changes);
            self.unindex(key, old);
            changes.origins.extend(self.vips.remove(key, old).into_iter().map(Origin::Host));
            if let Some(names) = self.objects.get_mut(&key.kind).and_then(|all| all.get_mut(&key.namespace)) {
                names.remove(&key.name);
            }
        }
        if let Some(new) = new {
            self.put(key, new);
            self.index(key, new);
            changes.origins.extend(self.vips.insert(key, new).into_iter().map(Origin::Host));
        }
        if key.kind == Kind::ConfigMap {
            self.read_mesh(key, changes);
        }
        if let Some(new) = new {
            self.dependents(new, changes);
        }
    }

    fn put(&mut self, key: &ObjectKey, object: &Arc<Object>) {
        let names = self.objects.entry(key.kind).or_default().entry(key.namespace.clone()).or_default();
        names.insert(key.name.clone(), object.clone());
    }

    fn index(&mut self, key: &ObjectKey, object: &Object) {
        self.selectors.insert(key, object);
        self.hosts.insert(key, object, &self.settings.cluster_domain);
        self.addresses.insert(key, object);
        self.gateways.insert(key, object);
        match object {
            Object::Pod(pod) => {
                let node = node_of(pod);
                if !node.is_empty() {
                    self.pods_on.entry(node.to_owned()).or_default().insert(name_of(key));
                }
            }
            Object::EndpointSlice(slice) => {
                let service = label(&slice.metadata, SERVICE_NAME_LABEL).unwrap_or_default();
                let service = NamespacedName::new(&key.namespace, service);
                self.slices_of.entry(service).or_default().insert(key.name.clone());
                for pod in pods_in(slice, &key.namespace) {
                    self.slices_with.entry(pod).or_default().insert(key.name.clone());
                }
            }
            _ => {}
        }
    }

    fn unindex(&mut self, key: &ObjectKey, object: &Object) {
        self.selectors.remove(key, object);
        self.hosts.remove(key, object, &self.settings.cluster_domain);
        self.addresses.remove(key, object);
        self.gateways.remove(key, object);
        match object {
            Object::Pod(pod) => take_out(&mut self.pods_on, &node_of(pod).to_owned(), &name_of(key)),
            Object::EndpointSlice(slice) => {
                let service = label(&slice.metadata, SERVICE_NAME_LABEL).unwrap_or_default();
                take_out(&mut self.slices_of, &NamespacedName::new(&key.namespace, service), &key.name);
                for pod in pods_in(slice, &key.namespace) {
                    take_out(&mut self.slices_with, &pod, &key.name);
                }
            }
            _ => {}
        }
    }

    fn read_mesh(&mut self, key: &ObjectKey, changes: &mut ChangeSet) {
        if key.namespace != self.settings.config_namespace || key.name != MeshConfig::CONFIG_MAP {
            return;
        }
        let defaults = self.settings.mesh_defaults();
        let mesh = match self.object(Kind::ConfigMap, &key.namespace, &key.name).map(|object| &**object) {
            Some(Object::ConfigMap(map)) => manifest::mesh_settings(map, &defaults),
            _ => defaults,
        };
        if mesh != self.mesh {
            self.mesh = mesh;
            changes.everything = true;
        }
    }
}

fn take_out<K: std::hash::Hash + Eq, V: Ord>(index: &mut HashMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(values) = index.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            index.remove(key);
        }
    }
}

fn name_of(key: &ObjectKey) -> NamespacedName {
    NamespacedName::new(&key.namespace, &key.name)
}

/// The node that a pod runs on; empty where it has none yet.
pub(crate) fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

/// The pods that a slice names.
fn pods_in<'s>(slice: &'s EndpointSlice, namespace: &'s str) -> impl Iterator<Item = NamespacedName> + 's {
    let targets = slice.endpoints.iter().filter_map(|endpoint| endpoint.target_ref.as_ref());
    let pods = targets.filter(|target| target.kind.as_deref() == Some("Pod"));
    pods.filter_map(move |target| Some(NamespacedName::new(namespace, target.name.as_deref()?)))
}
