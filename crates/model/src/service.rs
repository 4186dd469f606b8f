//! Services: names and virtual addresses in front of workloads.

use std::sync::Arc;

use serde::Serialize;

use crate::{GatewayAddress, NetworkAddr, NetworkBlock, ServiceKey};

/// A service, as the workload API's `istio.workload.Service` describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Service {
    /// The object's name.
    pub name: Arc<str>,
    /// The object's namespace.
    pub namespace: Arc<str>,
    /// The host name, fully qualified.
    pub hostname: Arc<str>,
    /// Its virtual addresses; none where it is headless.
    pub addresses: Vec<NetworkAddr>,
    /// Blocks of addresses that stand for it, where nobody has an address of his own in them.
    pub blocks: Vec<NetworkBlock>,
    /// Its ports.
    pub ports: Vec<PortMapping>,
    /// Identities that its endpoints may prove beside their own.
    pub subject_alt_names: Vec<Arc<str>>,
    /// The waypoint that traffic to the service must pass.
    pub waypoint: Option<GatewayAddress>,
    /// Which endpoints are preferred, and what if there are none.
    pub load_balancing: LoadBalancing,
    /// The address families that its endpoints are reached by.
    pub ip_families: IpFamilies,
    /// Whether it wins over others of the same host name.
    pub canonical: bool,
    /// Whether gateways send to the waypoint too.
    pub ingress_use_waypoint: bool,
    /// Waypoints among which traffic is split; empty where there is one or none.
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// Who may see it.
    pub visibility: Visibility,
}

impl Service {
    /// What names the service.
    pub fn key(&self) -> ServiceKey {
        ServiceKey { namespace: self.namespace.clone(), hostname: self.hostname.clone() }
    }

    /// The mapping of a port that clients connect to.
    pub fn port(&self, service_port: u16) -> Option<&PortMapping> {
        self.ports.iter().find(|p| p.service_port == service_port)
    }
}

/// A service's port and the port behind it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct PortMapping {
    /// The port clients connect to.
    pub service_port: u16,
    /// The port on the workload; nothing where each workload names its own.
    pub target_port: Option<u16>,
    /// What is spoken on it, where that is declared.
    pub app_protocol: AppProtocol,
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum AppProtocol {
    /// Not declared.
    #[default]
    Unknown,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// Opaque bytes.
    Tcp,
    /// TLS that is not ours to end.
    Tls,
}

/// Which endpoints of a service are preferred.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LoadBalancing {
    /// What an endpoint should have in common with the client, most important first.
    pub routing_preference: Vec<Scope>,
    /// What the preference means.
    pub mode: LoadBalancingMode,
    /// Whether unhealthy endpoints count.
    pub health_policy: HealthPolicy,
}

/// What a client and an endpoint may have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Scope {
    /// The region.
    Region,
    /// The zone (and region).
    Zone,
    /// The part of the zone.
    Subzone,
    /// The node.
    Node,
    /// The cluster.
    Cluster,
    /// The network.
    Network,
}

/// What a routing preference means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum LoadBalancingMode {
    /// Nothing: all endpoints are alike.
    #[default]
    Unspecified,
    /// Only endpoints that match every scope.
    Strict,
    /// The endpoints that match the longest prefix of the scopes.
    Failover,
    /// No choice: the address that the client dialled.
    Passthrough,
}

/// Whether unhealthy endpoints count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum HealthPolicy {
    /// They do not.
    #[default]
    OnlyHealthy,
    /// They do (`publishNotReadyAddresses`).
    AllowAll,
}

/// The address families that a service's endpoints are reached by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum IpFamilies {
    /// Whatever they have.
    #[default]
    Automatic,
    /// v4 only.
    V4Only,
    /// v6 only.
    V6Only,
    /// Both.
    Dual,
}

/// Who may see a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum Visibility {
    /// Everyone.
    #[default]
    Public,
    /// Its own namespace.
    Namespace,
}

/// One of several waypoints among which traffic is split.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct WeightedWaypoint {
    /// The waypoint.
    pub destination: GatewayAddress,
    /// Its share in the sum of all weights.
    pub weight: u32,
}
