//! The Node objects.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeCondition, NodeSpec, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::lab::address::NodePlan;

/// The nodes of a lab, as a cluster would show them.
pub(crate) fn objects(plans: &[NodePlan], has_v6: bool) -> Vec<Node> {
    plans.iter().map(|plan| object(plan, has_v6)).collect()
}

fn object(plan: &NodePlan, has_v6: bool) -> Node {
    let address = |kind: &str, address: String| NodeAddress { type_: kind.to_owned(), address };
    let mut addresses: Vec<NodeAddress> =
        plan.uplink().addresses(has_v6).iter().map(|ip| address("InternalIP", ip.to_string())).collect();
    addresses.push(address("Hostname", plan.name.clone()));
    let cidrs: Vec<String> = [Some(plan.pods().to_string()), has_v6.then(|| plan.pods6().to_string())]
        .into_iter()
        .flatten()
        .collect();
    let ready = NodeCondition {
        type_: "Ready".to_owned(),
        status: "True".to_owned(),
        reason: Some("LabIsUp".to_owned()),
        ..NodeCondition::default()
    };
    Node {
        metadata: ObjectMeta {
            name: Some(plan.name.clone()),
            labels: Some(BTreeMap::from([("kubernetes.io/hostname".to_owned(), plan.name.clone())])),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            pod_cidr: cidrs.first().cloned(),
            pod_cidrs: Some(cidrs),
            ..NodeSpec::default()
        }),
        status: Some(NodeStatus {
            addresses: Some(addresses),
            conditions: Some(vec![ready]),
            ..NodeStatus::default()
        }),
    }
}
