use index::Update;
use model::{GatewayDestination, NamespacedName, NetworkBlock, NetworkId, ServiceKey};
use rand::SeedableRng;
use rand::rngs::StdRng;
use testkit::fixtures::{CLUSTER, WorkloadBuilder, identity, pod, service, waypoint_at, waypoint_named};

use super::*;

mod networks;

fn world(updates: impl IntoIterator<Item = Update>) -> World {
    World::default().apply(updates).0
}

fn local(namespace: &str, account: &str) -> LocalPod {
    LocalPod {
        name: NamespacedName::new(namespace, format!("{account}-0")),
        identity: identity(namespace, account),
        node: "node1".into(),
        cluster_id: CLUSTER.into(),
        network: NetworkId::default(),
    }
}

/// What shop/frontend at 10.0.0.1 does with a connection.
fn planned(world: &World, destination: &str) -> Plan {
    planned_by(world, &local("shop", "frontend"), destination, 0)
}

fn planned_by(world: &World, pod: &LocalPod, destination: &str, seed: u64) -> Plan {
    planned_with(world, pod, destination, seed, &Resolved::default())
}

fn planned_with(world: &World, pod: &LocalPod, destination: &str, seed: u64, names: &Resolved) -> Plan {
    let source = "10.0.0.1:40000".parse().unwrap();
    let destination = destination.parse().unwrap();
    let facts = Facts { pod, source, destination, departures: &Departures::default(), names };
    plan(world, &facts, &mut StdRng::seed_from_u64(seed))
}

fn names(ids: &IdentitySet) -> String {
    let ids: Vec<_> = ids.iter().map(|id| format!("{}/{}", id.namespace(), id.service_account())).collect();
    ids.join("|")
}

/// A plan in one line: where to connect, as what, for what.
fn line(plan: &Plan) -> String {
    let hop = |hop: &Hop| match hop {
        Hop::Direct { addr, .. } => format!("direct {addr}"),
        Hop::Hbone(h) => {
            let kind = if h.waypoint { "waypoint" } else { "hbone" };
            format!("{kind} {} for {} as {}", h.next_hop, h.authority, names(&h.expect_ids))
        }
        Hop::Beyond(b) => {
            let Hbone { next_hop, authority, .. } = &b.gateway;
            let (gateway, ids) = (names(&b.gateway.expect_ids), names(&b.expect_ids));
            format!("beyond {next_hop} as {gateway} for {authority} as {ids}")
        }
    };
    match plan {
        Plan::Passthrough { service: None } => "passthrough".into(),
        Plan::Passthrough { service: Some(s) } => format!("passthrough of {}", s.name),
        Plan::Forward(route) => {
            let via = route.service.as_ref().map(|s| format!("{}: ", s.name)).unwrap_or_default();
            via + &route.hops.iter().map(hop).collect::<Vec<_>>().join(", ")
        }
        Plan::Need(names) => format!("needs {}", names.iter().map(|n| &**n).collect::<Vec<_>>().join(", ")),
        Plan::Refuse(reason) => format!("refused: {reason}"),
    }
}

fn catalog() -> testkit::fixtures::ServiceBuilder {
    service("shop", "catalog").vip("10.96.0.1").vip("fd96::1").port(80, 8080)
}

#[test]
fn what_the_mesh_does_not_know_passes() {
    let world = world([pod("shop", "catalog-0").ip("10.0.0.2").build().into()]);
    assert_eq!(line(&planned(&world, "203.0.113.5:443")), "passthrough");
    assert_eq!(line(&planned(&World::default(), "[2001:db8::1]:443")), "passthrough");
}

#[test]
fn a_meshed_pod_is_reached_by_hbone() {
    for node in ["node1", "node2"] {
        let world = world([pod("shop", "catalog-0").ip("10.0.0.2").ip("fd00::2").node(node).build().into()]);
        assert_eq!(
            line(&planned(&world, "10.0.0.2:8080")),
            "hbone 10.0.0.2:15008 for 10.0.0.2:8080 as shop/catalog"
        );
        assert_eq!(line(&planned(&world, "[::ffff:10.0.0.2]:8080")), line(&planned(&world, "10.0.0.2:8080")));
        assert_eq!(
            line(&planned(&world, "[fd00::2]:80")),
            "hbone [fd00::2]:15008 for [fd00::2]:80 as shop/catalog"
        );
    }
}

#[test]
fn a_pod_is_reached_at_the_address_that_was_dialled_ready_or_not() {
    let world = world([pod("shop", "catalog-0").ip("10.0.0.2").unhealthy().capacity(0).build().into()]);
    assert_eq!(
        line(&planned(&world, "10.0.0.2:8080")),
        "hbone 10.0.0.2:15008 for 10.0.0.2:8080 as shop/catalog"
    );
}

