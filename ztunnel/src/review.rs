//! Judging live connections again.
//!
//! Each change of the mesh says whom it may touch. What came to those pods and still stands is judged once more, by the
//! same pure function that admitted it and on the newest snapshot, and is ended if it would not be admitted now. And when
//! the roots that are believed change, or a revocation list, what peers have proved is verified once more.
//!
//! No connection slips through between a change and its being judged. It says first what it is to be judged by
//! ([`Live::open_to_review`](crate::connections::Live)) and is judged for the first time after that; a change is in force
//! first and is reviewed after that. So whichever comes last, the first judgement or the review, sees both.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use identity::{LiveBundle, PeerError};
use index::World;
use model::PolicyKey;
use telemetry::metrics::ResponseFlags;
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use crate::connections::{Connections, Ending, Judged, Opinion, PodConnections, Pods, Reviewed};
use crate::inbound::admit::{Admission, Facts, admit};
use crate::local::LocalPod;
use crate::mesh::{Mesh, Touched};
use crate::metrics::Metrics;

/// How many connections are judged before others of the pod may come and go: some tens of microseconds.
const PORTION: usize = 64;

/// The one who judges live connections again. There is one a proxy, on a thread that carries no connections.
#[derive(Debug)]
pub struct Reviewer {
    mesh: Mesh,
    metrics: Metrics,
    /// How long a denial that the next snapshot may lift is borne.
    patience: Duration,
    shards: Vec<Connections>,
    /// Tells when what peers have proved may be believed no more.
    trust: watch::Receiver<u64>,
    /// Pods with connections that are denied for now, and when the first of these is to be judged again. At most one
    /// entry for each pod and shard.
    doubted: Vec<(PodConnections, Instant)>,
    /// Policies that apply as before until a workload names them, and until when at the latest.
    narrowing: BTreeMap<PolicyKey, Instant>,
}

impl Reviewer {
    /// One for the connections of these shards.
    pub fn new(
        mesh: Mesh,
        metrics: Metrics,
        patience: Duration,
        shards: Vec<Connections>,
        bundle: &LiveBundle,
    ) -> Self {
        let trust = bundle.changes();
        Self { mesh, metrics, patience, shards, trust, doubted: Vec::new(), narrowing: BTreeMap::new() }
    }

