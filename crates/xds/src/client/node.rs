//! What this proxy says of itself.

use std::collections::BTreeMap;

use ambit_proto::discovery::Node;
use prost_types::value::Kind;
use prost_types::{Struct, Value};

/// What a node proxy says of itself in its first requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeInfo {
    /// The proxy's own address.
    pub instance_ip: String,
    /// The proxy's own pod, or what stands for it.
    pub pod_name: String,
    /// The namespace of that pod.
    pub namespace: String,
    /// The node that it serves.
    pub node_name: String,
    /// The cluster it belongs to.
    pub cluster_id: String,
    /// More metadata. Keys that the fields above fill in are not overwritten.
    pub metadata: BTreeMap<String, String>,
}

impl NodeInfo {
    pub(super) fn to_wire(&self) -> Node {
        let Self { instance_ip, pod_name, namespace, node_name, cluster_id, metadata } = self;
        let own = [
            ("NAME", pod_name),
            ("NAMESPACE", namespace),
            ("INSTANCE_IPS", instance_ip),
            ("NODE_NAME", node_name),
            ("CLUSTER_ID", cluster_id),
        ];
        let text = |s: &String| Value { kind: Some(Kind::StringValue(s.clone())) };
        let mut fields: BTreeMap<String, Value> =
            metadata.iter().map(|(key, value)| (key.clone(), text(value))).collect();
        fields.extend(own.into_iter().map(|(key, value)| (key.to_owned(), text(value))));
        Node {
            id: format!("ztunnel~{instance_ip}~{pod_name}.{namespace}~{namespace}.svc.cluster.local"),
            metadata: Some(Struct { fields }),
            user_agent_name: "ambit".to_owned(),
            ..Node::default()
        }
    }
}