#[test]
fn a_pod_outside_of_the_mesh_is_reached_directly() {
    let world = world([pod("old", "legacy-0").ip("10.0.0.3").unmeshed().build().into()]);
    assert_eq!(line(&planned(&world, "10.0.0.3:8080")), "direct 10.0.0.3:8080");
}

#[test]
fn a_pod_on_the_nodes_network_is_reached_directly_unless_it_ends_tunnels_itself() {
    let host = || pod("kube", "agent-0").ip("192.168.0.1").on_host_network();
    let captured = world([host().build().into()]);
    assert_eq!(line(&planned(&captured, "192.168.0.1:80")), "direct 192.168.0.1:80");
    let native = world([host().with(|w| w.native_tunnel = true).build().into()]);
    let expected = "hbone 192.168.0.1:15008 for 192.168.0.1:80 as kube/agent";
    assert_eq!(line(&planned(&native, "192.168.0.1:80")), expected);
}

#[test]
fn a_service_is_reached_at_an_endpoint_and_its_target_port() {
    let catalog = catalog().build();
    let world =
        world([pod("shop", "catalog-0").ip("10.0.0.2").backs(&catalog).build().into(), catalog.into()]);
    let expected = "catalog: hbone 10.0.0.2:15008 for 10.0.0.2:8080 as shop/catalog";
    assert_eq!(line(&planned(&world, "10.96.0.1:80")), expected);
    assert_eq!(line(&planned(&world, "[fd96::1]:80")), expected, "over the family that the endpoint has");
}

#[test]
fn what_is_written_onto_a_pods_address_does_not_take_the_pod_over() {
    let thief = service("aaa", "thief").vip("10.0.0.2").port(8080, 8080).build();
    let by_thief = pod("aaa", "thief-0").ip("10.0.9.9").backs(&thief).build();
    let pod = |on_host: bool| {
        let pod = pod("shop", "catalog-0").ip("10.0.0.2");
        if on_host { pod.on_host_network() } else { pod }.build()
    };
    let dialled = |pod: Workload| {
        line(&planned(&world([thief.clone().into(), by_thief.clone().into(), pod.into()]), "10.0.0.2:8080"))
    };
    assert_eq!(dialled(pod(false)), "hbone 10.0.0.2:15008 for 10.0.0.2:8080 as shop/catalog");
    assert!(dialled(pod(true)).starts_with("thief: "), "a node's address may be a service's");
    let by_hand = Workload { uid: model::Uid::new("Kubernetes/WorkloadEntry/shop/vm"), ..pod(false) };
    assert!(dialled(by_hand).starts_with("thief: "));
}

#[test]
fn a_service_may_have_endpoints_of_both_kinds() {
    let catalog = catalog().build();
    let world = world([
        pod("shop", "catalog-0").ip("10.0.0.2").backs(&catalog).build().into(),
        pod("shop", "catalog-1").ip("10.0.0.3").backs(&catalog).unmeshed().build().into(),
        catalog.into(),
    ]);
    let Plan::Forward(route) = planned(&world, "10.96.0.1:80") else { panic!("no route") };
    let direct = |h: &Hop| matches!(h, Hop::Direct { .. });
    assert_eq!((route.hops.len(), route.hops.iter().filter(|h| direct(h)).count()), (2, 1));
}

#[test]
fn a_services_further_names_are_expected_beside_the_endpoints_own() {
    let catalog = catalog().with(|s| {
        s.subject_alt_names =
            vec!["spiffe://cluster.local/ns/vm/sa/catalog".into(), "catalog.example".into()];
    });
    let catalog = catalog.build();
    let world =
        world([pod("shop", "catalog-0").ip("10.0.0.2").backs(&catalog).build().into(), catalog.into()]);
    let expected = "catalog: hbone 10.0.0.2:15008 for 10.0.0.2:8080 as shop/catalog|vm/catalog";
    assert_eq!(line(&planned(&world, "10.96.0.1:80")), expected);
    let to_pod = "hbone 10.0.0.2:15008 for 10.0.0.2:8080 as shop/catalog";
    assert_eq!(line(&planned(&world, "10.0.0.2:8080")), to_pod, "but not by a client that names the pod");
}

#[test]
fn a_port_that_the_service_does_not_have_is_refused() {
    let catalog = catalog().build();
    let world =
        world([pod("shop", "catalog-0").ip("10.0.0.2").backs(&catalog).build().into(), catalog.into()]);
    assert_eq!(
        line(&planned(&world, "10.96.0.1:81")),
        "refused: service shop/catalog.shop.svc.cluster.local has no port 81: connect to one of its ports, or add this one to it"
    );
}

