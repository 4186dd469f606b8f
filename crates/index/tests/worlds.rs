//! What the look-ups promise, one sentence a test.

use std::collections::BTreeMap;
use std::sync::Arc;

use index::{Change, Update, World, target_port};
use model::policy::{Action, PolicyScope};
use model::{
    AppProtocol, Health, Locality, NamespacedName, NetworkAddr, NetworkId, NetworkMode, Policy, PolicyKey,
    PortMapping, Service, ServiceKey, TrustDomain, TunnelProtocol, Uid, Visibility, Workload, WorkloadKind,
};

fn pod(name: &str, ip: &str) -> Workload {
    Workload {
        uid: Uid::new(format!("Kubernetes//Pod/shop/{name}")),
        name: name.into(),
        namespace: "shop".into(),
        addresses: vec![ip.parse().unwrap()],
        hostname: None,
        network: NetworkId::default(),
        tunnel: TunnelProtocol::Hbone,
        trust_domain: TrustDomain::default(),
        service_account: "default".into(),
        waypoint: None,
        network_gateway: None,
        node: "node1".into(),
        canonical_name: name.into(),
        canonical_revision: "latest".into(),
        kind: WorkloadKind::Pod,
        workload_name: name.into(),
        native_tunnel: false,
        application_tunnel: None,
        services: BTreeMap::new(),
        authorization_policies: vec![],
        health: Health::Healthy,
        cluster_id: "Kubernetes".into(),
        locality: Locality::default(),
        network_mode: NetworkMode::Standard,
        capacity: 1,
    }
}

fn service(namespace: &str, hostname: &str, vip: &str) -> Service {
    Service {
        name: hostname.into(),
        namespace: namespace.into(),
        hostname: hostname.into(),
        addresses: vec![addr(vip)],
        blocks: vec![],
        ports: vec![port(80, Some(8080))],
        subject_alt_names: vec![],
        waypoint: None,
        load_balancing: Default::default(),
        ip_families: Default::default(),
        canonical: false,
        ingress_use_waypoint: false,
        weighted_waypoints: vec![],
        visibility: Visibility::Public,
    }
}

fn policy(namespace: &str, name: &str, scope: PolicyScope) -> Policy {
    Policy {
        key: PolicyKey::new(namespace, name),
        scope,
        action: Action::Deny,
        rules: vec![],
        dry_run: false,
    }
}

fn port(service_port: u16, target_port: Option<u16>) -> PortMapping {
    PortMapping { service_port, target_port, app_protocol: AppProtocol::Unknown }
}

fn addr(ip: &str) -> NetworkAddr {
    NetworkAddr::new(NetworkId::default(), ip.parse().unwrap())
}

fn world(updates: impl IntoIterator<Item = Update>) -> World {
    World::default().apply(updates).0
}

fn holder(world: &World, ip: &str) -> Option<String> {
    world.workload_at(&addr(ip)).map(|w| w.name.to_string())
}

fn endpoint_names(world: &World, key: &ServiceKey) -> Vec<String> {
    world.endpoints(key).iter().map(|w| w.name.to_string()).collect()
}

#[test]
fn a_workload_is_found_by_address_uid_and_name() {
    let world = world([pod("a", "10.0.0.1").into()]);
    let found = world.workload_at(&addr("10.0.0.1")).unwrap();
    assert_eq!(Some(found), world.workload(&Uid::new("Kubernetes//Pod/shop/a")));
    assert_eq!(std::slice::from_ref(found), world.workloads_named(&NamespacedName::new("shop", "a")));
    assert_eq!(
        world.workload_at(&NetworkAddr::new(NetworkId::new("other"), "10.0.0.1".parse().unwrap())),
        None
    );
}

#[test]
fn a_v4_mapped_address_is_the_v4_address() {
    let world = world([pod("a", "::ffff:10.0.0.1").into()]);
    assert_eq!(holder(&world, "10.0.0.1"), Some("a".into()));
}

