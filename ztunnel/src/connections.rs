//! The live connections.
//!
//! Each shard keeps its own, pod by pod, so that a lock is never waited for but while somebody looks at that pod's
//! connections. What came to a pod says there what it was judged by, so that [`crate::review`] can judge it again.

mod table;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};

use identity::{PeerError, Proof};
use model::{NamespacedName, SpiffeId};
use parking_lot::Mutex;
use serde::Serialize;
use telemetry::access::Direction;
use telemetry::metrics::ResponseFlags;
use thiserror::Error;
use tokio::sync::oneshot;
use tokio::time::Instant;
use zds::PodUid;

use self::table::{Entry, Proofs, Table};
use crate::inbound::admit::Denial;
use crate::local::LocalPod;

pub(crate) use self::table::{Judged, Opinion, Reviewed};

/// The live connections of one shard, by the pod's name. Cloning is cheap and gives another handle.
#[derive(Clone, Debug, Default)]
pub struct Connections(Arc<Mutex<Directory>>);

/// Several pods have one name where one of them lingers.
type Directory = BTreeMap<NamespacedName, Vec<Weak<OfPod>>>;

/// The live connections of one pod on one shard. Cloning is cheap and gives another handle.
#[derive(Clone, Debug)]
pub struct PodConnections(Arc<OfPod>);

#[derive(Debug)]
struct OfPod {
    uid: PodUid,
    local: LocalPod,
    table: Mutex<Table>,
    listed_in: Connections,
}

/// Which pods something is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pods {
    /// All of them.
    pub(crate) everyone: bool,
    /// All of these namespaces.
    pub(crate) namespaces: std::collections::BTreeSet<Arc<str>>,
    /// These.
    pub(crate) names: std::collections::BTreeSet<NamespacedName>,
}

/// A connection's place among the live ones; dropping it takes it out.
#[derive(Debug)]
pub struct Live {
    of: PodConnections,
    place: usize,
}

/// Tells a connection that it is to end.
#[derive(Debug)]
pub struct Ended(oneshot::Receiver<Ending>);

/// Why a connection is ended though both its ends would go on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Ending {
    /// What admitted it does so no more.
    #[error("ended by a change: {0}")]
    Denied(Denial),
    /// What its peer has proved is believed no more.
    #[error("ended, for {0}")]
    Disbelieved(PeerError),
    /// It has outlived its tunnel's certificates for too long.
    #[error("ended, for its tunnel's certificates held no more for long")]
    Outlived,
    /// The pod has given its place to another.
    #[error("ended, for the pod's place belongs to another now")]
    Replaced,
}

impl Ending {
    /// How metrics tell it.
    pub fn response_flags(&self) -> ResponseFlags {
        match self {
            Self::Denied(denial) => denial.response_flags(),
            Self::Disbelieved(PeerError::Revoked) => ResponseFlags::CertRevoked,
            Self::Disbelieved(_) | Self::Outlived | Self::Replaced => ResponseFlags::IdentityError,
        }
    }
}

/// A connection as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// The pod of this node.
    pub pod: PodUid,
    /// `inbound` or `outbound`.
    pub direction: &'static str,
    /// The client.
    pub source: SocketAddr,
    /// Where it was going.
    pub destination: SocketAddr,
    /// For how long it has been there.
    pub age_ms: u128,
}

impl Connections {
    /// A pod's connections, of which there are none yet.
    pub fn of_pod(&self, uid: &PodUid, local: &LocalPod) -> PodConnections {
        let of = Arc::new(OfPod {
            uid: uid.clone(),
            local: local.clone(),
            table: Mutex::default(),
            listed_in: self.clone(),
        });
        self.0.lock().entry(local.name.clone()).or_default().push(Arc::downgrade(&of));
        PodConnections(of)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.pods().iter().map(|pod| pod.0.table.lock().count()).sum()
    }

    /// The connections, at most `limit`.
    pub fn shown(&self, limit: usize) -> Vec<Shown> {
        let mut shown = Vec::new();
        for pod in self.pods() {
            let show = |e: &Entry| Shown {
                pod: pod.0.uid.clone(),
                direction: e.direction.as_str(),
                source: e.source,
                destination: e.destination,
                age_ms: e.since.elapsed().as_millis(),
            };
            shown.extend(pod.0.table.lock().entries().take(limit - shown.len()).map(show));
        }
        shown
    }

