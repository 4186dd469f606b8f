//! Model to wire. What [`decode`](crate::decode) reads back is the same resource, and equal resources have equal bytes.

use std::net::IpAddr;

use ambit_proto::workload as wire;
use bytes::Bytes;
use model::{
    AppProtocol, ApplicationTunnelProtocol, GatewayAddress, GatewayDestination, Health, HealthPolicy,
    IpFamilies, LoadBalancingMode, NetworkAddr, NetworkBlock, NetworkMode, PortMapping, Scope, Service,
    TunnelProtocol, Visibility, Workload, WorkloadKind,
};
use prost::Message;

use crate::{DEFAULT_SERVICE_ACCOUNT, Defaults, Resource, TERMINATING};

mod policy;

pub use policy::policy;

/// The encoded message of a resource: an `istio.workload.Address` or an `istio.security.Authorization`.
pub fn content(resource: &Resource, defaults: &Defaults) -> Bytes {
    let address = |t| wire::Address { r#type: Some(t) }.encode_to_vec().into();
    match resource {
        Resource::Workload(w) => address(wire::address::Type::Workload(workload(w, defaults))),
        Resource::Service(s) => address(wire::address::Type::Service(service(s))),
        Resource::Policy(p) => policy(p).encode_to_vec().into(),
    }
}

/// A workload. What the mesh's defaults say anyway is left out.
pub fn workload(w: &Workload, defaults: &Defaults) -> wire::Workload {
    wire::Workload {
        uid: w.uid.to_string(),
        name: w.name.to_string(),
        namespace: w.namespace.to_string(),
        addresses: w.addresses.iter().map(|ip| octets(*ip)).collect(),
        hostname: w.hostname.as_deref().unwrap_or_default().to_owned(),
        network: w.network.to_string(),
        tunnel_protocol: match w.tunnel {
            TunnelProtocol::None => wire::TunnelProtocol::None,
            TunnelProtocol::Hbone => wire::TunnelProtocol::Hbone,
        }
        .into(),
        trust_domain: unless(w.trust_domain.as_str(), defaults.trust_domain.as_str()),
        service_account: unless(&w.service_account, DEFAULT_SERVICE_ACCOUNT),
        waypoint: w.waypoint.as_ref().map(gateway),
        network_gateway: w.network_gateway.as_ref().map(gateway),
        node: w.node.to_string(),
        canonical_name: w.canonical_name.to_string(),
        canonical_revision: w.canonical_revision.to_string(),
        workload_type: match w.kind {
            WorkloadKind::Deployment => wire::WorkloadType::Deployment,
            WorkloadKind::CronJob => wire::WorkloadType::Cronjob,
            WorkloadKind::Pod => wire::WorkloadType::Pod,
            WorkloadKind::Job => wire::WorkloadType::Job,
        }
        .into(),
        workload_name: w.workload_name.to_string(),
        native_tunnel: w.native_tunnel,
        application_tunnel: w.application_tunnel.as_ref().map(|t| wire::ApplicationTunnel {
            protocol: match t.protocol {
                ApplicationTunnelProtocol::None => wire::application_tunnel::Protocol::None,
                ApplicationTunnelProtocol::Proxy => wire::application_tunnel::Protocol::Proxy,
            }
            .into(),
            port: t.port.unwrap_or(0).into(),
        }),
        services: w
            .services
            .iter()
            .map(|(key, list)| (key.to_string(), wire::PortList { ports: ports(list) }))
            .collect(),
        authorization_policies: w.authorization_policies.iter().map(ToString::to_string).collect(),
        status: match w.health {
            Health::Healthy => wire::WorkloadStatus::Healthy,
            // To those who do not know the extension it is not ready.
            Health::Terminating | Health::Unhealthy => wire::WorkloadStatus::Unhealthy,
        }
        .into(),
        cluster_id: w.cluster_id.to_string(),
        locality: (w.locality != model::Locality::default()).then(|| wire::Locality {
            region: w.locality.region.to_string(),
            zone: w.locality.zone.to_string(),
            subzone: w.locality.subzone.to_string(),
        }),
        network_mode: match w.network_mode {
            NetworkMode::Standard => wire::NetworkMode::Standard,
            NetworkMode::HostNetwork => wire::NetworkMode::HostNetwork,
        }
        .into(),
        extensions: (w.health == Health::Terminating)
            .then(|| wire::Extension { name: TERMINATING.to_owned(), config: None })
            .into_iter()
            .collect(),
        capacity: (w.capacity != 1).then_some(w.capacity),
    }
}

/// A service.
pub fn service(s: &Service) -> wire::Service {
    use wire::load_balancing as lb;
    let lb = &s.load_balancing;
    wire::Service {
        name: s.name.to_string(),
        namespace: s.namespace.to_string(),
        hostname: s.hostname.to_string(),
        addresses: s.addresses.iter().map(network_address).chain(s.blocks.iter().map(block)).collect(),
        ports: ports(&s.ports),
        subject_alt_names: s.subject_alt_names.iter().map(ToString::to_string).collect(),
        waypoint: s.waypoint.as_ref().map(gateway),
        load_balancing: (*lb != model::LoadBalancing::default()).then(|| wire::LoadBalancing {
            routing_preference: lb
                .routing_preference
                .iter()
                .map(|scope| self::scope(*scope).into())
                .collect(),
            mode: match lb.mode {
                LoadBalancingMode::Unspecified => lb::Mode::UnspecifiedMode,
                LoadBalancingMode::Strict => lb::Mode::Strict,
                LoadBalancingMode::Failover => lb::Mode::Failover,
                LoadBalancingMode::Passthrough => lb::Mode::Passthrough,
            }
            .into(),
            health_policy: match lb.health_policy {
                HealthPolicy::OnlyHealthy => lb::HealthPolicy::OnlyHealthy,
                HealthPolicy::AllowAll => lb::HealthPolicy::AllowAll,
            }
            .into(),
        }),
        ip_families: match s.ip_families {
            IpFamilies::Automatic => wire::IpFamilies::Automatic,
            IpFamilies::V4Only => wire::IpFamilies::Ipv4Only,
            IpFamilies::V6Only => wire::IpFamilies::Ipv6Only,
            IpFamilies::Dual => wire::IpFamilies::Dual,
        }
        .into(),
        extensions: Vec::new(),
        canonical: s.canonical,
        ingress_use_waypoint: s.ingress_use_waypoint,
        weighted_waypoints: s
            .weighted_waypoints
            .iter()
            .map(|w| wire::WeightedWaypoint { destination: Some(gateway(&w.destination)), weight: w.weight })
            .collect(),
        visibility: match s.visibility {
            Visibility::Public => wire::Visibility::Public,
            Visibility::Namespace => wire::Visibility::Namespace,
        }
        .into(),
    }
}

fn scope(scope: Scope) -> wire::load_balancing::Scope {
    use wire::load_balancing::Scope as Wire;
    match scope {
        Scope::Region => Wire::Region,
        Scope::Zone => Wire::Zone,
        Scope::Subzone => Wire::Subzone,
        Scope::Node => Wire::Node,
        Scope::Cluster => Wire::Cluster,
        Scope::Network => Wire::Network,
    }
}

fn ports(list: &[PortMapping]) -> Vec<wire::Port> {
    let app_protocol = |p| match p {
        AppProtocol::Unknown => wire::AppProtocol::Unknown,
        AppProtocol::Http11 => wire::AppProtocol::Http11,
        AppProtocol::Http2 => wire::AppProtocol::Http2,
        AppProtocol::Grpc => wire::AppProtocol::Grpc,
        AppProtocol::Tcp => wire::AppProtocol::Tcp,
        AppProtocol::Tls => wire::AppProtocol::Tls,
    };
    list.iter()
        .map(|p| wire::Port {
            service_port: p.service_port.into(),
            target_port: p.target_port.unwrap_or(0).into(),
            app_protocol: app_protocol(p.app_protocol).into(),
        })
        .collect()
}

fn gateway(g: &GatewayAddress) -> wire::GatewayAddress {
    use wire::gateway_address::Destination;
    let destination = match &g.destination {
        GatewayDestination::Hostname(h) => Destination::Hostname(wire::NamespacedHostname {
            namespace: h.namespace.to_string(),
            hostname: h.hostname.to_string(),
        }),
        GatewayDestination::Address(a) => Destination::Address(network_address(a)),
    };
    wire::GatewayAddress { destination: Some(destination), hbone_mtls_port: g.hbone_port.into() }
}

fn network_address(a: &NetworkAddr) -> wire::NetworkAddress {
    wire::NetworkAddress { network: a.network.to_string(), address: octets(a.ip), length: None }
}

fn block(b: &NetworkBlock) -> wire::NetworkAddress {
    let length = Some(b.block.prefix_len().into());
    wire::NetworkAddress { network: b.network.to_string(), address: octets(b.block.addr()), length }
}

pub(crate) fn octets(ip: IpAddr) -> Bytes {
    match ip {
        IpAddr::V4(ip) => Bytes::copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => Bytes::copy_from_slice(&ip.octets()),
    }
}

fn unless(value: &str, default: &str) -> String {
    if value == default { String::new() } else { value.to_owned() }
}
