//! A proxy that dies, and what of that is seen by those whom it carries.

use std::process::Command;

use serde_json::Value;
use testkit::lab::{Lab, eventually};

use crate::live::Held;
use crate::world::meshed;

/// Knocks at a port over and over for some seconds from several threads, each time by a new connection, and says what
/// became of that. An HTTP port is asked for a page, too.
const KNOCK: &str = "
import json, socket, sys, threading, time
host, port, seconds, http = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == 'http'
told = dict(tried=0, answered=0, refused=0, broken=0, silent=0, slowest_connect_ms=0, slowest_ms=0)
lock, end = threading.Lock(), time.time() + seconds
def once():
    began, outcome, connected = time.time(), 'answered', None
    try:
        s = socket.create_connection((host, port), 10)
        connected = time.time() - began
        s.settimeout(10)
        if http:
            s.sendall(b'GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n')
            if not s.recv(100).startswith(b'HTTP/1.1 200'): outcome = 'broken'
        s.close()
    except TimeoutError: outcome = 'silent'
    except ConnectionRefusedError: outcome = 'refused'
    except OSError: outcome = 'broken' if connected is not None else 'refused'
    took = time.time() - began
    with lock:
        told['tried'] += 1
        told[outcome] += 1
        told['slowest_connect_ms'] = max(told['slowest_connect_ms'], int(1000 * (connected or 0)))
        told['slowest_ms'] = max(told['slowest_ms'], int(1000 * took))
def knock():
    while time.time() < end:
        once()
        time.sleep(0.01)
