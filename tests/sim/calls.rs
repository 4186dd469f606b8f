//! Calls from pod to pod, through the ztunnels of their nodes.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use model::{Policy, Service};
use rand::Rng;
use testkit::fixtures::{allow, deny, ip, pod, service, strict, waypoint_named};
use testkit::sim::seeds;
use tokio::time::Instant;
use xds::{Resource, ResourceKey};

use crate::mesh::{CONTROL, SimMesh, SimPod, simulate};

const PORT: u16 = 8080;

/// A caller on node1, and two endpoints of one service on node2, all in the mesh.
struct Shop {
    mesh: SimMesh,
    frontend: SimPod,
    catalogs: Vec<SimPod>,
    service: Service,
}

/// The catalog's service.
const VIP: &str = "10.96.0.1:80";

async fn shop(seed: u64) -> Shop {
    let mut mesh = SimMesh::new(seed);
    mesh.node("node1");
    mesh.node("node2");
    let service = service("shop", "catalog").vip("10.96.0.1").port(80, PORT).build();
    mesh.set([Resource::Service(Arc::new(service.clone()))]);
    let frontend = mesh.meshed(pod("shop", "frontend-0").ip("10.0.1.1").build(), PORT).await;
    let mut catalogs = vec![];
    for n in 0..2 {
        let catalog = pod("shop", &format!("catalog-{n}")).ip(&format!("10.0.2.{}", n + 1)).node("node2");
        catalogs.push(mesh.meshed(catalog.backs(&service).build(), PORT).await);
    }
    mesh.settled().await;
    Shop { mesh, frontend, catalogs, service }
}

fn policy(policy: Policy) -> [Resource; 1] {
    [Resource::Policy(Arc::new(policy))]
}

#[test]
fn a_call_crosses_nodes_and_the_callers_address_stays_its_own() {
    simulate(async {
        let shop = shop(1).await;
        let reply = shop.frontend.call("10.0.2.1:8080", 100_000).await.unwrap();
        assert_eq!((reply.from.as_str(), reply.seen), ("catalog-0", ip("10.0.1.1")));
        let reply = shop.frontend.call(VIP, 100_000).await.unwrap();
        assert!(reply.from.starts_with("catalog-"));
        assert_eq!(reply.seen, ip("10.0.1.1"));
        shop.mesh.quiet().await;
    });
}

#[test]
fn a_pod_calls_itself_and_its_neighbour_on_the_node() {
    simulate(async {
        let shop = shop(2).await;
        let [one, other] = &shop.catalogs[..] else { unreachable!() };
        assert_eq!(one.call("10.0.2.2:8080", 10).await.unwrap().from, "catalog-1");
        assert_eq!(one.call("10.0.2.1:8080", 10).await.unwrap().from, "catalog-0");
        assert_eq!(other.call("10.0.2.1:8080", 10).await.unwrap().seen, ip("10.0.2.2"));
    });
}

#[test]
fn the_unmeshed_talk_to_the_meshed_both_ways_until_strict_forbids_it() {
    simulate(async {
        let mut shop = shop(3).await;
        let legacy = shop.mesh.start(pod("old", "legacy-0").ip("10.0.1.9").build(), PORT).await;
        shop.mesh.settled().await;
        assert_eq!(legacy.call("10.0.2.1:8080", 1_000).await.unwrap().seen, ip("10.0.1.9"));
        assert_eq!(shop.frontend.call("10.0.1.9:8080", 1_000).await.unwrap().from, "legacy-0");

        shop.mesh.set(policy(strict("shop")));
        shop.mesh.settled().await;
        assert!(legacy.call("10.0.2.1:8080", 10).await.is_err());
        assert!(shop.frontend.call("10.0.2.1:8080", 10).await.is_ok(), "those with an identity still may");
    });
}

