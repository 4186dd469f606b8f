use std::collections::{BTreeMap, BTreeSet};

use index::{Update, target_port};
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use testkit::fixtures::{CLUSTER, ServiceBuilder, WorkloadBuilder, pod, service};

use super::*;

const PORT: u16 = 80;

fn web() -> ServiceBuilder {
    service("shop", "web").vip("10.96.0.1").port(PORT, 8080)
}

/// What a client on node1 of region r, zone z1 would try, by name.
fn chosen(service: ServiceBuilder, pods: Vec<WorkloadBuilder>, seed: u64) -> Result<Vec<String>, NoEndpoint> {
    chosen_by(service, pods, seed, true)
        .map(|all| all.into_iter().map(|e| e.workload.name.to_string()).collect())
}

fn chosen_by(
    service: ServiceBuilder,
    pods: Vec<WorkloadBuilder>,
    seed: u64,
    v4: bool,
) -> Result<Vec<Endpoint>, NoEndpoint> {
    chosen_knowing(service, pods, seed, v4, &Departures::default())
}

fn chosen_knowing(
    service: ServiceBuilder,
    pods: Vec<WorkloadBuilder>,
    seed: u64,
    v4: bool,
    departures: &Departures,
) -> Result<Vec<Endpoint>, NoEndpoint> {
    match chosen_with(service, pods, seed, v4, departures, None)? {
        Choice::Endpoints(endpoints) => Ok(endpoints),
        Choice::Need(names) => panic!("needs {names:?}"),
    }
}

fn chosen_with(
    service: ServiceBuilder,
    pods: Vec<WorkloadBuilder>,
    seed: u64,
    v4: bool,
    departures: &Departures,
    names: Option<&Resolved>,
) -> Result<Choice, NoEndpoint> {
    let service = service.build();
    let updates = pods.into_iter().map(|p| Update::from(p.backs(&service).build()));
    let (world, _) = World::default().apply(updates);
    let network = NetworkId::default();
    let locality = Locality { region: "r".into(), zone: "z1".into(), subzone: "".into() };
    let client = Client {
        network: &network,
        node: "node1",
        cluster_id: CLUSTER,
        locality: Some(&locality),
        v4,
        departures,
        beyond: true,
        names,
    };
    let port = |w: &Workload| target_port(&service, w, PORT);
    choose(&world, &service, &client, port, &mut StdRng::seed_from_u64(seed))
}

fn a(name: &str) -> WorkloadBuilder {
    let last = name.bytes().last().unwrap();
    pod("shop", name).ip(&format!("10.0.0.{last}"))
}

#[test]
fn an_endpoint_is_its_address_and_the_target_port() {
    let endpoints =
        chosen_by(web(), vec![a("a").with(|w| w.addresses = vec!["10.0.0.9".parse().unwrap()])], 0, true);
    assert_eq!(endpoints.unwrap()[0].addr, Some("10.0.0.9:8080".parse().unwrap()));
}

#[test]
fn an_endpoints_own_port_stands_above_the_services() {
    let web = web().port(90, None).build();
    let own =
        a("a").backs_on(&web, [testkit::fixtures::port(90, 9090), testkit::fixtures::port(80, 8081)]).build();
    assert_eq!([80, 90, 100].map(|p| target_port(&web, &own, p)), [Some(8081), Some(9090), None]);
}

#[test]
fn only_ready_endpoints_are_tried_unless_the_service_asks_for_all() {
    let pods = || vec![a("a").unhealthy(), a("b")];
    assert_eq!(chosen(web(), pods(), 0).unwrap(), ["b"]);
    let both: BTreeSet<_> = chosen(web().ready_or_not(), pods(), 0).unwrap().into_iter().collect();
    assert_eq!(both, BTreeSet::from(["a".into(), "b".into()]));
}

