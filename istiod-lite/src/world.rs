//! What proxies are told, kept up by making anew what changes touch.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use manifest::policy::Mode;
use xds::{Resource, ResourceKey};

use crate::store::{ChangeSet, Origin, Store};
use crate::translate::{Note, Translated, translate};

/// Everything that was made, by what it was made from.
#[derive(Debug, Default)]
pub struct World {
    made: HashMap<Origin, Translated>,
    /// What each namespace said about plaintext when its workloads were made.
    modes: HashMap<String, Mode>,
}

/// What a change made of the world.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    /// New or different resources.
    pub set: Vec<Resource>,
    /// Resources that are no more.
    pub removed: Vec<ResourceKey>,
    /// Notes that were not there before.
    pub notes: Vec<Note>,
    /// How many origins were made anew: the cost of the change.
    pub translated: usize,
}

impl World {
    /// Makes anew what a change touches, as the store now stands.
    pub fn translate(&mut self, store: &Store, mut changes: ChangeSet) -> Delta {
        if changes.everything {
            changes.origins.extend(self.made.keys().cloned());
            changes.origins.extend(store.origins());
        } else if !self.made.contains_key(&Origin::StaticStrict) {
            changes.origins.insert(Origin::StaticStrict);
        }
        self.peer_modes(store, &mut changes);
        let mut delta = Delta { translated: changes.origins.len(), ..Delta::default() };
        for origin in changes.origins {
            let new = translate(store, &origin);
            let old = self.made.remove(&origin).unwrap_or_default();
            compare(&old, &new, &mut delta);
            if new != Translated::default() {
                self.made.insert(origin, new);
            }
        }
        // What passed from one origin to another is not gone.
        let set: BTreeSet<ResourceKey> = delta.set.iter().map(Resource::key).collect();
        delta.removed.retain(|key| !set.contains(key));
        delta
    }

    /// Workloads name the policy about plaintext themselves, so all of a namespace depend on its word.
    fn peer_modes(&mut self, store: &Store, changes: &mut ChangeSet) {
        let mut namespaces = std::mem::take(&mut changes.peer_modes);
        if changes.mesh_peer_mode || changes.everything {
            namespaces.extend(store.peer_mode_namespaces());
            namespaces.extend(self.modes.keys().cloned());
        }
        for namespace in namespaces {
            let mode = store.peer_mode(&namespace);
            let old = match mode {
                Mode::Permissive => self.modes.remove(&namespace).unwrap_or_default(),
                Mode::Strict => self.modes.insert(namespace.clone(), mode).unwrap_or_default(),
            };
            if old != mode {
                changes.origins.extend(store.workload_origins(&namespace));
                let selective = store.peer_authentications(&namespace).filter(|p| p.spec.is_selective());
                let names = selective.filter_map(|policy| policy.metadata.name.as_deref());
                let names = names.map(|name| model::NamespacedName::new(&namespace, name));
                changes.origins.extend(names.map(Origin::PeerAuthentication));
            }
        }
        // What is about to be made by a namespace's word remembers that word.
        for namespace in changes.origins.iter().filter_map(Origin::under_peer_mode) {
            if !self.modes.contains_key(namespace) && store.peer_mode(namespace) == Mode::Strict {
                self.modes.insert(namespace.to_owned(), Mode::Strict);
            }
        }
    }

    /// All resources.
    pub fn resources(&self) -> impl Iterator<Item = &Resource> {
        self.made.values().flat_map(|made| &made.resources)
    }

    /// All that is done otherwise than objects say.
    pub fn notes(&self) -> Vec<Note> {
        let mut notes: Vec<Note> = self.made.values().flat_map(|made| made.notes.iter().cloned()).collect();
        notes.sort_by(|a, b| (&a.object, &a.message).cmp(&(&b.object, &b.message)));
        notes
    }

    /// All workloads.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<model::Workload>> {
        self.resources().filter_map(|resource| match resource {
            Resource::Workload(workload) => Some(workload),
            _ => None,
        })
    }

    /// All services.
    pub fn services(&self) -> impl Iterator<Item = &Arc<model::Service>> {
        self.resources().filter_map(|resource| match resource {
            Resource::Service(service) => Some(service),
            _ => None,
        })
    }

    /// All policies.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<model::Policy>> {
        self.resources().filter_map(|resource| match resource {
            Resource::Policy(policy) => Some(policy),
            _ => None,
        })
    }
}

fn compare(old: &Translated, new: &Translated, delta: &mut Delta) {
    for resource in &new.resources {
        if !old.resources.contains(resource) {
            delta.set.push(resource.clone());
        }
    }
    let keys: BTreeSet<ResourceKey> = new.resources.iter().map(Resource::key).collect();
    delta.removed.extend(old.resources.iter().map(Resource::key).filter(|key| !keys.contains(key)));
    delta.notes.extend(new.notes.iter().filter(|note| !old.notes.contains(note)).cloned());
}

#[cfg(test)]
mod tests;
