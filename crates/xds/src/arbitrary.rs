//! Arbitrary resources, for tests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use model::policy::{Action, Clause, Match, PolicyScope, Rule, ServiceAccountMatch, StringMatch};
use model::{
    AppProtocol, ApplicationTunnel, ApplicationTunnelProtocol, GatewayAddress, GatewayDestination, Health,
    HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, Locality, NamespacedHostname, NetworkAddr,
    NetworkBlock, NetworkId, NetworkMode, Policy, PolicyKey, PortMapping, Scope, Service, ServiceKey,
    TrustDomain, TunnelProtocol, Uid, Visibility, WeightedWaypoint, Workload, WorkloadKind,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use crate::Resource;

/// A plain workload, for tests that care about some of its fields only.
pub(crate) fn plain_workload(uid: &str, ip: IpAddr) -> Workload {
    Workload {
        uid: Uid::new(uid),
        name: uid.into(),
        namespace: "shop".into(),
        addresses: vec![ip],
        hostname: None,
        network: NetworkId::default(),
        tunnel: TunnelProtocol::Hbone,
        trust_domain: TrustDomain::default(),
        service_account: "default".into(),
        waypoint: None,
        network_gateway: None,
        node: "node1".into(),
        canonical_name: "".into(),
        canonical_revision: "".into(),
        kind: WorkloadKind::Deployment,
        workload_name: "".into(),
        native_tunnel: false,
        application_tunnel: None,
        services: Default::default(),
        authorization_policies: Vec::new(),
        health: Health::Healthy,
        cluster_id: "".into(),
        locality: Locality::default(),
        network_mode: NetworkMode::Standard,
        capacity: 1,
    }
}

/// A plain service with one virtual address.
pub(crate) fn plain_service(hostname: &str, ip: IpAddr) -> Service {
    Service {
        name: hostname.into(),
        namespace: "shop".into(),
        hostname: hostname.into(),
        addresses: vec![NetworkAddr::new(NetworkId::default(), ip)],
        blocks: Vec::new(),
        ports: Vec::new(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        load_balancing: LoadBalancing::default(),
        ip_families: IpFamilies::Automatic,
        canonical: false,
        ingress_use_waypoint: false,
        weighted_waypoints: Vec::new(),
        visibility: Visibility::Public,
    }
}

/// A policy without rules.
pub(crate) fn plain_policy(name: &str) -> Policy {
    Policy {
        key: PolicyKey::new("shop", name),
        scope: PolicyScope::Namespace,
        action: Action::Deny,
        rules: Vec::new(),
        dry_run: false,
    }
}

fn word() -> impl Strategy<Value = Arc<str>> {
    "[a-z][a-z0-9-]{0,6}".prop_map(Arc::from)
}

fn text() -> impl Strategy<Value = Arc<str>> {
    ".{0,8}".prop_map(Arc::from)
}

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(|o| IpAddr::V4(Ipv4Addr::from(o))),
        any::<[u8; 16]>().prop_map(|o| IpAddr::V6(Ipv6Addr::from(o)).to_canonical()),
    ]
}

fn network_addr() -> impl Strategy<Value = NetworkAddr> {
    (text(), ip()).prop_map(|(network, ip)| NetworkAddr::new(NetworkId::new(network), ip))
}

fn gateway() -> impl Strategy<Value = GatewayAddress> {
    let destination = prop_oneof![
        (word(), word()).prop_map(|(n, h)| GatewayDestination::Hostname(NamespacedHostname::new(n, h))),
        network_addr().prop_map(GatewayDestination::Address),
    ];
    (destination, 1..=u16::MAX)
        .prop_map(|(destination, hbone_port)| GatewayAddress { destination, hbone_port })
}

fn port() -> impl Strategy<Value = PortMapping> {
    use AppProtocol::*;
    (any::<u16>(), option::of(1..=u16::MAX), select(vec![Unknown, Http11, Http2, Grpc, Tcp, Tls])).prop_map(
        |(service_port, target_port, app_protocol)| PortMapping { service_port, target_port, app_protocol },
    )
}

fn application_tunnel() -> impl Strategy<Value = ApplicationTunnel> {
    (
        select(vec![ApplicationTunnelProtocol::None, ApplicationTunnelProtocol::Proxy]),
        option::of(1..=u16::MAX),
    )
        .prop_map(|(protocol, port)| ApplicationTunnel { protocol, port })
}

/// Any workload that can be written.
pub(crate) fn workload() -> impl Strategy<Value = Workload> {
    use WorkloadKind::*;
    let names = (word(), text(), text(), vec(ip(), 0..3), option::of(word()), text(), word(), word());
    let routing =
        (option::of(gateway()), option::of(gateway()), text(), text(), text(), text(), any::<bool>());
    let rest = (
        option::of(application_tunnel()),
        btree_map((word(), word()).prop_map(|(n, h)| ServiceKey::new(n, h)), vec(port(), 0..3), 0..3),
        vec((word(), word()).prop_map(|(ns, n)| PolicyKey::new(ns, n)), 0..3),
        (text(), text(), text()).prop_map(|(region, zone, subzone)| Locality { region, zone, subzone }),
        select(vec![Deployment, CronJob, Pod, Job]),
        any::<[bool; 4]>(),
        text(),
        any::<u32>(),
    );
    (names, routing, rest).prop_map(|(n, r, x)| Workload {
        uid: Uid::new(n.0),
        name: n.1,
        namespace: n.2,
        addresses: n.3,
        hostname: n.4,
        network: NetworkId::new(n.5),
        tunnel: if x.5[0] { TunnelProtocol::Hbone } else { TunnelProtocol::None },
        trust_domain: TrustDomain::new(n.6).unwrap(),
        service_account: n.7,
        waypoint: r.0,
        network_gateway: r.1,
        node: r.2,
        canonical_name: r.3,
        canonical_revision: r.4,
        kind: x.4,
        workload_name: r.5,
        native_tunnel: r.6,
        application_tunnel: x.0,
        services: x.1,
        authorization_policies: x.2,
        health: match (x.5[1], x.5[3]) {
            (true, _) => Health::Healthy,
            (false, true) => Health::Terminating,
            (false, false) => Health::Unhealthy,
        },
        cluster_id: x.6,
        locality: x.3,
        network_mode: if x.5[2] { NetworkMode::HostNetwork } else { NetworkMode::Standard },
        capacity: x.7,
    })
}