    /// Works until it is dropped.
    pub async fn run(mut self) {
        loop {
            let again =
                self.doubted.iter().map(|(_, again)| again).chain(self.narrowing.values()).min().copied();
            let due = async {
                match again {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let everyone = Pods { everyone: true, ..Pods::default() };
            let touched = tokio::select! {
                // All cancel-safe: what is touched stays so until it is taken.
                touched = self.mesh.touched() => touched,
                Ok(()) = self.trust.changed() => Touched { pods: everyone, ..Touched::default() },
                () = due => Touched::default(),
            };
            self.narrow(touched.narrowed);
            self.review(&touched.pods).await;
        }
    }

    /// Lets policies that nobody has come to name go where they no longer belong, after the patience with which the
    /// missing one is borne everywhere else.
    fn narrow(&mut self, begun: BTreeSet<PolicyKey>) {
        let now = Instant::now();
        self.narrowing.extend(begun.into_iter().map(|key| (key, now + self.patience)));
        let over: Vec<_> = self.narrowing.extract_if(.., |_, until| *until <= now).collect();
        over.into_iter().for_each(|(key, _)| self.mesh.narrow(key));
    }

    async fn review(&mut self, touched: &Pods) {
        let mut pods: Vec<PodConnections> = self.shards.iter().flat_map(|s| s.of_pods(touched)).collect();
        let now = Instant::now();
        let (due, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.doubted).into_iter().partition(|(_, again)| *again <= now);
        let listed = |pods: &[PodConnections], pod: &PodConnections| pods.iter().any(|p| p.is(pod));
        self.doubted = waiting.into_iter().filter(|(pod, _)| !listed(&pods, pod)).collect();
        for (pod, _) in due {
            if !listed(&pods, &pod) {
                pods.push(pod);
            }
        }
        for pod in pods {
            let judged = self.review_pod(&pod).await;
            self.metrics.reviewed(judged.seen);
            if judged.ended > 0 {
                tracing::info!(pod = %pod.local().name, ended = judged.ended, of = judged.seen, "a change ended connections");
            }
            if let Some(again) = judged.again {
                self.doubted.push((pod, again));
            }
        }
    }

    async fn review_pod(&self, pod: &PodConnections) -> Judged {
        let mut judged = Judged::default();
        let mut next = Some(0);
        while let Some(from) = next {
            {
                let world = self.mesh.load();
                let now = Instant::now();
                next = pod.review(from, PORTION, &mut judged, |believed, reviewed| {
                    let opinion = match (believed, reviewed) {
                        (Err(why), _) => Opinion::Ends(Ending::Disbelieved(why)),
                        (Ok(()), None) => Opinion::Stays,
                        (Ok(()), Some(it)) => opinion(&world, pod.local(), it, now, self.patience),
                    };
                    if let Opinion::Ends(why) = &opinion {
                        self.metrics.live_connection_ended(why);
                    }
                    opinion
                });
            }
            yield_now().await;
        }
        judged
    }
}

/// What becomes of a live connection. A denial that the next snapshot may lift is borne for as long as a new connection
/// would wait, counted from when it was first pronounced.
fn opinion(
    world: &World,
    pod: &LocalPod,
    reviewed: &mut Reviewed,
    now: Instant,
    patience: Duration,
) -> Opinion {
    let Reviewed { peer, source, destination, doubted } = reviewed;
    let facts = Facts { peer: peer.as_ref(), source: *source, pod, destination: *destination };
    match admit(world, &facts) {
        Admission::Allow { .. } => Opinion::Stays,
        Admission::Deny(denial) if denial.is_provisional() => {
            let until = *doubted.get_or_insert(now) + patience;
            if now < until { Opinion::Doubted(until) } else { Opinion::Ends(Ending::Denied(denial)) }
        }
        Admission::Deny(denial) => Opinion::Ends(Ending::Denied(denial)),
    }
}

/// The word for why connections were ended, in metrics.
pub(crate) fn reason(ending: &Ending) -> &'static str {
    match ending {
        Ending::Denied(denial) if denial.response_flags() == ResponseFlags::Deny => "policy",
        Ending::Denied(_) => "port",
        Ending::Disbelieved(PeerError::Revoked) => "revoked",
        Ending::Disbelieved(_) => "disbelieved",
        Ending::Outlived => "outlived",
        Ending::Replaced => "replaced",
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use model::{NamespacedName, NetworkId};
    use telemetry::access::Direction;
    use testkit::fixtures::{CLUSTER, allow, deny, identity, pod, strict};
    use zds::PodUid;

    use super::*;
    use crate::connections::{Ended, Live};
    use crate::mesh::Folder;

    /// Pods shop/a and shop/b, bar/c, each with connections; all of them from shop/client.
    struct Rig {
        folder: Folder,
        reviewer: Reviewer,
        live: Vec<(Live, Ended)>,
    }

    const EACH: u16 = 200;

    fn rig() -> Rig {
        let (mesh, mut folder) = Mesh::unknown();
        Folder::set_synced(&mesh);
        let connections = Connections::default();
        let mut live = Vec::new();
        for (namespace, name) in [("shop", "a"), ("shop", "b"), ("bar", "c")] {
            folder.fold(vec![pod(namespace, name).build().into()]);
            let local = LocalPod {
                name: NamespacedName::new(namespace, name),
                identity: pod(namespace, name).build().identity().unwrap(),
                node: "node1".into(),
                cluster_id: CLUSTER.into(),
                network: NetworkId::default(),
            };
            let of_pod = connections.of_pod(&PodUid::new(name), &local);
            for port in 0..EACH {
                let from: SocketAddr = ([10, 0, 0, 9], 1000 + port).into();
                let to: SocketAddr = ([10, 0, 0, 1], 80).into();
                let opened = of_pod.open(Direction::Inbound, from, to);
                opened.0.open_to_review(Some(&identity("shop", "client")), from.ip(), to);
                live.push(opened);
            }
        }
        let patience = Duration::from_secs(5);
        let bundle = testkit::ca::FakeCa::new().bundle();
        let reviewer = Reviewer::new(mesh, Metrics::default(), patience, vec![connections], &bundle);
        Rig { folder, reviewer, live }
    }

    impl Rig {
        /// Reviews what is touched; how many connections were judged, and how many have ended so far.
        async fn review(&mut self) -> (u64, usize) {
            let before = self.reviewer.metrics.reviewed_so_far();
            let touched = self.reviewer.mesh.touched().await;
            self.reviewer.review(&touched.pods).await;
            let mut ended = 0;
            for (_, over) in &mut self.live {
                ended += usize::from(over.is_told());
            }
            (self.reviewer.metrics.reviewed_so_far() - before, ended)
        }
    }

    #[tokio::test]
    async fn a_change_costs_what_it_touches() {
        let mut rig = rig();
        let each = u64::from(EACH);
        assert_eq!(rig.review().await, (3 * each, 0), "three new workloads");
        rig.folder.fold(vec![strict("bar").into()]);
        assert_eq!(rig.review().await, (each, 0));
        rig.folder.fold(vec![strict("elsewhere").into()]);
        assert_eq!(rig.review().await, (0, 0));
        let selecting = allow("shop", "p").for_selected().from("shop", "nobody").build();
        rig.folder.fold(vec![selecting.into(), pod("shop", "b").selected_by("p").build().into()]);
        assert_eq!(rig.review().await, (each, usize::from(EACH)), "those of shop/b are judged, and end");
        rig.folder.fold(vec![deny("shop", "all").for_mesh().from_everyone().build().into()]);
        assert_eq!(rig.review().await, (2 * each, 3 * usize::from(EACH)), "who has ended is judged no more");
    }
}
