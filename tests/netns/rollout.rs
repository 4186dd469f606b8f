//! Pods that come and go under load: nobody who calls them notices.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use testkit::lab::{Lab, Output, Running, eventually};
use tokio::time::Instant;

use crate::is_full;
use crate::world::{Pod, curl, manifests, unmeshed};

/// An application that ends as those of production do: for a moment it tells its callers to come again elsewhere.
const WEB: &[&str] = &["ambit-echo", "http", "--port", "8080", "--lame-duck-ms", "400"];

/// A deployment of three, and the service before it. `stop` goes into the container.
fn web(template: &str, stop: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: app}}
spec: {{selector: {{app: web}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, namespace: app}}
spec:
  replicas: 3
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}, annotations: {{example.com/template: {template:?}}}}}
    spec:
      terminationGracePeriodSeconds: 10
      containers:
      - name: main
        image: none
        command: {WEB:?}
        readinessProbe: {{periodSeconds: 1, tcpSocket: {{port: 8080}}}}{stop}
"
    )
}

/// Load that goes on for as long as a file is there.
struct Load {
    file: PathBuf,
    running: Vec<(&'static str, Running)>,
}

impl Load {
    /// Callers on both nodes, each with new connections and with kept ones.
    fn start(lab: &Lab, url: &str, callers: &[(&'static str, &str, &[&str])]) -> Self {
        let file = lab.state_dir().join("load-goes-on");
        std::fs::write(&file, "").expect("the lab's folder");
        let path = file.to_str().expect("a path of plain letters").to_owned();
        let running = callers.iter().map(|(what, pod, more)| {
            let mut command = vec!["ambit-echo", "load", url, "--seconds", "600", "--while", &path];
            command.extend_from_slice(more);
            (*what, lab.start(pod, &command))
        });
        Self { running: running.collect(), file }
    }

    /// Ends it. Every request must have been answered.
    fn stop(self) -> Vec<(&'static str, Value)> {
        std::fs::remove_file(&self.file).expect("it was there");
        let tally = |(what, running): (&'static str, Running)| {
            let output: Output = running.wait();
            let tally: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|_| panic!("{output}"));
            (what, tally)
        };
        let tallies: Vec<_> = self.running.into_iter().map(tally).collect();
        for (what, tally) in &tallies {
            testkit::say(&format!("{what}: {tally}"));
        }
        for (what, tally) in &tallies {
            assert_eq!(tally["failed"], 0, "{what}: {tally}");
            assert!(tally["ok"].as_u64().is_some_and(|ok| ok > 50), "{what}: {tally}");
        }
        tallies
    }
}

const CALLERS: &[(&str, &str, &[&str])] = &[
    ("new connections from node1", "app/client", &[]),
    ("kept connections from node1", "app/other", &["--keep-alive"]),
    ("new connections from node2", "app/digest", &[]),
    ("kept connections from node2", "app/greeter", &["--keep-alive"]),
];

fn deployment(lab: &Lab) -> Value {
    lab.ambit(["lab", "get", "deployment", "web", "-n", "app", "-o", "json"]).json()
}

/// Whether all pods are of the present template and ready, and no other is left.
fn is_rolled_out(lab: &Lab) -> bool {
    let deployment = deployment(lab);
    let status = &deployment["status"];
    if status["observedGeneration"] != deployment["metadata"]["generation"] {
        return false;
    }
    let counts = ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"];
    counts.iter().all(|count| status[count] == 3)
}

fn rollouts(stop: &str, count: usize) {
    let Some(lab) = unmeshed() else { return };
    lab.join("app");
    lab.apply(&web("0", stop)).expect_ok();
    eventually("three replicas", || is_rolled_out(&lab));
    let nodes: Vec<Value> = (0..3).map(|n| lab.pod("app", &format!("web-{n}"))["node"].clone()).collect();
    assert!(nodes.iter().any(|node| node == "node1") && nodes.iter().any(|node| node == "node2"));
    let load = Load::start(&lab, "http://web.app/", CALLERS);
    let began = Instant::now();
    for n in 1..=count {
        lab.apply(&web(&n.to_string(), stop)).expect_ok();
        eventually("a rollout", || is_rolled_out(&lab));
    }
    let took = began.elapsed();
    let tallies = load.stop();
    let requests: u64 = tallies.iter().filter_map(|(_, tally)| tally["ok"].as_u64()).sum();
    testkit::say(&format!("{count} rollouts of 3 replicas in {took:.1?}: {requests} requests, none failed"));
}

#[test]
fn rollouts_under_load_fail_no_request() {
    let pause = "\n        lifecycle: {preStop: {sleep: {seconds: 1}}}";
    rollouts(pause, if is_full() { 20 } else { 2 });
}

#[test]
fn rollouts_of_pods_that_are_asked_to_end_at_once_fail_no_request() {
    rollouts("", if is_full() { 50 } else { 5 });
}

fn signal(name: &str, pid: &Value) {
    let sent = Command::new("kill").args([name, &pid.to_string()]).status().expect("kill");
    assert!(sent.success());
}

/// Two pods behind a service, one a node.
fn pair() -> String {
    let pod = |name, node| {
        let pod = Pod { namespace: "app", name, node, command: WEB, ready_on: Some(8080) };
        pod.manifest().replace(&format!("labels: {{app: {name}}}"), "labels: {app: pair}")
    };
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: pair, namespace: app}\n\
                   spec: {selector: {app: pair}, ports: [{name: http, port: 80, targetPort: 8080}]}\n";
    pod("one", "node1") + &pod("two", "node2") + service
}

/// The nodes' agents alone know that a pod ends, and then that it is gone.
#[test]
fn a_pod_that_ends_while_the_control_plane_is_away_fails_no_request() {
    let Some(lab) = Lab::up(&(manifests() + &pair())) else { return };
    lab.join("app");
    eventually("both answer", || {
        let names = (0..8).map(|_| lab.exec("app/client", &curl("http://pair.app/")).expect_ok().stdout);
        let names: std::collections::BTreeSet<String> =
            names.map(|body| serde_json::from_str::<Value>(&body).unwrap()["pod"].to_string()).collect();
        names.len() == 2
    });
    let load = Load::start(&lab, "http://pair.app/", CALLERS);
    let istiod = lab.status()["istiod_pid"].clone();
    signal("-STOP", &istiod);
    let one = "apiVersion: v1\nkind: Pod\nmetadata: {name: one, namespace: app}\nspec: {containers: [{name: main}]}\n";
    let deleted = lab.delete(one);
    assert_eq!(deleted.code, 4, "nobody can acknowledge it: {deleted}");
    let told = |node: &str| lab.logs(&format!("ztunnel@{node}")).contains("comes to its end");
    assert!(told("node1") && !told("node2"), "its own node's alone was told");
    load.stop();
    signal("-CONT", &istiod);
}

#[test]
fn a_service_keeps_its_traffic_on_the_node_where_it_says_so() {
    let Some(lab) = Lab::up(&(manifests() + &pair())) else { return };
    let answers = |from: &str| {
        let one = || lab.exec(from, &curl("http://pair.app/")).expect_ok().stdout;
        let names = (0..12).map(|_| serde_json::from_str::<Value>(&one()).expect("JSON")["pod"].to_string());
        names.collect::<std::collections::BTreeSet<String>>()
    };
    let local = pair().replace(
        "spec: {selector: {app: pair}",
        "spec: {internalTrafficPolicy: Local, selector: {app: pair}",
    );
    let near = pair().replace(
        "spec: {selector: {app: pair}",
        "spec: {trafficDistribution: PreferSameNode, selector: {app: pair}",
    );
    // First as kube-proxy does it, then as ztunnel does.
    for meshed in [false, true] {
        if meshed {
            lab.join("app");
        }
        for service in [&local, &near] {
            lab.apply(service).expect_ok();
            assert_eq!(answers("app/client"), ["\"one\"".to_owned()].into(), "meshed: {meshed}");
            assert_eq!(answers("app/digest"), ["\"two\"".to_owned()].into(), "meshed: {meshed}");
        }
        lab.apply(&pair()).expect_ok();
        eventually("both take part again", || answers("app/client").len() == 2);
    }
    let external = "apiVersion: v1\nkind: Service\nmetadata: {name: outside, namespace: app}\n\
                    spec: {type: ExternalName, externalName: pair.app.svc.cluster.local}\n";
    lab.apply(external).expect_ok();
    lab.exec("app/client", &curl("http://outside.app/")).expect_ok();
}

/// What has run to its end takes no traffic, and its address is the next pod's to have.
#[test]
fn a_pod_that_ran_to_its_end_is_no_endpoint_and_is_out_of_the_mesh() {
    let Some(lab) = Lab::up(&(manifests() + &pair())) else { return };
    lab.join("app");
    let short =
        Pod { namespace: "app", name: "short", node: "node1", command: &["sleep", "1"], ready_on: None };
    let short = short.manifest().replace("labels: {app: short}", "labels: {app: pair}");
    lab.apply(&short.replace("  nodeName", "  restartPolicy: Never\n  nodeName")).expect_ok();
    let netns = lab.state_dir().join("netns");
    let phase = |lab: &Lab| {
        lab.ambit(["lab", "get", "pod", "short", "-n", "app", "-o", "json"]).json()["status"]["phase"].clone()
    };
    eventually("it has ended", || phase(&lab) == "Succeeded");
    eventually("its network is gone", || !has_netns(&netns, "short"));
    // The agent is asked every second, and hears of it as it does of all else.
    eventually("it is out of the mesh", || lab.pod("app", "short")["enrolled"] == false);
    for _ in 0..12 {
        lab.exec("app/client", &curl("http://pair.app/")).expect_ok();
    }
    assert!(lab.ambit(["lab", "logs", "app/short"]).ok(), "what it wrote stays");
}

fn has_netns(folder: &Path, pod: &str) -> bool {
    let mut entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.any(|entry| entry.file_name().to_string_lossy().contains(pod))
}

/// A pod is ready until its probe says otherwise, also while its hook runs.
#[test]
fn a_pod_that_ends_stays_ready_and_is_the_last_resort() {
    let hook = "\n    lifecycle: {preStop: {sleep: {seconds: 6}}}";
    let pod = Pod { namespace: "app", name: "last", node: "node2", command: WEB, ready_on: Some(8080) };
    let manifest =
        pod.manifest().replace("terminationGracePeriodSeconds: 1", "terminationGracePeriodSeconds: 20")
            + hook
            + "\n";
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: last, namespace: app}\n\
                   spec: {selector: {app: last}, ports: [{name: http, port: 80, targetPort: 8080}]}\n";
    let Some(lab) = Lab::up(&(manifests() + &manifest + service)) else { return };
    lab.join("app");
    lab.exec("app/client", &curl("http://last.app/")).expect_ok();
    let began = Instant::now();
    let one = "apiVersion: v1\nkind: Pod\nmetadata: {name: last, namespace: app}\nspec: {containers: [{name: main}]}\n";
    std::thread::scope(|scope| {
        let deleting = scope.spawn(|| lab.delete(one));
        eventually("it was asked to end", || {
            let pod = lab.ambit(["lab", "get", "pod", "last", "-n", "app", "-o", "json"]).json();
            !pod["metadata"]["deletionTimestamp"].is_null()
        });
        for _ in 0..5 {
            lab.exec("app/client", &curl("http://last.app/")).expect_ok();
        }
        assert!(began.elapsed() < Duration::from_secs(6), "it was asked before its hook was over");
        deleting.join().expect("no panic").expect_ok();
    });
    assert!(began.elapsed() > Duration::from_secs(6), "its hook had its time");
    assert!(!lab.exec("app/client", &curl("http://last.app/")).ok(), "nobody is left");
}
