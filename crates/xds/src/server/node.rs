//! What a proxy says of itself. Nothing here is proven; the bearer token is.

use std::sync::Arc;

use ambit_proto::discovery::Node;
use prost_types::value::Kind;

/// Longer names are cut: they are for people, and come from the other side.
const LONGEST: usize = 512;

/// What a proxy says of itself in its first request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeId {
    /// `ztunnel~<instance ip>~<pod>.<namespace>~<namespace>.svc.cluster.local`.
    pub id: Arc<str>,
    /// The node it serves: the metadata's `NODE_NAME`; empty where it names none.
    pub node: Arc<str>,
}

impl NodeId {
    pub(super) fn read(node: &Node) -> Self {
        let name = node.metadata.as_ref().and_then(|m| match m.fields.get("NODE_NAME")?.kind.as_ref()? {
            Kind::StringValue(name) => Some(cut(name)),
            _ => None,
        });
        Self { id: cut(&node.id), node: name.unwrap_or_default() }
    }
}

fn cut(text: &str) -> Arc<str> {
    text.chars().take(LONGEST).collect::<String>().into()
}
