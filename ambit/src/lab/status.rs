//! `ambit lab status`, as scripts read it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// How pods' traffic reaches ztunnel.
    pub(crate) redirection: Redirection,
    /// Why so, where that is not by eBPF.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) redirection_reason: Option<String>,
    pub(crate) supervisor_pid: u32,
    /// Nothing while it does not run.
    pub(crate) istiod_pid: Option<u32>,
    pub(crate) nodes: Vec<NodeStatus>,
    pub(crate) pods: Vec<PodStatus>,
    pub(crate) waypoints: Vec<WaypointStatus>,
}

/// How pods' traffic reaches ztunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Redirection {
    Ebpf,
    Nftables,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeStatus {
    pub(crate) name: String,
    /// A path for `nsenter --net=`.
    pub(crate) netns: PathBuf,
    /// The interface within, towards the other nodes.
    pub(crate) uplink: String,
    pub(crate) ztunnel_pid: Option<u32>,
    /// Those that have handed over and still carry connections.
    pub(crate) ztunnels_leaving: Vec<u32>,
    pub(crate) agent_pid: Option<u32>,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PodStatus {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) ip: Option<String>,
    pub(crate) node: Option<String>,
    pub(crate) netns: Option<PathBuf>,
    pub(crate) ready: bool,
    /// It is in the mesh.
    pub(crate) enrolled: bool,
    /// Its connections that were established past the mesh since then. None is the proof of enrolment.
    pub(crate) bypassed: u64,
    /// Its connections that are older than that and still there.
    pub(crate) older_connections: u64,
}

/// A waypoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WaypointStatus {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) pid: Option<u32>,
    pub(crate) node: String,
    pub(crate) ip: Option<String>,
    pub(crate) ready: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_those_that_scripts_rely_on() {
        let status = Status {
            redirection: Redirection::Ebpf,
            redirection_reason: None,
            supervisor_pid: 1,
            istiod_pid: None,
            nodes: vec![NodeStatus {
                name: "node1".into(),
                netns: "/n".into(),
                uplink: "uplink".into(),
                ztunnel_pid: Some(2),
                ztunnels_leaving: vec![4],
                agent_pid: Some(3),
            }],
            pods: vec![PodStatus {
                namespace: "x".into(),
                name: "a".into(),
                ip: Some("10.244.1.2".into()),
                node: Some("node1".into()),
                netns: Some("/p".into()),
                ready: true,
                enrolled: false,
                bypassed: 0,
                older_connections: 2,
            }],
            waypoints: vec![],
        };
        assert_eq!(
            serde_json::to_string(&status).unwrap(),
            r#"{"redirection":"ebpf","supervisor_pid":1,"istiod_pid":null,"nodes":[{"name":"node1","netns":"/n","uplink":"uplink","ztunnel_pid":2,"ztunnels_leaving":[4],"agent_pid":3}],"pods":[{"namespace":"x","name":"a","ip":"10.244.1.2","node":"node1","netns":"/p","ready":true,"enrolled":false,"bypassed":0,"older_connections":2}],"waypoints":[]}"#
        );
    }
}