#[test]
fn who_is_about_to_end_is_tried_only_where_nobody_else_can_be() {
    let ending = || vec![a("a").terminating(), a("b").terminating().zone("r", "z1")];
    let with = |other: WorkloadBuilder| ending().into_iter().chain([other]).collect::<Vec<_>>();
    assert_eq!(chosen(web(), with(a("c")), 0).unwrap(), ["c"]);
    for unusable in [a("c").unhealthy(), a("c").capacity(0)] {
        let tried: BTreeSet<_> = chosen(web(), with(unusable), 0).unwrap().into_iter().collect();
        assert_eq!(tried, BTreeSet::from(["a".into(), "b".into()]));
    }
    // Who is out of scope is no other; and who is near comes first of those that end, as of all.
    let on_node = web().prefers(LoadBalancingMode::Strict, [Scope::Node]);
    assert_eq!(chosen(on_node, with(a("c").node("node2")), 0).unwrap().len(), 2);
    let near = || web().prefers(LoadBalancingMode::Failover, [Scope::Region, Scope::Zone]);
    assert_eq!(chosen(near(), ending(), 0).unwrap(), ["b", "a"]);
    assert_eq!(chosen(near(), with(a("c").zone("q", "z9")), 0).unwrap(), ["c"]);
    let all: BTreeSet<_> = chosen(web().ready_or_not(), with(a("c")), 0).unwrap().into_iter().collect();
    assert_eq!(all.len(), 3, "a service that sends all its endpoints sends these");
}

#[test]
fn a_pod_of_the_node_that_is_about_to_end_is_not_chosen_before_the_control_plane_says_so() {
    let departures = Departures::default();
    let note = |stage| {
        let name = model::NamespacedName::new("shop", "a");
        departures.note(&zds::PodUid::new("u"), &name, stage, &["10.0.0.97".parse().unwrap()]);
    };
    let tried = |pods: Vec<WorkloadBuilder>, service: ServiceBuilder| {
        let chosen = chosen_knowing(service, pods, 0, true, &departures)?;
        Ok(chosen.into_iter().map(|e| e.workload.name.to_string()).collect::<BTreeSet<_>>())
    };
    let (one, both) = (|| vec![a("a")], || vec![a("a"), a("b")]);
    note(zds::Stage::Terminating);
    assert_eq!(tried(both(), web()), Ok(["b".to_owned()].into()));
    assert_eq!(tried(one(), web()), Ok(["a".to_owned()].into()), "there is nobody else");
    note(zds::Stage::Ended);
    assert_eq!(tried(one(), web()), Err(NoEndpoint::Unhealthy));
    assert_eq!(tried(both(), web().ready_or_not()), Ok(["b".to_owned()].into()));
}

#[test]
fn what_the_endpoints_lack_is_told_of_the_one_that_came_furthest() {
    let far = || a("far").with(|w| w.network = NetworkId::new("elsewhere"));
    let nameless = || a("nameless").with(|w| w.addresses.clear());
    let on_other_node = || a("c").node("node2");
    let node_only = || web().prefers(LoadBalancingMode::Strict, [Scope::Node]);
    for (service, pods, obstacle) in [
        (web(), vec![], NoEndpoint::None),
        (web(), vec![far()], NoEndpoint::OtherNetwork),
        (web(), vec![far(), nameless()], NoEndpoint::NameOnly),
        (web().with(|s| s.ip_families = IpFamilies::V6Only), vec![a("a"), far()], NoEndpoint::IpFamily),
        (web().with(|s| s.ports[0].target_port = None), vec![a("a").unhealthy()], NoEndpoint::TargetPort),
        (web(), vec![a("a").unhealthy(), nameless()], NoEndpoint::Unhealthy),
        (web(), vec![a("a").unhealthy(), a("b").capacity(0)], NoEndpoint::Drained),
        (node_only(), vec![a("a").unhealthy(), on_other_node()], NoEndpoint::OutOfScope),
    ] {
        assert_eq!(chosen(service, pods, 0), Err(obstacle));
    }
}

#[test]
fn strict_scopes_exclude_and_failover_puts_behind() {
    let pods = || {
        vec![
            a("here").zone("r", "z1"),
            a("zone").zone("r", "z1").node("node2"),
            a("region").zone("r", "z2").node("node3"),
            a("other").zone("q", "z1").node("node4"),
        ]
    };
    let scopes = || vec![Scope::Region, Scope::Zone, Scope::Node];
    for seed in 0..50 {
        assert_eq!(
            chosen(web().prefers(LoadBalancingMode::Strict, scopes()), pods(), seed).unwrap(),
            ["here"]
        );
        let order = chosen(web().prefers(LoadBalancingMode::Failover, scopes()), pods(), seed).unwrap();
        assert_eq!(order, ["here", "zone", "region", "other"]);
    }
}

