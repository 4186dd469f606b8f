//! Ports of services, and the ports behind them.

use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use manifest::kinds::ServiceEntrySpec;
use model::{AppProtocol, PortMapping};

/// How a workload resolves what a service leaves to it.
pub(super) trait Resolve {
    /// The number of a port that a Service names by the workload's own name for it.
    fn named(&self, name: &str) -> Option<u16>;

    /// The number that the workload gives a port of a service, by the service's name for it.
    fn own(&self, service_port: &str) -> Option<u16>;
}

/// A pod names its containers' ports.
impl Resolve for Pod {
    fn named(&self, name: &str) -> Option<u16> {
        let containers = self.spec.iter().flat_map(|spec| &spec.containers);
        let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
        let port =
            ports.find(|port| port.name.as_deref() == Some(name) && is_tcp(port.protocol.as_deref()))?;
        number(port.container_port)
    }

    fn own(&self, _: &str) -> Option<u16> {
        None
    }
}

/// The ports of a Service on a workload; those that it does not have are left out.
pub(super) fn of_service(service: &Service, workload: &dyn Resolve) -> Vec<PortMapping> {
    let mapping = |port: &ServicePort| {
        let own = workload.own(port.name.as_deref().unwrap_or_default());
        let target = own.or_else(|| match &port.target_port {
            None => number(port.port),
            Some(IntOrString::Int(target)) => number(*target),
            Some(IntOrString::String(name)) => workload.named(name),
        })?;
        Some(PortMapping { target_port: Some(target), ..declared(port)? })
    };
    tcp_ports(service).filter_map(mapping).collect()
}

/// The ports of a Service itself: without a target where each workload has its own.
pub(super) fn of_service_itself(service: &Service) -> Vec<PortMapping> {
    let mapping = |port: &ServicePort| {
        let target_port = match &port.target_port {
            None => number(port.port),
            Some(IntOrString::Int(target)) => number(*target),
            Some(IntOrString::String(_)) => None,
        };
        Some(PortMapping { target_port, ..declared(port)? })
    };
    tcp_ports(service).filter_map(mapping).collect()
}

/// The TCP ports of a Service.
pub(super) fn tcp_ports(service: &Service) -> impl Iterator<Item = &ServicePort> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    ports.filter(|port| is_tcp(port.protocol.as_deref()))
}

/// A port without its target.
pub(super) fn declared(port: &ServicePort) -> Option<PortMapping> {
    let app_protocol = match port.app_protocol.as_deref() {
        Some(word) => protocol(word),
        // Without the field, a name tells by its first part: `http-web`.
        None => protocol(port.name.as_deref().unwrap_or_default().split('-').next().unwrap_or_default()),
    };
    Some(PortMapping { service_port: number(port.port)?, target_port: None, app_protocol })
}

/// The ports of a ServiceEntry on a workload.
pub(super) fn of_entry(spec: &ServiceEntrySpec, workload: &dyn Resolve) -> Vec<PortMapping> {
    let ports = spec.ports.iter().filter(|port| !port.protocol.eq_ignore_ascii_case("UDP"));
    let mapping = |port: &manifest::kinds::ServicePort| {
        let target =
            workload.own(&port.name).or_else(|| port_number(port.target_port.unwrap_or(port.number)));
        Some(PortMapping {
            service_port: port_number(port.number)?,
            target_port: Some(target?),
            app_protocol: protocol(&port.protocol),
        })
    };
    ports.filter_map(mapping).collect()
}

/// Nobody who resolves anything: the ports as a ServiceEntry itself tells them.
pub(super) struct Nobody;

impl Resolve for Nobody {
    fn named(&self, _: &str) -> Option<u16> {
        None
    }

    fn own(&self, _: &str) -> Option<u16> {
        None
    }
}

fn protocol(word: &str) -> AppProtocol {
    match word.to_ascii_lowercase().as_str() {
        "http" | "http1" | "kubernetes.io/ws" => AppProtocol::Http11,
        "http2" | "kubernetes.io/h2c" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "tls" | "https" | "kubernetes.io/wss" => AppProtocol::Tls,
        "tcp" | "mongo" | "redis" | "mysql" => AppProtocol::Tcp,
        _ => AppProtocol::Unknown,
    }
}

fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol == "TCP")
}

/// A port of one of Kubernetes' fields; those out of range do not get past validation.
pub(super) fn number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}

fn port_number(port: u32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}
