//! The state of a lab, and what follows from each message.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use manifest::{Kind, Object, ObjectKey};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;

use super::view::{NoEntrance, View};
use crate::lab::address::{NodePlan, VipCursor};
use crate::lab::admission::{self, LabelEdit, Text};
use crate::lab::api::PodReference;
use crate::lab::control::{self, ENROLLED, Facts};
use crate::lab::dns::Zone;
use crate::lab::enrolment::{self, AgentRedirection, Enrolments, Said};
use crate::lab::keeper::Keeper;
use crate::lab::kubelet::{Entrance, Happening, Kubelet, PodEvent};
use crate::lab::network::Node;
use crate::lab::objects::{Directory, Edit};
use crate::lab::status::Status;
use crate::lab::store::{Mint, Store};
use crate::lab::system::Part;
use crate::lab::trust::TrustNames;
use crate::lab::{system, translation};

/// What the cluster's task is told.
#[derive(Debug)]
pub(super) enum Message {
    Pod(PodEvent),
    /// What a node's agent says of its pods.
    Agent(Said),
    /// A change of the objects, and who wants to know what became of it.
    Change(Wish, oneshot::Sender<Result<Changed, Vec<String>>>),
    View(oneshot::Sender<View>),
    Status(oneshot::Sender<Status>),
    Get {
        kind: Kind,
        namespace: Option<String>,
        name: Option<String>,
        to: oneshot::Sender<Vec<Object>>,
    },
    /// A node's power, off or on, and who wants to know whether anything of its pods runs.
    Power {
        node: String,
        on: bool,
        to: oneshot::Sender<Vec<watch::Receiver<bool>>>,
    },
    Enter(String, PodReference, oneshot::Sender<Result<Entrance, NoEntrance>>),
}

/// What people want of the objects.
#[derive(Debug)]
pub(super) enum Wish {
    Apply(Vec<Text>),
    Delete { files: Vec<Text>, ignore_missing: bool },
    Label(ObjectKey, Vec<LabelEdit>),
}

/// What became of a wish.
#[derive(Clone, Debug, Default)]
pub(super) struct Changed {
    pub(super) lines: Vec<String>,
    pub(super) notes: Vec<String>,
    /// Pods and namespaces that are to end, and of which UID.
    pub(super) ending: Vec<(ObjectKey, String)>,
    /// The UIDs of pods that are to join or leave the mesh.
    pub(super) turning: BTreeSet<String>,
}

/// The service translation that nodes should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tables {
    pub(super) version: u64,
    /// By node.
    pub(super) rulesets: BTreeMap<String, Arc<str>>,
}

/// What the cluster acts on.
#[derive(Debug)]
pub(super) struct Outside {
    pub(super) nodes: Vec<Node>,
    pub(super) kubelet: Kubelet,
    pub(super) directory: Directory,
    pub(super) keeper: Keeper,
    pub(super) tables: watch::Sender<Tables>,
    pub(super) zone: watch::Sender<Arc<Zone>>,
    /// The names of the trust domain, which proxies are started with.
    pub(super) trust: watch::Sender<TrustNames>,
    /// Whether agents are expected to do something.
    pub(super) busy: watch::Sender<bool>,
}

/// The state of a lab.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(super) outside: Outside,
    plans: Vec<NodePlan>,
    has_v6: bool,
    pub(super) store: Store,
    vips: VipCursor,
    pub(super) enrolments: Enrolments,
    /// How nodes redirect, as far as their agents have said.
    pub(super) redirections: BTreeMap<String, AgentRedirection>,
    pub(super) revision: u64,
    /// Something happened since the controllers last worked.
    stale: bool,
}

impl Cluster {
    pub(super) fn new(outside: Outside, plans: Vec<NodePlan>, has_v6: bool) -> Self {
        Self {
            outside,
            plans,
            has_v6,
            store: Store::default(),
            vips: VipCursor::default(),
            enrolments: Enrolments::new(),
            redirections: BTreeMap::new(),
            revision: 0,
            stale: true,
        }
    }

