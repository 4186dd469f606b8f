//! The policies in force for one workload, and the decision.

use std::sync::Arc;

use model::PolicyKey;
use model::policy::Action;

use crate::{CompiledPolicy, Connection, Judgement, PolicyReport, Verdict};

/// The policies in force for one workload: a view, made for one decision.
#[derive(Clone, Debug, Default)]
pub struct PolicySet<'a> {
    mesh: &'a [Arc<CompiledPolicy>],
    namespace: &'a [Arc<CompiledPolicy>],
    /// Allocates nothing where the workload names no policy.
    named: Vec<&'a Arc<CompiledPolicy>>,
    unknown: Vec<&'a PolicyKey>,
}

impl<'a> PolicySet<'a> {
    /// Joins the policies of the mesh and of the workload's namespace with those that the workload itself names, which
    /// `find` looks up. A name that `find` does not know denies.
    pub fn new(
        mesh: &'a [Arc<CompiledPolicy>],
        namespace: &'a [Arc<CompiledPolicy>],
        names: &'a [PolicyKey],
        find: impl Fn(&PolicyKey) -> Option<&'a Arc<CompiledPolicy>>,
    ) -> Self {
        let (mut named, mut unknown) = (Vec::new(), Vec::new());
        for name in names {
            match find(name) {
                Some(policy) => named.push(policy),
                None => unknown.push(name),
            }
        }
        Self { mesh, namespace, named, unknown }
    }

    /// Whether nothing restricts the workload.
    pub fn is_empty(&self) -> bool {
        self.mesh.is_empty() && self.namespace.is_empty() && self.named.is_empty() && self.unknown.is_empty()
    }

    /// All policies in force: the mesh's, the namespace's, those named.
    pub fn policies(&self) -> impl Iterator<Item = &'a Arc<CompiledPolicy>> + '_ {
        self.mesh.iter().chain(self.namespace).chain(self.named.iter().copied())
    }

    /// The names that the workload gives and that are not known.
    pub fn unknown(&self) -> &[&'a PolicyKey] {
        &self.unknown
    }

    /// Judges a connection.
    pub fn decide(&self, connection: &Connection) -> Verdict {
        let judgement = self.judge(connection, |p| !p.is_dry_run());
        let has_dry_run = self.policies().any(|p| p.is_dry_run());
        let dry_run = has_dry_run.then(|| self.judge(connection, |_| true));
        Verdict { judgement, dry_run }
    }

    /// What each policy in force says about a connection, in the order of [`PolicySet::policies`].
    pub fn explain(&self, connection: &Connection) -> Vec<PolicyReport> {
        self.policies().map(|p| PolicyReport::new(p, connection)).collect()
    }

    fn judge(&self, connection: &Connection, counts: impl Fn(&CompiledPolicy) -> bool) -> Judgement {
        let counts = &counts;
        let with = |action: Action| self.policies().filter(move |p| p.action() == action && counts(p));
        if let Some(rule) = with(Action::Deny).find_map(|p| p.first_match(connection)) {
            return Judgement::Denied(rule);
        }
        if let Some(unknown) = self.unknown.first() {
            return Judgement::NotYetKnown((*unknown).clone());
        }
        if let Some(rule) = with(Action::Allow).find_map(|p| p.first_match(connection)) {
            return Judgement::Allowed(rule);
        }
        let policies: Vec<PolicyKey> = with(Action::Allow).map(|p| p.key().clone()).collect();
        if policies.is_empty() {
            return Judgement::Unrestricted;
        }
        let misses = with(Action::Allow).filter_map(|p| p.nearest_miss(connection));
        let nearest = misses.min_by_key(|(failing, _)| *failing).map(|(_, clause)| Box::new(clause));
        Judgement::NotAllowed { policies, nearest }
    }
}