#[test]
fn an_address_that_is_used_again_belongs_to_the_newcomer() {
    let first = world([pod("old", "10.0.0.1").into(), pod("new", "10.0.0.1").into()]);
    assert_eq!(holder(&first, "10.0.0.1"), Some("new".into()));

    let gone = Update::RemoveWorkload(pod("old", "10.0.0.1").uid);
    assert_eq!(holder(&first.apply([gone]).0, "10.0.0.1"), Some("new".into()));

    let dying = Workload { health: Health::Unhealthy, ..pod("old", "10.0.0.1") };
    assert_eq!(holder(&first.apply([dying.into()]).0, "10.0.0.1"), Some("new".into()));
}

#[test]
fn the_holder_before_has_the_address_again_when_the_newcomer_goes() {
    let world = world([pod("old", "10.0.0.1").into(), pod("new", "10.0.0.1").into()]);
    let (world, _) = world.apply([Update::RemoveWorkload(pod("new", "10.0.0.1").uid)]);
    assert_eq!(holder(&world, "10.0.0.1"), Some("old".into()));
}

#[test]
fn a_workload_that_moves_leaves_its_address() {
    let world = world([pod("a", "10.0.0.1").into(), pod("a", "10.0.0.2").into()]);
    assert_eq!(holder(&world, "10.0.0.1"), None);
    assert_eq!(holder(&world, "10.0.0.2"), Some("a".into()));
}

#[test]
fn a_pod_with_its_own_address_beats_those_on_the_nodes_network() {
    let host = |name| Workload { network_mode: NetworkMode::HostNetwork, ..pod(name, "10.0.0.1") };
    for order in [["own", "host"], ["host", "own"]] {
        let pods = order.map(|name| if name == "own" { pod("own", "10.0.0.1") } else { host("host") });
        assert_eq!(holder(&world(pods.map(Update::from)), "10.0.0.1"), Some("own".into()));
    }
    let both = world([host("host1").into(), host("host2").into()]);
    assert_eq!(both.workloads_at(&addr("10.0.0.1")).count(), 2);
}

#[test]
fn what_is_written_by_hand_does_not_take_a_pods_address() {
    let entry = Workload {
        uid: Uid::new("Kubernetes/networking.istio.io/WorkloadEntry/mallory/entry"),
        namespace: "mallory".into(),
        tunnel: TunnelProtocol::None,
        ..pod("entry", "10.0.0.1")
    };
    let host = Workload { network_mode: NetworkMode::HostNetwork, ..pod("host", "10.0.0.1") };
    for victim in [pod("own", "10.0.0.1"), host] {
        let world = world([victim.clone().into(), entry.clone().into()]);
        assert_eq!(holder(&world, "10.0.0.1"), Some(victim.name.to_string()));
        let (world, _) = world.apply([Update::RemoveWorkload(victim.uid)]);
        assert_eq!(holder(&world, "10.0.0.1"), Some("entry".into()));
    }
}

#[test]
fn what_is_removed_and_told_again_at_once_has_not_changed() {
    let before = world([pod("old", "10.0.0.1").into(), pod("new", "10.0.0.1").into()]);
    let old = pod("old", "10.0.0.1");
    let (after, delta) = before.apply([Update::RemoveWorkload(old.uid.clone()), old.into()]);
    assert!(delta.is_empty());
    assert_eq!(holder(&after, "10.0.0.1"), Some("new".into()));
}

#[test]
fn endpoints_are_joined_whichever_side_comes_first() {
    let web = service("shop", "web.shop", "10.96.0.1");
    let key = web.key();
    let mut backend = pod("a", "10.0.0.1");
    backend.services.insert(key.clone(), vec![]);
    for updates in [[backend.clone().into(), web.clone().into()], [Update::from(web), backend.into()]] {
        assert_eq!(endpoint_names(&world(updates), &key), ["a"]);
    }
}