#[test]
fn policy_admits_and_denies_by_identity() {
    simulate(async {
        let mut shop = shop(4).await;
        let other = shop.mesh.meshed(pod("shop", "other-0").ip("10.0.1.2").build(), PORT).await;
        shop.mesh.set(policy(allow("shop", "callers").from("shop", "frontend").build()));
        shop.mesh.settled().await;
        assert!(shop.frontend.call(VIP, 10).await.is_ok());
        let denied = other.call(VIP, 10).await.unwrap_err();
        assert_eq!(denied.kind(), io::ErrorKind::ConnectionReset);

        shop.mesh.set(policy(deny("shop", "nobody").from_everyone().build()));
        shop.mesh.settled().await;
        assert!(shop.frontend.call(VIP, 10).await.is_err());
    });
}

#[test]
fn a_policy_that_goes_and_the_pods_that_named_it_are_parted_without_a_failed_call() {
    simulate(async {
        let mut shop = shop(10).await;
        let selecting = allow("shop", "selecting").for_selected().from("shop", "frontend").build();
        let key = ResourceKey::Policy(selecting.key.clone());
        for _ in 0..5 {
            let selected = |pods: &mut [SimPod], names: bool| {
                let workloads = pods.iter_mut().map(|pod| {
                    pod.workload.authorization_policies =
                        names.then(|| selecting.key.clone()).into_iter().collect();
                    Resource::Workload(Arc::new(pod.workload.clone()))
                });
                workloads.collect::<Vec<_>>()
            };
            let mut with = selected(&mut shop.catalogs, true);
            with.extend(policy(selecting.clone()));
            shop.mesh.change(with, []);
            shop.frontend.call(VIP, 10).await.unwrap();
            shop.mesh.settled().await;
            let without = selected(&mut shop.catalogs, false);
            shop.mesh.change(without, [key.clone()]);
            shop.frontend.call(VIP, 10).await.unwrap();
            shop.mesh.settled().await;
        }
    });
}

#[test]
fn a_call_waits_for_its_identity_and_never_goes_without() {
    simulate(async {
        let mut shop = shop(5).await;
        shop.mesh.ca.set_reachable(false);
        let late = shop.mesh.meshed(pod("shop", "late-0").ip("10.0.1.3").build(), PORT).await;
        shop.mesh.settled().await;
        let began = Instant::now();
        assert!(late.call("10.0.2.1:8080", 10).await.is_err());
        assert!(began.elapsed() >= Duration::from_secs(5), "it was waited for: {:?}", began.elapsed());

        let ca = shop.mesh.ca.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            ca.set_reachable(true);
        });
        let reply = loop {
            if let Ok(reply) = late.call("10.0.2.1:8080", 10).await {
                break reply;
            }
        };
        assert_eq!(reply.seen, ip("10.0.1.3"));
    });
}

#[test]
fn another_endpoint_is_tried_when_one_is_gone() {
    simulate(async {
        let mut shop = shop(6).await;
        // Its node has lost it, and the control plane does not know yet.
        shop.mesh.net.host("node3", ["10.0.2.1"]);
        for _ in 0..20 {
            assert_eq!(shop.frontend.call(VIP, 10).await.unwrap().from, "catalog-1");
        }
        shop.catalogs[1].change(&mut shop.mesh, |w| w.health = model::Health::Unhealthy);
        shop.mesh.settled().await;
        assert!(shop.frontend.call(VIP, 10).await.is_err(), "none is left");
    });
}

#[test]
fn nothing_goes_around_a_waypoint() {
    simulate(async {
        let mut shop = shop(7).await;
        let guarded =
            Service { waypoint: Some(waypoint_named("shop", "gate.shop.svc.cluster.local")), ..shop.service };
        shop.mesh.set([Resource::Service(Arc::new(guarded))]);
        shop.mesh.settled().await;
        assert!(shop.frontend.call(VIP, 10).await.is_err());
        assert!(
            shop.frontend.call("10.0.2.1:8080", 10).await.is_ok(),
            "it stands before the service, not the pod"
        );
    });
}

