//! Nodes that ask for single addresses, and not for all.

use std::sync::Arc;
use std::time::Duration;

use model::PolicyKey;
use testkit::fixtures::{deny, pod, service, waypoint_named};
use tokio::time::{Instant, sleep};
use xds::{Resource, ResourceKey};

use crate::mesh::{SimMesh, SimPod, simulate};

const PORT: u16 = 8080;
const VIP: &str = "10.96.0.1:80";
/// Longer than an address is kept that nobody uses, and what it stood for.
const LONG: Duration = Duration::from_secs(800);

/// A caller, a service on two other nodes, and a crowd that nobody calls.
struct City {
    mesh: SimMesh,
    caller: SimPod,
    endpoints: Vec<SimPod>,
}

impl City {
    async fn new(seed: u64) -> Self {
        let mut mesh = SimMesh::new(seed).on_demand();
        ["node1", "node2", "node3"].into_iter().for_each(|node| mesh.node(node));
        let catalog = service("shop", "catalog").vip("10.96.0.1").port(80, PORT).build();
        mesh.set([Resource::Service(Arc::new(catalog.clone()))]);
        mesh.set((0..200).map(|n| {
            let other = pod("crowd", &format!("pod-{n}")).ip(&format!("10.9.{}.{}", n / 100, n % 100));
            Resource::Workload(Arc::new(other.node("node9").build()))
        }));
        let caller = mesh.meshed(pod("shop", "caller").ip("10.0.1.1").build(), PORT).await;
        let mut endpoints = vec![];
        for n in 2..=3 {
            let endpoint = pod("shop", &format!("catalog-{n}")).ip(&format!("10.0.{n}.1"));
            let endpoint = endpoint.node(&format!("node{n}")).backs(&catalog).build();
            endpoints.push(mesh.meshed(endpoint, PORT).await);
        }
        Self { mesh, caller, endpoints }
    }

    async fn callees(&self) -> Vec<String> {
        let mut from = vec![];
        for _ in 0..20 {
            from.push(self.caller.call(VIP, 10).await.unwrap().from);
        }
        from.sort();
        from.dedup();
        from
    }
}

#[test]
fn what_is_called_is_known_and_nothing_else() {
    simulate(async {
        let city = City::new(1).await;
        let reply = city.caller.call("10.0.2.1:8080", 10).await.unwrap();
        assert_eq!((reply.from.as_str(), reply.seen.to_string().as_str()), ("catalog-2", "10.0.1.1"));
        assert_eq!(city.callees().await, ["catalog-2", "catalog-3"]);
        // The caller, two endpoints, their service.
        assert_eq!(city.mesh.known("node1"), 4);
        assert!(city.mesh.known("node2") < 10, "{}", city.mesh.known("node2"));
    });
}

#[test]
fn what_the_mesh_does_not_know_passes() {
    simulate(async {
        let City { mut mesh, caller, .. } = City::new(2).await;
        let stranger = mesh.start(pod("elsewhere", "stranger").ip("10.7.0.1").build(), PORT).await;
        mesh.change([], [ResourceKey::Workload(stranger.workload.uid.clone())]);
        assert_eq!(caller.call("10.7.0.1:8080", 10).await.unwrap().from, "stranger");
    });
}

#[test]
fn endpoints_that_come_and_go_are_told_of() {
    simulate(async {
        let mut city = City::new(3).await;
        assert_eq!(city.callees().await, ["catalog-2", "catalog-3"]);
        let catalog = service("shop", "catalog").vip("10.96.0.1").port(80, PORT).build();
        let fourth = pod("shop", "catalog-4").ip("10.0.3.4").node("node3").backs(&catalog).build();
        city.mesh.meshed(fourth, PORT).await;
        let gone = city.endpoints[0].workload.uid.clone();
        city.mesh.change([], [ResourceKey::Workload(gone)]);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(city.callees().await, ["catalog-3", "catalog-4"]);
    });
}

#[test]
fn while_the_control_plane_is_away_what_is_known_counts_and_nothing_passes_by_guess() {
    simulate(async {
        let mut city = City::new(4).await;
        let never = pod("shop", "never-called").ip("10.0.3.9").node("node3").build();
        city.mesh.meshed(never, PORT).await;
        city.caller.call(VIP, 10).await.unwrap();
        city.mesh.stop_control();
        assert_eq!(city.callees().await, ["catalog-2", "catalog-3"]);
        assert_eq!(
            city.caller.call("10.0.3.1:8080", 10).await.unwrap().from,
            "catalog-3",
            "an endpoint is known"
        );
        let began = Instant::now();
        city.caller.call("10.0.3.9:8080", 10).await.unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        city.mesh.start_control();
        sleep(Duration::from_secs(30)).await;
        assert_eq!(city.caller.call("10.0.3.9:8080", 10).await.unwrap().from, "never-called");
    });
}

#[test]
fn what_nobody_uses_is_forgotten_and_asked_for_again() {
    simulate(async {
        let city = City::new(5).await;
        city.caller.call(VIP, 10).await.unwrap();
        sleep(LONG).await;
        assert_eq!(city.mesh.known("node1"), 1, "the pod of the node itself");
        assert_eq!(city.callees().await, ["catalog-2", "catalog-3"]);
        assert_eq!(city.mesh.known("node1"), 4);
    });
}

#[test]
fn a_pods_policies_hold_though_nobody_has_called_it() {
    simulate(async {
        let mut city = City::new(6).await;
        let policy = deny("shop", "closed").for_selected().from_everyone().build();
        city.mesh.set([Resource::Policy(Arc::new(policy))]);
        let mut closed = city.endpoints.pop().unwrap();
        closed.change(&mut city.mesh, |w| w.authorization_policies.push(PolicyKey::new("shop", "closed")));
        sleep(LONG).await;
        city.caller.call("10.0.3.1:8080", 10).await.unwrap_err();
        assert_eq!(city.caller.call("10.0.2.1:8080", 10).await.unwrap().from, "catalog-2");
    });
}

#[test]
fn a_service_is_not_reached_past_its_waypoint() {
    simulate(async {
        let City { mut mesh, caller, .. } = City::new(7).await;
        let gateway = service("infra", "waypoint").vip("10.96.0.9").port(15008, 15008).build();
        let guarded = service("shop", "guarded")
            .vip("10.96.0.2")
            .port(80, PORT)
            .waypoint(waypoint_named("infra", &gateway.hostname))
            .build();
        mesh.set([Resource::Service(Arc::new(gateway)), Resource::Service(Arc::new(guarded.clone()))]);
        let behind = pod("shop", "behind").ip("10.0.2.9").node("node2").backs(&guarded).build();
        mesh.meshed(behind, PORT).await;
        // The waypoint has no endpoint, which is known, so nothing is waited for.
        let began = Instant::now();
        caller.call("10.96.0.2:80", 10).await.unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        assert_eq!(mesh.known("node1"), 1 + 2 + 1, "the pod, both services, the endpoint");
    });
}