#[test]
fn endpoints_outlive_their_service() {
    let web = service("shop", "web.shop", "10.96.0.1");
    let key = web.key();
    let mut backend = pod("a", "10.0.0.1");
    backend.services.insert(key.clone(), vec![]);
    let (gone, _) = world([backend.into(), web.clone().into()]).apply([Update::RemoveService(key.clone())]);
    assert_eq!(gone.service(&key), None);
    assert_eq!(gone.service_at(&addr("10.96.0.1"), "shop"), None);
    assert_eq!(endpoint_names(&gone.apply([web.into()]).0, &key), ["a"]);
}

#[test]
fn a_workload_leaves_the_services_that_it_no_longer_names() {
    let (web, db) = (ServiceKey::new("shop", "web.shop"), ServiceKey::new("shop", "db.shop"));
    let with = |keys: &[&ServiceKey]| {
        let mut backend = pod("a", "10.0.0.1");
        backend.services = keys.iter().map(|k| ((*k).clone(), vec![])).collect();
        Update::from(backend)
    };
    let (moved, delta) = world([with(&[&web])]).apply([with(&[&db])]);
    assert_eq!((endpoint_names(&moved, &web).len(), endpoint_names(&moved, &db).len()), (0, 1));
    assert_eq!(delta.endpoints.into_iter().collect::<Vec<_>>(), [db, web]);
}

#[test]
fn a_workload_without_address_is_known_by_its_services_and_name() {
    let mut external =
        Workload { addresses: vec![], hostname: Some("db.example".into()), ..pod("a", "10.0.0.1") };
    let key = ServiceKey::new("shop", "db.shop");
    external.services.insert(key.clone(), vec![]);
    assert_eq!(endpoint_names(&world([external.into()]), &key), ["a"]);
}

#[test]
fn the_target_port_is_the_workloads_own_else_the_services() {
    let mut web = service("shop", "web.shop", "10.96.0.1");
    web.ports = vec![port(80, Some(8080)), port(90, None)];
    let mut backend = pod("a", "10.0.0.1");
    let with = |ports: Vec<PortMapping>, backend: &mut Workload| {
        backend.services = BTreeMap::from([(web.key(), ports)]);
        [80, 90, 100].map(|p| target_port(&web, backend, p))
    };
    assert_eq!(with(vec![], &mut backend), [Some(8080), None, None]);
    assert_eq!(with(vec![port(80, Some(81)), port(90, Some(91))], &mut backend), [Some(81), Some(91), None]);
    assert_eq!(with(vec![port(80, None), port(100, Some(101))], &mut backend), [Some(8080), None, None]);
}

#[test]
fn of_several_services_the_canonical_one_wins_then_the_viewers_own() {
    let named = |namespace: &str| service(namespace, "api.example", "240.0.0.1");
    let seen_by = |world: &World, viewer: &str| {
        let by_vip = world.service_at(&addr("240.0.0.1"), viewer).map(|s| s.namespace.to_string());
        assert_eq!(by_vip, world.service_named("api.example", viewer).map(|s| s.namespace.to_string()));
        by_vip.unwrap_or_default()
    };
    let plain = world([named("a").into(), named("b").into(), named("c").into()]);
    assert_eq!(seen_by(&plain, "b"), "b");
    assert_eq!(seen_by(&plain, "elsewhere"), "a");
    let (canonical, _) = plain.apply([Service { canonical: true, ..named("c") }.into()]);
    assert_eq!(seen_by(&canonical, "b"), "c");
    assert_eq!(canonical.services_named("api.example").len(), 3);
}

#[test]
fn a_service_of_namespace_visibility_is_seen_from_its_namespace_only() {
    let private = Service {
        visibility: Visibility::Namespace,
        canonical: true,
        ..service("a", "x.example", "240.0.0.1")
    };
    let world = world([private.into()]);
    assert!(world.service_named("x.example", "a").is_some());
    assert!(world.service_named("x.example", "b").is_none());
    assert!(world.service_at(&addr("240.0.0.1"), "").is_none());
}

