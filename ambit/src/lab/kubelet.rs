//! What a kubelet does: runs the pods that are assigned to nodes, and reports on them.

mod blueprint;
mod container;
mod hook;
mod pod;
mod probe;
mod sandbox;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use manifest::{Kind, Object, ObjectKey};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::pod::{Around, Gate};
use super::address::HostNumbers;
use super::control::PodReport;
use super::enrolment::{self, Enrolments};
use super::network;
use super::place::Place;
use super::store::{Store, name, namespace};

/// Which pod; another of the same name has another UID.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PodName {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl PodName {
    fn of(pod: &Pod) -> Self {
        Self {
            namespace: namespace(&pod.metadata).to_owned(),
            name: name(&pod.metadata).to_owned(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
        }
    }

    pub(crate) fn key(&self) -> ObjectKey {
        ObjectKey::new(Kind::Pod, &self.namespace, &self.name)
    }
}

/// News of a pod.
#[derive(Clone, Debug)]
pub(crate) struct PodEvent {
    pub(crate) pod: PodName,
    pub(crate) what: Happening,
}

/// What is new.
#[derive(Clone, Debug)]
pub(crate) enum Happening {
    /// Its state changed.
    Report(PodReport),
    /// Commands can be run in it.
    Open(Entrance),
    /// It has run to its end, and its address can be another's.
    Vacated,
    /// All of it is gone.
    Gone,
}

/// How to run a command in a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entrance {
    pub(crate) net: PathBuf,
    pub(crate) mnt: PathBuf,
    pub(crate) cgroup: PathBuf,
    /// The environment of its first container.
    pub(crate) env: Vec<(String, String)>,
    pub(crate) dir: Option<PathBuf>,
}

/// What is to be done about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Start(PodName),
    Stop(PodName),
    /// It is to end and never began.
    Forget(PodName),
}

/// Runs pods.
#[derive(Debug)]
pub(crate) struct Kubelet {
    place: Place,
    programs: PathBuf,
    cgroups: PathBuf,
    nodes: Vec<network::Node>,
    numbers: BTreeMap<String, HostNumbers>,
    runners: BTreeMap<(String, String), Runner>,
    /// By node: whether it has power.
    power: BTreeMap<String, watch::Sender<bool>>,
    tasks: TaskTracker,
    events: mpsc::Sender<PodEvent>,
}

#[derive(Debug)]
struct Runner {
    uid: String,
    node: String,
    host: Option<u8>,
    stop: CancellationToken,
    entrance: Option<Entrance>,
    gate: watch::Sender<Gate>,
    runs: watch::Receiver<bool>,
}

impl Kubelet {
    /// A kubelet for all nodes of a lab; `cgroups` is the group under which each pod has its own.
    pub(crate) fn new(
        place: Place,
        programs: PathBuf,
        cgroups: PathBuf,
        nodes: Vec<network::Node>,
        events: mpsc::Sender<PodEvent>,
    ) -> Self {
        let power = nodes.iter().map(|node| (node.plan.name.clone(), watch::Sender::new(true))).collect();
        Self {
            place,
            programs,
            cgroups,
            nodes,
            numbers: BTreeMap::new(),
            runners: BTreeMap::new(),
            power,
            tasks: TaskTracker::new(),
            events,
        }
    }

    /// The objects that can be removed because nothing ran for them.
    pub(crate) fn forgotten(&self, store: &Store) -> Vec<ObjectKey> {
        let forgotten = self.steps(store).into_iter().filter_map(|step| match step {
            Step::Forget(pod) => Some(pod.key()),
            Step::Start(_) | Step::Stop(_) => None,
        });
        forgotten.collect()
    }

