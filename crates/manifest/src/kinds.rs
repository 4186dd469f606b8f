//! The mesh's own kinds. Kubernetes' come from `k8s-openapi`.
//!
//! Every field that the kinds have upstream is here, so that a field that is known but not used is told apart from a
//! misspelt one.

mod authorization;
mod gateway;
mod mesh_config;
mod peer;
mod service_entry;

pub use authorization::{
    Action, AuthorizationPolicySpec, Condition, From, Operation, Provider, Rule, Source, TargetRef, To,
};
pub use gateway::{AllowedRoutes, GatewayAddress, GatewaySpec, Listener, RouteNamespaces};
pub use mesh_config::{MeshConfig, MeshSettings};
pub use peer::{MutualTls, MutualTlsMode, PeerAuthenticationSpec};
pub use service_entry::{
    Location, Resolution, ServiceEntrySpec, ServicePort, WorkloadEntrySpec, WorkloadSelector,
};

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

/// An object with metadata and a specification.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Resource<S> {
    /// Group and version, as written.
    pub api_version: String,
    /// The kind.
    pub kind: String,
    /// Name, namespace, labels.
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: S,
    /// What others report about it; as a rule not interpreted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<serde_json::Value>,
}

/// What traffic passes: among others a waypoint (`gateway.networking.k8s.io`).
pub type Gateway = Resource<GatewaySpec>;
/// Who may connect (`security.istio.io`).
pub type AuthorizationPolicy = Resource<AuthorizationPolicySpec>;
/// Whether plaintext is taken (`security.istio.io`).
pub type PeerAuthentication = Resource<PeerAuthenticationSpec>;
/// A service outside Kubernetes (`networking.istio.io`).
pub type ServiceEntry = Resource<ServiceEntrySpec>;
/// A workload outside Kubernetes (`networking.istio.io`).
pub type WorkloadEntry = Resource<WorkloadEntrySpec>;

/// Workloads by label; all of the namespace where it is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Selector {
    /// Labels that a workload has, all of them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
}

/// Whether labels have all that a selector asks for.
pub fn selects(selector: &BTreeMap<String, String>, labels: Option<&BTreeMap<String, String>>) -> bool {
    selector.iter().all(|(key, value)| labels.is_some_and(|labels| labels.get(key) == Some(value)))
}