#[test]
fn a_removal_by_resource_name_finds_workloads_and_services() {
    let full = world([pod("a", "10.0.0.1").into(), service("shop", "web.shop", "10.96.0.1").into()]);
    let (empty, delta) = full.apply(
        ["Kubernetes//Pod/shop/a", "shop/web.shop", "shop/unknown", "", "no-slash"]
            .map(|name| Update::RemoveAddress(name.into())),
    );
    assert_eq!((empty.workload_count(), empty.service_count()), (0, 0));
    assert_eq!((delta.workloads.len(), delta.services.len()), (1, 1));
    assert_eq!(holder(&empty, "10.0.0.1"), None);
}

#[test]
fn a_snapshot_never_changes() {
    let before = world([pod("a", "10.0.0.1").into()]);
    let kept = before.clone();
    let (_, _) =
        before.apply([Update::RemoveWorkload(pod("a", "10.0.0.1").uid), pod("b", "10.0.0.2").into()]);
    assert_eq!(holder(&kept, "10.0.0.1"), Some("a".into()));
    assert_eq!(kept.workload_count(), 1);
}

#[test]
fn a_workload_meets_the_policies_of_mesh_namespace_and_its_own() {
    let mut w = pod("a", "10.0.0.1");
    w.authorization_policies = vec![PolicyKey::new("shop", "own"), PolicyKey::new("shop", "late")];
    let world = world([
        policy("istio-system", "mesh", PolicyScope::Global).into(),
        policy("shop", "ns", PolicyScope::Namespace).into(),
        policy("other", "ns", PolicyScope::Namespace).into(),
        policy("shop", "own", PolicyScope::WorkloadSelector).into(),
        policy("shop", "anothers", PolicyScope::WorkloadSelector).into(),
        w.clone().into(),
    ]);
    let set = world.policies_for(&w);
    let names: Vec<_> = set.policies().map(|p| p.key().to_string()).collect();
    assert_eq!(names, ["istio-system/mesh", "shop/ns", "shop/own"]);
    assert_eq!(set.unknown(), [&PolicyKey::new("shop", "late")]);
}

#[test]
fn a_policy_that_changes_its_scope_leaves_the_old_one() {
    let (moved, delta) = world([policy("shop", "p", PolicyScope::Global).into()]).apply([policy(
        "shop",
        "p",
        PolicyScope::Namespace,
    )
    .into()]);
    let elsewhere = Workload { namespace: "other".into(), ..pod("a", "10.0.0.1") };
    assert!(moved.policies_for(&elsewhere).is_empty());
    assert_eq!(moved.policies_for(&pod("a", "10.0.0.1")).policies().count(), 1);
    assert!(delta.admission.everyone, "the workloads that it no longer restricts are concerned too");
}

#[test]
fn a_change_of_policy_concerns_those_that_it_is_about() {
    let selecting =
        Workload { authorization_policies: vec![PolicyKey::new("shop", "own")], ..pod("a", "10.0.0.1") };
    let other = pod("b", "10.0.0.2");
    let foreign = Workload { namespace: "other".into(), ..pod("c", "10.0.0.3") };
    let before = world([selecting.clone().into(), other.clone().into(), foreign.clone().into()]);
    for (scope, name, concerns) in [
        (PolicyScope::Global, "mesh", [true, true, true]),
        (PolicyScope::Namespace, "ns", [true, true, false]),
        (PolicyScope::WorkloadSelector, "own", [true, false, false]),
        (PolicyScope::WorkloadSelector, "nobodys", [false, false, false]),
    ] {
        let key = PolicyKey::new("shop", name);
        let (with, added) = before.apply([policy("shop", name, scope).into()]);
        let (_, removed) = with.apply([Update::RemovePolicy(key)]);
        for delta in [added, removed] {
            let found = [&selecting, &other, &foreign].map(|w| delta.admission.includes(w));
            assert_eq!(found, concerns, "{name}");
        }
    }
}

