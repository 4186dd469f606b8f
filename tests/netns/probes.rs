//! The kubelet's probes under STRICT.

use std::fs;

use testkit::lab::{Lab, eventually};

use crate::world::{Pod, curl, meshed, peer_authentication};

/// An application that listens on 8080 once the file `gate` is there, and how it is probed.
fn probed(name: &str, gate: &str, probes: &str) -> String {
    let wait = format!("until [ -e {gate} ]; do sleep 0.1; done; exec ambit-echo http --port 8080");
    let command = ["sh", "-c", wait.as_str()];
    Pod { namespace: "app", name, node: "node2", command: &command, ready_on: None }.manifest() + probes
}

fn is(lab: &Lab, name: &str, what: &str) -> bool {
    lab.pod("app", name)[what] == true
}

#[test]
fn probes_reach_applications_under_strict_and_strangers_do_not() {
    let Some(lab) = meshed() else { return };
    lab.apply(&peer_authentication("STRICT", "")).expect_ok();
    let gate = lab.state_dir().join("gate");
    let gate_path = gate.display().to_string();
    let page = "    readinessProbe: {httpGet: {port: 8080, path: /}, periodSeconds: 1}\n    \
                livenessProbe: {httpGet: {port: 8080, path: /}, periodSeconds: 1, initialDelaySeconds: 30}\n";
    let port = "    readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}\n";
    let closed = "    readinessProbe: {tcpSocket: {port: 9}, periodSeconds: 1}\n";
    let pods = [("page", page), ("port", port), ("closed", closed)];
    for (name, probes) in pods {
        lab.apply(&probed(name, &gate_path, probes)).expect_ok();
    }
    for (name, _) in pods {
        eventually("the pod is enrolled", || is(&lab, name, "enrolled"));
    }
    fs::write(&gate, "").expect("the lab's folder");
    for name in ["page", "port"] {
        eventually("its probe reaches the application", || is(&lab, name, "ready"));
    }
    assert!(!is(&lab, "closed", "ready"), "a probe is answered by the application alone, not by ztunnel");

    let url = format!("http://{}:8080/", lab.ip("app", "page"));
    assert!(!lab.on_node("node2", &curl(&url)).ok(), "another process of the node");
    assert!(!lab.exec("outside/plain", &curl(&url)).ok(), "another pod of the node");
    assert!(!lab.on_node("node1", &curl(&url)).ok(), "another node");
    lab.exec("app/client", &curl(&url)).expect_ok();
    for (name, _) in pods {
        assert_eq!(lab.pod("app", name)["bypassed"], 0, "probes get past nobody");
    }
}
