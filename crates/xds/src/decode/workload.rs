//! Workloads, and what they share with services.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ambit_proto::workload as wire;
use ipnet::IpNet;
use model::{
    AppProtocol, ApplicationTunnel, ApplicationTunnelProtocol, GatewayAddress, GatewayDestination, Health,
    Locality, NamespacedHostname, NetworkAddr, NetworkBlock, NetworkId, NetworkMode, PolicyKey, PortMapping,
    ServiceKey, TrustDomain, TunnelProtocol, Uid, Workload, WorkloadKind,
};

use super::Fault;
use crate::{DEFAULT_SERVICE_ACCOUNT, Defaults, HBONE_PORT, TERMINATING};

pub(super) fn read(w: wire::Workload, defaults: &Defaults) -> Result<Workload, Fault> {
    if w.uid.is_empty() {
        return Err(Fault::Missing { field: "uid" });
    }
    let trust_domain = match w.trust_domain.as_str() {
        "" => defaults.trust_domain.clone(),
        name => TrustDomain::new(name).map_err(|_| Fault::Form {
            field: "trust_domain",
            value: name.to_owned(),
            form: "of a SPIFFE trust domain",
        })?,
    };
    let service_account: Arc<str> = match w.service_account.as_str() {
        "" => DEFAULT_SERVICE_ACCOUNT.into(),
        name => name.into(),
    };
    Ok(Workload {
        uid: Uid::new(&w.uid),
        name: w.name.into(),
        namespace: w.namespace.into(),
        addresses: w.addresses.iter().map(|a| ip("addresses", a)).collect::<Result<_, _>>()?,
        hostname: (!w.hostname.is_empty()).then(|| w.hostname.into()),
        network: NetworkId::new(&w.network),
        tunnel: tunnel(w.tunnel_protocol)?,
        trust_domain,
        service_account,
        waypoint: gateway("waypoint", w.waypoint)?,
        network_gateway: gateway("network_gateway", w.network_gateway)?,
        node: w.node.into(),
        canonical_name: w.canonical_name.into(),
        canonical_revision: w.canonical_revision.into(),
        kind: kind(w.workload_type),
        workload_name: w.workload_name.into(),
        native_tunnel: w.native_tunnel,
        application_tunnel: w.application_tunnel.map(application_tunnel).transpose()?,
        services: services(w.services)?,
        authorization_policies: policies(w.authorization_policies)?,
        health: health(w.status, &w.extensions),
        cluster_id: w.cluster_id.into(),
        locality: w.locality.map(locality).unwrap_or_default(),
        network_mode: network_mode(w.network_mode)?,
        capacity: w.capacity.unwrap_or(1),
    })
}

/// A workload that takes a tunnel we do not know must not be sent plaintext instead. The sidecars' own mutual TLS is no
/// tunnel for us: their ports take plaintext from those who do not speak it.
fn tunnel(value: i32) -> Result<TunnelProtocol, Fault> {
    match wire::TunnelProtocol::try_from(value) {
        Ok(wire::TunnelProtocol::None | wire::TunnelProtocol::LegacyIstioMtls) => Ok(TunnelProtocol::None),
        Ok(wire::TunnelProtocol::Hbone) => Ok(TunnelProtocol::Hbone),
        Err(_) => Err(Fault::Choice { field: "tunnel_protocol", value }),
    }
}

fn kind(value: i32) -> WorkloadKind {
    match wire::WorkloadType::try_from(value) {
        Ok(wire::WorkloadType::Deployment) | Err(_) => WorkloadKind::Deployment,
        Ok(wire::WorkloadType::Cronjob) => WorkloadKind::CronJob,
        Ok(wire::WorkloadType::Pod) => WorkloadKind::Pod,
        Ok(wire::WorkloadType::Job) => WorkloadKind::Job,
    }
}

fn health(value: i32, extensions: &[wire::Extension]) -> Health {
    if extensions.iter().any(|extension| extension.name == TERMINATING) {
        return Health::Terminating;
    }
    match wire::WorkloadStatus::try_from(value) {
        Ok(wire::WorkloadStatus::Healthy) => Health::Healthy,
        Ok(wire::WorkloadStatus::Unhealthy) | Err(_) => Health::Unhealthy,
    }
}

/// Whether an address says who is behind it cannot be guessed.
fn network_mode(value: i32) -> Result<NetworkMode, Fault> {
    match wire::NetworkMode::try_from(value) {
        Ok(wire::NetworkMode::Standard) => Ok(NetworkMode::Standard),
        Ok(wire::NetworkMode::HostNetwork) => Ok(NetworkMode::HostNetwork),
        Err(_) => Err(Fault::Choice { field: "network_mode", value }),
    }
}

fn application_tunnel(t: wire::ApplicationTunnel) -> Result<ApplicationTunnel, Fault> {
    let protocol = match wire::application_tunnel::Protocol::try_from(t.protocol) {
        Ok(wire::application_tunnel::Protocol::None) => ApplicationTunnelProtocol::None,
        Ok(wire::application_tunnel::Protocol::Proxy) => ApplicationTunnelProtocol::Proxy,
        Err(_) => return Err(Fault::Choice { field: "application_tunnel.protocol", value: t.protocol }),
    };
    let port = port("application_tunnel.port", t.port)?;
    Ok(ApplicationTunnel { protocol, port: (port != 0).then_some(port) })
}