    /// Ends all connections of a pod; how many those were.
    pub fn end_all_of(&self, uid: &PodUid, name: &NamespacedName, why: &Ending) -> usize {
        let all = self.0.lock().get(name).map(|pods| pods.iter().filter_map(Weak::upgrade).collect());
        let all: Vec<Arc<OfPod>> = all.unwrap_or_default();
        all.iter().filter(|of| of.uid == *uid).map(|of| of.table.lock().end_all(why)).sum()
    }

    /// The connections of some pods, at the price of those pods and not of all.
    pub(crate) fn of_pods(&self, pods: &Pods) -> Vec<PodConnections> {
        if pods.everyone {
            return self.pods();
        }
        let directory = self.0.lock();
        let mut found = Vec::new();
        let mut add = |list: &Vec<Weak<OfPod>>| found.extend(list.iter().filter_map(Weak::upgrade));
        for namespace in &pods.namespaces {
            let first = NamespacedName::new(namespace, "");
            let rest = directory.range(first..);
            rest.take_while(|(name, _)| name.namespace == *namespace).for_each(|(_, list)| add(list));
        }
        for name in pods.names.iter().filter(|name| !pods.namespaces.contains(&name.namespace)) {
            directory.get(name).into_iter().for_each(&mut add);
        }
        drop(directory);
        found.into_iter().map(PodConnections).collect()
    }

    fn pods(&self) -> Vec<PodConnections> {
        let directory = self.0.lock();
        directory.values().flatten().filter_map(Weak::upgrade).map(PodConnections).collect()
    }
}

impl PodConnections {
    /// The pod.
    pub(crate) fn local(&self) -> &LocalPod {
        &self.0.local
    }

    /// Whether both are the same pod's on the same shard.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Takes a connection in. It hears from the second value when it is to end.
    pub fn open(&self, direction: Direction, source: SocketAddr, destination: SocketAddr) -> (Live, Ended) {
        let (end, ended) = oneshot::channel();
        let entry = Entry {
            direction,
            source,
            destination,
            since: Instant::now(),
            end: Some(end),
            proofs: Proofs::default(),
            reviewed: None,
        };
        let place = self.0.table.lock().insert(entry);
        (Live { of: self.clone(), place }, Ended(ended))
    }

    /// Ends what rests on a peer's proof; how many connections those were.
    pub(crate) fn end_resting_on(&self, proof: &Arc<Proof>, why: &Ending) -> usize {
        self.0.table.lock().end_resting_on(proof, why)
    }

    /// Judges again what came to the pod, and what goes by tunnel, from a place on and for so many places, and ends what is
    /// not to be. The lock is held meanwhile, which is why it is done in portions. Tells where the next portion begins.
    pub(crate) fn review(
        &self,
        from: usize,
        portion: usize,
        judged: &mut Judged,
        judge: impl FnMut(Result<(), PeerError>, Option<&mut Reviewed>) -> Opinion,
    ) -> Option<usize> {
        self.0.table.lock().review(from, portion, judged, judge)
    }
}

impl Live {
    /// Says what the peer of the connection's tunnel has proved, and that of the tunnel around it if there is one, and asks
    /// whether that is still believed. From here on the connection ends when any of it is believed no more: as with
    /// [`Self::open_to_review`], the order matters.
    pub(crate) fn rest_on(&self, proof: &Arc<Proof>, around: Option<&Arc<Proof>>) -> Result<(), Ending> {
        let proofs = Proofs { tunnel: Some(proof.clone()), around: around.cloned() };
        self.of.0.table.lock().set_proofs(self.place, proofs.clone());
        proofs.hold().map_err(Ending::Disbelieved)
    }

    /// Says what the connection is to be judged by. From here on a change that denies it ends it, so that this must come
    /// before it is judged for the first time: in whatever order the two are told of a change, one of them sees it.
    pub(crate) fn open_to_review(&self, peer: Option<&SpiffeId>, source: IpAddr, destination: SocketAddr) {
        let reviewed = Reviewed { peer: peer.cloned(), source, destination, doubted: None };
        self.of.0.table.lock().set_reviewed(self.place, reviewed);
    }
}

