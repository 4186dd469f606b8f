//! The pods of this node that are about to end, by the word of the node's agent, which comes before the control plane's.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use index::World;
use model::{Health, NamespacedName, NetworkAddr, NetworkId, Workload};
use zds::{PodUid, Stage};

/// The pods of this node that are about to end or have. Cloning is cheap and shares them; reading takes no lock. The
/// registry alone writes.
#[derive(Clone, Debug, Default)]
pub struct Departures(Arc<ArcSwap<Table>>);

type Table = HashMap<NamespacedName, Departure>;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Departure {
    uid: PodUid,
    stage: Stage,
    /// By these it is told apart from a successor of the same name.
    addresses: Arc<[IpAddr]>,
}

impl Departures {
    /// The agent says that a pod is about to end, or has.
    pub fn note(&self, uid: &PodUid, name: &NamespacedName, stage: Stage, addresses: &[IpAddr]) {
        let departure = Departure { uid: uid.clone(), stage, addresses: addresses.into() };
        self.change(|table| drop(table.insert(name.clone(), departure)));
    }

    /// The agent brings a pod: another of the same name has left the stage.
    pub fn came(&self, uid: &PodUid, name: &NamespacedName) {
        let is_successor = self.0.load().get(name).is_some_and(|departure| departure.uid != *uid);
        if is_successor {
            self.change(|table| drop(table.remove(name)));
        }
    }

    /// Forgets the pods that `is_here` does not know and of which the control plane does not tell any more.
    pub fn tidy(&self, world: &World, network: &NetworkId, is_here: impl Fn(&PodUid) -> bool) {
        let is_told = |name: &NamespacedName, departure: &Departure| {
            let mut at = departure.addresses.iter().map(|ip| NetworkAddr::new(network.clone(), *ip));
            at.any(|addr| world.workloads_at(&addr).any(|w| is_named(w, name)))
        };
        let is_over = |(name, of): (&NamespacedName, &Departure)| !is_here(&of.uid) && !is_told(name, of);
        if self.0.load().iter().any(is_over) {
            self.change(|table| table.retain(|name, departure| !is_over((name, departure))));
        }
    }

    /// The health of a workload for clients on `node`: the control plane's word, unless the agent's came first. Nothing
    /// where the workload is not there any more.
    pub fn health(&self, node: &str, workload: &Workload) -> Option<Health> {
        let told = workload.health;
        if *workload.node != *node {
            return Some(told);
        }
        let table = self.0.load();
        if table.is_empty() {
            return Some(told);
        }
        let name = NamespacedName { namespace: workload.namespace.clone(), name: workload.name.clone() };
        match table.get(&name) {
            Some(d) if d.addresses.iter().any(|ip| workload.addresses.contains(ip)) => {
                match (d.stage, told) {
                    (Stage::Ended, _) => None,
                    (Stage::Terminating, Health::Healthy) => Some(Health::Terminating),
                    (Stage::Terminating, told) => Some(told),
                }
            }
            _ => Some(told),
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.load().len()
    }

    fn change(&self, change: impl FnOnce(&mut Table)) {
        let mut table = Table::clone(&self.0.load());
        change(&mut table);
        self.0.store(Arc::new(table));
    }
}

fn is_named(workload: &Workload, name: &NamespacedName) -> bool {
    workload.name == name.name && workload.namespace == name.namespace
}

#[cfg(test)]
mod tests {
    use testkit::fixtures::{ip, pod};

    use super::*;

    fn uid(text: &str) -> PodUid {
        PodUid::new(text)
    }

    fn web() -> NamespacedName {
        NamespacedName::new("shop", "web-0")
    }

    fn departing(stage: Stage) -> Departures {
        let departures = Departures::default();
        departures.note(&uid("u1"), &web(), stage, &[ip("10.0.0.1")]);
        departures
    }

    fn workload(address: &str) -> Workload {
        pod("shop", "web-0").ip(address).build()
    }

    #[test]
    fn the_agents_word_comes_before_the_control_planes() {
        let (ending, ended) = (departing(Stage::Terminating), departing(Stage::Ended));
        let health = |departures: &Departures, workload| departures.health("node1", &workload);
        assert_eq!(health(&ending, workload("10.0.0.1")), Some(Health::Terminating));
        assert_eq!(health(&ended, workload("10.0.0.1")), None);
        let unready = pod("shop", "web-0").ip("10.0.0.1").unhealthy().build();
        assert_eq!(health(&ending, unready), Some(Health::Unhealthy), "it is no better for that");
    }

    #[test]
    fn it_is_about_the_pod_and_nobody_of_its_name() {
        let ended = departing(Stage::Ended);
        assert_eq!(ended.health("node1", &workload("10.0.0.2")), Some(Health::Healthy));
        let elsewhere = pod("shop", "web-0").ip("10.0.0.1").node("node2").build();
        assert_eq!(ended.health("node1", &elsewhere), Some(Health::Healthy));
        ended.came(&uid("u1"), &web());
        assert_eq!(ended.count(), 1, "it is told again by an agent that came anew");
        ended.came(&uid("u2"), &web());
        assert_eq!(ended.count(), 0);
    }

    #[test]
    fn who_left_is_remembered_for_as_long_as_the_control_plane_tells_of_it() {
        let ended = departing(Stage::Ended);
        let network = NetworkId::default();
        let (told, _) = World::default().apply([workload("10.0.0.1").into()]);
        ended.tidy(&told, &network, |_| false);
        assert_eq!(ended.count(), 1);
        ended.tidy(&World::default(), &network, |_| true);
        assert_eq!(ended.count(), 1, "it is served still");
        ended.tidy(&World::default(), &network, |_| false);
        assert_eq!(ended.count(), 0);
    }
}
