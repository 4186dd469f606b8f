//! What a single policy says about a connection.

use model::PolicyKey;
use model::policy::Action;

use crate::{CompiledPolicy, Connection, FailingClause, RuleRef};

/// What a single policy says about a connection, apart from all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyReport {
    /// The policy.
    pub policy: PolicyKey,
    /// What its match means.
    pub action: Action,
    /// Whether it is only reported.
    pub dry_run: bool,
    /// The first rule that matches.
    pub matched: Option<RuleRef>,
    /// Where none does, the condition that came nearest; nothing where the policy has no rules.
    pub failing: Option<FailingClause>,
}

impl PolicyReport {
    pub(crate) fn new(policy: &CompiledPolicy, connection: &Connection) -> Self {
        let matched = policy.first_match(connection);
        let failing = match matched {
            Some(_) => None,
            None => policy.nearest_miss(connection).map(|(_, clause)| clause),
        };
        Self {
            policy: policy.key().clone(),
            action: policy.action(),
            dry_run: policy.is_dry_run(),
            matched,
            failing,
        }
    }
}
