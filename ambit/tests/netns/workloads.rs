//! What kubelet and controllers do.

use serde_json::Value;
use testkit::lab::{Lab, eventually};

use crate::{HTTP, READY, SLEEP, deployment, get, lab, pod, service};

fn object(lab: &Lab, kind: &str, name: &str) -> Value {
    lab.ambit(["lab", "get", kind, name, "-n", "x", "-o", "json"]).json()
}

#[test]
fn a_container_that_fails_its_liveness_probe_is_started_again() {
    let probe = ", livenessProbe: {periodSeconds: 1, failureThreshold: 1, exec: {command: [test, -e, /dev/null/never]}}";
    let Some(lab) = lab(&pod("sick", "node1", SLEEP, probe)) else { return };
    eventually("it was restarted", || {
        object(&lab, "pod", "sick")["status"]["containerStatuses"][0]["restartCount"].as_u64() >= Some(1)
    });
}

#[test]
fn a_crash_is_told_with_the_programs_last_words() {
    let Some(lab) = lab("") else { return };
    let command = "[sh, -c, \"echo the disk is full >&2; exit 3\"]";
    lab.apply(&pod("crash", "node1", command, "")).expect_ok();
    eventually("the reason is in the status", || {
        let pod = object(&lab, "pod", "crash");
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        waiting["reason"] == "CrashLoopBackOff"
            && waiting["message"].as_str().is_some_and(|m| m.contains("exit status 3: the disk is full"))
    });
    assert!(lab.logs("x/crash").contains("the disk is full"));
}

#[test]
fn a_pod_may_run_to_its_end() {
    let once = pod("once", "node1", "[\"true\"]", "").replace("spec: {", "spec: {restartPolicy: Never, ");
    let Some(lab) = lab(&once) else { return };
    eventually("it has succeeded", || object(&lab, "pod", "once")["status"]["phase"] == "Succeeded");
}

#[test]
fn init_containers_run_first_and_to_their_end() {
    let world = pod("app", "node1", "[sh, -c, \"cat /tmp/$HOSTNAME-init && sleep infinity\"]", "")
        .replace("containers:", "initContainers: [{name: first, command: [sh, -c, \"echo prepared > /tmp/$HOSTNAME-init\"]}], containers:");
    let Some(lab) = lab(&world) else { return };
    eventually("it saw what was prepared", || {
        lab.ambit(["lab", "logs", "x/app", "-c", "main"]).stdout.contains("prepared")
    });
    lab.exec("x/app", &["sh", "-c", "rm /tmp/app-init"]).expect_ok();
}

#[test]
fn a_new_template_replaces_pods_without_an_outage() {
    // As in a cluster, nobody waits with a pod's end for the nodes to hear of it, unless a hook does.
    let ready = format!("{READY}, lifecycle: {{preStop: {{sleep: {{seconds: 3}}}}}}");
    let web = |more: &str| {
        deployment("web", 2, HTTP, more).replace("GracePeriodSeconds: 1", "GracePeriodSeconds: 8")
    };
    let world = web(&ready) + &service("web", "web", "") + &pod("one", "node1", SLEEP, "");
    let Some(lab) = lab(&world) else { return };
    let uids = |lab: &Lab| [0, 1].map(|n| object(lab, "pod", &format!("web-{n}"))["metadata"]["uid"].clone());
    let before = uids(&lab);
    let changed = ready.replace("env: [", "env: [{name: GENERATION, value: \"2\"}, ");
    lab.apply(&web(&changed)).expect_ok();
    let mut failed = Vec::new();
    eventually("both are of the new template and ready", || {
        let answer = get(&lab, "x/one", "http://web/");
        failed.extend((!answer.ok()).then_some(answer.stderr));
        let deployment = object(&lab, "deploy", "web");
        let status = &deployment["status"];
        // What is told of the generation before says that all is done.
        status["observedGeneration"] == deployment["metadata"]["generation"]
            && status["updatedReplicas"] == 2
            && status["readyReplicas"] == 2
            && status["replicas"] == 2
            // One that is about to end counts no more, and still has its name.
            && uids(&lab).iter().all(|uid| uid.is_string() && !before.contains(uid))
    });
    assert!(failed.is_empty(), "there was always one that answered: {failed:?}");
}

#[test]
fn a_deleted_pod_is_gone_when_delete_returns() {
    let Some(lab) = lab(&pod("one", "node1", SLEEP, "")) else { return };
    for _ in 0..3 {
        lab.delete(&pod("one", "node1", SLEEP, "")).expect_ok();
        assert!(!lab.ambit(["lab", "get", "pod", "one", "-n", "x"]).ok());
        lab.apply(&pod("one", "node1", SLEEP, "")).expect_ok();
    }
    eventually("it runs again", || lab.pod("x", "one")["ready"] == true);
}

#[test]
fn a_namespace_takes_all_in_it_along() {
    let world = deployment("web", 2, SLEEP, "") + &service("web", "web", "");
    let Some(lab) = lab(&world) else { return };
    lab.delete("apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n").expect_ok();
    for kind in ["pods", "svc", "deploy", "endpointslices", "sa"] {
        let left = lab.ambit(["lab", "get", kind, "-n", "x", "-o", "json"]).json();
        assert_eq!(left["items"], Value::Array(Vec::new()), "{kind}");
    }
    assert!(!lab.ambit(["lab", "get", "ns", "x"]).ok());
}

#[test]
fn a_pod_on_the_nodes_network_stays_out_of_the_mesh() {
    let on_host = pod("host", "node1", SLEEP, "").replace("spec: {", "spec: {hostNetwork: true, ");
    let Some(lab) = lab(&(on_host + &pod("one", "node1", SLEEP, ""))) else { return };
    lab.join("x");
    assert_eq!(lab.pod("x", "one")["enrolled"], true);
    assert_eq!(lab.pod("x", "host")["enrolled"], false);
    let addresses = lab.exec("x/host", &["ip", "-o", "addr"]).expect_ok().stdout;
    assert!(addresses.contains(&lab.ip("x", "host")) && addresses.contains("uplink"), "{addresses}");
}

#[test]
fn labels_put_on_by_hand_outlive_an_apply() {
    let Some(lab) = lab(&pod("one", "node1", SLEEP, "")) else { return };
    lab.join("x");
    lab.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n").expect_ok();
    assert_eq!(lab.pod("x", "one")["enrolled"], true);
}
