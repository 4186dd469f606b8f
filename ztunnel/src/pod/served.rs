//! A pod on one shard.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::join_all;
use hbone::client::Pool;
use hbone::{Baggage, BaggageHeader};
use identity::Proof;
use model::Workload;
use net::Network;
use rand::rngs::SmallRng;
use runtime::Crowd;
use telemetry::access::{AccessRecord, Direction, Party};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Pod;
use super::accept::accept;
use super::lane::Lane;
use super::listeners::Listeners;
use crate::connections::{Connections, Ended, Ending, Live, PodConnections};
use crate::metrics::Counted;
use crate::outbound::{Silence, Via};
use crate::proxy::Proxy;
use crate::quota::{Account, Amount, Excess, Permit, Resource};
use crate::relay::{BrokenOff, Watched};
use crate::{inbound, outbound};

/// Descriptors that serving a pod takes on each shard: its listeners, and some of what there is once a pod.
const DESCRIPTORS: u64 = 8;

/// How many handshakes with a pod are under way on a shard at once.
const HANDSHAKES: usize = 256;

/// What the pods of one shard share.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The shard's live connections.
    pub connections: Connections,
    /// The owner of the connections' tasks.
    pub tasks: TaskTracker,
    /// Cancelled when connections are to be cut off.
    pub stop: CancellationToken,
}

/// A pod on one shard: what its connections there share. Not `Send`; lives on the shard's thread.
pub struct Served<N: Network> {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) pod: Arc<Pod<N>>,
    pub(crate) scope: Scope,
    connections: PodConnections,
    /// Tunnels of this pod and no other.
    pub(crate) pool: Pool<Via<N>>,
    /// Whom the pod did not hear from lately.
    pub(crate) silence: Rc<Silence>,
    pub(crate) rng: RefCell<SmallRng>,
    /// What the pod holds, on all shards.
    pub(crate) account: Arc<Account>,
    /// Those of peers with the pod, on this shard.
    pub(crate) handshakes: Crowd,
    /// The pod's turns on this shard.
    lane: Lane,
    _listeners: Permit,
    /// Formatted once a state of the workload.
    baggage: RefCell<Option<(Arc<Workload>, BaggageHeader)>>,
}

impl<N: Network> Served<N> {
    /// A pod that is about to be served on the calling thread's shard.
    pub fn new(proxy: Arc<Proxy>, pod: Arc<Pod<N>>, scope: Scope, rng: SmallRng) -> Rc<Self> {
        let silence = Rc::new(Silence::default());
        let account = proxy.quotas.account(&pod.uid);
        let via = Via {
            pod: pod.clone(),
            redirection: proxy.redirection.clone(),
            limits: proxy.limits.clone(),
            mesh: proxy.mesh.clone(),
            metrics: proxy.metrics.clone(),
            silence: silence.clone(),
            account: account.clone(),
            window: proxy.hbone.connection_window,
        };
        let settings = hbone::Settings { connect_timeout: proxy.limits.reaching(), ..proxy.hbone.clone() };
        let (lane, turns) = Lane::new();
        // It ends with the pod's last work here.
        tokio::task::spawn_local(turns);
        let side = lane.side();
        let pool = Pool::spawning(via, settings, move |connection| side.spawn(connection));
        let listeners = account.force(Amount::of(Resource::Descriptors, DESCRIPTORS));
        let connections = scope.connections.of_pod(&pod.uid, &pod.local);
        Rc::new(Self {
            proxy,
            pod,
            scope,
            connections,
            pool,
            silence,
            rng: RefCell::new(rng),
            account,
            handshakes: Crowd::of(HANDSHAKES),
            lane,
            _listeners: listeners,
            baggage: RefCell::default(),
        })
    }

    /// What counts a connection's bytes, and notices when none pass.
    pub(crate) fn meter(&self, record: &mut AccessRecord) -> Watched<Counted> {
        Watched::new(Counted(record.established()), self.account.clone(), self.proxy.limits.relay)
    }

    /// What the pod's workload says of itself on tunnels; nothing while the control plane has not told of it.
    pub(crate) fn baggage(&self) -> Option<BaggageHeader> {
        let world = self.proxy.mesh.load();
        let workload = self.pod.local.workload(&world)?;
        let mut kept = self.baggage.borrow_mut();
        match &*kept {
            Some((of, header)) if Arc::ptr_eq(of, workload) => Some(header.clone()),
            _ => {
                let header = BaggageHeader::from(&Baggage::from(&**workload));
                *kept = Some((workload.clone(), header.clone()));
                Some(header)
            }
        }
    }

    /// The pod as one end of a connection.
    pub(crate) fn party(&self, addr: SocketAddr) -> Party {
        let local = &self.pod.local;
        Party {
            addr: Some(addr),
            workload: Some(local.name.name.clone()),
            namespace: Some(local.name.namespace.clone()),
            identity: Some(local.identity.clone()),
        }
    }

