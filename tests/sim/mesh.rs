//! A mesh of several nodes on a simulated network: ztunnel's real shells in every pod, a control plane that speaks xDS
//! over simulated connections, and applications that answer.

mod counts;
mod stream;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hbone::Settings;
use identity::SvidStore;
use model::{NamespacedName, SpiffeId, Workload};
use net::{Bind, Dial, Listener, Network};
use rand::rngs::{SmallRng, StdRng};
use rand::{Rng, SeedableRng};
use telemetry::metrics::{Exposition, Registry};
use testkit::ca::FakeCa;
use testkit::fixtures::CLUSTER;
use testkit::sim::{SimApp, SimHost, SimListener, SimNet, SimStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::LocalSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use xds::client::Demand;
use xds::server::{Change, Entry, Snapshot};
use xds::{Defaults, Resource, ResourceKey};
use zds::{PodUid, Stage};
use ztunnel::connections::Connections;
use ztunnel::limits::Limits;
use ztunnel::local::LocalPod;
use ztunnel::mesh::Mesh;
use ztunnel::metrics::Metrics;
use ztunnel::needs::Needs;
use ztunnel::pod::listeners::Listeners;
use ztunnel::pod::{Pod, Returned, Scope, Served, serve};
use ztunnel::proxy::{Proxy, begun};
use ztunnel::quota::Quotas;
use ztunnel::redirection::Redirection;
use ztunnel::review::Reviewer;

use crate::wire;

/// The node that the control plane stands on.
pub(crate) const CONTROL: &str = "control";
/// Where it listens.
const XDS: &str = "10.255.0.1:15010";
/// The longest that anything may take, in virtual time.
const ENOUGH: Duration = Duration::from_secs(600);

/// The longest simulation.
const A_MONTH: Duration = Duration::from_secs(30 * 24 * 3600);

/// Runs a simulation on a paused clock, in one thread.
pub(crate) fn simulate<F: Future<Output = ()>>(simulation: F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        timeout(A_MONTH, simulation).await.expect("the simulation comes to an end");
    });
}

/// The mesh. Its state is what the control plane serves; pods and nodes are made by the test.
pub(crate) struct SimMesh {
    pub(crate) net: SimNet,
    pub(crate) ca: FakeCa,
    pub(crate) rng: StdRng,
    snapshot: watch::Sender<Arc<Snapshot>>,
    revision: u64,
    /// Whether the nodes that are made ask for single addresses.
    on_demand: bool,
    acked: watch::Sender<wire::Acked>,
    nodes: BTreeMap<String, Node>,
    control: Option<CancellationToken>,
    control_host: SimHost,
}

/// A node and its ztunnel.
struct Node {
    proxy: Arc<Proxy>,
    scope: Scope,
    svids: SvidStore,
    families: Exposition,
}

/// A pod, with an application in it that answers on its port.
pub(crate) struct SimPod {
    pub(crate) workload: Workload,
    pub(crate) app: SimApp,
    node: String,
    host: SimHost,
    served: Option<CancellationToken>,
    ending: CancellationToken,
}

/// What a caller got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// The pod that answered.
    pub(crate) from: String,
    /// The address that the application saw the caller at.
    pub(crate) seen: IpAddr,
}

impl SimMesh {
    /// A control plane and nothing else. All that is left to chance follows from the seed.
    pub(crate) fn new(seed: u64) -> Self {
        let net = SimNet::new(seed);
        let control_host = net.host(CONTROL, ["10.255.0.1"]);
        let mut mesh = Self {
            net,
            ca: FakeCa::new(),
            rng: StdRng::seed_from_u64(seed),
            snapshot: watch::Sender::new(Arc::new(Snapshot::default())),
            revision: 0,
            on_demand: false,
            acked: watch::Sender::default(),
            nodes: BTreeMap::new(),
            control: None,
            control_host,
        };
        mesh.start_control();
        mesh
    }

    /// Starts the control plane, with what it serves.
    pub(crate) fn start_control(&mut self) {
        if self.control.is_some() {
            return;
        }
        let stop = CancellationToken::new();
        let addr = XDS.parse().expect("an address");
        let serving =
            wire::serve(self.control_host.clone(), addr, self.snapshot.subscribe(), self.acked.clone());
        tokio::task::spawn_local(stop.clone().run_until_cancelled_owned(serving));
        self.control = Some(stop);
    }