#[test]
fn a_service_without_a_usable_endpoint_is_refused() {
    let catalog = catalog().build();
    let unready = pod("shop", "catalog-0").ip("10.0.0.2").backs(&catalog).unhealthy().build();
    let world = world([unready.into(), catalog.into()]);
    assert_eq!(
        line(&planned(&world, "10.96.0.1:80")),
        "refused: service shop/catalog.shop.svc.cluster.local port 80 has no usable endpoint: no endpoint is ready"
    );
}

#[test]
fn a_pod_without_valid_identity_is_never_trusted_blindly() {
    let catalog = catalog().build();
    let nobody = pod("shop", "catalog-0").ip("10.0.0.2").account("not an account").backs(&catalog).build();
    let world = world([nobody.into(), catalog.into()]);
    for destination in ["10.0.0.2:80", "10.96.0.1:80"] {
        let Plan::Refuse(reason) = planned(&world, destination) else { panic!("not refused") };
        assert_eq!(reason.response_flags(), telemetry::metrics::ResponseFlags::IdentityError);
    }
}

#[test]
fn the_proxys_own_ports_in_the_pod_are_refused() {
    for destination in
        ["10.0.0.1:15001", "127.0.0.1:15001", "[::1]:15006", "10.0.0.1:15008", "[::ffff:10.0.0.1]:15001"]
    {
        let plan = planned(&World::default(), destination);
        assert!(matches!(plan, Plan::Refuse(Reason::OwnPort(_))), "{destination}: {plan:?}");
    }
    assert_eq!(
        line(&planned(&World::default(), "10.0.0.9:15001")),
        "passthrough",
        "but those of others pass"
    );
}

#[test]
fn a_service_that_balances_nothing_is_only_a_name() {
    let names = service("shop", "external").vip("203.0.113.5").vip("10.0.0.2").port(443, 443);
    let names = names.prefers(LoadBalancingMode::Passthrough, []).build();
    let by_hand = pod("shop", "db-0").ip("10.0.0.2");
    let by_hand = by_hand.with(|w| w.uid = model::Uid::new("Kubernetes/WorkloadEntry/shop/db-0"));
    let world = world([by_hand.build().into(), names.into()]);
    assert_eq!(line(&planned(&world, "203.0.113.5:443")), "passthrough of external");
    assert_eq!(line(&planned(&world, "203.0.113.5:80")), "passthrough");
    assert_eq!(
        line(&planned(&world, "10.0.0.2:443")),
        "external: hbone 10.0.0.2:15008 for 10.0.0.2:443 as shop/db"
    );
}

#[test]
fn a_service_of_another_namespaces_own_is_not_seen() {
    let private = catalog().with(|s| s.visibility = model::Visibility::Namespace).build();
    let world =
        world([pod("shop", "catalog-0").ip("10.0.0.2").backs(&private).build().into(), private.into()]);
    assert!(line(&planned(&world, "10.96.0.1:80")).starts_with("catalog: hbone"));
    assert_eq!(line(&planned_by(&world, &local("other", "client"), "10.96.0.1:80", 0)), "passthrough");
}

#[test]
fn the_clients_place_is_that_of_its_workload() {
    let catalog = catalog().prefers(LoadBalancingMode::Strict, [model::Scope::Zone]).build();
    let backend =
        |name: &str, ip: &str, zone: &str| pod("shop", name).ip(ip).zone("r", zone).backs(&catalog).build();
    let near_and_far =
        [backend("catalog-0", "10.0.0.2", "z1").into(), backend("catalog-1", "10.0.0.3", "z2").into()];
    let frontend = pod("shop", "frontend-0").ip("10.0.0.1").zone("r", "z2").build();
    let (before, _) = world(near_and_far).apply([catalog.into()]);
    assert!(
        matches!(planned(&before, "10.96.0.1:80"), Plan::Refuse(_)),
        "unknown places are not assumed near"
    );
    let (after, _) = before.apply([frontend.into()]);
    assert!(line(&planned(&after, "10.96.0.1:80")).contains("10.0.0.3:8080"));
}

mod waypoints {
    use super::*;

    const HOST: &str = "gate.shop.svc.cluster.local";

