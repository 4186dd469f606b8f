//! How far a proxy has got.

use std::sync::Arc;

use serde::Serialize;

use super::NodeId;
use crate::TypeUrl;

/// How far a proxy has got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// What the proxy says of itself.
    pub node: NodeId,
    /// The highest revision R such that the proxy has acknowledged every push caused by revisions up to R. One that
    /// changes nothing for the proxy counts at once; one that it refused does not until it is replaced. 0 until every
    /// type has been subscribed and answered.
    pub acked_revision: u64,
    /// The types in which it is owed something, or has not asked yet.
    pub pending: Vec<TypeUrl>,
    /// What it refused and has not been sent anew since.
    pub nacks: Vec<Nack>,
}

/// A resource that a proxy refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Nack {
    /// The resource's type.
    #[serde(rename = "type")]
    pub type_url: TypeUrl,
    /// The resource's name.
    pub resource: Arc<str>,
    /// The proxy's reason.
    pub message: Arc<str>,
}
