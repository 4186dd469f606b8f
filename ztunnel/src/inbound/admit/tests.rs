use index::Update;
use model::{NetworkId, TrustDomain};
use testkit::fixtures::{CLUSTER, allow, deny, identity, ip, pod, service, strict, waypoint_named};

use super::*;

fn world(updates: impl IntoIterator<Item = Update>) -> World {
    World::default().apply(updates).0
}

fn catalog() -> LocalPod {
    LocalPod {
        name: NamespacedName::new("shop", "catalog-0"),
        identity: identity("shop", "catalog"),
        node: "node1".into(),
        cluster_id: CLUSTER.into(),
        network: NetworkId::default(),
    }
}

fn workload() -> testkit::fixtures::WorkloadBuilder {
    pod("shop", "catalog-0").ip("10.0.0.2")
}

/// Whether shop/catalog-0 takes a connection to its port 8080.
fn admitted(world: &World, peer: Option<&SpiffeId>) -> Admission {
    let destination = "10.0.0.2:8080".parse().unwrap();
    admit(world, &Facts { peer, source: ip("10.0.0.1"), pod: &catalog(), destination })
}

fn is_allowed(world: &World, peer: Option<&SpiffeId>) -> bool {
    matches!(admitted(world, peer), Admission::Allow { .. })
}

#[test]
fn without_policy_everyone_is_admitted() {
    let world = world([workload().build().into()]);
    assert!(is_allowed(&world, None));
    assert!(is_allowed(&world, Some(&identity("shop", "frontend"))));
}

#[test]
fn strict_refuses_plaintext() {
    let world = world([workload().build().into(), strict("shop").into()]);
    assert!(!is_allowed(&world, None));
    assert!(is_allowed(&world, Some(&identity("other", "anyone"))));
}

#[test]
fn an_allow_admits_those_it_names() {
    let world =
        world([workload().build().into(), allow("shop", "callers").from("shop", "frontend").build().into()]);
    assert!(is_allowed(&world, Some(&identity("shop", "frontend"))));
    let Admission::Deny(denial) = admitted(&world, Some(&identity("shop", "legacy"))) else {
        panic!("admitted")
    };
    assert!(denial.to_string().contains("shop/callers"), "{denial}");
    assert!(!denial.is_provisional());
    assert_eq!(denial.response_flags(), ResponseFlags::Deny);
}

#[test]
fn a_port_level_policy_is_about_its_port() {
    let plaintext_on_9090 = deny("shop", "ports").rule(|m| {
        m.not_principals = vec![model::policy::StringMatch::Presence];
        m.destination_ports = vec![9090];
    });
    let world = world([workload().build().into(), plaintext_on_9090.build().into()]);
    assert!(is_allowed(&world, None));
    let destination = "10.0.0.2:9090".parse().unwrap();
    let on_9090 = admit(&world, &Facts { peer: None, source: ip("10.0.0.1"), pod: &catalog(), destination });
    assert!(matches!(on_9090, Admission::Deny(_)));
}

#[test]
fn a_selected_pod_waits_for_the_policy_that_selects_it() {
    let before = world([workload().selected_by("late").build().into()]);
    let Admission::Deny(denial) = admitted(&before, None) else { panic!("admitted") };
    assert!(denial.is_provisional());
    let (after, delta) = before.apply([deny("shop", "late").for_selected().build().into()]);
    assert!(delta.admission.includes(&workload().build()));
    assert!(is_allowed(&after, None));
}

#[test]
fn a_pod_that_the_control_plane_has_not_told_of_admits_nobody_for_now() {
    let Admission::Deny(denial) = admitted(&World::default(), None) else { panic!("admitted") };
    assert_eq!(denial, Denial::UnknownPod(NamespacedName::new("shop", "catalog-0")));
    assert!(denial.is_provisional());
}

#[test]
fn a_namesake_of_another_account_or_cluster_is_another_pod() {
    for other in [workload().account("other"), workload().with(|w| w.cluster_id = "elsewhere".into())] {
        assert!(!is_allowed(&world([other.build().into()]), None));
    }
}

