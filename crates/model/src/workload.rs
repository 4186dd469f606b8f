//! Workloads: what runs behind an address.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

use crate::{
    GatewayAddress, NamespacedHostname, NetworkAddr, NetworkId, PolicyKey, PortMapping, ServiceKey, SpiffeId,
    TrustDomain, Uid,
};

/// A workload, as the workload API's `istio.workload.Workload` describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Workload {
    /// The name under which the control plane serves it.
    pub uid: Uid,
    /// The pod's name.
    pub name: Arc<str>,
    /// The pod's namespace.
    pub namespace: Arc<str>,
    /// Its addresses in `network`; none where it is reached by `hostname` only.
    pub addresses: Vec<IpAddr>,
    /// The host name to resolve where there is no address.
    pub hostname: Option<Arc<str>>,
    /// The network its addresses hold in.
    pub network: NetworkId,
    /// How it takes traffic.
    pub tunnel: TunnelProtocol,
    /// The trust domain of its identity.
    pub trust_domain: TrustDomain,
    /// The service account of its identity.
    pub service_account: Arc<str>,
    /// The waypoint that traffic addressed to the workload itself must pass.
    pub waypoint: Option<GatewayAddress>,
    /// The gateway to its network.
    pub network_gateway: Option<GatewayAddress>,
    /// The node it runs on.
    pub node: Arc<str>,
    /// The canonical service, for telemetry.
    pub canonical_name: Arc<str>,
    /// The canonical service's revision, for telemetry.
    pub canonical_revision: Arc<str>,
    /// What manages it.
    pub kind: WorkloadKind,
    /// The name of what manages it.
    pub workload_name: Arc<str>,
    /// Whether it speaks HBONE itself, so that nothing is to be captured.
    pub native_tunnel: bool,
    /// How a proxy behind the HBONE server wants its connections.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// The services that it is an endpoint of, each with its ports.
    pub services: BTreeMap<ServiceKey, Vec<PortMapping>>,
    /// The policies that select it by label.
    pub authorization_policies: Vec<PolicyKey>,
    /// Whether it may be chosen as an endpoint.
    pub health: Health,
    /// The cluster it runs in.
    pub cluster_id: Arc<str>,
    /// Where it runs.
    pub locality: Locality,
    /// Whether it shares the node's network namespace.
    pub network_mode: NetworkMode,
    /// Its weight among a service's endpoints, 1 where the wire has none; 0 takes no traffic.
    pub capacity: u32,
}

impl Workload {
    /// The identity that the workload proves by certificate.
    ///
    /// Nothing where namespace or account cannot be written as an identity; such a workload can prove none.
    pub fn identity(&self) -> Option<SpiffeId> {
        SpiffeId::new(self.trust_domain.clone(), &self.namespace, &self.service_account).ok()
    }

    /// Its addresses with the network they hold in.
    pub fn network_addrs(&self) -> impl Iterator<Item = NetworkAddr> + '_ {
        self.addresses.iter().map(|ip| NetworkAddr::new(self.network.clone(), *ip))
    }

    /// The host name to look up in its namespace where it has no address.
    pub fn namespaced_hostname(&self) -> Option<NamespacedHostname> {
        self.hostname.as_ref().map(|h| NamespacedHostname::new(&self.namespace, h))
    }
}

/// How a workload takes traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum TunnelProtocol {
    /// As it is, without a tunnel.
    #[default]
    None,
    /// Over HBONE.
    Hbone,
}

/// What manages a workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadKind {
    /// A Deployment, or what looks like one.
    #[default]
    Deployment,
    /// A CronJob.
    CronJob,
    /// Nothing: a bare pod.
    Pod,
    /// A Job.
    Job,
}

impl WorkloadKind {
    /// The word in baggage keys and log fields.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::CronJob => "cronjob",
            Self::Pod => "pod",
            Self::Job => "job",
        }
    }
}

/// Whether a workload may be chosen as an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum Health {
    /// Ready.
    #[default]
    Healthy,
    /// About to end, and still serving: chosen only where no endpoint is healthy (KEP-1669).
    Terminating,
    /// Not ready; chosen only where a service asks for all its endpoints.
    Unhealthy,
}

/// Whether a workload shares the node's network namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum NetworkMode {
    /// It has its own.
    #[default]
    Standard,
    /// It uses the node's; its address says nothing about who it is.
    HostNetwork,
}

/// Where a workload runs; an empty part is unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Locality {
    /// The region.
    pub region: Arc<str>,
    /// The zone in the region.
    pub zone: Arc<str>,
    /// The part of the zone.
    pub subzone: Arc<str>,
}

/// How a proxy behind the HBONE server wants its connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ApplicationTunnel {
    /// What is written before the bytes of the connection.
    pub protocol: ApplicationTunnelProtocol,
    /// The port to connect to; the target's own where there is none.
    pub port: Option<u16>,
}

/// What is written before the bytes of a tunnelled connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum ApplicationTunnelProtocol {
    /// Nothing.
    #[default]
    None,
    /// A PROXY protocol v2 header.
    Proxy,
}
