//! What a change to the objects may change of the world.

use std::collections::BTreeSet;
use std::fmt;

use manifest::Kind;
use model::{NamespacedName, ServiceKey};
use serde::{Serialize, Serializer};

/// What resources are made from, and made anew together.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// A Pod: its workload.
    Pod(NamespacedName),
    /// A WorkloadEntry: its workload.
    WorkloadEntry(NamespacedName),
    /// An EndpointSlice: workloads of addresses that are no pods'.
    EndpointSlice(NamespacedName),
    /// A ServiceEntry: the workloads that it writes out.
    ServiceEntry(NamespacedName),
    /// A Gateway to another network: its workload.
    Gateway(NamespacedName),
    /// A host name in a namespace: the service of the object that declares it.
    Host(ServiceKey),
    /// An AuthorizationPolicy: its policy.
    AuthorizationPolicy(NamespacedName),
    /// A PeerAuthentication: its policy, where ports are told apart.
    PeerAuthentication(NamespacedName),
    /// Nothing: the policy that refuses plaintext everywhere.
    StaticStrict,
}

impl Origin {
    /// The namespace whose word about plaintext goes into what is made.
    pub(crate) fn under_peer_mode(&self) -> Option<&str> {
        match self {
            Self::Pod(name)
            | Self::WorkloadEntry(name)
            | Self::ServiceEntry(name)
            | Self::EndpointSlice(name)
            | Self::PeerAuthentication(name) => Some(&name.namespace),
            Self::Gateway(_) | Self::Host(_) | Self::AuthorizationPolicy(_) | Self::StaticStrict => None,
        }
    }
}

/// `Pod shop/web-0`.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => write!(f, "Pod {name}"),
            Self::WorkloadEntry(name) => write!(f, "WorkloadEntry {name}"),
            Self::EndpointSlice(name) => write!(f, "EndpointSlice {name}"),
            Self::ServiceEntry(name) => write!(f, "ServiceEntry {name}"),
            Self::Gateway(name) => write!(f, "Gateway {name}"),
            Self::Host(key) => write!(f, "host {key}"),
            Self::AuthorizationPolicy(name) => write!(f, "AuthorizationPolicy {name}"),
            Self::PeerAuthentication(name) => write!(f, "PeerAuthentication {name}"),
            Self::StaticStrict => f.write_str("static strict"),
        }
    }
}

impl Serialize for Origin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// All whose translation may be another after a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeSet {
    /// What is to be made anew.
    pub origins: BTreeSet<Origin>,
    /// The mesh's settings are others: all is to be made anew.
    pub everything: bool,
    /// Namespaces whose own word about plaintext may be another.
    pub peer_modes: BTreeSet<String>,
    /// The mesh's word about plaintext may be another.
    pub mesh_peer_mode: bool,
    /// Something else than endpoints changed.
    pub config: bool,
    /// Something changed at all.
    pub any: bool,
}

impl ChangeSet {
    /// Whether nothing depends on the change.
    pub fn is_empty(&self) -> bool {
        self.origins.is_empty() && !self.everything && self.peer_modes.is_empty() && !self.mesh_peer_mode
    }

    /// Adds a later change.
    pub fn merge(&mut self, later: Self) {
        self.origins.extend(later.origins);
        self.everything |= later.everything;
        self.peer_modes.extend(later.peer_modes);
        self.mesh_peer_mode |= later.mesh_peer_mode;
        self.config |= later.config;
        self.any |= later.any;
    }

    pub(super) fn note(&mut self, kind: Kind) {
        self.any = true;
        self.config |= !matches!(kind, Kind::Pod | Kind::EndpointSlice | Kind::WorkloadEntry | Kind::Node);
    }
}
