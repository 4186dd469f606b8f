//! What the control plane tells.

use std::sync::Arc;

use model::{Policy, PolicyKey, Service, ServiceKey, Uid, Workload};

/// One thing that the control plane tells. To say again what is known already changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// The workload is now this.
    Workload(Arc<Workload>),
    /// The service is now this.
    Service(Arc<Service>),
    /// The policy is now this.
    Policy(Arc<Policy>),
    /// There is no such workload any more.
    RemoveWorkload(Uid),
    /// There is no such service any more.
    RemoveService(ServiceKey),
    /// There is no such policy any more.
    RemovePolicy(PolicyKey),
    /// A policy that is now about those that name it applies to nobody else any more: no further workload is waited for
    /// (see [`Delta::narrowed`](crate::Delta::narrowed)).
    Narrowed(PolicyKey),
    /// There is no such address resource any more: a workload by its uid or a service by `namespace/hostname`. The
    /// wire's removals do not say which of the two it was; whatever has the name goes.
    RemoveAddress(Arc<str>),
}

impl From<Workload> for Update {
    fn from(workload: Workload) -> Self {
        Self::Workload(Arc::new(workload))
    }
}

impl From<Service> for Update {
    fn from(service: Service) -> Self {
        Self::Service(Arc::new(service))
    }
}

impl From<Policy> for Update {
    fn from(policy: Policy) -> Self {
        Self::Policy(Arc::new(policy))
    }
}
