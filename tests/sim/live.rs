//! Connections that stand when something changes: those now denied end within a second, all others go on.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use model::Policy;
use rand::Rng;
use testkit::fixtures::{allow, deny, pod, strict};
use testkit::sim::seeds;
use tokio::time::{Instant, sleep};
use xds::{Resource, ResourceKey};

use crate::mesh::{Held, SimMesh, SimPod, simulate};

const PORT: u16 = 8080;
const SERVER: &str = "10.0.2.1:8080";
/// What a change may take to end a connection, once the node has heard of it.
const PROMPTLY: Duration = Duration::from_secs(1);
/// How long a policy that is named is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Two callers on node1 and one outside of the mesh, and a server on node2.
struct Town {
    mesh: SimMesh,
    client: SimPod,
    other: SimPod,
    legacy: SimPod,
    server: SimPod,
}

async fn town(seed: u64) -> Town {
    let mut mesh = SimMesh::new(seed);
    mesh.node("node1");
    mesh.node("node2");
    let client = mesh.meshed(pod("shop", "client").ip("10.0.1.1").build(), PORT).await;
    let other = mesh.meshed(pod("shop", "other").ip("10.0.1.2").build(), PORT).await;
    let legacy = mesh.start(pod("old", "legacy").ip("10.0.1.9").build(), PORT).await;
    let server = mesh.meshed(pod("shop", "server").ip("10.0.2.1").node("node2").build(), PORT).await;
    mesh.settled().await;
    Town { mesh, client, other, legacy, server }
}

impl Town {
    async fn apply(&mut self, policy: Policy) {
        self.mesh.set([Resource::Policy(Arc::new(policy))]);
        self.mesh.settled().await;
    }

    /// Has the server name a policy, or none.
    fn named(&mut self, policy: Option<&Policy>) -> Resource {
        self.server.workload.authorization_policies = policy.map(|p| p.key.clone()).into_iter().collect();
        Resource::Workload(Arc::new(self.server.workload.clone()))
    }
}

#[test]
fn a_new_policy_ends_what_it_denies_and_nothing_else() {
    simulate(async {
        let mut town = town(1).await;
        let mut client = town.client.hold(SERVER).await.unwrap();
        let mut other = town.other.hold(SERVER).await.unwrap();
        let mut elsewhere = town.other.hold("10.0.1.1:8080").await.unwrap();
        town.apply(allow("shop", "unrelated").for_selected().from("shop", "nobody").build()).await;
        assert!(!other.is_reset_within(PROMPTLY).await, "a policy that nobody names is about nobody");
        town.apply(
            deny("shop", "not-other")
                .rule(|m| {
                    m.destination_ports = vec![PORT];
                    m.destination_ips = vec!["10.0.2.1/32".parse().unwrap()];
                    m.service_accounts = vec![model::policy::ServiceAccountMatch {
                        namespace: "shop".into(),
                        service_account: "other".into(),
                    }];
                })
                .build(),
        )
        .await;
        assert!(other.is_reset_within(PROMPTLY).await);
        client.echo().await.unwrap();
        elsewhere.echo().await.unwrap();
        assert_eq!(town.mesh.ended("policy"), 1);
        drop((client, elsewhere));
        town.mesh.quiet().await;
    });
}

#[test]
fn plaintext_ends_when_strict_comes() {
    simulate(async {
        let mut town = town(2).await;
        let mut plain = town.legacy.hold(SERVER).await.unwrap();
        let mut meshed = town.client.hold(SERVER).await.unwrap();
        let mut outward = town.client.hold("10.0.1.9:8080").await.unwrap();
        town.apply(strict("shop")).await;
        assert!(plain.is_reset_within(PROMPTLY).await);
        meshed.echo().await.unwrap();
        outward.echo().await.unwrap();
    });
}

/// In which order the two resources of a selector policy come.
#[derive(Clone, Copy, Debug)]
enum Order {
    PolicyFirst,
    WorkloadFirst,
    Together,
}