    pub(crate) fn live(
        &self,
        direction: Direction,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> (Live, Ended) {
        self.connections.open(direction, source, destination)
    }

    /// Ends what rests on a peer's proof.
    pub(crate) fn end_resting_on(&self, proof: &Arc<Proof>, why: &Ending) {
        let ended = self.connections.end_resting_on(proof, why);
        self.proxy.metrics.live_connections_ended(why, u64::try_from(ended).unwrap_or(u64::MAX));
    }

    /// Whether the pod is not meshed any more, so that nothing of the redirection may be counted on in it.
    pub(crate) fn has_left(&self) -> bool {
        let Pod { leave, back, .. } = &*self.pod;
        leave.is_cancelled() && !back.is_cancelled() && !self.proxy.drain.is_cancelled()
    }

    /// Ends when no more tunnels are to be taken.
    ///
    /// A pod that leaves takes tunnels a little longer, until its peers know or the time is up: they have learnt of it,
    /// and of its going, from the control plane and not from the agent.
    pub(crate) async fn until_closed(&self) {
        let proxy = &self.proxy;
        // A token of the proxy's drain: it comes with that too.
        self.pod.leave.cancelled().await;
        tokio::select! {
            // All cancel-safe.
            () = proxy.drain.cancelled() => {}
            () = self.pod.back.cancelled() => {}
            _ = timeout(proxy.limits.linger, self.until_unknown()) => {}
        }
    }

    /// Ends when the control plane does not tell peers any more to reach the pod by tunnel.
    async fn until_unknown(&self) {
        let mut news = self.proxy.mesh.news();
        loop {
            news.mark_unchanged();
            let told = {
                let world = self.proxy.mesh.load();
                let workload = self.pod.local.workload(&world);
                workload.is_some_and(|w| w.tunnel == model::TunnelProtocol::Hbone)
            };
            if !told || news.changed().await.is_err() {
                return;
            }
        }
    }

    /// Counts why a connection that stood did not end by both ends' will.
    pub(crate) fn broken_off(&self, why: BrokenOff) -> BrokenOff {
        self.proxy.metrics.broken_off(&why);
        why
    }

    /// Takes a connection that was accepted, which is asked for at once: while it waits for its turn it holds a descriptor
    /// already. One that is refused lets go of it before the next one is accepted.
    fn take<C: Future<Output = ()> + 'static>(
        &self,
        amount: Amount,
        carry: impl FnOnce(Result<Permit, Excess>) -> C,
    ) {
        let permit = self.account.admit(amount);
        let is_refused = permit.is_err();
        let mut connection = Box::pin(carry(permit));
        if is_refused && connection.as_mut().now_or_never().is_some() {
            return;
        }
        self.spawn(connection);
    }

    /// Lets a connection go on by itself, in the pod's turns.
    pub(crate) fn spawn(&self, connection: impl Future<Output = ()> + 'static) {
        self.lane.spawn(self.scope.tasks.track_future(connection));
    }
}

impl<N: Network> std::fmt::Debug for Served<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Served").field("pod", &self.pod.uid).finish_non_exhaustive()
    }
}

/// Accepts a pod's connections on the calling thread until the pod leaves or the proxy drains; the connections go on in
/// tasks of the scope. Must run where `spawn_local` works.
///
/// It begins when it is the proxy's turn. `closed` is dropped as soon as the listeners that traffic is steered to are
/// closed.
pub async fn serve<N: Network, D>(served: Rc<Served<N>>, listeners: Listeners<N::Listener>, closed: D) {
    tokio::select! {
        // Both cancel-safe.
        () = served.proxy.turn.cancelled() => {}
        () = served.pod.leave.cancelled() => return,
    }
    let Listeners { outbound, plaintext, hbone } = listeners;
    let steered = async {
        let outbound = outbound.into_iter().map(|listener| steered_out(served.clone(), listener));
        let plaintext = plaintext.into_iter().map(|listener| steered_in(served.clone(), listener));
        tokio::join!(join_all(outbound), join_all(plaintext));
        drop(closed);
    };
    let hbone = hbone.into_iter().map(|listener| tunnelled_in(served.clone(), listener));
    let accepting = async { tokio::join!(steered, join_all(hbone)) };
    tokio::select! {
        // Each of these owns its listener, and is only dropped at its end.
        _ = accepting => {}
        never = sweep(&served) => match never {},
    }
}

/// Lets go of tunnel connections whose peers are believed no more.
async fn sweep<N: Network>(served: &Served<N>) -> std::convert::Infallible {
    let mut trust = served.pod.lease.bundle().changes();
    while trust.changed().await.is_ok() {
        served.pool.sweep();
    }
    std::future::pending().await
}

// Each of these owns its listener, which is closed when it returns.

async fn steered_out<N: Network>(served: Rc<Served<N>>, listener: N::Listener) {
    let take = |connection| {
        served.take(Amount::CONNECTION, |permit| outbound::carry(served.clone(), connection, permit));
    };
    accept(&listener, &served.proxy.metrics, take, served.pod.leave.cancelled()).await;
}

async fn steered_in<N: Network>(served: Rc<Served<N>>, listener: N::Listener) {
    let take = |connection| {
        served.take(Amount::PAIR, |permit| inbound::plaintext::carry(served.clone(), connection, permit));
    };
    accept(&listener, &served.proxy.metrics, take, served.pod.leave.cancelled()).await;
}

async fn tunnelled_in<N: Network>(served: Rc<Served<N>>, listener: N::Listener) {
    let take = |connection| {
        served.take(Amount::CONNECTION, |permit| {
            inbound::tunnel::terminate(served.clone(), connection, permit)
        });
    };
    accept(&listener, &served.proxy.metrics, take, served.until_closed()).await;
}
