//! Pods join and leave while they run.

use testkit::lab::{Lab, eventually};

use crate::world::{curl, unmeshed};

fn load<'a>(seconds: &'a str, keep: &'a [&'a str]) -> Vec<&'a str> {
    let mut command = vec!["ambit-echo", "load", "http://server.app/", "--seconds", seconds];
    command.extend_from_slice(keep);
    command
}

#[test]
fn joining_and_leaving_under_load_fails_no_request() {
    let Some(lab) = unmeshed() else { return };
    let fresh = lab.start("app/client", &load("12", &[]));
    let kept = lab.start("app/other", &load("12", &["--keep-alive"]));
    for _ in 0..2 {
        lab.join("app");
        lab.leave("app");
    }
    lab.join("app");
    for (what, running) in [("new connections", fresh), ("kept connections", kept)] {
        let tally = running.wait().expect_ok().json();
        assert_eq!(tally["failed"], 0, "{what}: {tally}");
        assert!(tally["ok"].as_u64().is_some_and(|ok| ok > 50), "{what}: {tally}");
    }
}

#[test]
fn older_connections_are_shown_until_somebody_wishes_them_closed() {
    let Some(lab) = unmeshed() else { return };
    let held = lab.start("app/client", &["ambit-echo", "hold", "greeter.app:7000", "--seconds", "120"]);
    eventually("it is connected", || {
        lab.exec("app/client", &["ss", "-Htn", "state", "established"]).stdout.contains(":7000")
    });
    lab.join("app");
    let older = |pod| lab.pod("app", pod)["older_connections"].clone();
    eventually("both of its ends are shown", || older("client") == 1 && older("greeter") == 1);
    assert_eq!(older("other"), 0);
    let table = lab.ambit(["lab", "status"]).expect_ok().stdout;
    assert!(table.contains("BYPASSED") && table.contains("OLDER"), "{table}");

    lab.ambit(["lab", "label", "ns", "app", "ambit.dev/existing-connections=close"]).expect_ok();
    let tally = held.wait().expect_ok().stdout;
    assert!(tally.contains("\"how\"") && !tally.contains("kept"), "{tally}");
    eventually("none is left", || older("client") == 0 && older("greeter") == 0);
    for pod in ["client", "greeter", "server"] {
        assert_eq!(lab.pod("app", pod)["bypassed"], 0, "older ones got past nobody: {pod}");
    }
    let misspelt = lab.ambit(["lab", "label", "ns", "app", "ambit.dev/existing-connections=clsoe"]);
    assert!(!misspelt.ok() && misspelt.stderr.contains("did you mean `close`?"), "{misspelt}");
}

fn redirection_traces(lab: &Lab, pod: &str) -> String {
    let rules = lab.exec(pod, &["ip", "rule"]).expect_ok().stdout;
    let rules6 = lab.exec(pod, &["ip", "-6", "rule"]).expect_ok().stdout;
    let routes = lab.exec(pod, &["ip", "route", "show", "table", "100"]).stdout;
    let listeners = lab.exec(pod, &["ss", "-Hltn"]).expect_ok().stdout;
    let listeners: Vec<_> = listeners.lines().filter(|line| line.contains(":1500")).collect();
    format!("{rules}{rules6}{routes}{listeners:?}")
}

#[test]
fn a_pod_that_left_is_as_it_was_before() {
    let Some(lab) = unmeshed() else { return };
    let before = redirection_traces(&lab, "app/client");
    lab.join("app");
    assert_eq!(lab.pod("app", "client")["enrolled"], true);
    assert_ne!(redirection_traces(&lab, "app/client"), before);
    lab.leave("app");
    assert_eq!(lab.pod("app", "client")["enrolled"], false);
    eventually("ztunnel's listeners are gone", || redirection_traces(&lab, "app/client") == before);
    lab.exec("app/client", &curl("http://server.app/")).expect_ok();
}

#[test]
fn a_pod_opts_out_of_its_namespace() {
    let Some(lab) = unmeshed() else { return };
    lab.ambit(["lab", "label", "pod", "other", "-n", "app", "istio.io/dataplane-mode=none"]).expect_ok();
    lab.join("app");
    assert_eq!(lab.pod("app", "client")["enrolled"], true);
    assert_eq!(lab.pod("app", "other")["enrolled"], false);
}

#[test]
fn the_agent_restarts_unnoticed() {
    let Some(lab) = unmeshed() else { return };
    lab.join("app");
    let running = lab.start("app/client", &load("6", &[]));
    let before = lab.node("node1")["agent_pid"].clone();
    lab.ambit(["lab", "exec", "app/other", "--", "kill", "-9", &before.to_string()]).expect_ok();
    eventually("a new agent", || {
        let now = lab.node("node1")["agent_pid"].clone();
        now.is_number() && now != before
    });
    assert_eq!(running.wait().expect_ok().json()["failed"], 0);
    eventually("the pod is still enrolled", || lab.pod("app", "client")["enrolled"] == true);
    // It still does its work.
    lab.leave("app");
    assert_eq!(lab.pod("app", "client")["enrolled"], false);
}

#[test]
fn ztunnel_comes_back_and_serves_its_pods_again() {
    let Some(lab) = unmeshed() else { return };
    lab.join("app");
    let before = lab.node("node2")["ztunnel_pid"].clone();
    lab.ambit(["lab", "exec", "app/other", "--", "kill", "-9", &before.to_string()]).expect_ok();
    // While it is dead nothing leaks: either the call waits for the new one or it fails.
    let capture = lab.capture("node1");
    let _ = lab.exec("app/client", &curl("http://server.app/canary-dead"));
    assert!(!capture.stop().contain("canary-dead"));
    eventually("calls pass again", || lab.exec("app/client", &curl("http://server.app/")).ok());
    assert_ne!(lab.node("node2")["ztunnel_pid"], before);
}