#[test]
fn failover_counts_the_longest_prefix_only() {
    // Same node name and another region: the node does not make up for it.
    let pods = || vec![a("near").zone("r", "z2").node("node2"), a("name").zone("q", "z1").node("node1")];
    let service = || web().prefers(LoadBalancingMode::Failover, [Scope::Region, Scope::Node]);
    for seed in 0..20 {
        assert_eq!(chosen(service(), pods(), seed).unwrap(), ["near", "name"]);
    }
}

#[test]
fn failover_skips_a_nearer_endpoint_that_is_not_ready() {
    let pods = vec![a("near").zone("r", "z1").unhealthy(), a("away").zone("q", "z9")];
    assert_eq!(
        chosen(web().prefers(LoadBalancingMode::Failover, [Scope::Region]), pods, 0).unwrap(),
        ["away"]
    );
}

#[test]
fn a_node_is_one_within_its_cluster_only() {
    let namesake = a("a").with(|w| w.cluster_id = "other".into());
    let service = web().prefers(LoadBalancingMode::Strict, [Scope::Node]);
    assert_eq!(chosen(service, vec![namesake], 0), Err(NoEndpoint::OutOfScope));
}

#[test]
fn the_address_is_of_the_family_that_was_dialled_where_there_is_one() {
    let dual = || vec![pod("shop", "a").ip("10.0.0.1").ip("fd00::1")];
    let ip = |service, v4| chosen_by(service, dual(), 0, v4).unwrap()[0].addr.unwrap().ip().to_string();
    assert_eq!(ip(web(), true), "10.0.0.1");
    assert_eq!(ip(web(), false), "fd00::1");
    assert_eq!(ip(web().with(|s| s.ip_families = IpFamilies::V4Only), false), "10.0.0.1");
    assert_eq!(
        chosen_by(web(), vec![a("b")], 0, false).unwrap()[0].addr.unwrap().ip().to_string(),
        "10.0.0.98"
    );
}

/// How often each endpoint is tried first.
fn firsts(capacities: &[(&str, u32)], draws: u64) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for seed in 0..draws {
        let pods = capacities.iter().map(|(name, c)| a(name).capacity(*c)).collect();
        *counts.entry(chosen(web(), pods, seed).unwrap()[0].clone()).or_default() += 1;
    }
    counts
}

#[test]
fn traffic_is_shared_in_proportion_to_capacity() {
    let counts = firsts(&[("a", 1), ("b", 3), ("c", 0)], 4_000);
    assert_eq!(counts.get("c"), None);
    let share = counts["b"] as f64 / 4_000.0;
    assert!((share - 0.75).abs() < 0.03, "{share}");
}

#[test]
fn endpoints_of_one_capacity_share_evenly() {
    let counts = firsts(&[("a", 7), ("b", 7), ("c", 7), ("d", 7)], 4_000);
    assert!(counts.values().all(|n| (850..1150).contains(n)), "{counts:?}");
}

#[test]
fn the_same_seed_makes_the_same_choice() {
    let pods = || "abcdefgh".chars().map(|c| a(&c.to_string())).collect::<Vec<_>>();
    assert_eq!(chosen(web(), pods(), 5), chosen(web(), pods(), 5));
}

