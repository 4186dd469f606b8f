//! What a resource is once it has been read.

use std::fmt;
use std::sync::Arc;

use index::Update;
use model::{Policy, PolicyKey, Service, ServiceKey, Uid, Workload};

use crate::TypeUrl;

/// One thing that the control plane tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// An endpoint.
    Workload(Arc<Workload>),
    /// A name in front of endpoints.
    Service(Arc<Service>),
    /// A policy.
    Policy(Arc<Policy>),
}

impl Resource {
    /// What names it.
    pub fn key(&self) -> ResourceKey {
        match self {
            Self::Workload(workload) => ResourceKey::Workload(workload.uid.clone()),
            Self::Service(service) => ResourceKey::Service(service.key()),
            Self::Policy(policy) => ResourceKey::Policy(policy.key.clone()),
        }
    }

    /// The type under which it travels.
    pub fn type_url(&self) -> TypeUrl {
        match self {
            Self::Workload(_) | Self::Service(_) => TypeUrl::Address,
            Self::Policy(_) => TypeUrl::Authorization,
        }
    }

    /// The other names that it answers to.
    pub(crate) fn aliases(&self) -> Vec<Arc<str>> {
        match self {
            Self::Workload(w) => w.network_addrs().map(|a| a.to_string().into()).collect(),
            Self::Service(s) => s.addresses.iter().map(|a| a.to_string().into()).collect(),
            Self::Policy(_) => Vec::new(),
        }
    }

    /// The names of the services that bring it along when they are asked for.
    pub(crate) fn groups(&self) -> Vec<Arc<str>> {
        match self {
            Self::Workload(w) => w.services.keys().map(|key| key.to_string().into()).collect(),
            Self::Service(_) | Self::Policy(_) => Vec::new(),
        }
    }
}

/// What names a resource. Displayed, it is the resource's name on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceKey {
    /// A workload's uid.
    Workload(Uid),
    /// A service's namespace and host name.
    Service(ServiceKey),
    /// A policy's namespace and name.
    Policy(PolicyKey),
}

impl ResourceKey {
    /// The type under which the resource travels.
    pub fn type_url(&self) -> TypeUrl {
        match self {
            Self::Workload(_) | Self::Service(_) => TypeUrl::Address,
            Self::Policy(_) => TypeUrl::Authorization,
        }
    }
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(uid) => uid.fmt(f),
            Self::Service(key) => key.fmt(f),
            Self::Policy(key) => key.fmt(f),
        }
    }
}

impl From<Workload> for Resource {
    fn from(workload: Workload) -> Self {
        Self::Workload(Arc::new(workload))
    }
}

impl From<Service> for Resource {
    fn from(service: Service) -> Self {
        Self::Service(Arc::new(service))
    }
}

impl From<Policy> for Resource {
    fn from(policy: Policy) -> Self {
        Self::Policy(Arc::new(policy))
    }
}

/// It is now this.
impl From<Resource> for Update {
    fn from(resource: Resource) -> Self {
        match resource {
            Resource::Workload(workload) => Self::Workload(workload),
            Resource::Service(service) => Self::Service(service),
            Resource::Policy(policy) => Self::Policy(policy),
        }
    }
}

/// It is gone.
impl From<ResourceKey> for Update {
    fn from(key: ResourceKey) -> Self {
        match key {
            ResourceKey::Workload(uid) => Self::RemoveWorkload(uid),
            ResourceKey::Service(key) => Self::RemoveService(key),
            ResourceKey::Policy(key) => Self::RemovePolicy(key),
        }
    }
}