#[test]
fn the_mesh_goes_on_without_its_control_plane_and_catches_up() {
    simulate(async {
        let mut shop = shop(8).await;
        shop.mesh.stop_control();
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(shop.frontend.call(VIP, 10).await.is_ok());
        shop.mesh.set(policy(deny("shop", "nobody").from_everyone().build()));
        assert!(shop.frontend.call(VIP, 10).await.is_ok(), "nobody has heard of it");
        shop.mesh.start_control();
        shop.mesh.settled().await;
        assert!(shop.frontend.call(VIP, 10).await.is_err());
    });
}

#[test]
fn certificates_are_renewed_while_calls_go_on() {
    simulate(async {
        let shop = shop(9).await;
        let id = shop.frontend.identity();
        for _ in 0..72 {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            shop.frontend.call(VIP, 10).await.unwrap();
        }
        assert!(shop.mesh.ca.asked(&id) >= 5, "in three days: {}", shop.mesh.ca.asked(&id));
    });
}

/// Clocks are set: by hand, by NTP after a long time without, by a machine that slept.
#[test]
fn wall_clocks_that_are_set_ahead_or_back_cost_no_identity_for_long() {
    const HOUR: i64 = 3600;
    for seed in seeds(80) {
        simulate(async {
            let mut shop = shop(seed.number()).await;
            tokio::time::sleep(Duration::from_secs(48 * 3600)).await;
            for _ in 0..8 {
                let hours = shop.mesh.rng.random_range(-20..=40);
                shop.mesh.ca.set_clock_by(hours * HOUR);
                let began = Instant::now();
                // Each call waits for its identity; none goes without, and none for long.
                while let Err(error) = shop.frontend.call(VIP, 10).await {
                    let waited = began.elapsed();
                    assert!(waited < Duration::from_secs(30), "{waited:?} after {hours} h: {error}");
                }
                let pause = shop.mesh.rng.random_range(0..2 * HOUR);
                tokio::time::sleep(Duration::from_secs(pause.unsigned_abs())).await;
                shop.frontend.call(VIP, 10).await.unwrap();
            }
            shop.mesh.quiet().await;
        });
    }
}

#[test]
fn calls_arrive_whole_over_links_that_lose_a_tenth() {
    for seed in seeds(25) {
        simulate(async {
            let mut shop = shop(seed.number()).await;
            for nodes in [("node1", "node2"), (CONTROL, "node1"), (CONTROL, "node2")] {
                shop.mesh.net.link(
                    nodes.0,
                    nodes.1,
                    Duration::from_millis(1)..Duration::from_millis(40),
                    0.1,
                );
            }
            let sizes: Vec<usize> = (0..40).map(|_| shop.mesh.rng.random_range(0..300_000)).collect();
            let calls = sizes.iter().map(|bytes| shop.frontend.call(VIP, *bytes));
            for reply in futures_util::future::join_all(calls).await {
                reply.unwrap();
            }
            shop.mesh.quiet().await;
        });
    }
}

#[test]
fn a_call_that_is_cut_fails_and_is_never_merely_short() {
    for seed in seeds(15) {
        simulate(async {
            let mut shop = shop(seed.number()).await;
            let (mut whole, mut failed) = (0, 0);
            for _ in 0..30 {
                let net = shop.mesh.net.clone();
                let when = Duration::from_micros(shop.mesh.rng.random_range(0..25_000));
                let cutting = async {
                    tokio::time::sleep(when).await;
                    net.cut("node1", "node2");
                };
                // The call itself checks that what it got is all of it.
                match tokio::join!(shop.frontend.call(VIP, 500_000), cutting).0 {
                    Ok(_) => whole += 1,
                    Err(_) => failed += 1,
                }
            }
            assert!(failed > 0, "{whole} whole: no cut ever came in time");
            shop.frontend.call(VIP, 10).await.expect("the next call finds a new way");
            shop.mesh.quiet().await;
        });
    }
}