#[test]
fn to_tell_again_what_is_known_changes_nothing() {
    let updates = || {
        [
            pod("a", "10.0.0.1").into(),
            service("shop", "web.shop", "10.96.0.1").into(),
            policy("shop", "p", PolicyScope::Global).into(),
        ]
    };
    let (_, delta) = world(updates()).apply(updates());
    assert!(delta.is_empty() && delta.endpoints.is_empty() && delta.admission.is_empty());
}

#[test]
fn a_delta_tells_what_was_and_what_is() {
    let healthy = pod("a", "10.0.0.1");
    let unhealthy = Workload { health: Health::Unhealthy, ..healthy.clone() };
    let (_, delta) =
        world([healthy.clone().into()]).apply([unhealthy.clone().into(), pod("b", "10.0.0.2").into()]);
    let change = |name| &delta.workloads[&pod(name, "10.0.0.1").uid];
    assert_eq!(*change("a"), Change::Changed { before: Arc::new(healthy), after: Arc::new(unhealthy) });
    assert_eq!(*change("b"), Change::Added(Arc::new(pod("b", "10.0.0.2"))));
}

#[test]
fn what_comes_and_goes_at_once_was_never_there() {
    let (after, delta) = World::default()
        .apply([pod("a", "10.0.0.1").into(), Update::RemoveWorkload(pod("a", "10.0.0.1").uid)]);
    assert!(delta.is_empty() && delta.admission.is_empty());
    assert_eq!(after.workload_count(), 0);
}

#[test]
fn a_policy_that_becomes_selective_applies_as_before_until_a_workload_names_it() {
    let in_force = |world: &World, name: &str| {
        let workload = world.workload(&pod(name, "10.0.0.1").uid).unwrap();
        world.policies_for(workload).policies().map(|p| p.scope()).collect::<Vec<_>>()
    };
    let of_scope = |scope| Policy {
        key: PolicyKey::new("shop", "p"),
        scope,
        action: Action::Deny,
        rules: vec![model::policy::Rule::default()],
        dry_run: false,
    };
    let (wide, narrow) = (of_scope(PolicyScope::Namespace), of_scope(PolicyScope::WorkloadSelector));
    let key = wide.key.clone();
    let (a, b) = (pod("a", "10.0.0.1"), pod("b", "10.0.0.2"));
    let world = World::default().apply([a.into(), b.into(), Update::from(wide.clone())]).0;
    let (narrowing, delta) = world.apply([Update::from(narrow.clone())]);
    assert_eq!(delta.narrowed, [key.clone()].into());
    assert_eq!(in_force(&narrowing, "a"), [PolicyScope::Namespace]);

    let named = Workload { authorization_policies: vec![key.clone()], ..pod("a", "10.0.0.1") };
    let named = Update::from(named);
    let (arrived, delta) = narrowing.apply([named.clone()]);
    assert_eq!(in_force(&arrived, "a"), [PolicyScope::WorkloadSelector]);
    assert!(in_force(&arrived, "b").is_empty());
    assert!(delta.admission.namespaces.contains("shop"), "who is no longer meant is told of");

    let (given_up, delta) = narrowing.apply([Update::Narrowed(key.clone())]);
    assert!(in_force(&given_up, "a").is_empty());
    assert!(delta.admission.namespaces.contains("shop") && !delta.is_empty());

    let (together, delta) = world.apply([Update::from(narrow.clone()), named]);
    assert!(delta.narrowed.is_empty());
    assert!(in_force(&together, "b").is_empty());

    let (again, _) = narrowing.apply([Update::from(wide)]);
    assert_eq!(in_force(&again, "b"), [PolicyScope::Namespace]);
    let (removed, _) = narrowing.apply([Update::RemovePolicy(key)]);
    assert!(in_force(&removed, "a").is_empty());

    // What was wide between two updates only has never been in force.
    let there_and_back =
        [Update::from(Policy { scope: PolicyScope::Global, ..narrow.clone() }), narrow.into()];
    let (back, delta) = given_up.apply(there_and_back);
    assert!(in_force(&back, "a").is_empty() && delta.narrowed.is_empty());
}