#[test]
fn a_selector_policy_ends_connections_whichever_of_its_parts_comes_first() {
    for order in [Order::PolicyFirst, Order::WorkloadFirst, Order::Together] {
        simulate(async {
            let mut town = town(3).await;
            let mut client = town.client.hold(SERVER).await.unwrap();
            let mut other = town.other.hold(SERVER).await.unwrap();
            let only = allow("shop", "only-client").for_selected().from("shop", "client").build();
            let names = town.named(Some(&only));
            let policy = Resource::Policy(Arc::new(only));
            let parts = match order {
                Order::PolicyFirst => vec![vec![policy], vec![names]],
                Order::WorkloadFirst => vec![vec![names], vec![policy]],
                Order::Together => vec![vec![names, policy]],
            };
            let last = parts.len() - 1;
            for (n, part) in parts.into_iter().enumerate() {
                town.mesh.set(part);
                town.mesh.settled().await;
                if n < last {
                    assert!(!other.is_reset_within(PROMPTLY).await, "{order:?}: half of it decides nothing");
                    client.echo().await.unwrap();
                }
            }
            assert!(other.is_reset_within(PROMPTLY).await, "{order:?}");
            client.echo().await.unwrap();
        });
    }
}

#[test]
fn a_policy_that_is_named_and_never_comes_ends_connections_after_its_patience_and_not_before() {
    simulate(async {
        let mut town = town(4).await;
        let mut client = town.client.hold(SERVER).await.unwrap();
        let missing = allow("shop", "missing").for_selected().from("shop", "client").build();
        let names = town.named(Some(&missing));
        town.mesh.set([names]);
        town.mesh.settled().await;
        let began = Instant::now();
        // News meanwhile gives no new patience.
        sleep(PATIENCE / 2).await;
        town.server.workload.capacity = 7;
        let again = town.named(Some(&missing));
        town.mesh.set([again]);
        assert!(client.is_reset_within(PATIENCE).await);
        let after = began.elapsed();
        assert!(after > PATIENCE - PROMPTLY && after < PATIENCE + PROMPTLY, "after {after:?}");
    });
}

#[test]
fn a_doubt_that_is_lifted_leaves_the_connection_alone() {
    simulate(async {
        let mut town = town(5).await;
        let mut client = town.client.hold(SERVER).await.unwrap();
        let late = allow("shop", "late").for_selected().from("shop", "client").build();
        let names = town.named(Some(&late));
        town.mesh.set([names]);
        town.mesh.settled().await;
        sleep(PATIENCE / 2).await;
        town.apply(late.clone()).await;
        assert!(!client.is_reset_within(PATIENCE * 2).await);
        // Later doubts have their own patience.
        town.mesh.change([], [ResourceKey::Policy(late.key.clone())]);
        town.mesh.settled().await;
        assert!(!client.is_reset_within(PATIENCE / 2).await);
        assert!(client.is_reset_within(PATIENCE).await);
    });
}

#[test]
fn no_connection_slips_through_between_its_admission_and_a_change() {
    for seed in seeds(40) {
        simulate(async {
            let mut town = town(seed.number()).await;
            // The application is slow to take connections, so that what is admitted does not stand at once.
            town.mesh.net.link("node2", "node2", Duration::from_millis(1)..Duration::from_millis(60), 0.0);
            let held = std::cell::RefCell::new(Vec::<Held>::new());
            let over = Cell::new(false);
            let opening = async {
                while !over.get() {
                    // Those that are refused are as they should be.
                    let opened = [town.other.hold(SERVER).await, town.legacy.hold(SERVER).await];
                    held.borrow_mut().extend(opened.into_iter().flatten());
                }
            };
            let wait = town.mesh.rng.random_range(0..200);
            let changing = async {
                sleep(Duration::from_millis(wait)).await;
                let only = allow("shop", "only-client").from("shop", "client").build();
                town.mesh.set([Resource::Policy(Arc::new(only))]);
                town.mesh.settled().await;
                sleep(Duration::from_millis(200)).await;
                over.set(true);
            };
            tokio::join!(opening, changing);
            sleep(PROMPTLY).await;
            for mut stands in held.into_inner() {
                assert!(stands.echo().await.is_err(), "a connection to {} slipped through", stands.from);
            }
            assert!(town.client.hold(SERVER).await.is_ok());
        });
    }
}

