//! A mesh whose node proxies ask for single addresses, and not for all.

use serde_json::Value;
use testkit::lab::{Lab, eventually};

use crate::world::{authorization, curl, manifests};

fn lab() -> Option<Lab> {
    let lab = Lab::up_with(&manifests(), &[("XDS_ON_DEMAND", "true")])?;
    lab.join("app");
    Some(lab)
}

fn dump(lab: &Lab, node: &str) -> Value {
    serde_json::from_str(&lab.ztunnel(node, 15000, "/config_dump")).expect("JSON")
}

/// The names of the workloads that a node's proxy knows.
fn known(lab: &Lab, node: &str) -> Vec<String> {
    let dump = dump(lab, node);
    let workloads = dump["workloads"].as_array().expect("workloads");
    workloads.iter().map(|w| w["name"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn a_node_knows_its_pods_and_whom_they_call() {
    let Some(lab) = lab() else { return };
    eventually("the node's pods are known", || known(&lab, "node1").iter().any(|name| name == "client"));
    assert!(known(&lab, "node1").iter().all(|name| !["server", "plain", "digest"].contains(&name.as_str())));
    lab.exec("app/client", &curl("http://server.app/")).expect_ok();
    let now = known(&lab, "node1");
    assert!(now.iter().any(|name| name == "server") && now.iter().all(|name| name != "plain"), "{now:?}");
    let tunnels = lab.metric(
        "node1",
        "istio_tcp_connections_opened_total",
        &[
            "reporter=\"source\"",
            "connection_security_policy=\"mutual_tls\"",
            "destination_workload=\"server\"",
        ],
    );
    assert!(tunnels >= 1.0, "the first call of all went by a tunnel: {tunnels}");
    // By the pod's address; to one outside of the mesh; and from one.
    for (from, to) in [("app/other", "server"), ("outside/stranger", "server"), ("app/client", "local")] {
        lab.exec(from, &curl(&format!("http://{}:8080/", lab.ip("app", to)))).expect_ok();
    }
    lab.exec("app/client", &curl("http://plain.outside/")).expect_ok();
    let asked = &dump(&lab, "node1")["on_demand"];
    assert!(asked["names"].as_u64() > Some(5) && asked["unanswered"] == 0, "{asked}");
}

#[test]
fn policy_holds_for_those_who_were_never_called() {
    let Some(lab) = lab() else { return };
    let only = "  selector: {matchLabels: {app: server}}\n  action: ALLOW\n  \
                rules: [{from: [{source: {principals: [cluster.local/ns/app/sa/client]}}]}]\n";
    lab.apply(&authorization("only-client", "", only)).expect_ok();
    lab.exec("app/client", &curl("http://server.app/")).expect_ok();
    for from in ["app/other", "outside/stranger"] {
        assert!(!lab.exec(from, &curl("http://server.app/")).ok(), "{from}");
    }
}
