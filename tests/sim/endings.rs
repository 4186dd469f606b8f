//! Pods that come to their end, by the word of their node's agent, before the control plane has told anybody.

use std::sync::Arc;

use model::Service;
use testkit::fixtures::{pod, service};
use xds::Resource;
use zds::Stage;

use crate::mesh::{SimMesh, SimPod, simulate};

const PORT: u16 = 8080;
const VIP: &str = "10.96.0.1:80";

/// A caller on each of two nodes, and two endpoints of one service on the second. The control plane is away.
struct Town {
    mesh: SimMesh,
    far: SimPod,
    near: SimPod,
    catalogs: Vec<SimPod>,
}

async fn town(seed: u64) -> Town {
    let mut mesh = SimMesh::new(seed);
    mesh.node("node1");
    mesh.node("node2");
    let catalog: Service = service("shop", "catalog").vip("10.96.0.1").port(80, PORT).build();
    mesh.set([Resource::Service(Arc::new(catalog.clone()))]);
    let far = mesh.meshed(pod("shop", "far-0").ip("10.0.1.1").build(), PORT).await;
    let near = mesh.meshed(pod("shop", "near-0").ip("10.0.2.9").node("node2").build(), PORT).await;
    let mut catalogs = Vec::new();
    for n in 0..2 {
        let catalog_pod = pod("shop", &format!("catalog-{n}")).ip(&format!("10.0.2.{}", n + 1));
        catalogs.push(mesh.meshed(catalog_pod.node("node2").backs(&catalog).build(), PORT).await);
    }
    mesh.settled().await;
    mesh.stop_control();
    Town { mesh, far, near, catalogs }
}

#[test]
fn who_has_others_to_go_to_is_sent_there() {
    simulate(async {
        let town = town(1).await;
        for n in 0..10 {
            // Tunnels to both stand.
            town.far.call(VIP, n).await.unwrap();
        }
        town.mesh.comes_to_its_end(&town.catalogs[0], Stage::Terminating);
        for _ in 0..30 {
            for caller in [&town.far, &town.near] {
                assert_eq!(caller.call(VIP, 10).await.unwrap().from, "catalog-1");
            }
        }
        town.mesh.quiet().await;
    });
}

#[test]
fn who_has_nobody_else_to_go_to_is_served_to_the_last() {
    simulate(async {
        let town = town(2).await;
        let direct = town.far.call("10.0.2.1:8080", 10).await.unwrap();
        assert_eq!(direct.from, "catalog-0");
        for catalog in &town.catalogs {
            town.mesh.comes_to_its_end(catalog, Stage::Terminating);
        }
        for _ in 0..30 {
            for caller in [&town.far, &town.near] {
                assert!(caller.call(VIP, 1_000).await.unwrap().from.starts_with("catalog-"));
            }
            assert_eq!(town.far.call("10.0.2.1:8080", 10).await.unwrap().from, "catalog-0");
        }
        town.mesh.quiet().await;
    });
}

#[test]
fn who_was_sent_away_in_vain_is_taken_after_all() {
    simulate(async {
        let town = town(3).await;
        // The other one is gone, and nobody knows yet.
        town.mesh.net.host("node3", ["10.0.2.2"]);
        town.mesh.comes_to_its_end(&town.catalogs[0], Stage::Terminating);
        for _ in 0..20 {
            assert_eq!(town.far.call(VIP, 10).await.unwrap().from, "catalog-0");
        }
    });
}

#[test]
fn connections_that_stand_go_on() {
    simulate(async {
        let town = town(4).await;
        let mut held = town.far.hold("10.0.2.1:8080").await.unwrap();
        town.mesh.comes_to_its_end(&town.catalogs[0], Stage::Terminating);
        for _ in 0..20 {
            held.echo().await.unwrap();
            town.far.call(VIP, 10).await.unwrap();
        }
        drop(held);
        town.mesh.quiet().await;
    });
}

#[test]
fn a_pod_of_the_node_that_has_ended_is_not_tried_any_more() {
    simulate(async {
        let town = town(5).await;
        town.mesh.comes_to_its_end(&town.catalogs[0], Stage::Ended);
        town.mesh.comes_to_its_end(&town.catalogs[1], Stage::Ended);
        let refused = town.near.call(VIP, 10).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionReset);
        assert!(town.far.call(VIP, 10).await.is_ok(), "it is this node's agent who knows");
    });
}
