//! The agent itself: objects, ztunnel's answers and the clock go in, steps of the [roster](crate::roster) come out.

mod look;
mod resolve;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use ebpf_loader::{Instance, InstanceName, OpenError, PodKey};
use manifest::Problem;
use manifest::source::{Batch, Directory, WatchError};
use net::seqpacket::SeqPacketListener;
use net::{Netns, NetnsError};
use runtime::Part;
use thiserror::Error;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use zds::agent::Server;
use zds::{PodState, PodUid, Stage};

use crate::choice::{Choice, Kind};
use crate::membership::{Member, View};
use crate::namespaces::Forbidden;
use crate::node::Node;
use crate::redirect::{Ebpf, Mended, Nftables, Redirect, RedirectError};
use crate::roster::{Outcome, Roster, State, Step};
use crate::status::{PodStatus, Seen, Status};
use resolve::Resolver;

/// What an agent works with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The name of its node, as pods' `spec.nodeName` has it.
    pub node: String,
    /// How it redirects.
    pub redirection: Choice,
    /// Where its redirection is pinned.
    pub pins: ebpf_loader::Pins,
    /// Its instance: agents of different instances do not touch each other's pods.
    pub instance: InstanceName,
    /// The cgroup whose processes' connections it sees; normally the root of the cgroup2 tree.
    pub cgroup: PathBuf,
    /// The kubelet's own cgroup. Without it the kubelet's probes are taken for anybody's connections.
    pub kubelet_cgroup: Option<PathBuf>,
    /// The directory of objects.
    pub objects: PathBuf,
    /// The socket on which ztunnel is told.
    pub zds_socket: PathBuf,
    /// The mark of captured connections.
    pub mark: u32,
    /// The bits in which it is compared.
    pub mask: u32,
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    node_name: String,
    directory: Directory,
    view: View,
    resolver: Resolver,
    roster: Roster,
    node: Node,
    ztunnel: Server,
    listener: Option<SeqPacketListener>,
    withdrawals: JoinSet<PodKey>,
    /// What has been logged.
    problems: Vec<Problem>,
    /// Whether every file of objects has been good once, or was removed before: until then a pod without an object may
    /// have one.
    all_known: bool,
    /// The files of which that was not so at last.
    never_good: Vec<Arc<str>>,
    /// Whether ztunnel has been told that it knows all pods.
    complete: bool,
    ready: Part,
    status: Status,
    /// What was seen of each captured pod when it was looked after last.
    seen: BTreeMap<PodKey, Seen>,
    /// Of the whole node.
    mended: Mended,
}

impl Agent {
    /// Opens the redirection, adopts what an earlier process of this instance left, and binds ztunnel's socket.
    /// Nothing changes for any pod yet. `ready` is told when the objects have been read and acted upon.
    ///
    /// # Errors
    ///
    /// See [`StartError`].
    pub fn start(settings: Settings, ready: Part, status: Status) -> Result<Self, StartError> {
        let redirect = open(&settings)?;
        status.redirects(settings.redirection);
        let Settings { node, objects, zds_socket, .. } = settings;
        let forbidden = Forbidden::of_this_process()?;
        let ztunnel = Server::new(Some(redirect.for_ztunnel()?));
        let mut roster = Roster::default();
        for (key, captured) in redirect.found()? {
            tracing::info!(pod = key.uid(), captured, "found a pod that was enrolled before");
            roster.adopt(key, captured);
        }
        let directory = Directory::watch(objects)?;
        let listener = SeqPacketListener::bind(zds_socket.clone())
            .map_err(|source| StartError::Socket { path: zds_socket, source })?;
        Ok(Self {
            node_name: node,
            directory,
            view: View::default(),
            resolver: Resolver::new(forbidden),
            roster,
            node: Node::new(redirect, ztunnel.clone()),
            ztunnel,
            listener: Some(listener),
            withdrawals: JoinSet::new(),
            problems: Vec::new(),
            all_known: false,
            never_good: Vec::new(),
            complete: false,
            ready,
            status,
            seen: BTreeMap::new(),
            mended: Mended::default(),
        })
    }

    /// The server that ztunnels are connected to.
    pub fn ztunnels(&self) -> Server {
        self.ztunnel.clone()
    }

