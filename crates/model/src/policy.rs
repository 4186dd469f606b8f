//! L4 authorization, as it stands in the workload API's `istio.security.Authorization`.

use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use crate::NamespacedName;

/// What names a policy. Names that hold a `/`-free suffix such as `converted_peer_authentication_…` are no objects of the user.
pub type PolicyKey = NamespacedName;

/// A policy. With any DENY that matches, the connection is denied; with an ALLOW in scope and none that matches, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// Its name and the namespace it was written in.
    pub key: PolicyKey,
    /// Which workloads it is about.
    pub scope: PolicyScope,
    /// What a match means.
    pub action: Action,
    /// OR-ed. None at all match nothing: an ALLOW without rules allows nobody, a DENY without rules denies nobody.
    pub rules: Vec<Rule>,
    /// Whether it is only reported.
    pub dry_run: bool,
}

/// Which workloads a policy is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum PolicyScope {
    /// All of the mesh.
    Global,
    /// All of its namespace.
    Namespace,
    /// Those that name it in their `authorization_policies`.
    WorkloadSelector,
}

/// What a match means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// The connection may pass.
    Allow,
    /// The connection may not pass.
    Deny,
}

/// Clauses, AND-ed. A rule without any matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// The clauses: `from`, `to` and `when` of the object.
    pub clauses: Vec<Clause>,
}

/// Matches, OR-ed. A clause without any matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Clause {
    /// The matches.
    pub matches: Vec<Match>,
}

/// Fields, AND-ed where they are not empty; within a field the values are OR-ed, within a `not_` field none may match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Match {
    /// The source identity's namespace.
    pub namespaces: Vec<StringMatch>,
    /// Namespaces that the source identity's must not be.
    pub not_namespaces: Vec<StringMatch>,
    /// The source identity's namespace and account.
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// Accounts that the source identity's must not be.
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    /// The source identity, without `spiffe://`.
    pub principals: Vec<StringMatch>,
    /// Identities that the source's must not be.
    pub not_principals: Vec<StringMatch>,
    /// The source address.
    pub source_ips: Vec<IpNet>,
    /// Blocks that the source address must not be in.
    pub not_source_ips: Vec<IpNet>,
    /// The destination address.
    pub destination_ips: Vec<IpNet>,
    /// Blocks that the destination address must not be in.
    pub not_destination_ips: Vec<IpNet>,
    /// The destination port.
    pub destination_ports: Vec<u16>,
    /// Ports that the destination's must not be.
    pub not_destination_ports: Vec<u16>,
    /// Set where the wire carried a value that this build cannot read, so that the match cannot be decided:
    /// such a match never allows, and always denies.
    pub unreadable: bool,
}

/// How a text is compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum StringMatch {
    /// The whole text.
    Exact(Arc<str>),
    /// Its beginning.
    Prefix(Arc<str>),
    /// Its end.
    Suffix(Arc<str>),
    /// Any text that is not empty.
    Presence,
}

/// A namespace and a service account, both exact.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ServiceAccountMatch {
    /// The namespace; empty for any.
    pub namespace: Arc<str>,
    /// The account; empty for any.
    pub service_account: Arc<str>,
}
