//! Which node a pod runs on.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodCondition};

use crate::lab::address::NodePlan;
use crate::lab::store::{Change, Store};

/// Gives pods without a node one: away from others of the same owner first, then where the fewest are.
///
/// A pod that names a node which is not there stays pending, and says so.
pub(super) fn changes(store: &Store, nodes: &[NodePlan]) -> Vec<Change> {
    let mut load: Vec<Load<'_>> = nodes.iter().map(|node| Load::of(node, store)).collect();
    let mut changes = Vec::new();
    for pod in store.pods().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        let Some(wanted) = node_of(pod) else {
            let owner = owner_of(pod);
            let Some(best) = load.iter_mut().min_by_key(|load| load.weight(owner)) else { continue };
            best.add(owner);
            let mut pod = pod.clone();
            pod.spec.get_or_insert_default().node_name = Some(best.node.name.clone());
            changes.push(Change::put(pod));
            continue;
        };
        if !nodes.iter().any(|node| node.name == wanted) {
            changes.push(Change::put(pending(pod, wanted, nodes)));
        }
    }
    changes
}

struct Load<'a> {
    node: &'a NodePlan,
    pods: usize,
    by_owner: BTreeMap<&'a str, usize>,
}

impl<'a> Load<'a> {
    fn of(node: &'a NodePlan, store: &'a Store) -> Self {
        let mut load = Self { node, pods: 0, by_owner: BTreeMap::new() };
        store.pods().filter(|pod| node_of(pod) == Some(&node.name)).for_each(|pod| load.add(owner_of(pod)));
        load
    }

    fn add(&mut self, owner: Option<&'a str>) {
        self.pods += 1;
        if let Some(owner) = owner {
            *self.by_owner.entry(owner).or_default() += 1;
        }
    }

    fn weight(&self, owner: Option<&str>) -> (usize, usize) {
        (owner.and_then(|owner| self.by_owner.get(owner)).copied().unwrap_or_default(), self.pods)
    }
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

fn owner_of(pod: &Pod) -> Option<&str> {
    pod.metadata.owner_references.as_ref()?.first().map(|owner| owner.uid.as_str())
}

fn pending(pod: &Pod, wanted: &str, nodes: &[NodePlan]) -> Pod {
    let mut pod = pod.clone();
    let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    let message = format!("there is no node `{wanted}`; there are {}", names.join(", "));
    let status = pod.status.get_or_insert_default();
    status.phase = Some("Pending".to_owned());
    status.conditions = Some(vec![PodCondition {
        type_: "PodScheduled".to_owned(),
        status: "False".to_owned(),
        reason: Some("Unschedulable".to_owned()),
        message: Some(message),
        ..PodCondition::default()
    }]);
    pod
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::address;
    use crate::lab::store::tests::store;

    fn pod(name: &str, node: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: x}}\n\
             spec: {{nodeName: {node:?}, containers: [{{name: m, command: [sleep]}}]}}\n"
        )
    }

    fn placed(yaml: &str) -> Vec<String> {
        let (mut store, mut mint) = store(yaml);
        for change in changes(&store, &address::nodes(2)) {
            store.make(change, &mut mint);
        }
        store.pods().map(|pod| node_of(pod).unwrap_or("-").to_owned()).collect()
    }

    #[test]
    fn a_pod_runs_where_it_wants() {
        assert_eq!(placed(&(pod("a", "node2") + &pod("b", "node2"))), ["node2", "node2"]);
    }

    #[test]
    fn pods_without_a_wish_are_spread() {
        let pods: String = ["a", "b", "c"].map(|name| pod(name, "")).concat();
        assert_eq!(placed(&pods), ["node1", "node2", "node1"]);
        assert_eq!(placed(&(pod("a", "node1") + &pod("b", ""))), ["node1", "node2"]);
    }

    #[test]
    fn a_node_that_is_not_there_is_named() {
        let (mut store, mut mint) = store(&pod("a", "node9"));
        for change in changes(&store, &address::nodes(2)) {
            assert!(store.make(change, &mut mint));
        }
        let status = store.pod("x", "a").unwrap().status.clone().unwrap();
        let told = status.conditions.unwrap().remove(0).message.unwrap();
        assert_eq!(told, "there is no node `node9`; there are node1, node2");
        let again = changes(&store, &address::nodes(2));
        assert!(again.into_iter().all(|change| !store.make(change, &mut mint)), "it comes to rest");
    }
}
