//! The pods that the agent has handed over.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ebpf_loader::{HandleError, ListenerMap};
use identity::SvidStore;
use model::{NamespacedName, ParseSpiffeIdError, SpiffeId, TrustDomain};
use net::{Netns, PodNetwork};
use parking_lot::Mutex;
use runtime::{Part, Readiness};
use serde::Serialize;
use telemetry::access::Chain;
use thiserror::Error;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use zds::ztunnel::{Client, Event};
use zds::{Exemption, Kept, PodInfo, PodState, PodUid, Turn};

use super::listeners::{ListenError, open, publish};
use super::{Pod, Returned};
use crate::config::Node;
use crate::connections::Ending;
use crate::dns::sockets::Questions;
use crate::local::LocalPod;
use crate::proxy::Proxy;
use crate::shard::{Closed, ServeError, Shards};

/// How long the shards may take to close a pod's listeners. It is a matter of one turn of their loops.
const CLOSING: Duration = Duration::from_secs(2);

/// How long the pods' certificates are waited for before it takes over without some.
const CERTIFICATES: Duration = Duration::from_secs(10);

/// Takes in what the agent says and has the shards serve its pods.
#[derive(Debug)]
pub struct Registry {
    proxy: Arc<Proxy>,
    shards: Shards,
    svids: SvidStore,
    node: Node,
    trust_domain: TrustDomain,
    ipv6: bool,
    pods: BTreeMap<PodUid, Entry>,
    /// Pods that left, as long as anything of them lingers.
    left: Vec<Weak<Pod<PodNetwork>>>,
    shown: Shown,
    snapshot: Part,
    readiness: Readiness,
    handover: CancellationToken,
    /// The agent has said whose turn it is.
    knows_turns: bool,
    /// When it was first asked to take over.
    asked: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    pod: Arc<Pod<PodNetwork>>,
    /// For the agent to keep, and to be put into another map if it comes with one.
    listeners: Kept,
    questions: Questions,
    map: Option<ListenerMap>,
    closed: Closed,
}

/// What comes with a pod.
struct Come {
    netns: Netns,
    map: Option<OwnedFd>,
    left: Kept,
    dns: bool,
}

/// The pods as they are shown. Cloning is cheap and shares them.
#[derive(Clone, Debug, Default)]
pub struct Shown(Arc<Mutex<BTreeMap<PodUid, ShownPod>>>);

/// A pod as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShownPod {
    /// What the node protocol knows it by.
    pub uid: PodUid,
    /// Its namespace and name.
    pub name: NamespacedName,
    /// The identity that it proves.
    pub identity: SpiffeId,
    /// Its network namespace's inode.
    pub netns_inode: u64,
}

impl Shown {
    /// The pods, by uid.
    pub fn all(&self) -> Vec<ShownPod> {
        self.0.lock().values().cloned().collect()
    }
}