proptest! {
    #[test]
    fn only_usable_endpoints_are_tried_all_different_and_no_nearer_one_is_left_behind(
        pods in prop::collection::vec((any::<bool>(), 0u32..3, 0usize..3, any::<bool>()), 0..12),
        endings in any::<u16>(),
        seed in any::<u64>(),
        all in any::<bool>(),
    ) {
        let zones = [("r", "z1"), ("r", "z2"), ("q", "z1")];
        let ends = |n: usize| endings & (1 << n) != 0;
        let workloads: Vec<_> = pods.iter().enumerate().map(|(n, (ready, capacity, zone, v6_only))| {
            let ip = if *v6_only { format!("fd00::{n}") } else { format!("10.0.0.{n}") };
            let p = pod("shop", &format!("p{n}")).ip(&ip).capacity(*capacity).zone(zones[*zone].0, zones[*zone].1);
            match (*ready, ends(n)) {
                (true, true) => p.terminating(),
                (true, false) => p,
                (false, _) => p.unhealthy(),
            }
        }).collect();
        let service = web()
            .with(|s| s.ip_families = IpFamilies::V4Only)
            .prefers(LoadBalancingMode::Failover, [Scope::Region, Scope::Zone]);
        let service = if all { service.ready_or_not() } else { service };
        let usable: Vec<usize> = pods.iter().enumerate()
            .filter(|(_, (ready, capacity, _, v6_only))| (*ready || all) && *capacity > 0 && !v6_only)
            .map(|(n, _)| n).collect();
        let lasting: Vec<usize> = usable.iter().copied().filter(|n| all || !ends(*n)).collect();
        let usable = if lasting.is_empty() { usable } else { lasting };
        match chosen(service, workloads, seed) {
            Err(_) => prop_assert!(usable.is_empty()),
            Ok(names) => {
                let numbers: Vec<usize> = names.iter().map(|n| n[1..].parse().unwrap()).collect();
                prop_assert!(numbers.iter().all(|n| usable.contains(n)));
                prop_assert_eq!(numbers.iter().collect::<BTreeSet<_>>().len(), numbers.len());
                prop_assert_eq!(numbers.len(), usable.len().min(ALTERNATIVES));
                let mut distances: Vec<usize> = usable.iter().map(|n| pods[*n].2).collect();
                distances.sort_unstable();
                distances.truncate(ALTERNATIVES);
                prop_assert_eq!(numbers.iter().map(|n| pods[*n].2).collect::<Vec<_>>(), distances);
            }
        }
    }
}

fn named(name: &str, host: &str) -> WorkloadBuilder {
    pod("shop", name).unmeshed().with(|w| w.hostname = Some(host.into()))
}

fn resolved(all: &[(&str, &[&str])]) -> Resolved {
    let addresses = |all: &[&str]| all.iter().map(|ip| ip.parse().unwrap()).collect();
    all.iter().map(|(host, all)| (Arc::from(*host), Ok(addresses(all)))).collect()
}

fn by_name(pods: Vec<WorkloadBuilder>, v4: bool, names: &Resolved) -> Result<Choice, NoEndpoint> {
    chosen_with(web(), pods, 0, v4, &Departures::default(), Some(names))
}

#[test]
fn an_endpoint_by_name_is_where_its_name_leads_once_that_is_known() {
    let pods = || vec![named("a", "a.example"), a("b")];
    let needs = by_name(pods(), true, &Resolved::default());
    assert_eq!(needs, Ok(Choice::Need([Arc::from("a.example")].into())));

    let names = resolved(&[("a.example", &["2001:db8::1", "192.0.2.1", "192.0.2.2"])]);
    for (v4, first) in [(true, "192.0.2."), (false, "2001:db8::1")] {
        let Ok(Choice::Endpoints(chosen)) = by_name(vec![named("a", "a.example")], v4, &names) else {
            panic!()
        };
        let addresses: Vec<_> = chosen.iter().map(|e| e.addr.unwrap()).collect();
        assert!(addresses[0].ip().to_string().starts_with(first), "{addresses:?}");
        let all: BTreeSet<_> = addresses.iter().collect();
        assert_eq!((all.len(), addresses[0].port()), (3, 8080), "each address is tried: {addresses:?}");
    }
    let Ok(Choice::Endpoints(both)) = by_name(pods(), true, &names) else { panic!() };
    assert_eq!(both.len(), 4, "{both:?}");
}

#[test]
fn a_name_that_leads_nowhere_is_no_endpoint_and_is_not_asked_for_again() {
    let names = resolved(&[("a.example", &[])]);
    assert_eq!(by_name(vec![named("a", "a.example")], true, &names), Err(NoEndpoint::Unresolved));
    assert_eq!(by_name(vec![named("b", "b.example")], true, &names), Err(NoEndpoint::Unresolved));
    let Ok(Choice::Endpoints(rest)) = by_name(vec![named("a", "a.example"), a("b")], true, &names) else {
        panic!()
    };
    assert_eq!((rest.len(), &*rest[0].workload.name), (1, "b"));
    let only_v6 = resolved(&[("a.example", &["2001:db8::1"])]);
    let v4 = web().with(|s| s.ip_families = IpFamilies::V4Only);
    let pods = vec![named("a", "a.example")];
    let chosen = chosen_with(v4, pods, 0, true, &Departures::default(), Some(&only_v6));
    assert_eq!(chosen, Err(NoEndpoint::IpFamily));
}
