//! SPIFFE identities of workloads.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use thiserror::Error;

/// A SPIFFE trust domain, `cluster.local` where nothing else is configured.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Checks and keeps a trust domain: 1 to 255 of lower-case letters, digits, `.`, `-` and `_` (SPIFFE-ID 2.1).
    pub fn new(name: impl AsRef<str>) -> Result<Self, ParseSpiffeIdError> {
        let name = name.as_ref();
        let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if name.is_empty() || name.len() > 255 || !name.bytes().all(ok) {
            return Err(ParseSpiffeIdError::TrustDomain(name.to_owned()));
        }
        Ok(Self(name.into()))
    }

    /// The name without any scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TrustDomain {
    fn default() -> Self {
        Self("cluster.local".into())
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A workload's identity, `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
///
/// Cloning is cheap. Equality is exact: two identities that differ in any part are different workloads.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    namespace: Arc<str>,
    service_account: Arc<str>,
}

impl SpiffeId {
    /// Builds an identity of its parts, each of which must be one path segment of SPIFFE's alphabet.
    pub fn new(
        trust_domain: TrustDomain,
        namespace: impl AsRef<str>,
        service_account: impl AsRef<str>,
    ) -> Result<Self, ParseSpiffeIdError> {
        let (namespace, service_account) = (namespace.as_ref(), service_account.as_ref());
        for segment in [namespace, service_account] {
            if !is_segment(segment) {
                return Err(ParseSpiffeIdError::Segment(segment.to_owned()));
            }
        }
        Ok(Self { trust_domain, namespace: namespace.into(), service_account: service_account.into() })
    }

    /// The trust domain that vouches for the identity.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The Kubernetes service account.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }

    /// Whether both are one account of a mesh whose trust domain has several names: the domain itself does not count. Ask
    /// only about identities that the mesh has vouched for.
    pub fn is_account_of(&self, other: &Self) -> bool {
        (self.namespace(), self.service_account()) == (other.namespace(), other.service_account())
    }

    /// The form that policies name, without `spiffe://`: `cluster.local/ns/shop/sa/frontend`.
    pub fn principal(&self) -> String {
        format!("{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

fn is_segment(s: &str) -> bool {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    !s.is_empty() && s != "." && s != ".." && s.bytes().all(ok)
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for SpiffeId {
    type Err = ParseSpiffeIdError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let shape = || ParseSpiffeIdError::Shape(s.to_owned());
        let rest = s.strip_prefix("spiffe://").ok_or_else(shape)?;
        let parts: Vec<&str> = rest.split('/').collect();
        let [domain, "ns", namespace, "sa", account] = parts[..] else { return Err(shape()) };
        Self::new(TrustDomain::new(domain)?, namespace, account)
    }
}

/// The identities of which a peer must prove one; never empty, so that no set means "anybody".
///
/// Sorted and free of duplicates: equal sets compare and hash alike, whatever order they were written in. Cloning is
/// cheap.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct IdentitySet(Arc<[SpiffeId]>);

impl IdentitySet {
    /// The set of one.
    pub fn one(id: SpiffeId) -> Self {
        Self(Arc::new([id]))
    }

    /// The set of all that are given; nothing if none is.
    pub fn of(ids: impl IntoIterator<Item = SpiffeId>) -> Option<Self> {
        let ids: BTreeSet<SpiffeId> = ids.into_iter().collect();
        (!ids.is_empty()).then(|| Self(ids.into_iter().collect()))
    }

    /// Whether the identity is one of the set.
    pub fn contains(&self, id: &SpiffeId) -> bool {
        self.0.binary_search(id).is_ok()
    }

    /// The identities in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &SpiffeId> {
        self.0.iter()
    }
}

/// Written as a list, parted by commas.
impl fmt::Display for IdentitySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, id) in self.0.iter().enumerate() {
            write!(f, "{}{id}", if n == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// Why a text is no workload identity.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseSpiffeIdError {
    /// Not of the form that workloads have.
    #[error("`{0}` is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
    Shape(String),
    /// The trust domain has a character that SPIFFE does not allow, or a bad length.
    #[error("`{0}` is no trust domain: use 1 to 255 lower-case letters, digits, '.', '-' or '_'")]
    TrustDomain(String),
    /// A path segment has a character that SPIFFE does not allow.
    #[error("`{0}` is no SPIFFE path segment: use letters, digits, '.', '-' or '_'")]
    Segment(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_the_round_trip() {
        let text = "spiffe://cluster.local/ns/shop/sa/front-end";
        let id: SpiffeId = text.parse().unwrap();
        assert_eq!(id.to_string(), text);
        assert_eq!(id.principal(), "cluster.local/ns/shop/sa/front-end");
        assert_eq!((id.namespace(), id.service_account()), ("shop", "front-end"));
    }

    #[test]
    fn what_is_no_workload_identity_is_refused() {
        for bad in [
            "",
            "spiffe://",
            "cluster.local/ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/",
            "spiffe://cluster.local/ns/a/sa/b/c",
            "spiffe://cluster.local/ns//sa/b",
            "spiffe://Cluster.local/ns/a/sa/b",
            "spiffe://cluster.local/ns/../sa/b",
            "spiffe://cluster.local/ns/a b/sa/c",
            "SPIFFE://cluster.local/ns/a/sa/b",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_set_is_the_same_in_whatever_order_it_was_written() {
        let id = |sa: &str| SpiffeId::new(TrustDomain::default(), "shop", sa).unwrap();
        let set = IdentitySet::of([id("b"), id("a"), id("b")]).unwrap();
        assert_eq!(set, IdentitySet::of([id("a"), id("b")]).unwrap());
        assert!(set.contains(&id("b")) && !set.contains(&id("c")));
        assert_eq!(set.to_string(), format!("{}, {}", id("a"), id("b")));
    }

    #[test]
    fn a_set_is_never_empty() {
        assert_eq!(IdentitySet::of([]), None);
    }
}
