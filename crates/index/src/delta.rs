//! The difference between two snapshots.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use model::policy::PolicyScope;
use model::{Policy, PolicyKey, Service, ServiceKey, Uid, Workload};

/// The difference between two snapshots: exactly what is not the same, however many updates led to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// The workloads that came, changed or went.
    pub workloads: BTreeMap<Uid, Change<Workload>>,
    /// The services that came, changed or went, apart from their endpoints.
    pub services: BTreeMap<ServiceKey, Change<Service>>,
    /// The policies that came, changed or went.
    pub policies: BTreeMap<PolicyKey, Change<Policy>>,
    /// The services with an endpoint that came, changed or went, known or not.
    pub endpoints: BTreeSet<ServiceKey>,
    /// The policies that were about a namespace or the mesh, are now about those that name them, and are named by nobody
    /// yet. Until a workload does, or [`Update::Narrowed`](crate::Update::Narrowed) says that the wait is over, they apply
    /// as before: who is to name them may be told a moment later, and must not be without them meanwhile.
    pub narrowed: BTreeSet<PolicyKey>,
    /// The workloads to which connections may now be admitted otherwise than before.
    pub admission: Reach,
}

impl Delta {
    /// Whether the snapshots are the same.
    pub fn is_empty(&self) -> bool {
        self.workloads.is_empty()
            && self.services.is_empty()
            && self.policies.is_empty()
            && self.admission.is_empty()
    }
}

/// What happened to one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<T> {
    /// It was not there before.
    Added(Arc<T>),
    /// It was different before.
    Changed {
        /// What it was.
        before: Arc<T>,
        /// What it is.
        after: Arc<T>,
    },
    /// It is no longer there.
    Removed(Arc<T>),
}

impl<T: PartialEq> Change<T> {
    /// The change from one state to another; nothing where they are the same.
    pub(crate) fn between(before: Option<Arc<T>>, after: Option<Arc<T>>) -> Option<Self> {
        match (before, after) {
            (None, None) => None,
            (None, Some(after)) => Some(Self::Added(after)),
            (Some(before), None) => Some(Self::Removed(before)),
            (Some(before), Some(after)) => (before != after).then_some(Self::Changed { before, after }),
        }
    }
}

impl<T> Change<T> {
    /// What it was.
    pub fn before(&self) -> Option<&Arc<T>> {
        match self {
            Self::Added(_) => None,
            Self::Changed { before, .. } | Self::Removed(before) => Some(before),
        }
    }

    /// What it is.
    pub fn after(&self) -> Option<&Arc<T>> {
        match self {
            Self::Added(after) | Self::Changed { after, .. } => Some(after),
            Self::Removed(_) => None,
        }
    }

    pub(crate) fn sides(&self) -> impl Iterator<Item = &Arc<T>> {
        self.before().into_iter().chain(self.after())
    }
}

/// Which workloads something is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// All of them.
    pub everyone: bool,
    /// All of these namespaces.
    pub namespaces: BTreeSet<Arc<str>>,
    /// These.
    pub workloads: BTreeSet<Uid>,
}

impl Reach {
    /// Whether it is about this one.
    pub fn includes(&self, workload: &Workload) -> bool {
        self.everyone
            || self.namespaces.contains(&workload.namespace)
            || self.workloads.contains(&workload.uid)
    }

    /// Whether it is about none.
    pub fn is_empty(&self) -> bool {
        !self.everyone && self.namespaces.is_empty() && self.workloads.is_empty()
    }

    /// Adds what a policy is about; `selected` are the workloads that name it.
    pub(crate) fn add_policy(&mut self, policy: &Policy, selected: &[Uid]) {
        match policy.scope {
            PolicyScope::Global => self.everyone = true,
            PolicyScope::Namespace => drop(self.namespaces.insert(policy.key.namespace.clone())),
            PolicyScope::WorkloadSelector => {}
        }
        // A workload may name a policy of any scope.
        self.workloads.extend(selected.iter().cloned());
    }
}
