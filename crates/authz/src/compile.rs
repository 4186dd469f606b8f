//! A policy in the form in which it is evaluated.

use std::sync::Arc;

use model::PolicyKey;
use model::policy::{Action, Clause, Match, Policy, PolicyScope, Rule};

use crate::values::{Field, Test};
use crate::verdict::FailingClause;
use crate::{Connection, RuleRef};

/// A policy in the form in which it is evaluated, shared by all workloads it is about.
#[derive(Clone, Debug)]
pub struct CompiledPolicy {
    policy: Arc<Policy>,
    rules: Box<[CompiledRule]>,
}

/// Clauses, AND-ed.
#[derive(Clone, Debug)]
struct CompiledRule(Box<[CompiledClause]>);

/// Matches, OR-ed; none match everything.
#[derive(Clone, Debug)]
struct CompiledClause(Box<[CompiledMatch]>);

/// Tests, AND-ed.
#[derive(Clone, Debug)]
struct CompiledMatch {
    tests: Box<[Test]>,
    unreadable: bool,
}

impl CompiledPolicy {
    /// Prepares a policy. This cannot fail: what could not be read is marked so in the policy.
    pub fn compile(policy: Arc<Policy>) -> Self {
        let rules = policy.rules.iter().map(CompiledRule::compile).collect();
        Self { policy, rules }
    }

    /// What it was compiled from.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// Its name.
    pub fn key(&self) -> &PolicyKey {
        &self.policy.key
    }

    /// What a match means.
    pub fn action(&self) -> Action {
        self.policy.action
    }

    /// Whether it is only reported.
    pub fn is_dry_run(&self) -> bool {
        self.policy.dry_run
    }

    /// Which workloads it is about.
    pub fn scope(&self) -> PolicyScope {
        self.policy.scope
    }

    /// The first of its rules that matches.
    pub fn first_match(&self, connection: &Connection) -> Option<RuleRef> {
        let action = self.action();
        let rule = self.rules.iter().position(|r| r.matches(connection, action))?;
        Some(RuleRef { policy: self.key().clone(), rule })
    }

    /// The rule that comes nearest to matching (the fewest failing clauses, the earlier of equals), by its first failing
    /// clause. Nothing if a rule matches or there are no rules.
    pub(crate) fn nearest_miss(&self, connection: &Connection) -> Option<(usize, FailingClause)> {
        let action = self.action();
        let misses = self.rules.iter().enumerate().map(|(index, rule)| {
            let failing = rule.0.iter().filter(|c| !c.matches(connection, action)).count();
            (failing, index, rule)
        });
        let (failing, index, rule) = misses.min_by_key(|(failing, index, _)| (*failing, *index))?;
        let clause = rule.0.iter().position(|c| !c.matches(connection, action))?;
        let (field, wanted) = rule.0[clause].nearest_miss(connection, action)?;
        let at = RuleRef { policy: self.key().clone(), rule: index };
        Some((failing, FailingClause { at, clause, field, wanted, found: field.found(connection) }))
    }
}

impl CompiledRule {
    fn compile(rule: &Rule) -> Self {
        Self(rule.clauses.iter().map(CompiledClause::compile).collect())
    }

    fn matches(&self, connection: &Connection, action: Action) -> bool {
        self.0.iter().all(|c| c.matches(connection, action))
    }
}

impl CompiledClause {
    fn compile(clause: &Clause) -> Self {
        Self(clause.matches.iter().map(CompiledMatch::compile).collect())
    }

    fn matches(&self, connection: &Connection, action: Action) -> bool {
        self.0.is_empty() || self.0.iter().any(|m| m.matches(connection, action))
    }

    /// Of the match with the fewest failing tests, the first of these and what it asks for.
    fn nearest_miss(&self, connection: &Connection, action: Action) -> Option<(Field, String)> {
        let failing = |m: &CompiledMatch| m.tests.iter().filter(|t| !t.holds(connection)).count();
        let nearest = self.0.iter().filter(|m| !m.matches(connection, action)).min_by_key(|m| failing(m))?;
        match nearest.tests.iter().find(|t| !t.holds(connection)) {
            Some(test) => Some((test.field, test.wanted())),
            None => Some((Field::Unreadable, "known to this proxy's version".to_owned())),
        }
    }
}

impl CompiledMatch {
    fn compile(m: &Match) -> Self {
        let tests = [
            Test::texts(Field::Namespace, false, &m.namespaces),
            Test::texts(Field::Namespace, true, &m.not_namespaces),
            Test::accounts(false, &m.service_accounts),
            Test::accounts(true, &m.not_service_accounts),
            Test::texts(Field::Principal, false, &m.principals),
            Test::texts(Field::Principal, true, &m.not_principals),
            Test::blocks(Field::SourceIp, false, &m.source_ips),
            Test::blocks(Field::SourceIp, true, &m.not_source_ips),
            Test::blocks(Field::DestinationIp, false, &m.destination_ips),
            Test::blocks(Field::DestinationIp, true, &m.not_destination_ips),
            Test::ports(false, &m.destination_ports),
            Test::ports(true, &m.not_destination_ports),
        ];
        Self { tests: tests.into_iter().flatten().collect(), unreadable: m.unreadable }
    }

    fn matches(&self, connection: &Connection, action: Action) -> bool {
        if self.unreadable {
            // The lost value may have belonged to any field, so no other field can settle the match.
            return action == Action::Deny;
        }
        self.tests.iter().all(|t| t.holds(connection))
    }
}