    /// Starts and stops pods as the objects want, and lets those begin that may.
    pub(crate) fn follow(&mut self, store: &Store, enrolments: &Enrolments) {
        for step in self.steps(store) {
            match step {
                Step::Start(pod) => self.start(pod, store),
                Step::Stop(pod) => {
                    if let Some(runner) = self.runners.get(&(pod.namespace, pod.name)) {
                        runner.stop.cancel();
                    }
                }
                Step::Forget(_) => {}
            }
        }
        for ((namespace, name), runner) in &self.runners {
            let Some(pod) = store.pod(namespace, name) else { continue };
            let gate = Gate {
                wanted: enrolment::is_wanted(pod, store),
                enrolled: enrolment::enrolled_in(pod, enrolments),
            };
            runner.gate.send_if_modified(|known| std::mem::replace(known, gate) != gate);
        }
    }

    /// Cuts a node's power, or switches it on. Gives what tells of each of its pods whether anything of it runs.
    pub(crate) fn power(&self, node: &str, on: bool) -> Vec<watch::Receiver<bool>> {
        if let Some(power) = self.power.get(node) {
            power.send_replace(on);
        }
        self.runners.values().filter(|runner| runner.node == node).map(|runner| runner.runs.clone()).collect()
    }

    fn steps(&self, store: &Store) -> Vec<Step> {
        let running = self.runners.iter().map(|((namespace, name), runner)| {
            let name = PodName { namespace: namespace.clone(), name: name.clone(), uid: runner.uid.clone() };
            (name, runner.stop.is_cancelled())
        });
        steps(store, &running.collect())
    }

    fn start(&mut self, name: PodName, store: &Store) {
        let Some(pod) = store.pod(&name.namespace, &name.name) else { return };
        let Some(spec) = &pod.spec else { return };
        let Some(node) = self.nodes.iter().find(|node| Some(&node.plan.name) == spec.node_name.as_ref())
        else {
            return;
        };
        let numbers = self.numbers.entry(node.plan.name.clone()).or_default();
        let host = if spec.host_network == Some(true) { None } else { numbers.take() };
        if host.is_none() && spec.host_network != Some(true) {
            tracing::error!(pod = %name, node = node.plan.name, "the node has no address left for a pod");
            return;
        }
        let config_maps = store.of_kind(Kind::ConfigMap).filter(|map| map.namespace() == name.namespace);
        let config_maps: BTreeMap<String, ConfigMap> = config_maps
            .filter_map(|object| match object {
                Object::ConfigMap(map) => Some((object.name().to_owned(), (**map).clone())),
                _ => None,
            })
            .collect();
        let Some(power) = self.power.get(&node.plan.name) else { return };
        let stop = CancellationToken::new();
        // Until it is known whether the pod belongs to the mesh, it is held up.
        let gate = watch::Sender::new(Gate { wanted: true, enrolled: None });
        let runs = watch::Sender::new(false);
        let around = Around { power: power.subscribe(), gate: gate.subscribe(), runs: runs.clone() };
        let runner = Runner {
            uid: name.uid.clone(),
            node: node.plan.name.clone(),
            host,
            stop: stop.clone(),
            entrance: None,
            gate,
            runs: runs.subscribe(),
        };
        self.runners.insert((name.namespace.clone(), name.name.clone()), runner);
        let job = pod::Job {
            name,
            pod: pod.clone(),
            node: node.clone(),
            host,
            place: self.place.clone(),
            programs: self.programs.clone(),
            cgroups: self.cgroups.clone(),
            config_maps,
        };
        self.tasks.spawn(job.run(self.events.clone(), stop, around));
    }

    /// Notes that commands can be run in a pod.
    pub(crate) fn opened(&mut self, pod: &PodName, entrance: Entrance) {
        if let Some(runner) = self.runners.get_mut(&(pod.namespace.clone(), pod.name.clone())) {
            runner.entrance = Some(entrance);
        }
    }

    /// Notes that a pod has run to its end: nobody gets in any more, and its address is free.
    pub(crate) fn vacated(&mut self, pod: &PodName) {
        let Some(runner) = self.runners.get_mut(&(pod.namespace.clone(), pod.name.clone())) else { return };
        runner.entrance = None;
        if let (Some(host), Some(numbers)) = (runner.host.take(), self.numbers.get_mut(&runner.node)) {
            numbers.give_back(host);
        }
    }