impl Ended {
    /// Waits until the connection is to end, which it hears once. Cancel-safe.
    pub(crate) async fn wait(&mut self) -> Ending {
        if !self.0.is_terminated()
            && let Ok(why) = (&mut self.0).await
        {
            return why;
        }
        // Told before, or its place is gone: then it is ending.
        std::future::pending().await
    }

    #[cfg(test)]
    pub(crate) fn is_told(&self) -> bool {
        self.0.is_terminated() || !self.0.is_empty()
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.of.0.table.lock().remove(self.place);
    }
}

impl Drop for OfPod {
    fn drop(&mut self) {
        let mut directory = self.listed_in.0.lock();
        if let Some(pods) = directory.get_mut(&self.local.name) {
            pods.retain(|of| of.strong_count() > 0);
            if pods.is_empty() {
                directory.remove(&self.local.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use model::NetworkId;
    use testkit::fixtures::{CLUSTER, identity};

    use super::*;

    fn local(namespace: &str, name: &str) -> LocalPod {
        LocalPod {
            name: NamespacedName::new(namespace, name),
            identity: identity(namespace, name),
            node: "node1".into(),
            cluster_id: CLUSTER.into(),
            network: NetworkId::default(),
        }
    }

    fn open(pod: &PodConnections, port: u16) -> (Live, Ended) {
        pod.open(Direction::Inbound, ([10, 0, 0, 1], port).into(), ([10, 0, 0, 2], 80).into())
    }

    #[test]
    fn a_connection_is_there_while_its_place_is_held() {
        let connections = Connections::default();
        let pod = connections.of_pod(&PodUid::new("a"), &local("shop", "a"));
        let (first, second) = (open(&pod, 1), open(&pod, 2));
        assert_eq!(connections.count(), 2);
        drop(first);
        let third = open(&pod, 3);
        assert_eq!(connections.shown(10).iter().map(|c| c.source.port()).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(connections.shown(1).len(), 1);
        drop((second, third));
        assert_eq!(connections.count(), 0);
    }

    #[test]
    fn pods_are_found_by_name_and_by_namespace_and_forgotten_with_their_last_connection() {
        let connections = Connections::default();
        let pods: Vec<_> = [("shop", "a"), ("shop", "b"), ("shop2", "a"), ("bar", "z")]
            .map(|(ns, name)| connections.of_pod(&PodUid::new(name), &local(ns, name)))
            .into();
        let found = |pods: &Pods| -> Vec<String> {
            connections.of_pods(pods).iter().map(|p| p.local().name.to_string()).collect()
        };
        let shop = Pods {
            namespaces: [Arc::from("shop")].into(),
            names: [NamespacedName::new("shop", "a"), NamespacedName::new("bar", "z")].into(),
            ..Pods::default()
        };
        assert_eq!(found(&shop), ["shop/a", "shop/b", "bar/z"]);
        assert_eq!(found(&Pods { everyone: true, ..Pods::default() }).len(), 4);
        assert!(found(&Pods::default()).is_empty());
        let held = open(&pods[1], 1);
        drop(pods);
        assert_eq!(found(&Pods { everyone: true, ..Pods::default() }), ["shop/b"]);
        drop(held);
        assert!(connections.0.lock().is_empty());
    }

    #[tokio::test]
    async fn all_of_a_pod_can_be_ended_at_once_and_no_other() {
        let connections = Connections::default();
        let (a, b) = (
            connections.of_pod(&PodUid::new("a"), &local("shop", "app")),
            connections.of_pod(&PodUid::new("b"), &local("shop", "app")),
        );
        let ((_a, mut first), (_b, mut second)) = (open(&a, 1), open(&b, 2));
        let ended =
            connections.end_all_of(&PodUid::new("a"), &NamespacedName::new("shop", "app"), &Ending::Replaced);
        assert_eq!(ended, 1);
        assert_eq!(first.wait().await, Ending::Replaced);
        let more = tokio::time::timeout(std::time::Duration::from_millis(1), second.wait()).await;
        assert!(more.is_err(), "the other pod's goes on");
    }
}