    /// A service and a pod behind a waypoint, which is named in one of the ways there are.
    fn guarded(gateway: model::GatewayAddress, gate: impl Fn(WorkloadBuilder) -> WorkloadBuilder) -> World {
        let gate_service = service("shop", "gate").vip("10.96.0.9").port(15008, 15008).build();
        let catalog = catalog().waypoint(gateway.clone()).build();
        world([
            gate(pod("shop", "gate-0").ip("10.0.0.9").unmeshed().backs(&gate_service)).build().into(),
            gate_service.into(),
            pod("shop", "catalog-0").ip("10.0.0.2").backs(&catalog).waypoint(gateway).build().into(),
            catalog.into(),
        ])
    }

    #[test]
    fn the_waypoint_is_the_next_hop_however_it_is_named() {
        for gateway in [waypoint_named("shop", HOST), waypoint_at("10.96.0.9"), waypoint_at("10.0.0.9")] {
            let world = guarded(gateway, |g| g);
            assert_eq!(
                line(&planned(&world, "10.96.0.1:80")),
                "catalog: waypoint 10.0.0.9:15008 for 10.96.0.1:80 as shop/gate",
                "for a service, what was dialled is its address"
            );
            assert_eq!(
                line(&planned(&world, "10.0.0.2:8080")),
                "waypoint 10.0.0.9:15008 for 10.0.0.2:8080 as shop/gate",
                "for a pod it is the pod's"
            );
        }
    }

    #[test]
    fn the_waypoint_itself_goes_on_to_the_destination() {
        let world = guarded(waypoint_named("shop", HOST), |g| g);
        let gate = local("shop", "gate");
        let to_service = planned_by(&world, &gate, "10.96.0.1:80", 0);
        assert_eq!(line(&to_service), "catalog: hbone 10.0.0.2:15008 for 10.0.0.2:8080 as shop/catalog");
        let to_pod = planned_by(&world, &gate, "10.0.0.2:8080", 0);
        assert_eq!(line(&to_pod), "hbone 10.0.0.2:15008 for 10.0.0.2:8080 as shop/catalog");
    }

    #[test]
    fn nothing_goes_around_a_waypoint_that_is_missing() {
        let world = guarded(waypoint_named("shop", "other.shop.svc.cluster.local"), |g| g);
        for destination in ["10.96.0.1:80", "10.0.0.2:8080"] {
            let plan = planned(&world, destination);
            assert!(matches!(plan, Plan::Refuse(Reason::UnknownWaypoint { .. })), "{plan:?}");
        }
        assert!(line(&planned(&world, "10.96.0.1:80")).starts_with(
            "refused: waypoint shop/other.shop.svc.cluster.local of service shop/catalog.shop.svc.cluster.local is not known"
        ));
    }

    #[test]
    fn nothing_goes_around_a_waypoint_that_is_not_ready() {
        let world = guarded(waypoint_named("shop", HOST), |g| g.unhealthy());
        let Plan::Refuse(reason) = planned(&world, "10.0.0.2:8080") else { panic!("not refused") };
        let expected = Reason::UnusableWaypoint {
            waypoint: GatewayDestination::Hostname(ServiceKey::new("shop", HOST)),
            guarded: "workload shop/catalog-0".into(),
            why: NoEndpoint::Unhealthy,
        };
        assert_eq!(reason, expected);
    }

    #[test]
    fn a_waypoint_that_is_not_ready_is_still_not_its_own_client() {
        let world = guarded(waypoint_named("shop", HOST), |g| g.unhealthy());
        let plan = planned_by(&world, &local("shop", "gate"), "10.0.0.2:8080", 0);
        assert!(line(&plan).starts_with("hbone"), "{plan:?}");
    }

    #[test]
    fn a_port_that_a_guarded_service_does_not_have_is_refused() {
        let world = guarded(waypoint_named("shop", HOST), |g| g);
        assert!(matches!(planned(&world, "10.96.0.1:81"), Plan::Refuse(Reason::NoSuchPort { .. })));
    }

    /// A catalog before which two waypoints share, and a third one has no weight. `main` and `canary` are changed.
    fn shared(
        change_main: fn(WorkloadBuilder) -> WorkloadBuilder,
        change_canary: fn(WorkloadBuilder) -> WorkloadBuilder,
    ) -> World {
        let gate = |name: &str| service("shop", name).port(15008, 15008).build();
        let (main, canary, off) = (gate("main"), gate("canary"), gate("off"));
        let named = |s: &Service| waypoint_named("shop", &s.hostname);
        let catalog = catalog()
            .weighted_waypoint(named(&main), 90)
            .weighted_waypoint(named(&off), 0)
            .weighted_waypoint(named(&canary), 10)
            .build();
        world([
            change_main(pod("shop", "main-0").ip("10.0.0.7").backs(&main)).build().into(),
            change_canary(pod("shop", "canary-0").ip("10.0.0.8").backs(&canary)).build().into(),
            pod("shop", "off-0").ip("10.0.0.9").backs(&off).build().into(),
            pod("shop", "catalog-0").ip("10.0.0.2").backs(&catalog).build().into(),
            main.into(),
            canary.into(),
            off.into(),
            catalog.into(),
        ])
    }