fn load_balancing() -> impl Strategy<Value = LoadBalancing> {
    use LoadBalancingMode::*;
    use Scope::*;
    (
        vec(select(vec![Region, Zone, Subzone, Node, Cluster, Network]), 0..4),
        select(vec![Unspecified, Strict, Failover, Passthrough]),
        select(vec![HealthPolicy::OnlyHealthy, HealthPolicy::AllowAll]),
    )
        .prop_map(|(routing_preference, mode, health_policy)| LoadBalancing {
            routing_preference,
            mode,
            health_policy,
        })
}

/// Any service that can be written.
pub(crate) fn service() -> impl Strategy<Value = Service> {
    use IpFamilies::*;
    let weighted =
        (gateway(), any::<u32>()).prop_map(|(destination, weight)| WeightedWaypoint { destination, weight });
    (
        (
            text(),
            word(),
            word(),
            (vec(network_addr(), 0..3), vec(network_block(), 0..2)),
            vec(port(), 0..3),
            vec(text(), 0..3),
        ),
        (option::of(gateway()), load_balancing(), select(vec![Automatic, V4Only, V6Only, Dual])),
        (any::<[bool; 3]>(), vec(weighted, 0..3)),
    )
        .prop_map(|(n, r, x)| Service {
            name: n.0,
            namespace: n.1,
            hostname: n.2,
            addresses: n.3.0,
            blocks: n.3.1,
            ports: n.4,
            subject_alt_names: n.5,
            waypoint: r.0,
            load_balancing: r.1,
            ip_families: r.2,
            canonical: x.0[0],
            ingress_use_waypoint: x.0[1],
            weighted_waypoints: x.1,
            visibility: if x.0[2] { Visibility::Public } else { Visibility::Namespace },
        })
}

fn block() -> impl Strategy<Value = IpNet> {
    (ip(), any::<u8>()).prop_map(|(ip, length)| {
        let most = if ip.is_ipv4() { 32 } else { 128 };
        IpNet::new(ip, length % (most + 1)).unwrap()
    })
}

/// One of a single address is that address.
fn network_block() -> impl Strategy<Value = NetworkBlock> {
    let short = |block: &IpNet| block.prefix_len() < block.max_prefix_len();
    (text(), block().prop_filter("a single address", short))
        .prop_map(|(network, block)| NetworkBlock::new(NetworkId::new(network), block))
}

fn string_match() -> impl Strategy<Value = StringMatch> {
    prop_oneof![
        text().prop_map(StringMatch::Exact),
        text().prop_map(StringMatch::Prefix),
        text().prop_map(StringMatch::Suffix),
        Just(StringMatch::Presence),
    ]
}

fn matches() -> impl Strategy<Value = Match> {
    let strings = || vec(string_match(), 0..3);
    let accounts = || {
        let account = (text(), text())
            .prop_map(|(namespace, service_account)| ServiceAccountMatch { namespace, service_account });
        vec(account, 0..3)
    };
    let blocks = || vec(block(), 0..3);
    let ports = || vec(any::<u16>(), 0..3);
    (
        (strings(), strings(), accounts(), accounts(), strings(), strings()),
        (blocks(), blocks(), blocks(), blocks(), ports(), ports()),
    )
        .prop_map(|(s, i)| Match {
            namespaces: s.0,
            not_namespaces: s.1,
            service_accounts: s.2,
            not_service_accounts: s.3,
            principals: s.4,
            not_principals: s.5,
            source_ips: i.0,
            not_source_ips: i.1,
            destination_ips: i.2,
            not_destination_ips: i.3,
            destination_ports: i.4,
            not_destination_ports: i.5,
            unreadable: false,
        })
}

/// Any policy that can be written and read.
pub(crate) fn policy() -> impl Strategy<Value = Policy> {
    let clause = vec(matches(), 0..3).prop_map(|matches| Clause { matches });
    let rule = vec(clause, 0..3).prop_map(|clauses| Rule { clauses });
    (
        (word(), word()),
        select(vec![PolicyScope::Global, PolicyScope::Namespace, PolicyScope::WorkloadSelector]),
        select(vec![Action::Allow, Action::Deny]),
        vec(rule, 0..3),
        any::<bool>(),
    )
        .prop_map(|((namespace, name), scope, action, rules, dry_run)| Policy {
            key: PolicyKey::new(namespace, name),
            scope,
            action,
            rules,
            dry_run,
        })
}

/// Any resource that can be written and read.
pub(crate) fn resource() -> impl Strategy<Value = Resource> {
    prop_oneof![
        workload().prop_map(Resource::from),
        service().prop_map(Resource::from),
        policy().prop_map(Resource::from),
    ]
}