    /// Serves messages until nobody can send any.
    pub(super) async fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        let mut mint = Mint::of_machine();
        for node in control::nodes(&self.plans, self.has_v6) {
            self.store.put(node.into(), &mut mint);
        }
        for name in ["default", system::NAMESPACE] {
            let mut namespace = Namespace::default();
            namespace.metadata.name = Some(name.to_owned());
            self.store.put(namespace.into(), &mut mint);
        }
        self.settle().await;
        let mut batch = Vec::new();
        loop {
            let next_look = control::next_look(&self.store, &Mint::of_machine());
            // Cancel-safe, both: no message is taken before its arm is chosen.
            tokio::select! {
                count = messages.recv_many(&mut batch, 64) => if count == 0 { return },
                () = sleep(next_look.unwrap_or_default()), if next_look.is_some() => self.stale = true,
            }
            for message in batch.drain(..) {
                self.take(message).await;
            }
            self.settle().await;
        }
    }

    async fn take(&mut self, message: Message) {
        self.stale |= matches!(message, Message::Pod(_) | Message::Agent(..) | Message::Change(..));
        // Who asked and went away does not want the answer.
        match message {
            Message::Pod(event) => self.pod(event),
            Message::Agent(said) => self.agent(said),
            Message::Change(wish, to) => {
                let before = enrolment::wanted(&self.store);
                let changed = self.change(wish);
                // The answer tells that the change is written out.
                self.settle().await;
                let after = enrolment::wanted(&self.store);
                let turning = before.symmetric_difference(&after).cloned().collect();
                let _ = to.send(changed.map(|changed| Changed { turning, ..changed }));
            }
            Message::View(to) => {
                self.settle().await;
                let _ = to.send(self.view());
            }
            Message::Status(to) => drop(to.send(self.status())),
            Message::Get { kind, namespace, name, to } => {
                let all = self.store.of_kind(kind);
                let wanted = all.filter(|object| {
                    namespace.as_ref().is_none_or(|n| !kind.is_namespaced() || object.namespace() == n)
                        && name.as_ref().is_none_or(|name| object.name() == name)
                });
                drop(to.send(wanted.cloned().collect()));
            }
            Message::Power { node, on, to } => drop(to.send(self.outside.kubelet.power(&node, on))),
            Message::Enter(namespace, pod, to) => drop(to.send(self.entrance(&namespace, &pod))),
        }
    }

    fn pod(&mut self, event: PodEvent) {
        let mint = &mut Mint::of_machine();
        match event.what {
            Happening::Report(report) => {
                let PodEvent { pod, .. } = event;
                let known = self.store.pod(&pod.namespace, &pod.name);
                if let Some(known) = known.filter(|known| known.metadata.uid.as_ref() == Some(&pod.uid)) {
                    let reported = control::report(known, &report, mint);
                    self.store.put(reported.into(), mint);
                }
            }
            Happening::Open(entrance) => self.outside.kubelet.opened(&event.pod, entrance),
            Happening::Vacated => self.outside.kubelet.vacated(&event.pod),
            Happening::Gone => {
                self.outside.kubelet.gone(&event.pod);
                let key = event.pod.key();
                let is_same = |object: &Object| object.metadata().uid.as_ref() == Some(&event.pod.uid);
                if self.store.get(&key).is_some_and(is_same) {
                    self.store.remove(&key);
                }
            }
        }
    }

    /// Writes onto the pods what the agent says; in a cluster it does that itself.
    fn agent(&mut self, said: Said) {
        let Said { node, pods, redirection } = said;
        if let Some(redirection) = redirection {
            self.redirections.insert(node.clone(), redirection);
        }
        self.enrolments.insert(node, pods);
        let mint = &mut Mint::of_machine();
        let mut changed = Vec::new();
        for pod in self.store.pods() {
            let is_enrolled = enrolment::is_enrolled(pod, &self.enrolments);
            let is_marked = manifest::annotation(&pod.metadata, ENROLLED) == Some("enabled");
            if is_enrolled != is_marked {
                let mut pod = pod.clone();
                let annotations = pod.metadata.annotations.get_or_insert_default();
                if is_enrolled {
                    annotations.insert(ENROLLED.to_owned(), "enabled".to_owned());
                } else {
                    annotations.remove(ENROLLED);
                }
                changed.push(pod);
            }
        }
        for pod in changed {
            self.store.put(pod.into(), mint);
        }
    }

    fn change(&mut self, wish: Wish) -> Result<Changed, Vec<String>> {
        let mint = &mut Mint::of_machine();
        let told =
            |problems: Vec<manifest::Problem>| problems.iter().map(ToString::to_string).collect::<Vec<_>>();
        match wish {
            Wish::Apply(files) => {
                let reading = admission::read(&files).map_err(told)?;
                let lines = admission::apply(&mut self.store, &reading.documents, mint).map_err(told)?;
                Ok(Changed { lines, notes: reading.notes, ..Changed::default() })
            }
            Wish::Delete { files, ignore_missing } => {
                let reading = admission::read(&files).map_err(told)?;
                let keys = reading.documents.iter().map(|document| document.object.key());
                let ending = keys
                    .filter(|key| matches!(key.kind, Kind::Pod | Kind::Namespace))
                    .filter_map(|key| Some((key.clone(), self.store.get(&key)?.metadata().uid.clone()?)));
                let ending = ending.collect();
                let lines = admission::delete(&mut self.store, &reading.documents, ignore_missing, mint);
                Ok(Changed { lines: lines.map_err(told)?, ending, ..Changed::default() })
            }
            Wish::Label(key, edits) => {
                let changed = admission::label(&mut self.store, &key, &edits, mint);
                let verb = if changed.map_err(|why| vec![why])? { "labelled" } else { "unchanged" };
                Ok(Changed { lines: vec![format!("{key} {verb}")], ..Changed::default() })
            }
        }
    }

    /// Lets the controllers work, writes out what changed, and brings everything else to it.
    async fn settle(&mut self) {
        if !std::mem::take(&mut self.stale) {
            return;
        }
        let mint = &mut Mint::of_machine();
        loop {
            let mut facts = Facts { nodes: &self.plans, has_v6: self.has_v6, vips: &mut self.vips };
            control::settle(&mut self.store, &mut facts, mint);
            let forgotten = self.outside.kubelet.forgotten(&self.store);
            if forgotten.iter().filter(|key| self.store.remove(key)).count() == 0 {
                break;
            }
        }
        let changed = self.store.take_changed();
        if !changed.is_empty() {
            self.write(changed).await;
        }
        // It hears of objects as all others do, not before.
        self.outside.kubelet.follow(&self.store, &self.enrolments);
    }

    async fn write(&mut self, changed: BTreeSet<ObjectKey>) {
        let edits: Vec<Edit> = changed
            .iter()
            .map(|key| Edit { key: key.clone(), object: self.store.get(key).cloned() })
            .collect();
        let (directory, revision) = (self.outside.directory.clone(), self.revision + 1);
        match tokio::task::spawn_blocking(move || directory.write(&edits, revision)).await {
            Ok(Ok(())) => {
                self.revision = revision;
                if changed.contains(&TrustNames::key()) {
                    self.rename();
                }
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "objects cannot be written");
                self.store.still_changed(changed);
                self.stale = true;
            }
            Err(error) => tracing::error!(%error, "objects were not written"),
        }
        self.publish();
    }

    /// Has all proxies know the trust domain by its names.
    fn rename(&self) {
        let names = TrustNames::of(self.store.get(&TrustNames::key()));
        let outside = &self.outside;
        let differs = outside.trust.send_if_modified(|known| {
            let differs = *known != names;
            *known = names;
            differs
        });
        if differs {
            self.plans.iter().for_each(|node| outside.keeper.renew(Part::Ztunnel(node.name.clone())));
        }
    }

    fn publish(&self) {
        let outside = &self.outside;
        let nodes = self.plans.iter().map(|node| node.name.as_str());
        let rulesets = nodes.map(|node| (node.to_owned(), translation::ruleset(&self.store, node).into()));
        let rulesets: BTreeMap<String, Arc<str>> = rulesets.collect();
        outside.tables.send_if_modified(|tables| {
            let is_new = tables.rulesets != rulesets;
            if is_new {
                *tables = Tables { version: tables.version + 1, rulesets };
            }
            is_new
        });
        let zone = Zone::of(&self.store);
        outside.zone.send_if_modified(|known| {
            let is_new = **known != zone;
            if is_new {
                *known = Arc::new(zone);
            }
            is_new
        });
        let expecting = !enrolment::differences(&self.store, &self.enrolments).is_empty();
        outside.busy.send_if_modified(|busy| std::mem::replace(busy, expecting) != expecting);
    }
}
