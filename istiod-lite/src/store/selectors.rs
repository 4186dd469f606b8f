//! What selects by label, found by the labels.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use manifest::kinds::selects;
use manifest::{Kind, Object, ObjectKey};

/// Selectors under one of the labels that each asks for, so that a workload's labels lead to the few that may match.
#[derive(Debug, Default)]
pub(super) struct Selectors {
    by_namespace: HashMap<(Kind, String), ByPair>,
}

/// A label's key and value.
type Pair = (String, String);
/// Objects under the first label that they select by, each with all of them.
type ByPair = HashMap<Pair, BTreeMap<ObjectKey, BTreeMap<String, String>>>;

/// The labels that an object selects by; nothing where it selects nothing, or everything.
pub(super) fn selector(object: &Object) -> Option<&BTreeMap<String, String>> {
    let labels = match object {
        Object::Service(service) => service.spec.as_ref()?.selector.as_ref()?,
        Object::ServiceEntry(entry) => &entry.spec.workload_selector.as_ref()?.labels,
        Object::AuthorizationPolicy(policy) if manifest::policy::is_for_node(policy) => {
            &policy.spec.selector.as_ref()?.match_labels
        }
        Object::PeerAuthentication(policy) => &policy.spec.selector.as_ref()?.match_labels,
        _ => return None,
    };
    (!labels.is_empty()).then_some(labels)
}

impl Selectors {
    pub(super) fn insert(&mut self, key: &ObjectKey, object: &Object) {
        let Some(labels) = selector(object) else { return };
        let Some(pair) = first(labels) else { return };
        let table = self.by_namespace.entry((key.kind, key.namespace.clone())).or_default();
        table.entry(pair).or_default().insert(key.clone(), labels.clone());
    }

    pub(super) fn remove(&mut self, key: &ObjectKey, object: &Object) {
        let Some(pair) = selector(object).and_then(first) else { return };
        if let Some(table) = self.by_namespace.get_mut(&(key.kind, key.namespace.clone()))
            && let Some(selectors) = table.get_mut(&pair)
        {
            selectors.remove(key);
            if selectors.is_empty() {
                table.remove(&pair);
            }
        }
    }

    pub(super) fn selecting(
        &self,
        kind: Kind,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> BTreeSet<ObjectKey> {
        let Some(table) = self.by_namespace.get(&(kind, namespace.to_owned())) else {
            return BTreeSet::new();
        };
        let pairs = labels.iter().map(|(key, value)| (key.clone(), value.clone()));
        let candidates = pairs.filter_map(|pair| table.get(&pair)).flatten();
        candidates.filter(|(_, wanted)| selects(wanted, Some(labels))).map(|(key, _)| key.clone()).collect()
    }
}

fn first(labels: &BTreeMap<String, String>) -> Option<Pair> {
    labels.first_key_value().map(|(key, value)| (key.clone(), value.clone()))
}
