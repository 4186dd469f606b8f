//! What was decided, and by which rule.

use std::fmt;

use model::PolicyKey;

use crate::Field;

/// Whether a connection may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// It may.
    Allow,
    /// It may not.
    Deny,
}

/// One rule of a policy, counted from 0. Written as `namespace/name rule 0`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RuleRef {
    /// The policy.
    pub policy: PolicyKey,
    /// The place in its `rules`.
    pub rule: usize,
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rule {}", self.policy, self.rule)
    }
}

/// The first condition of a rule that a connection does not meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailingClause {
    /// The rule.
    pub at: RuleRef,
    /// The place in the rule's `clauses`, from 0.
    pub clause: usize,
    /// What the condition is about.
    pub field: Field,
    /// What it asks for, in words.
    pub wanted: String,
    /// What the connection has, in words.
    pub found: String,
}

impl fmt::Display for FailingClause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} is {}, not {}", self.at, self.field, self.found, self.wanted)
    }
}

/// How a set of policies judges a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Allowed: no DENY matches and there is no ALLOW in scope.
    Unrestricted,
    /// Allowed by a rule.
    Allowed(RuleRef),
    /// Denied by a rule.
    Denied(RuleRef),
    /// Denied: there are ALLOW policies and none of them matches.
    NotAllowed {
        /// The ALLOW policies in scope.
        policies: Vec<PolicyKey>,
        /// Of all their rules, the condition that came nearest; nothing where none of them has a rule.
        nearest: Option<Box<FailingClause>>,
    },
    /// Denied for now: the workload names a policy that has not arrived.
    NotYetKnown(PolicyKey),
}

impl Judgement {
    /// Whether the connection may pass.
    pub fn effect(&self) -> Effect {
        match self {
            Self::Unrestricted | Self::Allowed(_) => Effect::Allow,
            Self::Denied(_) | Self::NotAllowed { .. } | Self::NotYetKnown(_) => Effect::Deny,
        }
    }

    /// The rule that decided; nothing where it was the absence of one.
    pub fn decided_by(&self) -> Option<&RuleRef> {
        match self {
            Self::Allowed(rule) | Self::Denied(rule) => Some(rule),
            Self::Unrestricted | Self::NotAllowed { .. } | Self::NotYetKnown(_) => None,
        }
    }

    /// For a denial by the lack of a match, the condition that came nearest.
    pub fn failing_clause(&self) -> Option<&FailingClause> {
        match self {
            Self::NotAllowed { nearest, .. } => nearest.as_deref(),
            _ => None,
        }
    }

    /// Whether the next snapshot may well say otherwise, so that a bounded wait is better than a refusal.
    pub fn is_provisional(&self) -> bool {
        matches!(self, Self::NotYetKnown(_))
    }
}

/// One line that tells who decided and why, for the access log.
impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unrestricted => f.write_str("allowed: no policy restricts it"),
            Self::Allowed(rule) => write!(f, "allowed by {rule}"),
            Self::Denied(rule) => write!(f, "denied by {rule}"),
            Self::NotAllowed { nearest: Some(nearest), .. } => {
                write!(f, "denied: no ALLOW policy matches; the nearest is {nearest}")
            }
            Self::NotAllowed { policies, nearest: None } => {
                f.write_str("denied: no ALLOW policy matches, for none has a rule:")?;
                policies.iter().try_for_each(|p| write!(f, " {p}"))
            }
            Self::NotYetKnown(policy) => {
                write!(f, "denied: policy {policy} is named by the workload but not yet known")
            }
        }
    }
}

/// The judgement that is enforced, and the one that dry-run policies would lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What holds.
    pub judgement: Judgement,
    /// What would hold if the dry-run policies in scope were enforced with the others; nothing where there are none.
    pub dry_run: Option<Judgement>,
}

impl Verdict {
    /// Whether the connection may pass.
    pub fn effect(&self) -> Effect {
        self.judgement.effect()
    }

    /// What the dry-run policies would change: nothing where they would come to the same effect.
    pub fn would_become(&self) -> Option<&Judgement> {
        self.dry_run.as_ref().filter(|d| d.effect() != self.effect())
    }
}
