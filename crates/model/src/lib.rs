//! The validated words of the mesh.
//!
//! Everything above this crate speaks in these types. A value of one of them has been checked already: parsing happens
//! where bytes or YAML come in, never here and never twice. Nothing in this crate does I/O or reads a clock.

mod addr;
mod ident;
mod name;
pub mod policy;
mod service;
mod workload;

pub use addr::{GatewayAddress, GatewayDestination, NetworkAddr, NetworkBlock, NetworkId};
pub use ident::{IdentitySet, ParseSpiffeIdError, SpiffeId, TrustDomain};
pub use name::{NamespacedHostname, NamespacedName, ServiceKey, Uid};
pub use policy::{Policy, PolicyKey};
pub use service::{
    AppProtocol, HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, PortMapping, Scope, Service,
    Visibility, WeightedWaypoint,
};
pub use workload::{
    ApplicationTunnel, ApplicationTunnelProtocol, Health, Locality, NetworkMode, TunnelProtocol, Workload,
    WorkloadKind,
};
