//! Nodes that fall silent: nothing comes back from them, and nobody has said so.

use std::sync::Arc;
use std::time::Duration;

use model::Service;
use testkit::fixtures::{pod, service};
use tokio::time::Instant;
use xds::Resource;

use crate::mesh::{SimMesh, SimPod, simulate};

const PORT: u16 = 8080;
const VIP: &str = "10.96.0.1:80";
const CALLS: usize = 40;

/// A caller, and two endpoints of one service on a node each. The caller has tunnels to both.
struct Town {
    mesh: SimMesh,
    caller: SimPod,
}

impl Town {
    async fn new(seed: u64) -> Self {
        let mut mesh = SimMesh::new(seed);
        ["node1", "node2", "node3"].into_iter().for_each(|node| mesh.node(node));
        let catalog: Service = service("shop", "catalog").vip("10.96.0.1").port(80, PORT).build();
        mesh.set([Resource::Service(Arc::new(catalog.clone()))]);
        let caller = mesh.meshed(pod("shop", "caller").ip("10.0.1.1").build(), PORT).await;
        for n in 2..=3 {
            let endpoint = pod("shop", &format!("catalog-{n}")).ip(&format!("10.0.{n}.1"));
            mesh.meshed(endpoint.node(&format!("node{n}")).backs(&catalog).build(), PORT).await;
        }
        mesh.settled().await;
        for n in 2..=3 {
            caller.call(&format!("10.0.{n}.1:8080"), 1).await.unwrap();
        }
        Self { mesh, caller }
    }

    /// Who answered each of some calls in a row, and how many were kept waiting.
    async fn calls(&self) -> (Vec<String>, usize) {
        let (mut from, mut slow) = (Vec::new(), 0);
        for _ in 0..CALLS {
            let began = Instant::now();
            from.push(self.caller.call(VIP, 10).await.unwrap().from);
            assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
            slow += usize::from(began.elapsed() > Duration::from_millis(500));
        }
        (from, slow)
    }
}

#[test]
fn a_node_that_falls_silent_keeps_one_connection_waiting_and_not_all() {
    simulate(async {
        let town = Town::new(1).await;
        town.mesh.net.close("node1", "node2");
        let (from, slow) = town.calls().await;
        assert!(from.iter().all(|name| name == "catalog-3"), "{from:?}");
        assert_eq!(slow, 1, "who finds out waits, and nobody after him");
    });
}

#[test]
fn one_that_can_not_be_reached_at_all_keeps_one_waiting_too() {
    simulate(async {
        let town = Town::new(2).await;
        // No tunnel stands any more, and none can be made.
        town.mesh.net.cut("node1", "node2");
        town.mesh.net.close("node1", "node2");
        let (from, slow) = town.calls().await;
        assert!(from.iter().all(|name| name == "catalog-3"), "{from:?}");
        assert_eq!(slow, 1);
    });
}

#[test]
fn one_that_is_back_gets_its_share_again() {
    simulate(async {
        let town = Town::new(3).await;
        town.mesh.net.close("node1", "node2");
        town.calls().await;
        town.mesh.net.open("node1", "node2");
        tokio::time::sleep(Duration::from_secs(30)).await;
        let (from, slow) = town.calls().await;
        assert!(from.iter().any(|name| name == "catalog-2"), "{from:?}");
        assert_eq!(slow, 0);
    });
}

#[test]
fn a_peer_that_is_merely_slow_is_not_given_up() {
    simulate(async {
        let town = Town::new(4).await;
        // Slower than what makes one doubt, and not than what makes one sure.
        let slow = Duration::from_millis(700);
        town.mesh.net.link("node1", "node2", slow..slow, 0.0);
        for _ in 0..10 {
            assert_eq!(town.caller.call("10.0.2.1:8080", 10).await.unwrap().from, "catalog-2");
        }
    });
}

#[test]
fn one_that_was_reached_too_slowly_for_who_had_others_gets_its_share_when_it_is_reached() {
    simulate(async {
        let town = Town::new(5).await;
        town.mesh.net.cut("node1", "node2");
        let slow = Duration::from_millis(700);
        town.mesh.net.link("node1", "node2", slow..slow, 0.0);
        let (from, slow) = town.calls().await;
        assert!(slow <= 1, "{slow} of {from:?} waited");
        tokio::time::sleep(Duration::from_secs(4)).await;
        let fast = Duration::from_millis(1);
        town.mesh.net.link("node1", "node2", fast..fast, 0.0);
        let (from, _) = town.calls().await;
        assert!(from.iter().any(|name| name == "catalog-2"), "{from:?}");
    });
}
