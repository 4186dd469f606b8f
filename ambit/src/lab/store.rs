//! The objects of a lab: what people applied, and what the controllers made of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use manifest::{Kind, Object, ObjectKey};

/// Where new objects get what no two of them share.
pub(crate) struct Mint {
    /// The time of everything that is done now.
    pub(crate) now: Timestamp,
    uid: Box<dyn FnMut() -> String + Send>,
}

impl fmt::Debug for Mint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mint").field("now", &self.now).finish_non_exhaustive()
    }
}

impl Mint {
    pub(crate) fn new(now: Timestamp, uid: impl FnMut() -> String + Send + 'static) -> Self {
        Self { now, uid: Box::new(uid) }
    }

    /// Random UUIDs and the machine's clock.
    pub(crate) fn of_machine() -> Self {
        Self::new(Timestamp::now(), || uuid::Uuid::new_v4().to_string())
    }

    pub(crate) fn time(&self) -> Time {
        // Kubernetes' times have whole seconds.
        Time(self.now.round(jiff::Unit::Second).unwrap_or(self.now))
    }
}

/// The objects by key, and which of them changed since somebody last asked.
#[derive(Debug, Default)]
pub(crate) struct Store {
    objects: BTreeMap<ObjectKey, Object>,
    /// Labels and annotations that came with the last `apply` of an object; others were put on by `label`.
    applied: BTreeMap<ObjectKey, Applied>,
    changed: BTreeSet<ObjectKey>,
}

/// What an `apply` put on an object, so that the next one takes away that and nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) labels: BTreeSet<String>,
    pub(crate) annotations: BTreeSet<String>,
}

impl Applied {
    pub(crate) fn of(metadata: &ObjectMeta) -> Self {
        let keys =
            |map: &Option<BTreeMap<String, String>>| map.iter().flatten().map(|(k, _)| k.clone()).collect();
        Self { labels: keys(&metadata.labels), annotations: keys(&metadata.annotations) }
    }
}

/// One step of a controller.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Change {
    Put(Box<Object>),
    Remove(ObjectKey),
}

impl Change {
    pub(crate) fn put(object: impl Into<Object>) -> Self {
        Self::Put(Box::new(object.into()))
    }
}

impl Store {
    /// Puts an object in. A new one gets a UID and its birthday; one that was there keeps them. A deployment gets the next
    /// generation with each change of its spec, so that its status can say of which it tells.
    ///
    /// Tells whether that changed anything.
    pub(crate) fn put(&mut self, mut object: Object, mint: &mut Mint) -> bool {
        let key = object.key();
        let before = self.objects.get(&key);
        let (uid, born) = match before {
            Some(before) => (before.metadata().uid.clone(), before.metadata().creation_timestamp.clone()),
            None => (Some((mint.uid)()), Some(mint.time())),
        };
        let metadata = object.metadata_mut();
        (metadata.uid, metadata.creation_timestamp) = (uid, born);
        if let Object::Deployment(deployment) = &mut object {
            let before = match before {
                Some(Object::Deployment(before)) => Some(&**before),
                _ => None,
            };
            deployment.metadata.generation = Some(generation(deployment, before));
        }
        if before == Some(&object) {
            return false;
        }
        self.objects.insert(key.clone(), object);
        self.changed.insert(key);
        true
    }

    pub(crate) fn remove(&mut self, key: &ObjectKey) -> bool {
        self.applied.remove(key);
        let was_there = self.objects.remove(key).is_some();
        if was_there {
            self.changed.insert(key.clone());
        }
        was_there
    }

    /// Does what a controller wants. Tells whether that changed anything.
    pub(crate) fn make(&mut self, change: Change, mint: &mut Mint) -> bool {
        match change {
            Change::Put(object) => self.put(*object, mint),
            Change::Remove(key) => self.remove(&key),
        }
    }

    pub(crate) fn get(&self, key: &ObjectKey) -> Option<&Object> {
        self.objects.get(key)
    }

    pub(crate) fn has(&self, kind: Kind, namespace: &str, name: &str) -> bool {
        self.objects.contains_key(&ObjectKey::new(kind, namespace, name))
    }

    pub(crate) fn applied(&self, key: &ObjectKey) -> Option<&Applied> {
        self.applied.get(key)
    }

    pub(crate) fn note_applied(&mut self, key: ObjectKey, applied: Applied) {
        self.applied.insert(key, applied);
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Object> {
        self.objects.values()
    }

    /// All objects of a kind, by namespace and name.
    pub(crate) fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Object> {
        let from = ObjectKey::new(kind, "", "");
        self.objects.range(from..).take_while(move |(key, _)| key.kind == kind).map(|(_, object)| object)
    }

    pub(crate) fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.of_kind(Kind::Pod).filter_map(|object| match object {
            Object::Pod(pod) => Some(&**pod),
            _ => None,
        })
    }

    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Option<&Pod> {
        match self.get(&ObjectKey::new(Kind::Pod, namespace, name))? {
            Object::Pod(pod) => Some(pod),
            _ => None,
        }
    }