    /// How many of 2000 connections go to each of the three.
    fn shares(world: &World) -> [usize; 3] {
        let frontend = local("shop", "frontend");
        let lines: Vec<_> =
            (0..2_000).map(|seed| line(&planned_by(world, &frontend, "10.96.0.1:80", seed))).collect();
        ["10.0.0.7", "10.0.0.8", "10.0.0.9"].map(|ip| {
            let first = format!("catalog: waypoint {ip}:");
            lines.iter().filter(|line| line.starts_with(&first)).count()
        })
    }

    #[test]
    fn several_waypoints_share_by_weight() {
        let world = shared(|main| main, |canary| canary);
        let [main, canary, off] = shares(&world);
        assert!((140..260).contains(&canary), "{canary} of 2000 instead of 200");
        assert_eq!((main + canary, off), (2_000, 0));
        let planned = line(&planned(&world, "10.96.0.1:80"));
        assert!(
            planned.contains("10.0.0.7") && planned.contains("10.0.0.8"),
            "should one not answer: {planned}"
        );
        for seed in 0..20 {
            let plan = planned_by(&world, &local("shop", "canary"), "10.96.0.1:80", seed);
            assert!(
                line(&plan).contains("hbone 10.0.0.2:15008"),
                "none of them goes through another: {plan:?}"
            );
        }
    }

    #[test]
    fn the_share_of_a_waypoint_that_is_not_ready_goes_to_the_others() {
        assert_eq!(shares(&shared(|main| main, |canary| canary.unhealthy())), [2_000, 0, 0]);
        assert_eq!(shares(&shared(|main| main.unhealthy(), |canary| canary)), [0, 2_000, 0]);
    }

    #[test]
    fn nothing_goes_around_waypoints_of_which_none_is_ready() {
        let world = shared(|main| main.unhealthy(), |canary| canary.unhealthy());
        for seed in 0..20 {
            let plan = planned_by(&world, &local("shop", "frontend"), "10.96.0.1:80", seed);
            assert!(matches!(plan, Plan::Refuse(Reason::UnusableWaypoint { .. })), "{plan:?}");
        }
    }
}

#[test]
fn a_host_that_is_looked_up_is_reached_where_it_leads() {
    let api = service("shop", "api").vip("240.240.0.1").port(443, 8443).build();
    let endpoint = pod("shop", "api").unmeshed().with(|w| w.hostname = Some("api.example.com".into()));
    let world = world([api.clone().into(), endpoint.backs(&api).build().into()]);
    assert_eq!(line(&planned(&world, "240.240.0.1:443")), "needs api.example.com");
    let with = |result| {
        let names: Resolved = [(Arc::from("api.example.com"), result)].into_iter().collect();
        line(&planned_with(&world, &local("shop", "frontend"), "240.240.0.1:443", 0, &names))
    };
    assert_eq!(with(Ok(vec!["192.0.2.9".parse().unwrap()])), "api: direct 192.0.2.9:8443");
    let refused = with(Err(crate::names::LookupError::NoSuchName));
    assert!(refused.contains("the host names of its endpoints cannot be looked up"), "{refused}");
}

#[test]
fn what_is_in_a_block_without_endpoints_passes_and_to_one_with_endpoints_is_balanced() {
    let block = |text: &str| NetworkBlock::new(NetworkId::default(), text.parse().unwrap());
    let vpc = service("shop", "vpc").port(443, 443).with(|s| {
        s.blocks = vec![block("192.0.2.0/24")];
        s.load_balancing.mode = LoadBalancingMode::Passthrough;
    });
    let pool =
        service("shop", "pool").port(443, 8443).with(|s| s.blocks = vec![block("192.0.2.128/25")]).build();
    let endpoint = pod("shop", "e-0").ip("10.0.0.9").unmeshed().backs(&pool);
    let world = world([vpc.build().into(), pool.into(), endpoint.build().into()]);
    assert_eq!(line(&planned(&world, "192.0.2.1:443")), "passthrough of vpc");
    assert_eq!(line(&planned(&world, "192.0.2.200:443")), "pool: direct 10.0.0.9:8443");
    assert_eq!(line(&planned(&world, "198.51.100.1:443")), "passthrough");
}
