//! What a pod could try, and what that gains it: the netns part of `docs/threat-model.md`.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use testkit::lab::{Lab, Output};

use crate::world::{authorization, curl, meshed, peer_authentication};

/// A call from a network namespace that the pod makes behind its own, which nobody enrols, in the pod's name by NAT.
fn around_capture(lab: &Lab, to: &str) -> Output {
    let script = format!(
        "set -e
        unshare --net sleep 30 & behind=$!
        trap 'kill $behind; nft delete table ip around || :; ip link del around 2>/dev/null || :' EXIT
        until [ \"$(readlink /proc/$behind/ns/net)\" != \"$(readlink /proc/self/ns/net)\" ]; do :; done
        ip link add around type veth peer name inside netns $behind
        ip address add 192.0.2.1/30 dev around; ip link set around up
        echo 1 > /proc/sys/net/ipv4/ip_forward
        nft 'table ip around {{ chain post {{ type nat hook postrouting priority 100; masquerade; }}; }}'
        nsenter -t $behind -n sh -ec '
            ip address add 192.0.2.2/30 dev inside; ip link set inside up
            ip route add default via 192.0.2.1'
        echo the way is there
        nsenter -t $behind -n curl -sS -f -m 5 {to}"
    );
    let output = lab.exec("app/client", &["timeout", "20", "bash", "-c", &script]);
    assert!(output.stdout.contains("the way is there"), "{output}");
    output
}

/// Capture takes in what a pod's applications do, not what a pod's root does against it. The destination decides.
#[test]
fn a_pod_that_gets_around_its_own_capture_is_nobody_to_the_destination() {
    let Some(lab) = meshed() else { return };
    let server = format!("http://{}:8080/", lab.ip("app", "server"));
    let around = || around_capture(&lab, &server).ok();
    let within = || lab.exec("app/client", &curl(&server)).ok();
    assert!(within() && around(), "nothing forbids plaintext, and there is a way around");

    let client_only = "  rules: [{from: [{source: {principals: [cluster.local/ns/app/sa/client]}}]}]\n";
    lab.apply(&authorization("only-client", "", client_only)).expect_ok();
    assert!(within(), "who it is counts");
    assert!(!around(), "and who says nothing is nobody, from whatever address");
    lab.delete(&authorization("only-client", "", client_only)).expect_ok();
    assert!(around());

    lab.apply(&peer_authentication("STRICT", "")).expect_ok();
    assert!(within() && !around(), "nor does STRICT take plaintext");
}

/// Abstract sockets have no owner: whoever shares the network namespace may connect, and pods may share the node's.
#[test]
fn the_meshs_unix_sockets_are_roots_alone_and_none_is_abstract() {
    let Some(lab) = meshed() else { return };
    let listening = |table: &Output| -> Vec<String> {
        let listens = |line: &&str| line.split_whitespace().nth(3) == Some("00010000");
        let name = |line: &str| line.split_whitespace().nth(7).unwrap_or_default().to_owned();
        table.stdout.lines().filter(listens).map(name).collect()
    };
    let table = &["cat", "/proc/net/unix"][..];
    for node in ["node1", "node2"] {
        let sockets = listening(&lab.on_node(node, table).expect_ok());
        assert!(!sockets.is_empty(), "the agent listens");
        for path in sockets {
            let meta = fs::metadata(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert_eq!((meta.uid(), meta.mode() & 0o777), (0, 0o600), "{path}");
        }
    }
    for pod in ["app/client", "app/server"] {
        assert_eq!(listening(&lab.exec(pod, table).expect_ok()), [""; 0], "in {pod}");
    }
}

/// Readiness and metrics have to be asked for from elsewhere; what is in the mesh is nobody's business there.
#[test]
fn the_control_plane_shows_the_mesh_to_callers_on_loopback_alone() {
    let Some(lab) = meshed() else { return };
    let dump: serde_json::Value =
        serde_json::from_str(&lab.ztunnel("node1", 15000, "/config_dump")).expect("JSON");
    let address = dump["config"]["xds"]["address"].as_str().expect("the control plane's address");
    let host = address.trim_start_matches("https://").split(':').next().expect("a host");
    let istiod = lab.status()["istiod_pid"].to_string();
    let status = |output: Output| output.expect_ok().stdout;
    for (path, elsewhere) in [
        ("/ready", "200"),
        ("/metrics", "200"),
        ("/debug/sync", "403"),
        ("/debug/objects?kind=pod", "403"),
        ("/debug/policies", "403"),
        ("/debug/workloads", "403"),
        ("/debug/services", "403"),
        ("/debug/proxies", "403"),
    ] {
        let ask = |host: &str| {
            let url = format!("http://{host}:15014{path}");
            ["curl", "-sS", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", &url].map(str::to_owned)
        };
        let (there, here) = (ask(host), ask("127.0.0.1"));
        let words = there.each_ref().map(String::as_str);
        assert_eq!(status(lab.on_node("node1", &words)), elsewhere, "{path} from a node");
        let own = Command::new("nsenter").args(["-t", &istiod, "-n"]).args(here).output().expect("run curl");
        assert_eq!(String::from_utf8_lossy(&own.stdout), "200", "{path} on loopback");
    }
}
