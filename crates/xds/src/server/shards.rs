//! A map cut into shards, so that a change copies one shard and a walk can stop between two and go on in a later state.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;

use rustc_hash::FxBuildHasher;

type Shard<V> = HashMap<Arc<str>, V, FxBuildHasher>;

/// How many shards there are. At 100,000 entries a change copies some 200 pointers.
pub(super) const SHARDS: usize = 512;

#[derive(Clone, Debug)]
pub(super) struct Shards<V>(Vec<Arc<Shard<V>>>);

/// The shard that a name is in, in every map and at all times.
pub(super) fn shard_of(name: &str) -> usize {
    // Not the hash's ends, from which the map inside picks its buckets.
    (FxBuildHasher.hash_one(name) >> 24) as usize % SHARDS
}

impl<V> Default for Shards<V> {
    fn default() -> Self {
        let empty = Arc::new(Shard::default());
        Self(vec![empty; SHARDS])
    }
}

impl<V: Clone> Shards<V> {
    pub(super) fn get(&self, name: &str) -> Option<&V> {
        self.0[shard_of(name)].get(name)
    }

    pub(super) fn insert(&mut self, name: Arc<str>, value: V) -> Option<V> {
        Arc::make_mut(&mut self.0[shard_of(&name)]).insert(name, value)
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<V> {
        let shard = &mut self.0[shard_of(name)];
        // An absent name copies nothing.
        shard.contains_key(name).then(|| Arc::make_mut(shard).remove(name)).flatten()
    }

    /// The value of a name, made if there is none.
    pub(super) fn entry(&mut self, name: &Arc<str>) -> &mut V
    where
        V: Default,
    {
        Arc::make_mut(&mut self.0[shard_of(name)]).entry(name.clone()).or_default()
    }

    pub(super) fn shard(&self, at: usize) -> impl Iterator<Item = (&Arc<str>, &V)> {
        self.0[at].iter()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &V)> {
        self.0.iter().flat_map(|shard| shard.iter())
    }

    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|shard| shard.len()).sum()
    }

    /// The shards, by number, that may differ from those of another state.
    pub(super) fn differing<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = usize> + 'a {
        (0..SHARDS).filter(|at| !Arc::ptr_eq(&self.0[*at], &other.0[*at]))
    }
}