threads = [threading.Thread(target=knock) for _ in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
print(json.dumps(told))
";
const KNOCKERS: u64 = 4;

fn kill(pid: &Value) {
    let killed = Command::new("kill").args(["-9", &pid.to_string()]).status();
    assert!(killed.expect("run kill").success());
}

/// Kills a node's ztunnel and waits until its successor is there.
fn kill_ztunnel(lab: &Lab, node: &str) {
    let before = lab.node(node)["ztunnel_pid"].clone();
    kill(&before);
    eventually("another ztunnel", || {
        let now = lab.node(node)["ztunnel_pid"].clone();
        now.is_number() && now != before
    });
}

#[test]
fn a_proxy_that_is_killed_refuses_nobody() {
    let Some(lab) = meshed() else { return };
    let server = lab.ip("app", "server");
    let knock =
        |port, kind| lab.start("outside/stranger", &["python3", "-c", KNOCK, &server, port, "6", kind]);
    let (plaintext, tunnels) = (knock("8080", "http"), knock("15008", "tunnels"));
    const KILLS: u64 = 3;
    for _ in 0..KILLS {
        kill_ztunnel(&lab, "node2");
        lab.exec("app/client", &crate::world::curl("http://server.app/")).expect_ok();
    }
    for (what, running) in [("plaintext", plaintext), ("tunnels", tunnels)] {
        let told = running.wait().json();
        testkit::say(&format!("{KILLS} times a killed ztunnel, {what}: {told}"));
        assert_eq!(told["refused"], 0, "{what}: {told}");
        assert_eq!(told["silent"], 0, "{what}: {told}");
        let broken = told["broken"].as_u64().expect("a number");
        // Those that it carried at that moment die with it, and no others.
        assert!(broken <= KILLS * KNOCKERS, "{what}: {told}");
        // Within a second it serves again; the rest is what a busy machine may add, or a SYN that must come again.
        assert!(told["slowest_ms"].as_u64().is_some_and(|slowest| slowest < 2500), "{told}");
    }
}

#[test]
fn an_agent_that_is_killed_is_missed_by_nobody_and_keeps_listeners_again() {
    let Some(lab) = meshed() else { return };
    let load = lab.start("app/client", &["ambit-echo", "load", "http://server.app/", "--seconds", "5"]);
    for node in ["node1", "node2"] {
        let before = lab.node(node)["agent_pid"].clone();
        kill(&before);
        eventually("another agent", || {
            let now = lab.node(node)["agent_pid"].clone();
            now.is_number() && now != before
        });
        eventually("it has told ztunnel of all pods", || {
            lab.on_node(node, &["curl", "-sS", "-f", "-m", "2", "http://127.0.0.1:15022/healthz/ready"]).ok()
        });
    }
    let told = load.wait().json();
    testkit::say(&format!("both agents killed under load: {told}"));
    assert_eq!(told["failed"], 0, "{told}");

    // What ztunnel handed to the agent that is gone it has handed to the new one, too.
    let server = lab.ip("app", "server");
    let knock = lab.start("outside/stranger", &["python3", "-c", KNOCK, &server, "15008", "3", "tunnels"]);
    kill_ztunnel(&lab, "node2");
    let told = knock.wait().json();
    testkit::say(&format!("a killed ztunnel after a killed agent: {told}"));
    assert_eq!((&told["refused"], &told["silent"]), (&0.into(), &0.into()), "{told}");
}

/// How long what stands is watched: well past the grace that a ztunnel has which is told to end.
const WATCHED: u64 = 12;

#[test]
fn a_proxy_that_is_replaced_fails_no_connection_and_ends_none() {
    let Some(lab) = meshed() else { return };
    let server = lab.ip("app", "server");
    let held = ["app/client", "app/other"].map(|by| Held::open(&lab, by, WATCHED));
    let load = lab.start("app/client", &["ambit-echo", "load", "http://server.app/", "--seconds", "6"]);
    let knock =
        |port, kind| lab.start("outside/stranger", &["python3", "-c", KNOCK, &server, port, "6", kind]);
    let (plaintext, tunnels) = (knock("8080", "http"), knock("15008", "tunnels"));
    let leaving = |node: &str| lab.node(node)["ztunnels_leaving"].as_array().map_or(0, Vec::len);
    for _ in 0..2 {
        for node in ["node1", "node2"] {
            let before = lab.node(node)["ztunnel_pid"].clone();
            let told = lab.ambit(["lab", "restart", &format!("ztunnel@{node}")]).expect_ok();
            testkit::say(told.stdout.trim());
            let now = lab.node(node)["ztunnel_pid"].clone();
            assert!(now.is_number() && now != before, "{now} in place of {before}");
            assert!(leaving(node) > 0, "it carries what was held");
            // Its pages are the new one's.
            let ready =
                lab.on_node(node, &["curl", "-sS", "-f", "-m", "2", "http://127.0.0.1:15021/healthz/ready"]);
            ready.expect_ok();
        }
    }
    let told = load.wait().json();
    testkit::say(&format!("both ztunnels replaced twice under load: {told}"));
    assert_eq!(told["failed"], 0, "{told}");
    for (what, running) in [("plaintext", plaintext), ("tunnels", tunnels)] {
        let told = running.wait().json();
        testkit::say(&format!("both ztunnels replaced twice, {what}: {told}"));
        let lost = ["refused", "broken", "silent"].map(|how| told[how].as_u64().expect("a number"));
        assert_eq!(lost, [0, 0, 0], "{what}: {told}");
    }
    held.into_iter().for_each(|held| held.outcome().expect_kept());
    eventually("those that were replaced have ended", || leaving("node1") + leaving("node2") == 0);
}

#[test]
fn what_is_no_part_of_the_mesh_is_not_restarted() {
    let Some(lab) = meshed() else { return };
    for (part, why) in [("waypoint", "name istiod"), ("ztunnel@node9", "there is no ztunnel@node9")] {
        let refused = lab.ambit(["lab", "restart", part]);
        assert!(!refused.ok() && refused.stderr.contains(why), "{refused}");
    }
    for part in ["agent@node1", "istiod"] {
        lab.ambit(["lab", "restart", part]).expect_ok();
    }
    lab.exec("app/client", &crate::world::curl("http://server.app/")).expect_ok();
}
