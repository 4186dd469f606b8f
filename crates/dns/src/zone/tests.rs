use std::collections::BTreeSet;
use std::net::IpAddr;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, RecordType};
use index::{Update, World};
use model::{NetworkId, Service, Visibility};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use testkit::fixtures::{ip, pod, service};

use super::*;
use crate::message::tests::question;

fn world(updates: impl IntoIterator<Item = Update>) -> World {
    World::default().apply(updates).0
}

fn asked(world: &World, namespace: &str, name: &str, kind: RecordType) -> Verdict {
    asked_by(world, namespace, true, name, kind)
}

fn asked_by(world: &World, namespace: &str, has_v6: bool, name: &str, kind: RecordType) -> Verdict {
    let network = NetworkId::default();
    let viewer = Viewer { namespace, network: &network, domain: "cluster.local", has_v6 };
    let message = question(name, kind).to_vec().unwrap();
    decide(world, &viewer, &message, true, &mut SmallRng::seed_from_u64(1))
}

/// The addresses of an answer, in its order; nothing where somebody else is to be asked.
fn told(world: &World, namespace: &str, name: &str, kind: RecordType) -> Option<Vec<IpAddr>> {
    let Verdict::Answer(answer) = asked(world, namespace, name, kind) else { return None };
    let answer = Message::from_vec(&answer).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    let address = |data: &RData| match data {
        RData::A(ip) => ip.0.into(),
        RData::AAAA(ip) => ip.0.into(),
        other => panic!("{other:?}"),
    };
    Some(answer.answers.iter().map(|record| address(&record.data)).collect())
}

/// As a ServiceEntry makes it.
fn entry(namespace: &str, host: &str, vip: &str) -> Service {
    service(namespace, "entry").vip(vip).with(|s| s.hostname = host.into()).build()
}

const OURS: Verdict = Verdict::Relay { owned: true };
const NOT_OURS: Verdict = Verdict::Relay { owned: false };

#[test]
fn a_service_is_told_by_its_names() {
    let world = world([service("shop", "web").vip("10.96.0.1").port(80, 8080).build().into()]);
    for name in ["web.shop.svc.cluster.local.", "WEB.shop.svc.Cluster.local.", "web.shop.", "web.shop.svc."] {
        assert_eq!(told(&world, "other", name, RecordType::A), Some(vec![ip("10.96.0.1")]), "{name}");
    }
    for name in
        ["web.", "web.shop.svc.cluster.local.shop.svc.cluster.local.", "a.web.shop.", "shop.web.", "."]
    {
        assert_eq!(asked(&world, "shop", name, RecordType::A), NOT_OURS, "{name}");
    }
}

#[test]
fn a_family_that_is_missing_is_told_to_be() {
    let world = world([
        service("shop", "v4").vip("10.96.0.1").build().into(),
        service("shop", "both").vip("10.96.0.2").vip("fd00::2").build().into(),
    ]);
    assert_eq!(told(&world, "shop", "v4.shop.svc.cluster.local.", RecordType::AAAA), Some(vec![]));
    assert_eq!(told(&world, "shop", "both.shop.", RecordType::AAAA), Some(vec![ip("fd00::2")]));
    assert_eq!(told(&world, "shop", "both.shop.", RecordType::A), Some(vec![ip("10.96.0.2")]));
}

#[test]
fn what_else_there_is_about_a_name_is_others_to_tell() {
    let world = world([service("shop", "web").vip("10.96.0.1").build().into()]);
    for kind in [RecordType::TXT, RecordType::SRV, RecordType::MX, RecordType::HTTPS, RecordType::ANY] {
        assert_eq!(asked(&world, "shop", "web.shop.svc.cluster.local.", kind), OURS, "{kind}");
    }
    let srv = "_http._tcp.web.shop.svc.cluster.local.";
    assert_eq!(asked(&world, "shop", srv, RecordType::SRV), NOT_OURS);
    assert_eq!(asked(&world, "shop", "example.com.", RecordType::A), NOT_OURS);
}