    /// Works until the future is dropped, which leaves redirection in place.
    ///
    /// # Errors
    ///
    /// The directory cannot be watched any more.
    pub async fn run(mut self) -> Result<(), RunError> {
        // Its own task, so that ztunnel is answered while a step is being done; it ends with this future.
        let mut serving = JoinSet::new();
        if let Some(listener) = self.listener.take() {
            let server = self.ztunnel.clone();
            serving.spawn(async move { server.serve(listener).await });
        }
        let mut changes = self.ztunnel.changes();
        let mut loaded = false;
        let mut looks = tokio::time::interval(look::EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.publish();
        loop {
            let deadline = self.deadline();
            // All arms are cancel-safe: nothing is taken from a source before its arm has been chosen.
            tokio::select! {
                batch = self.directory.next() => {
                    let batch = batch.ok_or(RunError::WatchEnded)?;
                    loaded |= batch.loaded;
                    self.take_in(&batch, loaded);
                }
                Some(withdrawn) = self.withdrawals.join_next() => {
                    if let Ok(key) = withdrawn {
                        self.roster.withdrawn(&key);
                    }
                }
                () = until(deadline) => {}
                _ = looks.tick() => self.look().await,
                // The sender lives in `self.ztunnel`.
                _ = changes.changed() => {}
            }
            changes.mark_unchanged();
            if loaded {
                self.resolve_again_if_due();
                self.advance().await;
            }
            self.publish();
        }
    }

    fn take_in(&mut self, batch: &Batch, loaded: bool) {
        for problem in batch.problems.iter().filter(|problem| !self.problems.contains(problem)) {
            tracing::warn!(%problem, "an object cannot be used");
        }
        self.problems.clone_from(&batch.problems);
        self.view.apply(batch);
        if loaded {
            self.learn(&batch.never_good);
            self.resolve();
        }
    }

    fn learn(&mut self, never_good: &[Arc<str>]) {
        if self.all_known {
            return;
        }
        self.all_known = never_good.is_empty();
        if !self.all_known && self.never_good != never_good {
            tracing::warn!(
                files = never_good.join(", "),
                "pods that were enrolled before stay so until these files can be used or are removed"
            );
        }
        self.never_good = never_good.to_vec();
    }

    fn resolve(&mut self) {
        let memberships = self.view.memberships(&self.node_name);
        let members = self.resolver.resolve(&memberships, &self.roster, &mut self.node, now());
        let is_there = |key: &PodKey| resolve::is_there(&memberships, key);
        // ztunnel hears of a pod's end at once, whatever steps are due before.
        let ending: HashSet<&str> = self.view.ending(&self.node_name).collect();
        let standings = self.roster.standings().filter_map(|of| Some((of.key, of.member?)));
        for (key, member) in standings {
            let stage = match (is_there(key), ending.contains(key.uid())) {
                (false, _) if self.all_known => Stage::Ended,
                (true, true) => Stage::Terminating,
                _ => continue,
            };
            let addresses = member.addresses().collect();
            self.ztunnel.set_state(PodState { uid: PodUid::new(key.uid()), stage, addresses });
        }
        if self.all_known {
            self.roster.want(members, is_there);
        } else {
            self.roster.want_so_far(members, is_there);
        }
    }

    fn resolve_again_if_due(&mut self) {
        if self.resolver.again_at().is_some_and(|at| at <= now()) {
            self.resolve();
        }
    }

    fn deadline(&self) -> Option<Instant> {
        [self.roster.deadline(), self.resolver.again_at()].into_iter().flatten().min()
    }

    /// Does all that is due.
    async fn advance(&mut self) {
        self.hear();
        while let Some(step) = self.roster.next(now()) {
            let member = self.roster.member(step.key()).cloned();
            let outcome = match &step {
                Step::Withdraw(key) => {
                    self.withdrawals.spawn(self.node.withdraw(key));
                    Outcome::Done
                }
                step => self.node.perform(step, member.as_ref(), now()).await,
            };
            report(&step, member.as_ref(), &outcome);
            self.status.count(step.name(), &outcome);
            self.roster.done(&step, outcome, now());
            self.hear();
        }
        // ztunnel drops whom it has not heard of by then.
        if !self.complete && self.all_known && self.roster.is_told() {
            self.complete = true;
            self.ztunnel.set_complete();
            self.ready.ready();
        }
    }

    fn hear(&mut self) {
        self.roster.heard(|uid| self.ztunnel.standing(&PodUid::new(uid)));
    }

    fn publish(&self) {
        let known = self.roster.standings().filter(|standings| standings.state != State::Leaving);
        let shown = known.map(|standings| PodStatus::new(&standings, self.seen.get(standings.key)));
        let pods = shown.chain(self.resolver.unresolved().cloned()).collect();
        let leaving = self.roster.standings().filter(|standings| standings.state == State::Leaving).count();
        self.status.publish(pods, leaving, self.ztunnel.is_connected());
    }
}

/// Opens the redirection that was chosen.
fn open(settings: &Settings) -> Result<Redirect, StartError> {
    let Settings { redirection, pins, instance, cgroup, kubelet_cgroup, mark, mask, .. } = settings;
    match redirection.redirection {
        Kind::Ebpf => {
            let mut instance = Instance::open(pins.clone(), cgroup)?;
            match kubelet_cgroup {
                // The agent is where the kubelet is: in the node's own network namespace.
                Some(kubelet) => instance.let_probes_in(kubelet, Netns::current()?.cookie()?)?,
                None => instance.let_no_probes_in().map_err(RedirectError::Pins)?,
            }
            Ok(Redirect::Ebpf(Box::new(Ebpf::new(instance, *mark, *mask))))
        }
        Kind::Nftables => {
            let mut nftables = Nftables::open(instance, *mark, *mask)?;
            if let Some(kubelet) = kubelet_cgroup {
                nftables.let_probes_in(cgroup, kubelet, Netns::current()?)?;
            }
            Ok(Redirect::Nftables(Box::new(nftables)))
        }
    }
}

fn report(step: &Step, member: Option<&Member>, outcome: &Outcome) {
    let uid = step.key().uid();
    let name = member.map(|member| format!("{}/{}", member.namespace, member.name));
    let (name, step) = (name.as_deref(), step.name());
    match outcome {
        Outcome::Failed(reason) => tracing::warn!(uid, name, step, reason, "a step failed"),
        Outcome::Connections(count) => tracing::debug!(uid, name, count, "connections need the routing"),
        Outcome::Done | Outcome::AlreadyCaptured => {
            tracing::info!(uid, name, step, ?outcome, "a step is done")
        }
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// Why an agent cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// Its own network namespace cannot be told.
    #[error("the agent's own network namespace cannot be read")]
    Netns(#[from] NetnsError),
    /// The redirection cannot be loaded or adopted.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What an earlier process left cannot be taken over.
    #[error("what an earlier process left cannot be taken over")]
    Redirect(#[from] RedirectError),
    /// The objects cannot be watched.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// The socket for ztunnel cannot be bound.
    #[error("cannot listen for ztunnel at {}", path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// Why an agent cannot go on.
#[derive(Debug, Error)]
pub enum RunError {
    /// The directory cannot be watched any more.
    #[error("the objects cannot be watched any more")]
    WatchEnded,
}
