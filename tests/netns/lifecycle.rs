//! The lab's own commands, and the control plane's absence.

use std::path::Path;
use std::process::Command;

use testkit::lab::eventually;

use crate::world::{Pod, authorization, curl, manifests, meshed, unmeshed};

/// Everything on this machine that a lab could leave behind.
fn traces(name: &str) -> String {
    let shell = format!(
        "ip netns list; ip -o link; ip rule; ip -6 rule; nft list ruleset; \
         find /sys/fs/bpf -path '*{name}*'; find /sys/fs/cgroup -path '*ambit-{name}*' -maxdepth 4; \
         grep {name} /proc/self/mountinfo; ls /run/ambit/lab | grep -x {name}; pgrep -af 'lab.*{name}|{name}.*lab'"
    );
    let output = Command::new("sh").args(["-c", &shell]).output().expect("run sh");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| line.contains(name) && !line.contains("pgrep"))
        .map(|l| format!("{l}\n"))
        .collect()
}

#[test]
fn a_lab_taken_down_leaves_nothing() {
    let Some(lab) = meshed() else { return };
    lab.exec("app/client", &curl("http://server.app/")).expect_ok();
    let dir = lab.state_dir();
    let name = dir.file_name().and_then(|n| n.to_str()).expect("a name").to_owned();
    lab.ambit(["lab", "down"]).expect_ok();
    assert_eq!(traces(&name), "");
    assert!(!Path::new(&dir).exists());
    assert_eq!(lab.ambit(["lab", "status"]).code, 3);
    lab.ambit(["lab", "down"]).expect_ok();
}

#[test]
fn a_lab_whose_supervisor_was_killed_is_taken_down_all_the_same() {
    let Some(lab) = meshed() else { return };
    let dir = lab.state_dir();
    let name = dir.file_name().and_then(|n| n.to_str()).expect("a name").to_owned();
    let supervisor = lab.status()["supervisor_pid"].to_string();
    assert!(Command::new("kill").args(["-9", &supervisor]).status().expect("kill").success());
    lab.ambit(["lab", "down"]).expect_ok();
    assert_eq!(traces(&name), "");
}

#[test]
fn a_second_up_is_an_error() {
    let Some(lab) = unmeshed() else { return };
    let second = lab.ambit(["lab", "up", "--detach"]);
    assert_ne!(second.code, 0);
    assert!(second.stderr.contains("down"), "it says what to do: {second}");
    lab.exec("app/client", &curl("http://server.app/")).expect_ok();
}

#[test]
fn a_misspelt_field_is_refused_with_its_place_and_changes_nothing() {
    let Some(lab) = unmeshed() else { return };
    let good = authorization("good", "", "  rules: [{}]\n");
    let bad = good.clone() + "---\n" + &authorization("bad", "", "  selector: {matchLabel: {app: server}}\n");
    let refusal = lab.apply(&bad);
    assert_eq!(refusal.code, 1, "{refusal}");
    assert!(refusal.stderr.contains("change.yaml:") && refusal.stderr.contains("matchLabels"), "{refusal}");
    let listed = lab.ambit(["lab", "get", "authorizationpolicy", "-n", "app"]).expect_ok().stdout;
    assert!(!listed.contains("good"), "all or nothing: {listed}");
}

#[test]
fn the_mesh_works_while_the_control_plane_is_away() {
    let Some(lab) = meshed() else { return };
    lab.exec("app/client", &curl("http://server.app/")).expect_ok();
    let before = lab.status()["istiod_pid"].to_string();
    assert!(Command::new("kill").args(["-STOP", &before]).status().expect("kill").success());
    for _ in 0..5 {
        lab.exec("app/client", &curl("http://server.app/")).expect_ok();
        lab.exec("app/other", &curl("http://local.app/")).expect_ok();
    }
    assert!(Command::new("kill").args(["-9", &before]).status().expect("kill").success());
    eventually("a new control plane", || {
        let now = lab.status()["istiod_pid"].to_string();
        now != "null" && now != before
    });
    lab.exec("app/client", &curl("http://server.app/")).expect_ok();
    // Back again, it is listened to: both nodes take a new policy.
    let deny = authorization("nobody", "", "  action: DENY\n  rules: [{}]\n");
    eventually("changes are taken again", || lab.apply(&deny).ok());
    assert!(!lab.exec("app/client", &curl("http://server.app/")).ok());
}

#[test]
fn every_part_that_dies_is_started_again() {
    let Some(lab) = unmeshed() else { return };
    for part in ["ztunnel_pid", "agent_pid"] {
        let before = lab.node("node1")[part].clone();
        assert!(Command::new("kill").args(["-9", &before.to_string()]).status().expect("kill").success());
        eventually(part, || {
            let now = lab.node("node1")[part].clone();
            now.is_number() && now != before
        });
    }
}

#[test]
fn a_command_in_a_pod_has_its_stdio_status_and_resolver() {
    let Some(lab) = unmeshed() else { return };
    assert_eq!(lab.exec("app/client", &["sh", "-c", "exit 7"]).code, 7);
    let resolver = lab.exec("app/client", &["cat", "/etc/resolv.conf"]).expect_ok().stdout;
    assert!(resolver.contains("search app.svc.cluster.local svc.cluster.local cluster.local"), "{resolver}");
    assert!(resolver.contains("ndots:5"), "{resolver}");
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: app}\nspec:\n  replicas: 2\n  \
                      selector: {matchLabels: {app: web}}\n  template:\n    metadata: {labels: {app: web}}\n    spec:\n      \
                      containers: [{name: main, image: none, command: [sleep, infinity]}]\n";
    lab.apply(deployment).expect_ok();
    eventually("both replicas run", || {
        let status = lab.status();
        let pods = status["pods"].as_array().cloned().unwrap_or_default();
        pods.iter()
            .filter(|p| p["name"] == "web-0" || p["name"] == "web-1")
            .filter(|p| p["ready"] == true)
            .count()
            == 2
    });
    lab.exec("app/deploy/web", &["true"]).expect_ok();
}

#[test]
fn an_unknown_kind_is_an_error_and_a_known_one_is_not() {
    let unknown = manifests() + "---\napiVersion: v1\nkind: Servise\nmetadata: {name: x}\n";
    let Some(lab) = unmeshed() else { return };
    let refusal = lab.apply(&unknown);
    assert_eq!(refusal.code, 1, "{refusal}");
    assert!(refusal.stderr.contains("Service"), "{refusal}");
    let known =
        "apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {name: x, namespace: app}\nspec: {}\n";
    lab.apply(known).expect_ok();
}

/// A pod's probe decides whether it gets traffic.
#[test]
fn a_pod_that_is_not_ready_is_no_endpoint() {
    let never = Pod {
        namespace: "app",
        name: "server2",
        node: "node1",
        command: &["sleep", "infinity"],
        ready_on: None,
    };
    let manifest = never.manifest().replace("labels: {app: server2}", "labels: {app: server}")
        + "    readinessProbe: {exec: {command: [\"false\"]}, periodSeconds: 1}\n";
    let Some(lab) = meshed() else { return };
    // It never becomes ready, so apply may not wait for that.
    lab.apply(&manifest).expect_ok();
    for _ in 0..10 {
        lab.exec("app/client", &curl("http://server.app/")).expect_ok();
    }
}