#[test]
fn a_headless_service_is_its_ready_endpoints_in_any_order() {
    let headless = service("shop", "db").port(5432, 5432).build();
    let numbers = || (1..=40).map(|n| format!("10.0.0.{n}"));
    let mut updates: Vec<Update> = numbers()
        .map(|address| pod("shop", &format!("db-{address}")).ip(&address).backs(&headless).build().into())
        .collect();
    updates.push(pod("shop", "sick").ip("10.0.1.1").unhealthy().backs(&headless).build().into());
    updates.push(pod("shop", "leaving").ip("10.0.1.2").terminating().backs(&headless).build().into());
    updates.push(headless.clone().into());
    let with = world(updates.clone());
    let got = told(&with, "shop", "db.shop.svc.cluster.local.", RecordType::A).unwrap();
    let wanted: BTreeSet<IpAddr> = numbers().map(|address| ip(&address)).collect();
    assert_eq!(got.iter().copied().collect::<BTreeSet<_>>(), wanted);
    assert!(!got.is_sorted(), "shuffled: {got:?}");

    updates.push(
        Service { load_balancing: service("x", "y").ready_or_not().build().load_balancing, ..headless }
            .into(),
    );
    let all = told(&world(updates), "shop", "db.shop.svc.cluster.local.", RecordType::A).unwrap();
    assert_eq!(all.len(), wanted.len() + 2, "where it asks for those that are not ready too");
}

#[test]
fn a_headless_service_has_the_families_that_it_says() {
    let headless = service("shop", "db").port(5432, 5432);
    let v4 = headless.with(|s| s.ip_families = IpFamilies::V4Only).build();
    let both = pod("shop", "db-0").ip("10.0.0.1").ip("fd00::1").backs(&v4).build();
    let world = world([both.into(), v4.into()]);
    let name = "db.shop.svc.cluster.local.";
    assert_eq!(told(&world, "shop", name, RecordType::A), Some(vec![ip("10.0.0.1")]));
    assert_eq!(told(&world, "shop", name, RecordType::AAAA), Some(vec![]));
}

#[test]
fn a_service_without_any_address_is_others_to_tell() {
    let world = world([service("shop", "db").build().into()]);
    assert_eq!(asked(&world, "shop", "db.shop.svc.cluster.local.", RecordType::A), OURS);
}

#[test]
fn addresses_of_other_networks_mean_nothing() {
    let far = service("shop", "far")
        .with(|s| s.addresses = vec![model::NetworkAddr::new(NetworkId::new("west"), ip("10.96.0.9"))])
        .build();
    let world = world([far.into()]);
    assert_eq!(asked(&world, "shop", "far.shop.svc.cluster.local.", RecordType::A), OURS);
}

#[test]
fn a_wildcard_tells_of_all_below_it_and_the_nearest_wins() {
    let world = world([
        entry("shop", "*.example.com", "240.240.0.1").into(),
        entry("shop", "*.eu.example.com", "240.240.0.2").into(),
        entry("shop", "www.eu.example.com", "240.240.0.3").into(),
    ]);
    for (name, vip) in [
        ("a.example.com.", "240.240.0.1"),
        ("a.b.Example.com.", "240.240.0.1"),
        ("a.eu.example.com.", "240.240.0.2"),
        ("www.eu.example.com.", "240.240.0.3"),
    ] {
        assert_eq!(told(&world, "shop", name, RecordType::A), Some(vec![ip(vip)]), "{name}");
    }
    for name in ["example.com.", "aexample.com.", "example.org."] {
        assert_eq!(asked(&world, "shop", name, RecordType::A), NOT_OURS, "{name}");
    }
}

#[test]
fn who_may_not_see_a_host_is_not_told_of_it() {
    let hidden = Service { visibility: Visibility::Namespace, ..entry("shop", "db.internal", "240.240.0.1") };
    let world = world([hidden.into(), entry("other", "db.internal", "240.240.0.2").into()]);
    assert_eq!(told(&world, "shop", "db.internal.", RecordType::A), Some(vec![ip("240.240.0.1")]));
    assert_eq!(told(&world, "bar", "db.internal.", RecordType::A), Some(vec![ip("240.240.0.2")]));
    let alone = Service { visibility: Visibility::Namespace, ..entry("shop", "own.internal", "240.240.0.3") };
    let world = world.apply([alone.into()]).0;
    assert_eq!(asked(&world, "bar", "own.internal.", RecordType::A), NOT_OURS);
}

#[test]
fn who_has_no_v6_is_told_no_automatic_address_of_it() {
    let automatic = entry("shop", "api.example.com", "240.240.0.7");
    let automatic = Service {
        addresses: [automatic.addresses, vec![testkit::fixtures::addr("2001:2::7")]].concat(),
        ..automatic
    };
    let named = entry("shop", "own.example.com", "fd00::7");
    let world = world([automatic.into(), named.into()]);
    let count = |has_v6, name| match asked_by(&world, "shop", has_v6, name, RecordType::AAAA) {
        Verdict::Answer(answer) => Message::from_vec(&answer).unwrap().answers.len(),
        Verdict::Relay { .. } => panic!("it is the mesh's"),
    };
    assert_eq!((count(true, "api.example.com."), count(false, "api.example.com.")), (1, 0));
    assert_eq!((count(true, "own.example.com."), count(false, "own.example.com.")), (1, 1));
}
