//! Compiled L4 policies and the verdicts they give.
//!
//! The rule of `istio.security.Authorization`: any DENY that matches denies; with at least one ALLOW in scope, no ALLOW
//! that matches denies; otherwise the connection is allowed. A policy is compiled once, when it arrives
//! ([`CompiledPolicy`]), and shared by all workloads it is about. What is in force for one workload is a [`PolicySet`]:
//! a borrowed view over the mesh's, the namespace's and the workload's own policies, made for one decision.
//!
//! # Where something cannot be decided
//!
//! - A match that holds a value this build cannot read ([`model::policy::Match::unreadable`]) never allows and always
//!   denies, whatever its readable fields say: it is not known which field the lost value was meant for.
//! - A workload that names a selector policy which has not arrived yet is denied
//!   ([`Judgement::NotYetKnown`]): the policy may be a DENY that this connection would meet, or the first ALLOW, which
//!   would exclude all others. Workloads and policies travel as two resource types and may arrive in either order, so
//!   such a denial is *provisional* ([`Judgement::is_provisional`]): a caller should wait a bounded moment for the next
//!   snapshot before it refuses a new connection, and should not end a live one until that moment has passed.
//!   A DENY that matches wins over this, since nothing that may still arrive can change it.
//! - A source that proved no identity has no principal, namespace or account. Positive fields about them do not match;
//!   `not_` fields do, for none of their values is the source's. `not_principals: presence` therefore matches exactly
//!   the connections without mutual TLS, which is how STRICT is written.
//! - There is nothing of L7 here. A rule with HTTP attributes is cut down, or marked unreadable, before it comes here.

mod compile;
mod connection;
mod explain;
mod set;
mod values;
mod verdict;

pub use compile::CompiledPolicy;
pub use connection::Connection;
pub use explain::PolicyReport;
pub use set::PolicySet;
pub use values::Field;
pub use verdict::{Effect, FailingClause, Judgement, RuleRef, Verdict};
