//! What a client asked for.

use std::sync::Arc;

use rustc_hash::FxHashSet;

use super::{Entry, Snapshot};
use crate::TypeUrl;

/// The name that stands for everything.
pub(super) const WILDCARD: &str = "*";

#[derive(Debug, Default)]
pub(super) struct Subscription {
    pub(super) wildcard: bool,
    pub(super) names: FxHashSet<Arc<str>>,
}

impl Subscription {
    /// Whether an entry of a state is among what was asked for; agrees with [`Snapshot::resolve`].
    pub(super) fn wants(&self, snapshot: &Snapshot, type_url: TypeUrl, entry: &Entry) -> bool {
        self.wildcard
            || self.has(&entry.name)
            || entry.aliases.iter().any(|alias| self.has(alias))
            || entry.groups.iter().any(|group| {
                self.has(group)
                    || snapshot
                        .get(type_url, group)
                        .is_some_and(|service| service.aliases.iter().any(|alias| self.has(alias)))
            })
    }

    fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }
}