fn locality(l: wire::Locality) -> Locality {
    Locality { region: l.region.into(), zone: l.zone.into(), subzone: l.subzone.into() }
}

fn services(map: BTreeMap<String, wire::PortList>) -> Result<BTreeMap<ServiceKey, Vec<PortMapping>>, Fault> {
    map.into_iter()
        .map(|(name, list)| {
            let key = ServiceKey::parse(&name).ok_or_else(|| Fault::Form {
                field: "services",
                value: name.clone(),
                form: "namespace/hostname",
            })?;
            Ok((key, ports("services.ports", list.ports)?))
        })
        .collect()
}

fn policies(names: Vec<String>) -> Result<Vec<PolicyKey>, Fault> {
    names
        .into_iter()
        .map(|name| {
            PolicyKey::parse(&name).ok_or(Fault::Form {
                field: "authorization_policies",
                value: name,
                form: "namespace/name",
            })
        })
        .collect()
}

pub(super) fn ports(field: &'static str, list: Vec<wire::Port>) -> Result<Vec<PortMapping>, Fault> {
    list.into_iter()
        .map(|p| {
            let target = port(field, p.target_port)?;
            Ok(PortMapping {
                service_port: port(field, p.service_port)?,
                target_port: (target != 0).then_some(target),
                app_protocol: app_protocol(p.app_protocol),
            })
        })
        .collect()
}

fn app_protocol(value: i32) -> AppProtocol {
    match wire::AppProtocol::try_from(value) {
        Ok(wire::AppProtocol::Unknown) | Err(_) => AppProtocol::Unknown,
        Ok(wire::AppProtocol::Http11) => AppProtocol::Http11,
        Ok(wire::AppProtocol::Http2) => AppProtocol::Http2,
        Ok(wire::AppProtocol::Grpc) => AppProtocol::Grpc,
        Ok(wire::AppProtocol::Tcp) => AppProtocol::Tcp,
        Ok(wire::AppProtocol::Tls) => AppProtocol::Tls,
    }
}

/// A gateway that traffic must pass: if it cannot be read, what it guards must not be taken as unguarded.
pub(super) fn gateway(
    field: &'static str,
    gateway: Option<wire::GatewayAddress>,
) -> Result<Option<GatewayAddress>, Fault> {
    gateway.map(|g| required_gateway(field, g)).transpose()
}

pub(super) fn required_gateway(
    field: &'static str,
    g: wire::GatewayAddress,
) -> Result<GatewayAddress, Fault> {
    use wire::gateway_address::Destination;
    let destination = match g.destination.ok_or(Fault::Missing { field })? {
        Destination::Hostname(h) if h.namespace.is_empty() || h.hostname.is_empty() => {
            return Err(Fault::Form {
                field,
                value: format!("{}/{}", h.namespace, h.hostname),
                form: "namespace/hostname",
            });
        }
        Destination::Hostname(h) => {
            GatewayDestination::Hostname(NamespacedHostname::new(h.namespace, h.hostname))
        }
        Destination::Address(a) => GatewayDestination::Address(network_addr(field, a)?),
    };
    let hbone_port = match port(field, g.hbone_mtls_port)? {
        0 => HBONE_PORT,
        port => port,
    };
    Ok(GatewayAddress { destination, hbone_port })
}

/// What a network address on the wire says.
pub(super) enum Place {
    Address(NetworkAddr),
    Block(NetworkBlock),
}

pub(super) fn place(field: &'static str, a: wire::NetworkAddress) -> Result<Place, Fault> {
    let network = NetworkId::new(a.network);
    let ip = raw_ip(&a.address).ok_or(Fault::AddressLength { field, length: a.address.len() })?;
    match a.length {
        Some(length) if length != a.address.len() as u32 * 8 => {
            let block = u8::try_from(length).ok().and_then(|length| IpNet::new(ip, length).ok());
            let block = block.map(|block| Place::Block(NetworkBlock::new(network, block)));
            block.ok_or(Fault::Block { field, length })
        }
        _ => Ok(Place::Address(NetworkAddr::new(network, ip))),
    }
}

fn network_addr(field: &'static str, a: wire::NetworkAddress) -> Result<NetworkAddr, Fault> {
    match place(field, a)? {
        Place::Address(address) => Ok(address),
        Place::Block(block) => Err(Fault::Block { field, length: block.block.prefix_len().into() }),
    }
}

pub(super) fn port(field: &'static str, value: u32) -> Result<u16, Fault> {
    u16::try_from(value).map_err(|_| Fault::Port { field, value })
}

/// An address in network byte order. A v4-mapped one is kept as v4, so that one place has one key.
pub(super) fn ip(field: &'static str, bytes: &[u8]) -> Result<IpAddr, Fault> {
    raw_ip(bytes).map(|ip| ip.to_canonical()).ok_or(Fault::AddressLength { field, length: bytes.len() })
}

pub(super) fn raw_ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}
