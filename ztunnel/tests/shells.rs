//! The shells of one pod on a simulated network and virtual time: what they do when something is late or lacking.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hbone::Settings;
use model::{NamespacedName, NetworkId};
use net::{Bind, Dial, Listener, Network};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use telemetry::metrics::{Exposition, Registry};
use testkit::ca::FakeCa;
use testkit::fixtures::{CLUSTER, identity, pod};
use testkit::sim::{SimHost, SimNet};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::LocalSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use zds::PodUid;
use ztunnel::connections::Connections;
use ztunnel::limits::Limits;
use ztunnel::local::LocalPod;
use ztunnel::mesh::{Folder, Mesh};
use ztunnel::metrics::Metrics;
use ztunnel::pod::listeners::Listeners;
use ztunnel::pod::{Pod, Returned, Scope, Served, serve};
use ztunnel::proxy::{Proxy, begun};
use ztunnel::quota::Quotas;
use ztunnel::redirection::Redirection;

/// One meshed pod, shop/app at 10.0.0.1, whose application greets on port 80; and a host outside of the mesh.
struct Rig {
    net: SimNet,
    app: SimHost,
    stranger: SimHost,
    mesh: Mesh,
    folder: Folder,
    leave: CancellationToken,
    scope: Scope,
    families: Exposition,
}

const APP: &str = "10.0.0.1:80";
const TUNNELS: &str = "10.0.0.1:15008";

impl Rig {
    async fn start(ca: &FakeCa) -> Self {
        let net = SimNet::new(1);
        let app = net.host("node1", ["10.0.0.1"]);
        let stranger = net.host("node2", ["10.0.0.2"]);
        let (mesh, folder) = Mesh::unknown();
        let mut registry = Registry::default();
        let proxy = Arc::new(Proxy {
            mesh: mesh.clone(),
            metrics: Metrics::register(&mut registry),
            redirection: Redirection::default(),
            quotas: Quotas::default(),
            names: ztunnel::names::Names::default(),
            limits: Limits::default(),
            hbone: Settings::default(),
            turn: begun(),
            drain: CancellationToken::new(),
        });
        let scope = Scope {
            connections: Connections::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        let id = identity("shop", "app");
        let leave = proxy.drain.child_token();
        let shared = Arc::new(Pod {
            uid: PodUid::new("app"),
            local: LocalPod {
                name: NamespacedName::new("shop", "app"),
                identity: id.clone(),
                node: "node1".into(),
                cluster_id: CLUSTER.into(),
                network: NetworkId::default(),
            },
            network: app.clone(),
            lease: ca.store().lease(&id),
            leave: leave.clone(),
            dns: true,
            ending: CancellationToken::new(),
            back: CancellationToken::new(),
            returned: Returned::default(),
        });
        let served = Served::new(proxy, shared, scope.clone(), SmallRng::seed_from_u64(1));
        let listeners = Listeners {
            outbound: vec![listen(&app, "127.0.0.1:15001").await],
            plaintext: vec![listen(&app, "[::]:15006").await],
            hbone: vec![listen(&app, "[::]:15008").await],
        };
        tokio::task::spawn_local(serve(served, listeners, ()));
        app.enrol(true);
        greet(&app, 80).await;
        greet(&stranger, 80).await;
        let families = Exposition::new(registry);
        Self { net, app, stranger, mesh, folder, leave, scope, families }
    }

    /// Lets the control plane tell of the pod.
    fn tell(&mut self) {
        self.folder.fold(vec![pod("shop", "app").account("app").ip("10.0.0.1").build().into()]);
        Folder::set_synced(&self.mesh);
    }

    fn counted(&self, flags: &str) -> bool {
        let text = self.families.render(None).body;
        text.lines().any(|l| {
            l.starts_with("istio_tcp_connections_failed_total")
                && l.contains(&format!("response_flags=\"{flags}\""))
                && !l.ends_with(" 0")
        })
    }
}

async fn listen(host: &SimHost, addr: &str) -> <SimHost as Network>::Listener {
    host.listen(&Bind::captured(addr.parse().unwrap())).await.unwrap()
}

async fn greet(host: &SimHost, port: u16) {
    let any: SocketAddr = ([0u16; 8], port).into();
    let listener = host.app().listen(&Bind::plain(any)).await.unwrap();
    tokio::task::spawn_local(async move {
        while let Ok(mut accepted) = listener.accept().await {
            tokio::task::spawn_local(async move {
                // Whoever asks may go without the answer.
                let _ = accepted.stream.write_all(b"hello").await;
                let _ = accepted.stream.shutdown().await;
                let _ = accepted.stream.read_to_end(&mut Vec::new()).await;
            });
        }
    });
}

/// What an application gets.
async fn ask(host: &SimHost, to: &str) -> io::Result<String> {
    let mut stream = host.app().connect(&Dial::to(to.parse().unwrap())).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

fn simulate(test: impl AsyncFnOnce(Rig)) {
    simulate_under(|_| {}, test);
}

/// With the certificate authority in another state from the beginning.
fn simulate_under(prepare: impl FnOnce(&FakeCa), test: impl AsyncFnOnce(Rig)) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let ca = FakeCa::new();
        prepare(&ca);
        let rig = Rig::start(&ca).await;
        timeout(Duration::from_secs(3600), test(rig)).await.expect("the test comes to an end");
    });
}