#[test]
fn what_a_revoked_certificate_has_opened_ends_and_nothing_else() {
    simulate(async {
        let town = town(10).await;
        let mut client = town.client.hold(SERVER).await.unwrap();
        let mut other = town.other.hold(SERVER).await.unwrap();
        let serial = town.mesh.serial(&town.client);
        town.mesh.revoke(&[serial]);
        assert!(client.is_reset_within(PROMPTLY).await);
        other.echo().await.unwrap();
        assert!(town.client.call(SERVER, 10).await.is_err(), "it opens nothing more");
        assert!(town.other.call(SERVER, 10).await.is_ok());
        assert_eq!(town.mesh.ended("revoked"), 1);
        let flagged = town.mesh.tcp_failures("destination", "CERT_REVOKED");
        assert!(flagged >= 1, "the record's flag says so");
        town.mesh.revoke(&[]);
        assert!(town.client.call(SERVER, 10).await.is_ok());
    });
}

#[test]
fn what_was_opened_to_a_revoked_certificate_ends_at_its_client() {
    simulate(async {
        let town = town(11).await;
        let mut held = town.client.hold(SERVER).await.unwrap();
        let mut elsewhere = town.client.hold("10.0.1.2:8080").await.unwrap();
        let serial = town.mesh.serial(&town.server);
        town.mesh.revoke(&[serial]);
        assert!(held.is_reset_within(PROMPTLY).await);
        elsewhere.echo().await.unwrap();
        assert!(town.client.call(SERVER, 10).await.is_err());
        assert_eq!(town.mesh.ended("revoked"), 1);
        assert!(town.mesh.tcp_failures("source", "CERT_REVOKED") >= 2);
    });
}

#[test]
fn no_connection_slips_through_between_its_admission_and_a_revocation() {
    for seed in seeds(40) {
        // The server's, which the client's node must see; or the client's, which the server's must.
        let of_server = seed.number() % 2 == 0;
        simulate(async {
            let mut town = town(seed.number()).await;
            // What is under way when the list comes reaches the server only afterwards.
            let slow = || Duration::from_millis(1)..Duration::from_millis(60);
            town.mesh.net.link("node2", "node2", slow(), 0.0);
            town.mesh.net.link("node1", "node2", slow(), 0.0);
            let serial = town.mesh.serial(if of_server { &town.server } else { &town.other });
            let wait = town.mesh.rng.random_range(0..200);
            let held = std::cell::RefCell::new(Vec::<Held>::new());
            let over = Cell::new(false);
            let opening = async {
                while !over.get() {
                    let open = || town.other.hold(SERVER);
                    let opened = tokio::join!(open(), open(), open(), open());
                    held.borrow_mut().extend(<[_; 4]>::from(opened).into_iter().flatten());
                    // What is refused at once is not to fill this instant for ever.
                    sleep(Duration::from_millis(1)).await;
                }
            };
            let revoking = async {
                sleep(Duration::from_millis(wait)).await;
                town.mesh.revoke(&[serial]);
                sleep(Duration::from_millis(200)).await;
                over.set(true);
            };
            tokio::join!(opening, revoking);
            sleep(PROMPTLY).await;
            for mut stands in held.into_inner() {
                assert!(stands.echo().await.is_err(), "a connection to {} slipped through", stands.from);
            }
            let elsewhere = if of_server { "10.0.1.2:8080" } else { SERVER };
            assert!(town.client.hold(elsewhere).await.is_ok());
        });
    }
}

