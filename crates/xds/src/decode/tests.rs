use ambit_proto::security as authz;
use model::policy::Action;
use model::{Health, LoadBalancingMode, TunnelProtocol, Visibility};
use proptest::prelude::*;

use super::*;
use crate::{arbitrary, encode};

fn read_workload(w: wire::Workload) -> Result<model::Workload, Fault> {
    let message = wire::Address { r#type: Some(wire::address::Type::Workload(w)) };
    match content(TypeUrl::Address, message.encode_to_vec().into(), &Defaults::default())? {
        Resource::Workload(w) => Ok((*w).clone()),
        other => panic!("{other:?}"),
    }
}

fn read_service(s: wire::Service) -> Result<model::Service, Fault> {
    let message = wire::Address { r#type: Some(wire::address::Type::Service(s)) };
    match content(TypeUrl::Address, message.encode_to_vec().into(), &Defaults::default())? {
        Resource::Service(s) => Ok((*s).clone()),
        other => panic!("{other:?}"),
    }
}

fn read_policy_bytes(bytes: Vec<u8>) -> Result<model::Policy, Fault> {
    match content(TypeUrl::Authorization, bytes.into(), &Defaults::default())? {
        Resource::Policy(p) => Ok((*p).clone()),
        other => panic!("{other:?}"),
    }
}

fn minimal_workload() -> wire::Workload {
    wire::Workload { uid: "c//Pod/shop/a".into(), ..Default::default() }
}

fn minimal_service() -> wire::Service {
    wire::Service { namespace: "shop".into(), hostname: "a.shop".into(), ..Default::default() }
}

fn policy_with(m: authz::Match) -> authz::Authorization {
    authz::Authorization {
        name: "p".into(),
        namespace: "shop".into(),
        rules: vec![authz::Rule { clauses: vec![authz::Clause { matches: vec![m] }] }],
        ..Default::default()
    }
}

fn the_match(p: &model::Policy) -> &model::policy::Match {
    &p.rules[0].clauses[0].matches[0]
}

#[test]
fn what_a_workload_leaves_out_has_its_documented_default() {
    let w = read_workload(minimal_workload()).unwrap();
    assert_eq!(w.trust_domain.as_str(), "cluster.local");
    assert_eq!(&*w.service_account, "default");
    assert_eq!(w.capacity, 1);
    assert_eq!(w.tunnel, TunnelProtocol::None);
    assert_eq!(w.health, Health::Healthy);
    assert_eq!(w.hostname, None);
}

#[test]
fn the_mesh_says_which_trust_domain_is_meant_by_none() {
    let defaults = Defaults { trust_domain: model::TrustDomain::new("other.example").unwrap() };
    let message = wire::Address { r#type: Some(wire::address::Type::Workload(minimal_workload())) };
    let read = content(TypeUrl::Address, message.encode_to_vec().into(), &defaults).unwrap();
    let Resource::Workload(w) = read else { panic!() };
    assert_eq!(w.trust_domain, defaults.trust_domain);
}

#[test]
fn a_capacity_of_zero_is_not_the_default() {
    let w = read_workload(wire::Workload { capacity: Some(0), ..minimal_workload() }).unwrap();
    assert_eq!(w.capacity, 0);
}

#[test]
fn a_v4_mapped_address_is_the_v4_address() {
    let mapped = "::ffff:10.0.0.1".parse::<std::net::Ipv6Addr>().unwrap().octets();
    let w = read_workload(wire::Workload { addresses: vec![mapped.to_vec().into()], ..minimal_workload() })
        .unwrap();
    assert_eq!(w.addresses, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
}

#[test]
fn what_cannot_be_guessed_about_a_workload_is_refused_by_field() {
    let gateway = |port, destination| Some(wire::GatewayAddress { hbone_mtls_port: port, destination });
    let at = |address: Vec<u8>, length| {
        wire::gateway_address::Destination::Address(wire::NetworkAddress {
            network: String::new(),
            address: address.into(),
            length,
        })
    };
    let ports = |service_port, target_port| wire::PortList {
        ports: vec![wire::Port { service_port, target_port, app_protocol: 0 }],
    };
    let cases: Vec<(wire::Workload, &str)> = vec![
        (wire::Workload::default(), "uid"),
        (wire::Workload { addresses: vec![vec![1, 2, 3].into()], ..minimal_workload() }, "addresses"),
        (wire::Workload { addresses: vec![Bytes::new()], ..minimal_workload() }, "addresses"),
        (wire::Workload { tunnel_protocol: 9, ..minimal_workload() }, "tunnel_protocol"),
        (wire::Workload { network_mode: 9, ..minimal_workload() }, "network_mode"),
        (wire::Workload { trust_domain: "Not A Domain".into(), ..minimal_workload() }, "trust_domain"),
        (wire::Workload { waypoint: gateway(1, None), ..minimal_workload() }, "waypoint"),
        (
            wire::Workload { waypoint: gateway(65536, Some(at(vec![1; 4], None))), ..minimal_workload() },
            "waypoint",
        ),
        (
            wire::Workload { waypoint: gateway(1, Some(at(vec![1; 5], None))), ..minimal_workload() },
            "waypoint",
        ),
        (
            wire::Workload { waypoint: gateway(1, Some(at(vec![1; 4], Some(24)))), ..minimal_workload() },
            "waypoint",
        ),
        (
            wire::Workload { services: [("no-slash".into(), ports(1, 1))].into(), ..minimal_workload() },
            "services",
        ),
        (
            wire::Workload { services: [("a/b".into(), ports(70_000, 1))].into(), ..minimal_workload() },
            "services.ports",
        ),
        (
            wire::Workload { services: [("a/b".into(), ports(1, u32::MAX))].into(), ..minimal_workload() },
            "services.ports",
        ),
        (
            wire::Workload { authorization_policies: vec!["nameless".into()], ..minimal_workload() },
            "authorization_policies",
        ),
        (
            wire::Workload {
                application_tunnel: Some(wire::ApplicationTunnel { protocol: 7, port: 1 }),
                ..minimal_workload()
            },
            "application_tunnel.protocol",
        ),
    ];
    for (message, field) in cases {
        let fault = read_workload(message).unwrap_err();
        assert!(fault.to_string().contains(&format!("`{field}`")), "{field}: {fault}");
    }
}

#[test]
fn unknown_choices_that_only_tune_fall_back_to_the_careful_value() {
    let w = read_workload(wire::Workload { status: 9, workload_type: 9, ..minimal_workload() }).unwrap();
    assert_eq!(w.health, Health::Unhealthy);
    let lb = wire::LoadBalancing { routing_preference: vec![2, 0, 99, 1], mode: 2, health_policy: 9 };
    let s = read_service(wire::Service {
        visibility: 9,
        ip_families: 9,
        load_balancing: Some(lb),
        ..minimal_service()
    })
    .unwrap();
    assert_eq!(s.visibility, Visibility::Namespace);
    assert_eq!(s.load_balancing.mode, LoadBalancingMode::Failover);
    assert_eq!(s.load_balancing.routing_preference, [model::Scope::Zone]);
}

#[test]
fn a_strict_demand_that_is_unknown_is_not_dropped() {
    let lb = wire::LoadBalancing { routing_preference: vec![2, 99], mode: 1, health_policy: 0 };
    let fault = read_service(wire::Service { load_balancing: Some(lb), ..minimal_service() }).unwrap_err();
    assert_eq!(fault, Fault::Choice { field: "load_balancing.routing_preference", value: 99 });
}

#[test]
fn unknown_extensions_of_workloads_and_services_are_passed_over() {
    let name = || "from.the.future".to_owned();
    read_workload(wire::Workload {
        extensions: vec![wire::Extension { name: name(), config: None }],
        ..minimal_workload()
    })
    .unwrap();
    read_service(wire::Service {
        extensions: vec![wire::Extension { name: name(), config: None }],
        ..minimal_service()
    })
    .unwrap();
}

#[test]
fn who_is_about_to_end_and_serves_is_not_ready_to_those_who_do_not_know_the_extension() {
    let ending =
        model::Workload { health: Health::Terminating, ..read_workload(minimal_workload()).unwrap() };
    let mut written = encode::workload(&ending, &Defaults::default());
    assert_eq!(written.status, wire::WorkloadStatus::Unhealthy as i32);
    assert_eq!(read_workload(written.clone()).unwrap().health, Health::Terminating);
    written.extensions.clear();
    assert_eq!(read_workload(written).unwrap().health, Health::Unhealthy);
}

#[test]
fn a_match_that_cannot_be_read_is_marked_and_the_rest_of_it_kept() {
    let exact =
        |s: &str| authz::StringMatch { match_type: Some(authz::string_match::MatchType::Exact(s.into())) };
    let block = |bytes: &[u8], length| authz::Address { address: bytes.to_vec().into(), length };
    let unreadable = [
        authz::Match { principals: vec![authz::StringMatch { match_type: None }], ..Default::default() },
        authz::Match { source_ips: vec![block(&[10, 0, 0], 8)], ..Default::default() },
        authz::Match { source_ips: vec![block(&[10, 0, 0, 0], 33)], ..Default::default() },
        authz::Match { not_source_ips: vec![block(&[0; 16], u32::MAX)], ..Default::default() },
        authz::Match { destination_ports: vec![80, 65_536], ..Default::default() },
        authz::Match { extensions: vec![authz::Extension::default()], ..Default::default() },
    ];
    for mut m in unreadable {
        m.namespaces = vec![exact("shop")];
        let p = read_policy_bytes(policy_with(m.clone()).encode_to_vec()).unwrap();
        assert!(the_match(&p).unreadable, "{m:?}");
        assert_eq!(the_match(&p).namespaces.len(), 1);
    }
    let fine = authz::Match { namespaces: vec![exact("shop")], ..Default::default() };
    assert!(!the_match(&read_policy_bytes(policy_with(fine).encode_to_vec()).unwrap()).unreadable);
}

/// Appends a field 31 (varint 1) to an encoded message.
fn with_unknown_field(mut message: Vec<u8>) -> Vec<u8> {
    message.extend([0xf8, 0x01, 0x01]);
    message
}

fn nested(field: u8, content: Vec<u8>) -> Vec<u8> {
    let mut out = vec![field << 3 | 2, content.len() as u8];
    out.extend(content);
    out
}

#[test]
fn a_condition_that_a_newer_control_plane_added_makes_its_match_unreadable() {
    let name: Vec<u8> = [nested(1, b"p".to_vec()), nested(2, b"shop".to_vec())].concat();
    let the_match_has_it = nested(5, nested(1, nested(2, with_unknown_field(vec![]))));
    let p = read_policy_bytes([name.clone(), the_match_has_it].concat()).unwrap();
    assert!(the_match(&p).unreadable);

    let a_string_of_it_has_it = nested(5, nested(1, nested(2, nested(3, with_unknown_field(vec![])))));
    let p = read_policy_bytes([name.clone(), a_string_of_it_has_it].concat()).unwrap();
    assert!(the_match(&p).unreadable);

    let the_clause_has_it = nested(5, nested(1, with_unknown_field(nested(2, vec![]))));
    let p = read_policy_bytes([name.clone(), the_clause_has_it].concat()).unwrap();
    let marked: Vec<bool> = p.rules[0].clauses[0].matches.iter().map(|m| m.unreadable).collect();
    assert_eq!(marked, [false, true]);

    let the_rule_has_it = nested(5, with_unknown_field(nested(1, nested(2, vec![]))));
    let p = read_policy_bytes([name.clone(), the_rule_has_it].concat()).unwrap();
    assert_eq!(p.rules[0].clauses.len(), 2);
    assert!(p.rules[0].clauses[1].matches[0].unreadable);

    let only_the_policy_has_it = with_unknown_field(nested(5, nested(1, nested(2, vec![]))));
    let p = read_policy_bytes([name, only_the_policy_has_it].concat()).unwrap();
    assert!(!the_match(&p).unreadable);
}

#[test]
fn a_policy_whose_reach_or_meaning_is_unknown_is_refused() {
    for (scope, action, field) in [(7, 0, "scope"), (0, 7, "action")] {
        let message = authz::Authorization { scope, action, ..policy_with(authz::Match::default()) };
        let fault = read_policy_bytes(message.encode_to_vec()).unwrap_err();
        assert_eq!(fault, Fault::Choice { field, value: 7 });
    }
}

#[test]
fn a_block_of_mapped_addresses_is_a_block_of_v4_addresses() {
    let mapped = "::ffff:10.0.0.0".parse::<std::net::Ipv6Addr>().unwrap().octets();
    let m = authz::Match {
        source_ips: vec![authz::Address { address: mapped.to_vec().into(), length: 104 }],
        ..Default::default()
    };
    let p = read_policy_bytes(policy_with(m).encode_to_vec()).unwrap();
    assert_eq!(the_match(&p).source_ips, ["10.0.0.0/8".parse().unwrap()]);
}

#[test]
fn an_unreadable_match_is_written_as_what_it_means() {
    let readable = model::policy::Match { destination_ports: vec![80], ..Default::default() };
    let unreadable = model::policy::Match { unreadable: true, ..readable.clone() };
    let policy = |action, matches: Vec<model::policy::Match>| model::Policy {
        action,
        rules: vec![model::policy::Rule { clauses: vec![model::policy::Clause { matches }] }],
        ..arbitrary::plain_policy("p")
    };
    let deny = encode::policy(&policy(Action::Deny, vec![unreadable.clone()]));
    assert_eq!(deny.rules[0].clauses[0].matches, [authz::Match::default()]);
    let one_of_two = encode::policy(&policy(Action::Allow, vec![unreadable.clone(), readable]));
    assert_eq!(one_of_two.rules[0].clauses[0].matches.len(), 1);
    let never = encode::policy(&policy(Action::Allow, vec![unreadable]));
    assert!(never.rules.is_empty());
}

fn wrapped(name: &str, type_url: &str, value: Vec<u8>) -> Bytes {
    WireResource {
        version: "1".into(),
        name: name.into(),
        resource: Some(Any { type_url: type_url.into(), value }),
        aliases: vec![],
    }
    .encode_to_vec()
    .into()
}

#[test]
fn a_resource_must_be_what_its_wrapping_says() {
    let defaults = Defaults::default();
    let message =
        wire::Address { r#type: Some(wire::address::Type::Workload(minimal_workload())) }.encode_to_vec();
    let address = TypeUrl::Address.as_str();
    let good =
        resource(TypeUrl::Address, wrapped("c//Pod/shop/a", address, message.clone()), &defaults).unwrap();
    assert_eq!((good.name.as_str(), good.version.as_str()), ("c//Pod/shop/a", "1"));

    let other = resource(TypeUrl::Address, wrapped("b", address, message.clone()), &defaults).unwrap_err();
    assert_eq!(other.to_string(), "b: content is named `c//Pod/shop/a`");
    let wrong = TypeUrl::Authorization.as_str();
    let other = resource(TypeUrl::Address, wrapped("c//Pod/shop/a", wrong, message), &defaults).unwrap_err();
    assert!(matches!(other.fault, Fault::Type { .. }));
    let rubbish = resource(TypeUrl::Address, wrapped("x", address, vec![0xff; 9]), &defaults).unwrap_err();
    assert!(matches!(rubbish.fault, Fault::Garbled(_)) && rubbish.resource == "x");
    let unwrapped = resource(TypeUrl::Address, Bytes::from_static(&[0xff]), &defaults).unwrap_err();
    assert!(unwrapped.to_string().starts_with("(unnamed): not a protobuf message"));
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(resource in arbitrary::resource()) {
        for defaults in [Defaults::default(), Defaults { trust_domain: model::TrustDomain::new("x").unwrap() }] {
            let bytes = encode::content(&resource, &defaults);
            prop_assert_eq!(&content(resource.type_url(), bytes, &defaults).unwrap(), &resource);
        }
    }

    #[test]
    fn no_bytes_can_panic_a_reader(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for type_url in TypeUrl::ALL {
            let _ = content(type_url, bytes.clone().into(), &Defaults::default());
            let _ = resource(type_url, bytes.clone().into(), &Defaults::default());
        }
    }

    #[test]
    fn no_damage_to_a_good_message_can_panic_a_reader(
        resource in arbitrary::resource(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = encode::content(&resource, &Defaults::default()).to_vec();
        if !bytes.is_empty() {
            for (at, value) in damage {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
        }
        let _ = content(resource.type_url(), bytes.into(), &Defaults::default());
    }
}
