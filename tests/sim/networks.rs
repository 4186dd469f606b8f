//! Services with endpoints in another network, which is reached through its gateway by a tunnel within a tunnel.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hbone::Settings;
use hbone::server::{ConnectRequest, Connection, Refusal};
use identity::{TlsIdentity, peer_identity};
use model::{GatewayAddress, GatewayDestination, NetworkAddr, NetworkId, Service, SpiffeId};
use net::{Bind, Dial, Listener, Network, Traffic};
use rand::Rng;
use testkit::fixtures::{WorkloadBuilder, deny, identity, ip, pod, service};
use testkit::sim::{SimHost, seeds};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::spawn_local;
use tokio_rustls::TlsAcceptor;
use xds::{Resource, ResourceKey};

use crate::mesh::{Held, SimMesh, SimPod, simulate};

const PORT: u16 = 8080;
const VIP: &str = "10.96.0.1:80";
const EAST: &str = "east";
const GATE: &str = "192.0.2.9";
/// Whom the gateway leads to.
const FAR: &str = "10.0.1.9";
/// Within which a change ends live connections.
const AT_ONCE: Duration = Duration::from_secs(1);

/// A caller in the default network and a service whose endpoints are in the other one.
struct World {
    mesh: SimMesh,
    frontend: SimPod,
    service: Service,
    gate: Gate,
}

/// The gateway of the other network, as far as it is asked for here: it passes on to one endpoint what is inside a tunnel.
struct Gate {
    serial: String,
    /// What it was asked for, and by whom.
    asked: Asked,
}

type Asked = Rc<RefCell<Vec<String>>>;

/// An endpoint in the other network.
fn far(name: &str, address: &str, service: &Service) -> WorkloadBuilder {
    let at = NetworkAddr::new(NetworkId::new(EAST), ip(GATE));
    let gateway = GatewayAddress { destination: GatewayDestination::Address(at), hbone_port: 15008 };
    pod("shop", name).ip(address).node("east1").backs(service).with(|w| {
        w.network = NetworkId::new(EAST);
        w.network_gateway = Some(gateway);
    })
}

/// The two networks, and a gateway that proves to be `gate`, where it must be istio-system/eastgate.
async fn world_with(seed: u64, gate: &SpiffeId) -> World {
    let mut mesh = SimMesh::new(seed);
    mesh.node("west1");
    mesh.node("east1");
    let service = service("shop", "catalog").vip("10.96.0.1").port(80, PORT).build();
    let told = pod("istio-system", "eastgate-0").ip(GATE).with(|w| w.network = NetworkId::new(EAST));
    mesh.set([Resource::Service(Arc::new(service.clone())), Resource::Workload(Arc::new(told.build()))]);
    let frontend = mesh.meshed(pod("shop", "frontend-0").ip("10.0.1.1").node("west1").build(), PORT).await;
    let own = mesh.ca.identity(gate);
    let (serial, asked) = (own.svid().serial().to_owned(), Asked::default());
    let host = mesh.net.host("east1", [GATE]);
    spawn_local(serve(host.clone(), own, Rc::clone(&asked), move |request| pass_on(host.clone(), request)));
    mesh.settled().await;
    World { mesh, frontend, service, gate: Gate { serial, asked } }
}

async fn world(seed: u64) -> World {
    world_with(seed, &identity("istio-system", "eastgate")).await
}

/// Takes tunnels, as a peer that the test plays.
async fn serve<F: Future<Output = ()> + 'static>(
    host: SimHost,
    own: TlsIdentity,
    asked: Asked,
    carry: impl Fn(ConnectRequest) -> F + Clone + 'static,
) {
    let listener = host.listen(&Bind::plain(SocketAddr::new(host.ip(), 15008))).await.expect("a free port");
    while let Ok(accepted) = listener.accept().await {
        let (own, asked, carry) = (own.server_config(), Rc::clone(&asked), carry.clone());
        spawn_local(async move {
            let Ok(session) = TlsAcceptor::from(own).accept(accepted.stream).await else { return };
            let peer = peer_identity(session.get_ref().1).expect("an identity");
            let Ok(mut connection) = Connection::handshake(session, &Settings::default()).await else {
                return;
            };
            while let Ok(Some(request)) = connection.accept().await {
                let network = request.network().map(|n| format!(" in {n:?}")).unwrap_or_default();
                let (authority, account) = (request.authority(), peer.service_account());
                asked.borrow_mut().push(format!("{authority} by {account}{network}"));
                spawn_local(carry(request));
            }
        });
    }
}

/// What the gateway does with a tunnel: the bytes in it are the endpoint's.
async fn pass_on(host: SimHost, request: ConnectRequest) {
    let dial = Dial::to(SocketAddr::new(ip(FAR), 15008));
    let Ok(mut endpoint) = host.connect(&dial).await else {
        return request.refuse(Refusal::Unavailable);
    };
    let Ok(mut tunnel) = request.accept(None) else { return };
    if net::relay(&mut tunnel, &mut endpoint, &Traffic::default()).await.is_err() {
        net::Stream::reset_on_drop(&endpoint);
        tunnel.reset();
    }
}

impl World {
    /// Starts the endpoint behind the gateway.
    async fn with_endpoint(&mut self) -> SimPod {
        let far = far("catalog-0", FAR, &self.service).build();
        let pod = self.mesh.meshed(far, PORT).await;
        self.mesh.settled().await;
        pod
    }

    fn asked(&self) -> Vec<String> {
        self.gate.asked.borrow().clone()
    }

    async fn held(&self) -> Held {
        self.frontend.hold(VIP).await.expect("a connection")
    }
}