    /// Notes that all of a pod is gone.
    pub(crate) fn gone(&mut self, pod: &PodName) {
        let Some(runner) = self.runners.remove(&(pod.namespace.clone(), pod.name.clone())) else { return };
        if let (Some(host), Some(numbers)) = (runner.host, self.numbers.get_mut(&runner.node)) {
            numbers.give_back(host);
        }
    }

    /// How to run a command in a pod; nothing before it can be.
    pub(crate) fn entrance(&self, namespace: &str, name: &str) -> Option<&Entrance> {
        self.runners.get(&(namespace.to_owned(), name.to_owned()))?.entrance.as_ref()
    }
}

/// What to do so that what runs is what the objects want. Of two pods of one name the later waits until the earlier is gone.
fn steps(store: &Store, running: &BTreeMap<PodName, bool>) -> Vec<Step> {
    let runs = |namespace: &str, name: &str| {
        running.iter().find(|(pod, _)| pod.namespace == namespace && pod.name == name)
    };
    let mut steps = Vec::new();
    for pod in store.pods() {
        let wanted = PodName::of(pod);
        let ends = pod.metadata.deletion_timestamp.is_some();
        match runs(&wanted.namespace, &wanted.name) {
            None if ends => steps.push(Step::Forget(wanted)),
            None if is_assigned(pod) => steps.push(Step::Start(wanted)),
            None => {}
            Some((known, stopping)) if !stopping && (ends || known.uid != wanted.uid) => {
                steps.push(Step::Stop(known.clone()));
            }
            Some(_) => {}
        }
    }
    let orphans = running.iter().filter(|(pod, stopping)| !**stopping && store.get(&pod.key()).is_none());
    steps.extend(orphans.map(|(pod, _)| Step::Stop(pod.clone())));
    steps
}

fn is_assigned(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_ref().is_some_and(|node| !node.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::store::tests::store;

    fn pod(node: &str, metadata: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a, namespace: x{metadata}}}\n\
             spec: {{nodeName: {node:?}, containers: [{{name: m, command: [s]}}]}}\n"
        )
    }

    fn named(uid: &str) -> PodName {
        PodName { namespace: "x".into(), name: "a".into(), uid: uid.into() }
    }

    fn steps_for(yaml: &str, running: &[(&str, bool)]) -> Vec<Step> {
        steps(&store(yaml).0, &running.iter().map(|(uid, stopping)| (named(uid), *stopping)).collect())
    }

    const ENDING: &str = ", deletionTimestamp: \"2026-01-01T00:00:00Z\"";

    #[test]
    fn a_pod_runs_once_it_has_a_node() {
        assert_eq!(steps_for(&pod("", ""), &[]), []);
        assert_eq!(steps_for(&pod("node1", ""), &[]), [Step::Start(named("uid-1"))]);
        assert_eq!(steps_for(&pod("node1", ""), &[("uid-1", false)]), []);
    }

    #[test]
    fn a_pod_that_ends_is_stopped_once_and_forgotten_if_it_never_ran() {
        assert_eq!(steps_for(&pod("node1", ENDING), &[("uid-1", false)]), [Step::Stop(named("uid-1"))]);
        assert_eq!(steps_for(&pod("node1", ENDING), &[("uid-1", true)]), []);
        assert_eq!(steps_for(&pod("", ENDING), &[]), [Step::Forget(named("uid-1"))]);
    }

    #[test]
    fn a_successor_waits_until_its_forerunner_is_gone() {
        assert_eq!(steps_for(&pod("node1", ""), &[("older", false)]), [Step::Stop(named("older"))]);
        assert_eq!(steps_for(&pod("node1", ""), &[("older", true)]), []);
        assert_eq!(steps_for("", &[("older", false)]), [Step::Stop(named("older"))]);
    }
}