/// The control plane may tell of the pods under the trust domain's next name while this proxy knows them by the one before.
#[test]
fn a_pod_is_itself_by_every_name_of_the_trust_domain() {
    let renamed = |w: &mut Workload| w.trust_domain = TrustDomain::new("mesh.example").unwrap();
    let client = pod("shop", "frontend-0").ip("10.0.0.1").with(renamed).build();
    let world = world([workload().with(renamed).build().into(), client.into()]);
    let peer = identity("shop", "frontend");
    assert!(is_allowed(&world, Some(&peer)));
    let named = source(&world, &catalog(), ip("10.0.0.1"), Some(&peer));
    assert_eq!(named.map(|w| &*w.name), Some("frontend-0"));
}

#[test]
fn a_policy_in_trial_is_told_and_not_enforced() {
    let world =
        world([workload().build().into(), deny("shop", "trial").from_everyone().dry_run().build().into()]);
    let Admission::Allow { dry_run, .. } = admitted(&world, None) else { panic!("denied") };
    assert_eq!(dry_run.unwrap().to_string(), "denied by shop/trial rule 0");
}

#[test]
fn the_proxys_own_ports_are_no_applications() {
    let world = world([workload().build().into()]);
    for port in [15001, 15006, 15008] {
        let destination = SocketAddr::new(ip("10.0.0.2"), port);
        let admission =
            admit(&world, &Facts { peer: None, source: ip("10.0.0.1"), pod: &catalog(), destination });
        assert_eq!(admission, Admission::Deny(Denial::OwnPort(port)));
    }
}

#[test]
fn a_connect_is_for_the_pod_that_the_tunnel_came_to() {
    let ask = |authority: &str, came_to: &str| target(&authority.parse().unwrap(), ip(came_to));
    assert_eq!(ask("10.0.0.2:80", "10.0.0.2"), Ok("10.0.0.2:80".parse().unwrap()));
    assert_eq!(ask("10.0.0.2:80", "::ffff:10.0.0.2"), Ok("10.0.0.2:80".parse().unwrap()));
    assert_eq!(ask("[fd00::2]:80", "fd00::2"), Ok("[fd00::2]:80".parse().unwrap()));
    assert!(matches!(ask("10.0.0.3:80", "10.0.0.2"), Err(WrongTarget::Elsewhere { .. })));
    assert!(matches!(ask("127.0.0.1:80", "10.0.0.2"), Err(WrongTarget::Elsewhere { .. })));
    assert!(matches!(ask("catalog.shop.svc:80", "10.0.0.2"), Err(WrongTarget::Name(_))));
}

#[test]
fn only_the_bound_waypoint_speaks_for_others() {
    let gate = |name: &str| service("shop", name).port(15008, 15008).build();
    let (of_service, of_pod, of_nobody) = (gate("gate-s"), gate("gate-p"), gate("gate-n"));
    let named = |s: &model::Service| waypoint_named("shop", &s.hostname);
    let web = service("shop", "web").waypoint(named(&of_service)).build();
    let made_of = |s: &model::Service, account: &str| {
        Update::from(pod("shop", &format!("{}-0", s.name)).account(account).backs(s).build())
    };
    let world = world([
        made_of(&of_service, "gate-s"),
        made_of(&of_pod, "gate-p"),
        made_of(&of_nobody, "gate-n"),
        workload().backs(&web).waypoint(named(&of_pod)).build().into(),
        web.into(),
        of_service.into(),
        of_pod.into(),
        of_nobody.into(),
    ]);
    let believed = |account: &str| speaks_for_others(&world, &catalog(), &identity("shop", account));
    assert!(believed("gate-s") && believed("gate-p"));
    assert!(!believed("gate-n") && !believed("frontend") && !believed("catalog"));
}

#[test]
fn a_source_is_named_only_where_it_is_certain() {
    let world = world([
        pod("shop", "frontend-0").ip("10.0.0.1").build().into(),
        pod("kube", "agent-0").ip("192.168.0.1").on_host_network().build().into(),
    ]);
    let named = |at: &str, peer: Option<&SpiffeId>| {
        source(&world, &catalog(), ip(at), peer).map(|w| w.name.to_string())
    };
    assert_eq!(named("10.0.0.1", None), Some("frontend-0".into()));
    assert_eq!(named("10.0.0.1", Some(&identity("shop", "frontend"))), Some("frontend-0".into()));
    assert_eq!(
        named("10.0.0.1", Some(&identity("shop", "other"))),
        None,
        "another account proved itself from there"
    );
    assert_eq!(named("192.168.0.1", None), None, "the node's address says nothing");
    assert_eq!(named("192.168.0.1", Some(&identity("kube", "agent"))), Some("agent-0".into()));
}