const BY_NAME: &str = "catalog.shop.svc.cluster.local:80 by frontend";

#[test]
fn a_service_in_another_network_is_reached_through_its_gateway() {
    simulate(async {
        let mut world = world(1).await;
        let _far = world.with_endpoint().await;
        let reply = world.frontend.call(VIP, 1 << 20).await.unwrap();
        assert_eq!((reply.from.as_str(), reply.seen), ("catalog-0", ip(GATE)));
        assert_eq!(world.asked(), [BY_NAME], "the gateway knows the service and no more");
        world.mesh.quiet().await;
    });
}

#[test]
fn the_endpoint_is_told_of_the_network_that_the_client_is_in() {
    simulate(async {
        let mut world = world(2).await;
        world.mesh.set([Resource::Workload(Arc::new(far("catalog-0", FAR, &world.service).build()))]);
        let asked = Asked::default();
        let own = world.mesh.ca.identity(&identity("shop", "catalog"));
        let host = world.mesh.net.host("east1", [FAR]);
        let answer = |request: ConnectRequest| async {
            let mut tunnel = request.accept(None).expect("a peer");
            tunnel.write_all(b"catalog 0.0.0.0\n").await.expect("a peer");
            tunnel.shutdown().await.expect("a peer");
            tunnel.read_to_end(&mut Vec::new()).await.expect("the client's end");
        };
        spawn_local(serve(host, own, Rc::clone(&asked), answer));
        world.mesh.settled().await;
        assert_eq!(world.frontend.call(VIP, 0).await.unwrap().from, "catalog");
        let within = format!("{BY_NAME} in {:?}", NetworkId::default());
        assert_eq!((world.asked(), asked.borrow().clone()), (vec![BY_NAME.to_owned()], vec![within]));
    });
}

#[test]
fn whoever_is_not_the_gateway_is_asked_for_nothing() {
    simulate(async {
        let mut world = world_with(3, &identity("istio-system", "other")).await;
        let _far = world.with_endpoint().await;
        assert!(world.frontend.call(VIP, 10).await.is_err());
        assert!(world.asked().is_empty());
        world.mesh.quiet().await;
    });
}

#[test]
fn who_answers_behind_the_gateway_must_be_an_endpoint_of_the_service() {
    simulate(async {
        let mut world = world(4).await;
        // An endpoint of the service in the caller's network, which takes nothing itself, so that only its identity is wrong.
        let impostor = pod("shop", "impostor-0").ip(FAR).node("east1").backs(&world.service).capacity(0);
        let _impostor = world.mesh.meshed(impostor.build(), PORT).await;
        // The gateway leads to that one.
        world.mesh.set([Resource::Workload(Arc::new(far("catalog-0", "10.0.1.8", &world.service).build()))]);
        world.mesh.settled().await;
        assert!(world.frontend.call(VIP, 10).await.is_err());
        assert!(!world.asked().is_empty(), "the gateway was asked");
        world.mesh.quiet().await;
    });
}

#[test]
fn policy_at_the_endpoint_is_about_the_client_and_not_about_the_gateway() {
    simulate(async {
        let mut world = world(5).await;
        let _far = world.with_endpoint().await;
        let mut held = world.held().await;
        held.echo().await.unwrap();
        let no_gateway = deny("shop", "no").from("istio-system", "eastgate").build();
        world.mesh.set([Resource::Policy(Arc::new(no_gateway.clone()))]);
        world.mesh.settled().await;
        held.echo().await.unwrap();
        world.frontend.call(VIP, 10).await.unwrap();
        let no_frontend = deny("shop", "no").from("shop", "frontend").build();
        let key = ResourceKey::Policy(no_frontend.key.clone());
        world.mesh.set([Resource::Policy(Arc::new(no_frontend))]);
        assert!(held.is_reset_within(AT_ONCE).await, "what stood is ended, through both tunnels");
        assert!(world.frontend.call(VIP, 10).await.is_err());
        world.mesh.change([], [key]);
        world.mesh.settled().await;
        world.frontend.call(VIP, 10).await.unwrap();
        world.mesh.quiet().await;
    });
}

#[test]
fn when_the_gateway_or_the_endpoint_is_revoked_what_went_through_it_ends() {
    for of_gateway in [true, false] {
        simulate(async {
            let mut world = world(6).await;
            let far = world.with_endpoint().await;
            let mut held = world.held().await;
            held.echo().await.unwrap();
            let serial = if of_gateway { world.gate.serial.clone() } else { world.mesh.serial(&far) };
            world.mesh.revoke(&[serial]);
            assert!(held.is_reset_within(AT_ONCE).await, "of the gateway: {of_gateway}");
            assert!(world.frontend.call(VIP, 10).await.is_err());
        });
    }
}

#[test]
fn without_its_gateway_a_service_has_its_other_endpoints() {
    for seed in seeds(3) {
        simulate(async {
            let mut world = world(seed.number()).await;
            let _far = world.with_endpoint().await;
            let near = pod("shop", "catalog-1").ip("10.0.1.7").node("west1").backs(&world.service).build();
            let _near = world.mesh.meshed(near, PORT).await;
            world.mesh.settled().await;
            let mut replies = Vec::new();
            for _ in 0..40 {
                let bytes = world.mesh.rng.random_range(0..10_000);
                replies.push(world.frontend.call(VIP, bytes).await.unwrap().from);
            }
            for name in ["catalog-0", "catalog-1"] {
                assert!(replies.iter().any(|from| from == name), "{name} takes its share");
            }
            world.mesh.net.close("west1", "east1");
            for _ in 0..10 {
                assert_eq!(world.frontend.call(VIP, 100).await.unwrap().from, "catalog-1");
            }
        });
    }
}
