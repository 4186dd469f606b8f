//! Service translation and names, for pods outside the mesh.

use std::collections::BTreeSet;

use crate::{HTTP, READY, SLEEP, deployment, get, lab, pod, service};

#[test]
fn a_service_reaches_all_its_replicas_from_every_node() {
    let world = deployment("web", 2, HTTP, READY)
        + &service("web", "web", "")
        + &pod("one", "node1", SLEEP, "")
        + &pod("two", "node2", SLEEP, "");
    let Some(lab) = lab(&world) else { return };
    for from in ["x/one", "x/two"] {
        let answers = (0..24).map(|_| get(&lab, from, "http://web/").json());
        let seen: BTreeSet<String> =
            answers.map(|answer| answer["pod"].as_str().unwrap_or_default().to_owned()).collect();
        assert_eq!(seen, ["web-0".to_owned(), "web-1".to_owned()].into(), "from {from}");
    }
    let client = get(&lab, "x/one", "http://web/").json()["client"].clone();
    assert_eq!(client, lab.ip("x", "one"), "the caller's address is kept");
}

#[test]
fn a_pod_reaches_itself_by_its_service() {
    let Some(lab) = lab(&(pod("web", "node1", HTTP, READY) + &service("web", "web", ""))) else { return };
    for _ in 0..3 {
        get(&lab, "x/web", "http://web/").expect_ok();
    }
}

#[test]
fn a_service_without_endpoints_refuses_at_once() {
    let Some(lab) = lab(&(pod("one", "node1", SLEEP, "") + &service("void", "nobody", ""))) else { return };
    let refused = lab.exec("x/one", &["curl", "-sS", "-m", "5", "http://void/"]);
    assert_eq!(refused.code, 7, "curl's word for a refused connection: {refused}");
}

#[test]
fn a_service_may_have_both_families() {
    let world = pod("web", "node2", HTTP, READY)
        + &pod("one", "node1", SLEEP, "")
        + &service("web", "web", ", ipFamilyPolicy: PreferDualStack");
    let Some(lab) = lab(&world) else { return };
    for flag in ["-4", "-6"] {
        let answer = lab.exec("x/one", &["curl", flag, "-sS", "-f", "-m", "5", "http://web/"]);
        assert_eq!(answer.json()["pod"], "web", "{flag}");
    }
}

#[test]
fn a_headless_service_is_its_pods_addresses() {
    let world = deployment("web", 2, HTTP, READY)
        + &service("web", "web", ", clusterIP: None")
        + &pod("one", "node1", SLEEP, "");
    let Some(lab) = lab(&world) else { return };
    let found = lab.exec("x/one", &["getent", "ahostsv4", "web.x.svc.cluster.local"]).expect_ok().stdout;
    let found: BTreeSet<String> =
        found.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    assert_eq!(found, [lab.ip("x", "web-0"), lab.ip("x", "web-1")].into());
}

#[test]
fn names_are_resolved_over_tcp_too_and_others_do_not_exist() {
    let Some(lab) = lab(&(pod("one", "node1", SLEEP, "") + &service("web", "nobody", ""))) else { return };
    let script = "import socket, struct\n\
                  def ask(name):\n\
                  \x20   labels = b''.join(bytes([len(l)]) + l.encode() for l in name.split('.')) + b'\\0'\n\
                  \x20   q = struct.pack('>6H', 7, 0x100, 1, 0, 0, 0) + labels + struct.pack('>2H', 1, 1)\n\
                  \x20   s = socket.create_connection(('10.96.0.10', 53), 5)\n\
                  \x20   s.sendall(struct.pack('>H', len(q)) + q)\n\
                  \x20   s.recv(2)\n\
                  \x20   flags, _, answers = struct.unpack('>3H', s.recv(4096)[2:8])\n\
                  \x20   return flags & 15, answers\n\
                  print(*ask('web.x.svc.cluster.local'), *ask('example.com'))\n";
    let answered = lab.exec("x/one", &["python3", "-c", script]).expect_ok().stdout;
    assert_eq!(answered.trim(), "0 1 3 0", "NOERROR with an answer, NXDOMAIN without");
}
