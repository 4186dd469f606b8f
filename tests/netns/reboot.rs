//! Nodes that lose their power.

use tokio::time::Instant;

use testkit::lab::{Lab, eventually};

use crate::world::{Pod, manifests};

/// Calls a server over and over, never waiting long, and says each time that it was answered.
const BEACON: &str = "
import socket, sys, time
while True:
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), 0.3) as s:
            s.settimeout(2)
            s.sendall(b'GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n')
            if s.recv(100).startswith(b'HTTP/1.1 200'): print('answered', flush=True)
    except OSError:
        pass
";

/// How often the node loses its power.
fn reboots() -> usize {
    if crate::is_full() { 100 } else { 10 }
}

fn answered(lab: &Lab, beacon: &str) -> usize {
    lab.logs(&format!("app/{beacon}")).lines().filter(|line| *line == "answered").count()
}

#[test]
fn a_pod_of_a_node_that_reboots_sends_nothing_in_plaintext() {
    let Some(lab) = Lab::up(&manifests()) else { return };
    lab.join("app");
    let server = lab.ip("app", "server");
    let beacons = [("beacon", server.as_str(), "8080"), ("vip-beacon", "server.app", "80")];
    for (name, host, port) in beacons {
        let command = ["python3", "-u", "-c", BEACON, host, port];
        let pod = Pod { namespace: "app", name, node: "node1", command: &command, ready_on: None };
        lab.apply(&pod.manifest()).expect_ok();
    }
    let all_answered = |than: [usize; 2]| {
        eventually("all beacons are answered", || {
            beacons.iter().zip(than).all(|((name, ..), before)| answered(&lab, name) > before)
        });
    };
    let count = || beacons.map(|(name, ..)| answered(&lab, name));
    all_answered([0, 0]);
    let capture = lab.capture("node1");
    let mut longest = 0;
    for _ in 0..reboots() {
        let before = lab.node("node1");
        let so_far = count();
        let began = Instant::now();
        lab.ambit(["lab", "reboot", "node1"]).expect_ok();
        all_answered(so_far);
        longest = longest.max(began.elapsed().as_millis());
        let after = lab.node("node1");
        assert!(["agent_pid", "ztunnel_pid"].iter().all(|pid| before[pid] != after[pid]), "{before} {after}");
    }
    let packets = capture.stop();
    let (plaintext, tunnels) = (packets.list("tcp dst port 8080"), packets.count("tcp dst port 15008"));
    testkit::say(&format!(
        "{} reboots, until all are answered again at most {longest} ms: {} packets in plaintext, {tunnels} to tunnels",
        reboots(),
        plaintext.lines().count()
    ));
    assert!(tunnels > 10 * reboots(), "the beacons were heard: {tunnels}");
    // The pods of the node that are not in the mesh do not call anybody.
    assert_eq!(plaintext, "");
}

#[test]
fn a_pod_of_the_mesh_does_not_begin_before_it_is_in_it() {
    let Some(lab) = Lab::up(&manifests()) else { return };
    lab.join("app");
    let server = lab.ip("app", "server");
    let capture = lab.capture("node1");
    let command = ["python3", "-u", "-c", BEACON, &server, "8080"];
    for round in 0..3 {
        let name = format!("late-{round}");
        let pod = Pod { namespace: "app", name: &name, node: "node1", command: &command, ready_on: None };
        lab.apply(&pod.manifest()).expect_ok();
        eventually("it is answered", || answered(&lab, &name) > 0);
    }
    let packets = capture.stop();
    assert_eq!(packets.list("tcp dst port 8080"), "");
    assert!(packets.count("tcp dst port 15008") > 0);
}

#[test]
fn there_is_no_other_node_to_reboot() {
    let Some(lab) = Lab::up(&manifests()) else { return };
    let refused = lab.ambit(["lab", "reboot", "node9"]);
    assert!(!refused.ok() && refused.stderr.contains("there is no node `node9`"), "{refused}");
}
