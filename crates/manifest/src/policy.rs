//! Policies of users to policies of the workload API.
//!
//! Pure: what a node proxy gets depends on the object and the root namespace alone. A node proxy sees connections, not
//! requests, so a policy loses what it says about requests, always towards denying:
//!
//! - an ALLOW rule with an attribute of requests is dropped, since it could allow too much;
//! - a DENY rule with one denies by its other attributes alone;
//! - a DENY rule with nothing else denies all that the policy selects.
//!
//! What was lost is told in [`Note`]s. A policy with `targetRefs` is a waypoint's and gives nothing here.

mod authorization;
pub(crate) mod matching;
mod peer;

pub use authorization::{DRY_RUN_ANNOTATION, Translation, is_for_node, translate};
pub use matching::ConditionKey;
pub(crate) use matching::{network, port, service_account, string};
pub use peer::{Mode, converted_policy, effective_mode, governing, oldest, static_strict, workload_policy};

use std::fmt;

use serde::Serialize;

/// What a node proxy does otherwise than the object says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "note", rename_all = "camelCase")]
pub enum Note {
    /// The policy is attached to objects, and so the business of their waypoint.
    ForWaypoint,
    /// The node proxy knows no such action: a CUSTOM denies what it matches, an AUDIT does nothing.
    Action {
        /// The action.
        action: &'static str,
    },
    /// An ALLOW rule never matches because of these attributes.
    NeverAllows {
        /// The rule's index in the object.
        rule: usize,
        /// The attributes that a node proxy cannot see.
        attributes: Vec<String>,
    },
    /// A DENY rule, or one of a CUSTOM, denies without regard to these attributes.
    DeniesMore {
        /// The rule's index in the object.
        rule: usize,
        /// The attributes that a node proxy cannot see.
        attributes: Vec<String>,
    },
    /// A DENY rule, or one of a CUSTOM, has no other attributes and so denies all that the policy selects.
    DeniesAll {
        /// The rule's index in the object.
        rule: usize,
        /// The attributes that a node proxy cannot see.
        attributes: Vec<String>,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForWaypoint => {
                f.write_str("attached by targetRefs: enforced by a waypoint, not at the node")
            }
            Self::Action { action: "AUDIT" } => f.write_str("AUDIT does nothing at the node"),
            Self::Action { action } => {
                write!(f, "{action} cannot be asked at the node: what it matches is denied")
            }
            Self::NeverAllows { rule, attributes } => {
                write!(
                    f,
                    "rules[{rule}] never allows at the node, which cannot see {}",
                    attributes.join(", ")
                )
            }
            Self::DeniesMore { rule, attributes } => {
                write!(f, "rules[{rule}] denies at the node without regard to {}", attributes.join(", "))
            }
            Self::DeniesAll { rule, attributes } => write!(
                f,
                "rules[{rule}] denies all that the policy selects: the node cannot see {}",
                attributes.join(", ")
            ),
        }
    }
}
