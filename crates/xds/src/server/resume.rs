//! A walk over the world for a client that may have parts of it already.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::shards::{SHARDS, shard_of};
use super::subscription::Subscription;
use super::{Entry, Snapshot};
use crate::TypeUrl;

/// What a client says it has: names to versions.
pub(super) type Had = BTreeMap<String, String>;

/// A walk over all resources of a type, shard by shard, each in the state that is current when the walk comes to it.
#[derive(Debug)]
pub(super) struct Sweep {
    next: usize,
    had: Vec<Had>,
}

impl Sweep {
    pub(super) fn new(had: Had) -> Self {
        let mut by_shard = Vec::new();
        if !had.is_empty() {
            by_shard.resize_with(SHARDS, Had::new);
        }
        for (name, version) in had {
            by_shard[shard_of(&name)].insert(name, version);
        }
        Self { next: 0, had: by_shard }
    }

    /// Whether the walk will still come to that name.
    pub(super) fn will_reach(&self, name: &str) -> bool {
        shard_of(name) >= self.next
    }

    /// Puts what the client has been told of a name meanwhile, a version or that it is gone, in the place of what it
    /// said it has.
    pub(super) fn told(&mut self, name: &str, version: Option<&str>) {
        if !self.will_reach(name) {
            return;
        }
        if let Some(had) = self.had.get_mut(shard_of(name)) {
            match version {
                Some(version) => drop(had.insert(name.to_owned(), version.to_owned())),
                None => drop(had.remove(name)),
            }
        }
    }

    /// Adds the next shard's names in which client and server differ. False at the walk's end.
    pub(super) fn step(
        &mut self,
        snapshot: &Snapshot,
        type_url: TypeUrl,
        visible: impl Fn(&Entry) -> bool,
        pending: &mut BTreeSet<Arc<str>>,
    ) -> bool {
        if self.next == SHARDS {
            return false;
        }
        let mut had = self.had.get_mut(self.next).map(std::mem::take).unwrap_or_default();
        for entry in snapshot.shard(type_url, self.next).filter(|e| visible(e)) {
            if had.remove(&*entry.name).as_deref() != Some(&*entry.version) {
                pending.insert(entry.name.clone());
            }
        }
        pending.extend(had.into_keys().map(Arc::from));
        self.next += 1;
        true
    }
}

/// The names in which a client that asks for single names differs from the server.
pub(super) fn differences(
    snapshot: &Snapshot,
    type_url: TypeUrl,
    subscription: &Subscription,
    had: Had,
    visible: impl Fn(&Entry) -> bool,
) -> BTreeSet<Arc<str>> {
    let mut pending: BTreeSet<Arc<str>> = BTreeSet::new();
    for name in &subscription.names {
        for entry in snapshot.resolve(type_url, name) {
            if visible(entry) && had.get(&*entry.name).map(String::as_str) != Some(&*entry.version) {
                pending.insert(entry.name.clone());
            }
        }
    }
    for name in had.into_keys() {
        let keeps = snapshot
            .get(type_url, &name)
            .is_some_and(|entry| visible(entry) && subscription.wants(snapshot, type_url, entry));
        if !keeps {
            pending.insert(name.into());
        }
    }
    pending
}