    pub(crate) fn services(&self) -> impl Iterator<Item = &Service> {
        self.of_kind(Kind::Service).filter_map(|object| match object {
            Object::Service(service) => Some(&**service),
            _ => None,
        })
    }

    pub(crate) fn slices(&self) -> impl Iterator<Item = &EndpointSlice> {
        self.of_kind(Kind::EndpointSlice).filter_map(|object| match object {
            Object::EndpointSlice(slice) => Some(&**slice),
            _ => None,
        })
    }

    pub(crate) fn deployments(&self) -> impl Iterator<Item = &Deployment> {
        self.of_kind(Kind::Deployment).filter_map(|object| match object {
            Object::Deployment(deployment) => Some(&**deployment),
            _ => None,
        })
    }

    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &Object> {
        self.of_kind(Kind::Namespace)
    }

    /// Takes the keys of all objects that changed since this was last called; of those that are gone too.
    pub(crate) fn take_changed(&mut self) -> BTreeSet<ObjectKey> {
        std::mem::take(&mut self.changed)
    }

    /// Puts keys back that could not be dealt with.
    pub(crate) fn still_changed(&mut self, keys: impl IntoIterator<Item = ObjectKey>) {
        self.changed.extend(keys);
    }
}

fn generation(deployment: &Deployment, before: Option<&Deployment>) -> i64 {
    let Some(before) = before else { return 1 };
    let told = before.metadata.generation.unwrap_or(1);
    if deployment.spec == before.spec { told } else { told + 1 }
}

/// An object's name; empty where it has none.
pub(crate) fn name(metadata: &ObjectMeta) -> &str {
    metadata.name.as_deref().unwrap_or_default()
}

/// An object's namespace; empty where it has none.
pub(crate) fn namespace(metadata: &ObjectMeta) -> &str {
    metadata.namespace.as_deref().unwrap_or_default()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The time is the epoch, and UIDs count.
    pub(crate) fn mint() -> Mint {
        let mut count = 0;
        Mint::new(Timestamp::UNIX_EPOCH, move || {
            count += 1;
            format!("uid-{count}")
        })
    }

    /// A store of what a text holds.
    pub(crate) fn store(yaml: &str) -> (Store, Mint) {
        let (mut store, mut mint) = (Store::default(), mint());
        for object in objects(yaml) {
            store.put(object, &mut mint);
        }
        store.take_changed();
        (store, mint)
    }

    pub(crate) fn objects(yaml: &str) -> Vec<Object> {
        let parsed = manifest::parse("test.yaml", yaml);
        assert_eq!(parsed.problems, []);
        parsed.documents.into_iter().map(|document| document.object).collect()
    }

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: x}\n\
                       spec: {containers: [{name: main, command: [sleep]}]}\n";

    #[test]
    fn an_object_keeps_its_uid_for_life() {
        let (mut store, mut mint) = store(POD);
        assert_eq!(store.pod("x", "a").unwrap().metadata.uid.as_deref(), Some("uid-1"));
        let again = objects(POD).remove(0);
        assert!(!store.put(again.clone(), &mut mint));
        assert!(store.remove(&again.key()));
        store.put(again, &mut mint);
        assert_eq!(store.pod("x", "a").unwrap().metadata.uid.as_deref(), Some("uid-2"));
    }

    #[test]
    fn a_deployments_generation_counts_changes_of_its_spec() {
        let yaml = |replicas, label| {
            format!(
                "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web, namespace: x, labels: {{of: {label}}}}}\n\
                 spec: {{replicas: {replicas}, selector: {{matchLabels: {{app: web}}}}, template: {{metadata: \
                 {{labels: {{app: web}}}}, spec: {{containers: [{{name: main, image: x}}]}}}}}}\n"
            )
        };
        let (mut store, mut mint) = store(&yaml(1, "a"));
        let generation = |store: &Store| store.deployments().next().unwrap().metadata.generation;
        assert_eq!(generation(&store), Some(1));
        store.put(objects(&yaml(1, "b")).remove(0), &mut mint);
        assert_eq!(generation(&store), Some(1));
        store.put(objects(&yaml(2, "b")).remove(0), &mut mint);
        assert_eq!(generation(&store), Some(2));
    }

    #[test]
    fn changes_are_told_once() {
        let (mut store, mut mint) = store(POD);
        let pod = objects(POD).remove(0);
        store.remove(&pod.key());
        store.put(pod.clone(), &mut mint);
        assert_eq!(store.take_changed(), [pod.key()].into());
        assert_eq!(store.take_changed(), [].into());
    }
}