/// The same policy, about those that name it.
fn narrower(policy: &Policy) -> Policy {
    Policy { scope: model::policy::PolicyScope::WorkloadSelector, ..policy.clone() }
}

#[test]
fn a_policy_that_is_narrowed_protects_those_that_will_name_it_until_they_do() {
    simulate(async {
        let mut town = town(6).await;
        let wide = allow("shop", "callers").from("shop", "client").build();
        town.apply(wide.clone()).await;
        assert!(town.other.call(SERVER, 10).await.is_err());
        // The control plane tells of the policy first, and of who names it a while later.
        town.apply(narrower(&wide)).await;
        assert!(town.other.call(SERVER, 10).await.is_err(), "nobody names it yet, and it still applies");
        let names = town.named(Some(&wide));
        town.mesh.set([names]);
        town.mesh.settled().await;
        assert!(town.other.call(SERVER, 10).await.is_err());
        assert!(town.other.call("10.0.1.1:8080", 10).await.is_ok(), "it is about the server alone now");
    });
}

#[test]
fn a_policy_that_is_narrowed_to_nobody_is_let_go_in_the_end() {
    simulate(async {
        let mut town = town(7).await;
        let wide = allow("shop", "callers").from("shop", "client").build();
        town.apply(wide.clone()).await;
        town.apply(narrower(&wide)).await;
        assert!(town.other.call(SERVER, 10).await.is_err());
        sleep(PATIENCE + PROMPTLY).await;
        assert!(town.other.call(SERVER, 10).await.is_ok());
    });
}

#[test]
fn no_tunnel_to_a_pod_that_has_gone_reaches_the_next_at_its_address() {
    simulate(async {
        let mut town = town(8).await;
        // This one keeps a tunnel connection to the pod that is about to go.
        let before = town.client.hold(SERVER).await.unwrap();
        assert_eq!(before.from, "server");
        // Another with the same identity gets the address, while the node of the first has not noticed anything.
        town.mesh.node("node3");
        let gone = ResourceKey::Workload(town.server.workload.uid.clone());
        town.mesh.change([], [gone]);
        let next = pod("shop", "server-next").ip("10.0.2.1").node("node3").build();
        let next = town.mesh.meshed(next, PORT).await;
        assert_eq!(next.identity(), town.server.identity());
        town.mesh.settled().await;
        for _ in 0..5 {
            assert_eq!(town.client.call(SERVER, 10).await.unwrap().from, "server-next");
        }
    });
}

#[test]
fn a_pods_key_is_not_used_in_a_namespace_that_is_another_pods() {
    simulate(async {
        let mut town = town(9).await;
        assert!(town.client.call(SERVER, 10).await.is_ok());
        // The agent has served shop/server in the namespace at 10.0.2.1, which is another's: so says the control plane.
        town.server.change(&mut town.mesh, |w| w.addresses = vec!["10.0.2.8".parse().unwrap()]);
        let victim = pod("shop", "server-victim").ip("10.0.2.1").node("node2").build();
        town.mesh.set([Resource::Workload(Arc::new(victim))]);
        town.mesh.settled().await;
        assert!(town.client.call(SERVER, 10).await.is_err(), "it would have proved shop/server's identity");
        assert_eq!(town.mesh.counted("ambit_identity_binding_refusals_total{direction=\"inbound\"}"), 1);
        assert!(town.server.call("10.0.1.1:8080", 10).await.is_err(), "and have used it to get out");
        assert!(town.mesh.counted("ambit_identity_binding_refusals_total{direction=\"outbound\"}") > 0);
        // The control plane was late, and the pod is where it was said to be after all.
        town.server.change(&mut town.mesh, |w| w.addresses = vec!["10.0.2.1".parse().unwrap()]);
        town.mesh.change([], [ResourceKey::Workload(pod("shop", "server-victim").build().uid)]);
        town.mesh.settled().await;
        assert!(town.client.call(SERVER, 10).await.is_ok());
        assert!(town.server.call("10.0.1.1:8080", 10).await.is_ok());
    });
}