    /// Ends the control plane and its streams.
    pub(crate) fn stop_control(&mut self) {
        self.control.take().inspect(CancellationToken::cancel);
    }

    /// Serves what is new or changed. It takes effect when the nodes have heard of it.
    pub(crate) fn set(&mut self, resources: impl IntoIterator<Item = Resource>) {
        self.change(resources, []);
    }

    /// Serves some things and others no longer, at once.
    pub(crate) fn change(
        &mut self,
        set: impl IntoIterator<Item = Resource>,
        unset: impl IntoIterator<Item = ResourceKey>,
    ) {
        let set = set.into_iter().map(|r| Change::Set(Entry::new(&r, &Defaults::default())));
        let unset = unset.into_iter().map(|key| Change::Remove(key.type_url(), key.to_string().into()));
        self.publish(set.chain(unset).collect());
    }

    fn publish(&mut self, changes: Vec<Change>) {
        self.revision += 1;
        let next = self.snapshot.borrow().apply(self.revision, changes);
        self.snapshot.send_replace(Arc::new(next));
    }

    /// Waits until all nodes have heard of everything.
    pub(crate) async fn settled(&self) {
        let all = |acked: &wire::Acked| {
            self.nodes.keys().all(|n| acked.get(n).is_some_and(|revision| *revision >= self.revision))
        };
        let mut acked = self.acked.subscribe();
        let told = timeout(ENOUGH, acked.wait_for(all)).await.is_ok();
        assert!(told, "revision {} has not come to all: {:?}", self.revision, self.acked.borrow());
    }

    /// Has the nodes that are made from now on ask for single addresses.
    pub(crate) fn on_demand(mut self) -> Self {
        self.on_demand = true;
        self
    }

    /// How many addresses a node knows.
    pub(crate) fn known(&self, node: &str) -> usize {
        let world = self.nodes[node].proxy.mesh.load();
        world.workload_count() + world.service_count()
    }

    /// Adds a node with a ztunnel.
    pub(crate) fn node(&mut self, name: &str) {
        self.node_within(name, Limits::default());
    }