/// Why a message of the agent cannot be done.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// What came as the bypass storage is something else.
    #[error("the bypass storage cannot be used")]
    Bypass(#[source] HandleError),
    /// What came as the pod's listener map is something else.
    #[error("the pod's listener map cannot be used")]
    Map(#[source] HandleError),
    /// The pod's namespace or account makes no identity.
    #[error("the pod has no valid identity")]
    Identity(#[from] ParseSpiffeIdError),
    /// Another pod has the namespace: one of them would get the other's identity.
    #[error("the network namespace belongs to pod {0}, which is still here")]
    NamespaceTaken(PodUid),
    /// The namespace is the proxy's own, which is the node's.
    #[error("the network namespace is the node's own")]
    NodesNamespace,
    /// A listener does not stand.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A shard does not serve.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// It is to take over and cannot yet.
    #[error("not ready to take over, still missing: {0}")]
    NotReady(String),
    /// The agent wants a pod kept that is not here.
    #[error("there is no pod {0}")]
    Unknown(PodUid),
}

/// What a registry works with.
#[derive(Debug)]
pub struct Parts {
    /// What all pods share.
    pub proxy: Arc<Proxy>,
    /// Who serves them.
    pub shards: Shards,
    /// Who keeps their certificates.
    pub svids: SvidStore,
    /// Where they run.
    pub node: Node,
    /// The trust domain of their identities.
    pub trust_domain: TrustDomain,
    /// Whether their IPv6 addresses are served.
    pub ipv6: bool,
    /// Ready once the agent has sent all it has.
    pub snapshot: Part,
    /// What must stand before it takes over from another ztunnel.
    pub readiness: Readiness,
    /// Cancelled when another ztunnel has taken over.
    pub handover: CancellationToken,
}

impl Registry {
    /// A registry without pods, and how they will be shown.
    pub fn new(parts: Parts) -> (Self, Shown) {
        let Parts { proxy, shards, svids, node, trust_domain, ipv6, snapshot, readiness, handover } = parts;
        let shown = Shown::default();
        let registry = Self {
            proxy,
            shards,
            svids,
            node,
            trust_domain,
            ipv6,
            pods: BTreeMap::new(),
            left: Vec::new(),
            shown: shown.clone(),
            snapshot,
            readiness,
            handover,
            knows_turns: false,
            asked: None,
        };
        (registry, shown)
    }

    /// Listens to the agent until the proxy drains.
    pub async fn run(mut self, mut agent: Client) {
        let drain = self.proxy.drain.clone();
        loop {
            tokio::select! {
                // Waiting for the agent is cancel-safe, and what it said is done before the next wait.
                (event, answer) = agent.next() => {
                    let result = self.handle(event).await;
                    answer.send(result.map_err(|error| Chain(&error).to_string())).await;
                }
                () = drain.cancelled() => return,
            }
        }
    }

    /// Does what the agent says. Gives what is to be kept of the pod that it was about.
    async fn handle(&mut self, event: Event) -> Result<Kept, RegistryError> {
        match event {
            Event::Redirection { mark, mask, exempt } => {
                let by = if matches!(exempt, Exemption::Storage(_)) { "socket" } else { "packet filter" };
                tracing::info!(mark = format!("{mark:#x}/{mask:#x}"), by, "the agent redirects");
                self.proxy.redirection.set(mark, exempt).map_err(RegistryError::Bypass)?;
            }
            Event::Add { uid, info, netns, listener_map, kept, dns } => {
                let pending = &self.proxy.metrics.pods.pending_proxies;
                pending.inc();
                let result = self.add(&uid, &info, Come { netns, map: listener_map, left: kept, dns }).await;
                self.proxy.metrics.pods.pending_proxies.dec();
                if let Err(error) = &result {
                    tracing::error!(%uid, name = %info.name, namespace = %info.namespace, error = %Chain(error), "cannot serve a pod");
                }
                return result;
            }
            Event::Keep(uid) => {
                let entry = self.pods.get(&uid).ok_or(RegistryError::Unknown(uid))?;
                return Ok(entry.listeners.clone());
            }
            Event::State(state) => self.note(&state)?,
            Event::Turn(turn) => self.take_turn(turn)?,
            Event::Del(uid) => self.remove(&uid).await,
            Event::SnapshotSent { named } => {
                self.retain(&named).await;
                self.snapshot.ready();
            }
        }
        Ok(Kept::default())
    }

    fn take_turn(&mut self, turn: Turn) -> Result<(), RegistryError> {
        self.knows_turns = true;
        match turn {
            Turn::Serve => self.begin()?,
            Turn::TakeOver => {
                self.check_ready()?;
                tracing::info!("taking over from another ztunnel");
                self.begin()?;
            }
            // One that serves goes on: whoever else does shares its listeners.
            Turn::StandBy => tracing::info!("another ztunnel serves: standing by"),
            Turn::HandOver => {
                tracing::info!("another ztunnel has taken over");
                self.handover.cancel();
            }
        }
        Ok(())
    }

    /// Serves all pods from now on.
    fn begin(&self) -> Result<(), RegistryError> {
        self.proxy.turn.cancel();
        for Entry { questions, map, .. } in self.pods.values() {
            questions.publish(map.as_ref())?;
        }
        Ok(())
    }

    /// Whether all is there that those who are taken over may lean on. Who serves now goes on until it is; only for
    /// certificates that do not come it does not wait for ever, since it may be the one whose own run out.
    fn check_ready(&mut self) -> Result<(), RegistryError> {
        let asked = *self.asked.get_or_insert_with(Instant::now);
        let pending = self.readiness.pending();
        if !pending.is_empty() {
            return Err(RegistryError::NotReady(pending.join(", ")));
        }
        let lacking = self.pods.values().filter(|entry| entry.pod.lease.current().is_none()).count();
        if lacking > 0 && asked.elapsed() < CERTIFICATES {
            return Err(RegistryError::NotReady(format!("{lacking} certificates")));
        }
        Ok(())
    }

    async fn add(
        &mut self,
        uid: &PodUid,
        info: &PodInfo,
        Come { netns, map, left, dns }: Come,
    ) -> Result<Kept, RegistryError> {
        if !self.knows_turns {
            // An agent that does not speak of turns knows of one ztunnel only.
            self.proxy.turn.cancel();
        }
        let map = map.map(ListenerMap::from_fd).transpose().map_err(RegistryError::Map)?;
        let local = self.local(info)?;
        let is_its_turn = self.proxy.turn.is_cancelled();
        if let Some(entry) = self.pods.get_mut(uid) {
            let Pod { local: before, network, dns: answered, .. } = &*entry.pod;
            if *before == local && *network.netns() == netns && *answered == dns {
                if let Some(map) = map {
                    publish(&entry.listeners, &map)?;
                    if is_its_turn {
                        entry.questions.publish(Some(&map))?;
                    }
                    entry.map = Some(map);
                }
                return Ok(entry.listeners.clone());
            }
            self.remove(uid).await;
        }
        self.check_namespace(&netns)?;
        self.end_replaced(uid, &local, &netns);
        let network = PodNetwork::new(netns, Some(self.proxy.redirection.exempt()));
        let listeners = open(&network, self.shards.count(), self.ipv6, left)?;
        // With neither, nothing can be steered to them.
        let questions = match dns && (map.is_some() || self.proxy.redirection.is_by_address()) {
            true => Questions::open(&network, self.shards.count(), self.ipv6)?,
            false => Questions::default(),
        };
        let lease = self.svids.lease(&local.identity);
        let leave = self.proxy.drain.child_token();
        let (ending, back) = (CancellationToken::new(), CancellationToken::new());
        let pod = Arc::new(Pod {
            uid: uid.clone(),
            local,
            network,
            dns,
            lease,
            leave,
            ending,
            back,
            returned: Returned::default(),
        });
        // From here on whoever gives up makes the pod leave, or shards would go on serving it.
        let leaves = pod.leave.clone().drop_guard();
        let closed = self.shards.serve(&pod, &listeners, &questions).await?;
        if let Some(map) = &map {
            publish(&listeners, map)?;
        }
        if is_its_turn {
            questions.publish(map.as_ref())?;
        }
        leaves.disarm();
        self.left
            .iter()
            .filter_map(Weak::upgrade)
            // Also one of another name in the same namespace: what lingers of it would answer with its identity.
            .filter(|old| old.uid == *uid || old.network.netns() == pod.network.netns())
            .for_each(|old| old.back.cancel());
        self.took_in(Entry { pod, listeners: listeners.clone(), questions, map, closed });
        Ok(listeners)
    }

    /// Takes in that a pod is about to end, or has.
    fn note(&mut self, state: &PodState) -> Result<(), RegistryError> {
        let PodState { uid, stage, addresses } = state;
        let Some(Entry { pod, .. }) = self.pods.get(uid) else {
            return Err(RegistryError::Unknown(uid.clone()));
        };
        tracing::info!(%uid, pod = %pod.local.name, ?stage, "a pod comes to its end");
        let mesh = &self.proxy.mesh;
        mesh.departures().note(uid, &pod.local.name, *stage, addresses);
        pod.ending.cancel();
        self.tidy_departures();
        Ok(())
    }

    fn tidy_departures(&self) {
        let mesh = &self.proxy.mesh;
        mesh.departures().tidy(&mesh.load(), &self.node.network, |uid| self.pods.contains_key(uid));
    }

    fn local(&self, info: &PodInfo) -> Result<LocalPod, RegistryError> {
        Ok(LocalPod {
            name: NamespacedName { namespace: info.namespace.clone(), name: info.name.clone() },
            identity: SpiffeId::new(self.trust_domain.clone(), &info.namespace, &info.service_account)?,
            node: self.node.name.clone(),
            cluster_id: self.node.cluster_id.clone(),
            network: self.node.network.clone(),
        })
    }

    fn check_namespace(&self, netns: &Netns) -> Result<(), RegistryError> {
        if Netns::current().is_ok_and(|own| own == *netns) {
            return Err(RegistryError::NodesNamespace);
        }
        match self.pods.values().find(|entry| entry.pod.network.netns() == netns) {
            Some(entry) => Err(RegistryError::NamespaceTaken(entry.pod.uid.clone())),
            None => Ok(()),
        }
    }

    /// Ends what still stands of pods whose place this one takes: of the same uid elsewhere or as somebody else, or of
    /// another uid in the same namespace. It was made for another identity than whoever is there now has.
    fn end_replaced(&self, uid: &PodUid, local: &LocalPod, netns: &Netns) {
        for old in self.left.iter().filter_map(Weak::upgrade) {
            let (same_uid, same_place) = (old.uid == *uid, old.network.netns() == netns);
            if same_uid == same_place && (!same_uid || old.local == *local) {
                continue;
            }
            let all =
                self.shards.connections().map(|c| c.end_all_of(&old.uid, &old.local.name, &Ending::Replaced));
            let ended: usize = all.sum();
            if ended > 0 {
                self.proxy.metrics.live_connections_ended(&Ending::Replaced, ended as u64);
                tracing::warn!(uid = %old.uid, pod = %old.local.name, by = %uid, ended, "ended connections of a pod whose place another has taken");
            }
        }
    }

    fn took_in(&mut self, entry: Entry) {
        let pod = &entry.pod;
        self.proxy.mesh.departures().came(&pod.uid, &pod.local.name);
        if let Some(needs) = self.proxy.mesh.needs() {
            needs.came(&pod.uid, &pod.local);
        }
        self.tidy_departures();
        let netns_inode = pod.network.netns().inode();
        tracing::info!(uid = %pod.uid, pod = %pod.local.name, identity = %pod.local.identity, netns_inode, "serving a pod");
        let (uid, name, identity) = (pod.uid.clone(), pod.local.name.clone(), pod.local.identity.clone());
        self.shown.0.lock().insert(uid.clone(), ShownPod { uid: uid.clone(), name, identity, netns_inode });
        self.pods.insert(uid, entry);
        self.proxy.metrics.pods.active_proxies.inc();
        self.proxy.metrics.pods.started.inc();
    }

    /// Stops serving a pod. When this returns, its listeners that traffic was steered to are closed; its connections go
    /// on until they end.
    async fn remove(&mut self, uid: &PodUid) {
        let Some(Entry { pod, listeners, questions, closed, .. }) = self.pods.remove(uid) else { return };
        self.shown.0.lock().remove(uid);
        drop((listeners, questions));
        pod.leave.cancel();
        if let Some(needs) = self.proxy.mesh.needs() {
            needs.left(uid);
        }
        if timeout(CLOSING, closed.wait()).await.is_err() {
            tracing::warn!(%uid, "a shard is slow to close the listeners of a pod that left");
        }
        tracing::info!(%uid, pod = %pod.local.name, "no longer serving a pod");
        self.left.retain(|old| old.strong_count() > 0);
        self.left.push(Arc::downgrade(&pod));
        self.proxy.metrics.pods.active_proxies.dec();
        self.proxy.metrics.pods.stopped.inc();
    }

    async fn retain(&mut self, named: &BTreeSet<PodUid>) {
        let gone: Vec<PodUid> = self.pods.keys().filter(|uid| !named.contains(*uid)).cloned().collect();
        for uid in gone {
            self.remove(&uid).await;
        }
    }
}