#[test]
fn nothing_passes_before_the_mesh_is_known() {
    simulate(async |rig| {
        let started = Instant::now();
        assert!(ask(&rig.app, "10.0.0.2:80").await.is_err(), "out");
        assert!(ask(&rig.stranger, APP).await.is_err(), "in");
        let limit = Limits::default().mesh;
        assert!(started.elapsed() >= limit && started.elapsed() < 3 * limit, "after a bounded wait each");
        assert!(rig.counted("CONNECT"));
    });
}

#[test]
fn connections_wait_for_the_mesh_to_become_known() {
    simulate(async |mut rig| {
        let (app, stranger) = (rig.app.clone(), rig.stranger.clone());
        let out = tokio::task::spawn_local(async move { ask(&app, "10.0.0.2:80").await });
        let within = tokio::task::spawn_local(async move { ask(&stranger, APP).await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        rig.tell();
        assert_eq!(out.await.unwrap().unwrap(), "hello");
        assert_eq!(within.await.unwrap().unwrap(), "hello");
    });
}

#[test]
fn a_pod_that_the_control_plane_does_not_know_admits_nobody() {
    simulate(async |rig| {
        Folder::set_synced(&rig.mesh);
        assert!(ask(&rig.stranger, APP).await.is_err());
        assert!(rig.counted("DENY"));
        assert_eq!(ask(&rig.app, "10.0.0.2:80").await.unwrap(), "hello", "but may go out");
    });
}

#[test]
fn a_client_that_is_slow_with_tls_is_given_up() {
    simulate(async |mut rig| {
        rig.tell();
        let mut slow = rig.stranger.connect(&Dial::to(TUNNELS.parse().unwrap())).await.unwrap();
        let started = Instant::now();
        // The first bytes of a handshake record that never ends.
        slow.write_all(&[22, 3, 1, 0, 200, 1]).await.unwrap();
        let ended = slow.read_to_end(&mut Vec::new()).await;
        assert!(started.elapsed() >= Limits::default().tls, "{ended:?}");
        assert!(rig.counted("TLS_FAILURE"));
    });
}

#[test]
fn a_destination_that_enters_the_mesh_late_is_waited_for() {
    simulate(async |mut rig| {
        rig.tell();
        let told = pod("shop", "late").ip("10.0.0.2").build();
        rig.folder.fold(vec![told.clone().into()]);
        let app = rig.app.clone();
        let asked = tokio::task::spawn_local(async move { ask(&app, "10.0.0.2:80").await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        // It takes no tunnels after all.
        rig.folder.fold(vec![model::Workload { tunnel: model::TunnelProtocol::None, ..told }.into()]);
        assert_eq!(asked.await.unwrap().unwrap(), "hello");
    });
}

#[test]
fn a_destination_that_takes_no_tunnel_is_not_reached_by_plaintext() {
    simulate(async |mut rig| {
        rig.tell();
        rig.folder.fold(vec![pod("shop", "broken").ip("10.0.0.2").build().into()]);
        let started = Instant::now();
        assert!(ask(&rig.app, "10.0.0.2:80").await.is_err());
        assert!(started.elapsed() >= Limits::default().transition);
        assert!(rig.counted("CONNECT"));
    });
}

#[test]
fn the_step_that_is_too_slow_is_the_one_that_is_told() {
    let certificate = Duration::from_secs(7);
    simulate_under(
        |ca| ca.set_latency(certificate),
        async |mut rig| {
            rig.tell();
            rig.folder.fold(vec![pod("shop", "mute").ip("10.0.0.2").build().into()]);
            let any: SocketAddr = ([0u16; 8], 15008).into();
            let _mute = rig.stranger.app().listen(&Bind::plain(any)).await.unwrap();
            let started = Instant::now();
            assert!(ask(&rig.app, "10.0.0.2:80").await.is_err());
            assert!(started.elapsed() >= certificate + Limits::default().tls);
            assert!(rig.counted("TLS_FAILURE"));
        },
    );
}

#[test]
fn a_pod_without_certificate_does_not_blame_its_peers() {
    simulate_under(
        |ca| ca.set_reachable(false),
        async |mut rig| {
            rig.tell();
            rig.folder.fold(vec![pod("shop", "other").ip("10.0.0.2").build().into()]);
            assert!(ask(&rig.app, "10.0.0.2:80").await.is_err());
            assert!(rig.counted("IDENTITY_ERROR") && !rig.counted("CONNECT"));
        },
    );
}

#[test]
fn when_a_pod_leaves_its_connections_go_on() {
    simulate(async |mut rig| {
        rig.tell();
        let mut standing = rig.app.app().connect(&Dial::to("10.0.0.2:80".parse().unwrap())).await.unwrap();
        let mut greeting = [0; 5];
        standing.read_exact(&mut greeting).await.unwrap();
        rig.leave.cancel();
        rig.app.enrol(false);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(rig.scope.connections.count(), 1);
        standing.write_all(b"still here").await.unwrap();
        standing.shutdown().await.unwrap();
        assert_eq!(standing.read(&mut greeting).await.unwrap(), 0);
        drop(standing);
        let gone = async {
            while rig.scope.connections.count() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(10), gone).await.expect("and nothing is left of them");
    });
}

#[test]
fn connections_are_cut_off_and_not_merely_ended_at_the_stop() {
    simulate(async |mut rig| {
        rig.tell();
        let mut standing = rig.app.app().connect(&Dial::to("10.0.0.2:80".parse().unwrap())).await.unwrap();
        let mut greeting = [0; 5];
        standing.read_exact(&mut greeting).await.unwrap();
        // The greeter has ended its half; that end is orderly.
        assert_eq!(standing.read(&mut greeting).await.unwrap(), 0);
        let silent = rig.net.host("node3", ["10.0.0.3"]);
        let listener = silent.app().listen(&Bind::plain("[::]:81".parse().unwrap())).await.unwrap();
        let mut held = rig.app.app().connect(&Dial::to("10.0.0.3:81".parse().unwrap())).await.unwrap();
        let _server = listener.accept().await.unwrap();
        rig.scope.stop.cancel();
        assert!(held.read(&mut greeting).await.is_err(), "a reset, not an end");
    });
}