#[test]
fn pods_enter_and_leave_the_mesh_under_load_without_a_failed_call() {
    for seed in seeds(12) {
        simulate(async {
            let Shop { mut mesh, frontend, mut catalogs, .. } = shop(seed.number()).await;
            for node in ["node1", "node2"] {
                mesh.net.link(CONTROL, node, Duration::from_millis(1)..Duration::from_millis(300), 0.0);
            }
            let flipped = Cell::new(0);
            let flipping = async {
                while flipped.get() < 8 {
                    tokio::time::sleep(Duration::from_millis(mesh.rng.random_range(0..3_000))).await;
                    let which = mesh.rng.random_range(0..2);
                    match catalogs[which].is_meshed() {
                        true => mesh.unenrol(&mut catalogs[which]),
                        false => mesh.enrol(&mut catalogs[which]).await,
                    }
                    flipped.set(flipped.get() + 1);
                }
                mesh.settled().await;
            };
            let calling = |to: &'static str, pause: u64| {
                let (frontend, flipped) = (&frontend, &flipped);
                async move {
                    while flipped.get() < 8 {
                        frontend.call(to, 50_000).await.unwrap_or_else(|e| panic!("a call to {to}: {e}"));
                        tokio::time::sleep(Duration::from_millis(pause)).await;
                    }
                }
            };
            tokio::join!(flipping, calling(VIP, 7), calling(VIP, 90), calling("10.0.2.1:8080", 11));
            frontend.call(VIP, 10).await.unwrap();
            mesh.quiet().await;
        });
    }
}

#[test]
fn who_is_denied_stays_denied_through_every_fault() {
    for seed in seeds(300) {
        simulate(async {
            let mut shop = shop(seed.number()).await;
            shop.mesh.set(policy(allow("shop", "callers").from("shop", "frontend").build()));
            shop.mesh.set(policy(strict("shop")));
            let mut other = shop.mesh.meshed(pod("shop", "other-0").ip("10.0.1.2").build(), PORT).await;
            let legacy = shop.mesh.start(pod("old", "legacy-0").ip("10.0.1.9").build(), PORT).await;
            shop.mesh.settled().await;
            for _ in 0..25 {
                fault(&mut shop.mesh, &mut other).await;
                let to = if shop.mesh.rng.random_bool(0.5) { VIP } else { "10.0.2.1:8080" };
                let (denied, plain, allowed) = tokio::join!(
                    other.call(to, 100),
                    legacy.call("10.0.2.2:8080", 100),
                    shop.frontend.call(to, 20_000)
                );
                assert!(denied.is_err(), "{denied:?}");
                assert!(plain.is_err(), "{plain:?}");
                // It may fail meanwhile, but what it gets is whole, which the call itself checks.
                drop(allowed);
            }
            for node in ["node1", "node2"] {
                shop.mesh.net.open(CONTROL, node);
            }
            shop.mesh.net.open("node1", "node2");
            shop.mesh.ca.set_reachable(true);
            shop.mesh.start_control();
            shop.mesh.settled().await;
            tokio::time::sleep(Duration::from_secs(300)).await;
            shop.frontend.call(VIP, 20_000).await.expect("the faults are over");
            shop.mesh.quiet().await;
        });
    }
}

/// Breaks something, or mends it.
async fn fault(mesh: &mut SimMesh, other: &mut SimPod) {
    let node = if mesh.rng.random_bool(0.5) { "node1" } else { "node2" };
    match mesh.rng.random_range(0..10) {
        0 => mesh.net.close(CONTROL, node),
        1 => mesh.net.open(CONTROL, node),
        2 => mesh.net.cut(CONTROL, node),
        3 => mesh.net.close("node1", "node2"),
        4 | 5 => mesh.net.open("node1", "node2"),
        6 => mesh.net.cut("node1", "node2"),
        7 => mesh.stop_control(),
        8 => mesh.start_control(),
        _ if other.is_meshed() => mesh.unenrol(other),
        _ => mesh.enrol(other).await,
    }
    let reachable = mesh.rng.random_bool(0.7);
    mesh.ca.set_reachable(reachable);
    let pause = mesh.rng.random_range(0..20_000);
    tokio::time::sleep(Duration::from_millis(pause)).await;
}