    /// Adds a node with a ztunnel of other limits.
    pub(crate) fn node_within(&mut self, name: &str, limits: Limits) {
        let (mesh, folder) = match self.on_demand {
            true => Mesh::on_demand(Needs::new(Demand::default())),
            false => Mesh::unknown(),
        };
        let mut families = Registry::default();
        let proxy = Arc::new(Proxy {
            mesh: mesh.clone(),
            metrics: Metrics::register(&mut families),
            redirection: Redirection::default(),
            quotas: Quotas::default(),
            names: ztunnel::names::Names::default(),
            limits,
            hbone: Settings::default(),
            turn: begun(),
            drain: CancellationToken::new(),
        });
        let scope = Scope {
            connections: Connections::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        let (connections, patience) = (vec![scope.connections.clone()], proxy.limits.mesh);
        let svids = self.ca.store();
        let reviewer =
            Reviewer::new(mesh.clone(), proxy.metrics.clone(), patience, connections, svids.bundle());
        tokio::task::spawn_local(reviewer.run());
        let number = self.nodes.len() + 1;
        let host = self.net.host(name, [format!("192.168.0.{number}").as_str()]);
        let seed = self.rng.random();
        if let Some(needs) = mesh.needs().cloned() {
            let mesh = mesh.clone();
            tokio::task::spawn_local(async move { needs.follow(&mesh).await });
        }
        tokio::task::spawn_local(stream::follow(host, name.to_owned(), mesh, folder, seed));
        let node = Node { proxy, scope, svids, families: Exposition::new(families) };
        self.nodes.insert(name.to_owned(), node);
    }

    /// Starts a pod on its node, outside of the mesh: its application answers on `port`, and the control plane tells of it
    /// as of one that takes no tunnel.
    pub(crate) async fn start(&mut self, workload: Workload, port: u16) -> SimPod {
        let addrs: Vec<String> = workload.addresses.iter().map(IpAddr::to_string).collect();
        let host = self.net.host(&workload.node, addrs.iter().map(String::as_str));
        let app = host.app();
        let listener =
            app.listen(&Bind::plain(SocketAddr::new([0; 16].into(), port))).await.expect("a free port");
        tokio::task::spawn_local(answer(listener, workload.name.to_string()));
        let node = workload.node.to_string();
        let mut pod = SimPod { workload, app, node, host, served: None, ending: CancellationToken::new() };
        pod.workload.tunnel = model::TunnelProtocol::None;
        self.set([Resource::Workload(Arc::new(pod.workload.clone()))]);
        pod
    }

    /// Starts a pod in the mesh.
    pub(crate) async fn meshed(&mut self, workload: Workload, port: u16) -> SimPod {
        let mut pod = self.start(workload, port).await;
        self.enrol(&mut pod).await;
        pod
    }

    /// Takes a running pod into the mesh.
    pub(crate) async fn enrol(&mut self, pod: &mut SimPod) {
        let node = &self.nodes[&pod.node];
        let identity = pod.workload.identity().expect("a valid identity");
        let lease = node.svids.lease(&identity);
        let leave = node.proxy.drain.child_token();
        let local = LocalPod {
            name: NamespacedName::new(&pod.workload.namespace, &pod.workload.name),
            identity,
            node: pod.node.as_str().into(),
            cluster_id: CLUSTER.into(),
            network: pod.workload.network.clone(),
        };
        let listen = |addr: &str| {
            let bind = Bind::captured(addr.parse().expect("an address"));
            let host = pod.host.clone();
            async move { host.listen(&bind).await.expect("a free port") }
        };
        let listeners = Listeners {
            outbound: vec![listen("127.0.0.1:15001").await, listen("[::1]:15001").await],
            plaintext: vec![listen("[::]:15006").await],
            hbone: vec![listen("[::]:15008").await],
        };
        let uid = PodUid::new(pod.workload.uid.as_str());
        if let Some(needs) = node.proxy.mesh.needs() {
            needs.came(&uid, &local);
        }
        let shared = Arc::new(Pod {
            uid,
            local,
            network: pod.host.clone(),
            lease,
            leave: leave.clone(),
            dns: true,
            ending: pod.ending.clone(),
            back: CancellationToken::new(),
            returned: Returned::default(),
        });
        let rng = SmallRng::seed_from_u64(self.rng.random());
        let served = Served::new(node.proxy.clone(), shared, node.scope.clone(), rng);
        tokio::task::spawn_local(serve(served, listeners, ()));
        pod.host.enrol(true);
        pod.served = Some(leave);
        pod.workload.tunnel = model::TunnelProtocol::Hbone;
        self.set([Resource::Workload(Arc::new(pod.workload.clone()))]);
    }

    /// Tells a pod's ztunnel what its node's agent would: that it is about to end, or has.
    pub(crate) fn comes_to_its_end(&self, pod: &SimPod, stage: Stage) {
        let Workload { uid, namespace, name, addresses, .. } = &pod.workload;
        let departures = self.nodes[&pod.node].proxy.mesh.departures();
        departures.note(&PodUid::new(uid.as_str()), &NamespacedName::new(namespace, name), stage, addresses);
        pod.ending.cancel();
    }

    /// Takes a running pod out of the mesh.
    pub(crate) fn unenrol(&mut self, pod: &mut SimPod) {
        pod.host.enrol(false);
        pod.served.take().inspect(CancellationToken::cancel);
        pod.workload.tunnel = model::TunnelProtocol::None;
        self.set([Resource::Workload(Arc::new(pod.workload.clone()))]);
    }

    /// The serial number of the certificate that a pod's node has for it.
    pub(crate) fn serial(&self, pod: &SimPod) -> String {
        let certificates = self.nodes[&pod.node].svids.snapshot();
        let own = certificates.into_iter().find(|c| c.id == pod.identity());
        own.and_then(|c| c.serial).expect("a certificate")
    }

    /// Has all nodes revoke certificates, by their serial numbers, and no others.
    pub(crate) fn revoke(&self, serials: &[String]) {
        let list = self.ca.revoking(serials);
        self.nodes.values().for_each(|node| node.svids.bundle().revoke(list.clone()));
    }

    /// How many connections the nodes' ztunnels carry.
    pub(crate) fn connections(&self) -> usize {
        self.nodes.values().map(|n| n.scope.connections.count()).sum()
    }

    /// Waits until no ztunnel carries a connection any more.
    pub(crate) async fn quiet(&self) {
        let quiet = async {
            while self.connections() > 0 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let waited = timeout(ENOUGH, quiet).await;
        assert!(waited.is_ok(), "{} connections never end", self.connections());
    }
}

impl SimPod {
    /// The identity that it has in the mesh.
    pub(crate) fn identity(&self) -> SpiffeId {
        self.workload.identity().expect("a valid identity")
    }

    /// Whether it is in the mesh.
    pub(crate) fn is_meshed(&self) -> bool {
        self.served.is_some()
    }

    /// Changes what the control plane says of the pod.
    pub(crate) fn change(&mut self, mesh: &mut SimMesh, change: impl FnOnce(&mut Workload)) {
        change(&mut self.workload);
        mesh.set([Resource::Workload(Arc::new(self.workload.clone()))]);
    }

    /// Opens a connection and keeps it.
    pub(crate) async fn hold(&self, to: &str) -> io::Result<Held> {
        Held::open(&self.app, to).await
    }

    /// Sends `bytes` of its own to an address and expects them back after the answerer's name for itself.
    pub(crate) async fn call(&self, to: &str, bytes: usize) -> io::Result<Reply> {
        call(&self.app, to.parse().expect("an address"), bytes).await
    }
}

/// A connection that a caller keeps open.
pub(crate) struct Held {
    stream: SimStream,
    /// The pod that took it.
    pub(crate) from: String,
}

impl Held {
    /// Opens one and waits for the greeting.
    pub(crate) async fn open(app: &SimApp, to: &str) -> io::Result<Self> {
        let mut stream = app.connect(&Dial::to(to.parse().expect("an address"))).await?;
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            line.push(stream.read_u8().await?);
        }
        let greeting = String::from_utf8(line).expect("a greeting");
        let (from, _) = greeting.split_once(' ').expect("a name and an address");
        Ok(Self { stream, from: from.to_owned() })
    }

    /// Sends a byte and expects it back.
    pub(crate) async fn echo(&mut self) -> io::Result<()> {
        self.stream.write_all(b"!").await?;
        timeout(ENOUGH, self.stream.read_u8()).await.expect("an answer or an error").map(drop)
    }

    /// Whether it is cut off within a time. An orderly end is a failure: who is cut off must know it.
    pub(crate) async fn is_reset_within(&mut self, limit: Duration) -> bool {
        match timeout(limit, self.stream.read_u8()).await {
            Err(_) => false,
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => true,
            Ok(other) => panic!("neither reset nor silent: {other:?}"),
        }
    }
}

/// One call: whatever goes wrong must show as an error, never as an answer that is merely short.
async fn call(app: &SimApp, to: SocketAddr, bytes: usize) -> io::Result<Reply> {
    let stream = app.connect(&Dial::to(to)).await?;
    let (mut reader, mut writer) = tokio::io::split(stream);
    let sent: Vec<u8> = (0..bytes).map(|n| (n % 251) as u8).collect();
    let sending = async {
        writer.write_all(&sent).await?;
        writer.shutdown().await
    };
    let mut answer = Vec::new();
    let receiving = reader.read_to_end(&mut answer);
    let both = timeout(ENOUGH, async { tokio::join!(sending, receiving) });
    let (sending, receiving) = both.await.expect("a call ends, one way or the other");
    receiving?;
    sending?;
    let line = answer.iter().position(|b| *b == b'\n').expect("an orderly end comes after an answer");
    let greeting = String::from_utf8(answer[..line].to_vec()).expect("a greeting");
    assert!(
        answer[line + 1..] == sent,
        "{} of {bytes} bytes came back, in good order",
        answer.len() - line - 1
    );
    let (from, seen) = greeting.split_once(' ').expect("a name and an address");
    Ok(Reply { from: from.to_owned(), seen: seen.parse().expect("an address") })
}

/// The application: says who it is and whom it sees, then sends back what it gets.
async fn answer(listener: SimListener, name: String) {
    while let Ok(accepted) = listener.accept().await {
        let greeting = format!("{name} {}\n", accepted.peer.ip());
        tokio::task::spawn_local(async move {
            let (mut reader, mut writer) = tokio::io::split(accepted.stream);
            let answered: io::Result<()> = async {
                writer.write_all(greeting.as_bytes()).await?;
                tokio::io::copy(&mut reader, &mut writer).await?;
                writer.shutdown().await
            }
            .await;
            if answered.is_err() {
                net::Stream::reset_on_drop(&reader.unsplit(writer));
            }
        });
    }
}
