//! One pod that takes all it can get, and what others notice of it.

use std::path::Path;

use serde_json::Value;
use testkit::lab::{Lab, eventually};

use crate::world::{Pod, manifests};

/// As many as the issue asks for in a full run, else a tenth.
fn scaled(full: u64) -> u64 {
    if crate::is_full() { full } else { full / 10 }
}

const AS_MANY_DESCRIPTORS_AS_CAN_BE: &str = "ulimit -n $(ulimit -Hn); exec";

/// The world, with a server in it that holds as many connections as it is given.
fn world() -> Option<Lab> {
    let serve = format!("{AS_MANY_DESCRIPTORS_AS_CAN_BE} ambit-echo greet --port 7000");
    let sink = Pod {
        namespace: "app",
        name: "sink",
        node: "node2",
        command: &["sh", "-c", &serve],
        ready_on: Some(7000),
    };
    let lab = Lab::up(&(manifests() + &sink.manifest()))?;
    lab.join("app");
    Some(lab)
}

/// What a modest pod measures: requests one after the other, by two callers that each keep a connection.
fn measured(lab: &Lab, what: &str, seconds: &str) -> u64 {
    let url = format!("http://{}:8080/", lab.ip("app", "server"));
    let load = ["ambit-echo", "load", &url, "--keep-alive", "--callers", "2", "--pause-ms", "1"];
    let told = lab.exec("app/other", &[&load[..], &["--seconds", seconds]].concat()).json();
    testkit::say(&format!(
        "{what}: p50 {} us, p99 {} us, {} requests",
        told["p50_us"], told["p99_us"], told["ok"]
    ));
    told["p99_us"].as_u64().expect("a duration")
}

fn connections(lab: &Lab, node: &str) -> u64 {
    let shown: Value = serde_json::from_str(&lab.ztunnel(node, 15000, "/quotas")).expect("JSON");
    let used = &shown["used"];
    used["connections"].as_u64().unwrap_or_default() + used["streams"].as_u64().unwrap_or_default()
}

#[test]
fn a_pod_with_very_many_connections_or_a_stalled_reader_does_not_slow_another() {
    let Some(lab) = world() else { return };
    let many = scaled(15_000);
    // The noise of the machine is not what is tested: it is in what is compared with, there are five attempts, and a debug
    // build on a busy machine has ten milliseconds more.
    let quiet = measured(&lab, "alone", "2").max(measured(&lab, "alone", "2"));
    let within = |p99: u64| p99 <= 2 * quiet + if crate::is_full() { 1_000 } else { 10_000 };

    let sink = format!("{}:7000", lab.ip("app", "sink"));
    let hold = format!("{AS_MANY_DESCRIPTORS_AS_CAN_BE} ambit-echo crowd {sink} --count {many}");
    let holding = lab.start("app/client", &["sh", "-c", &hold]);
    measured(&lab, "while another pod opens connections", "2");
    until(&lab, "all stand", |lab| ["node1", "node2"].iter().all(|node| connections(lab, node) >= many));
    let crowded =
        (0..5).map(|_| measured(&lab, &format!("beside {many} connections"), "2")).find(|p| within(*p));
    assert!(crowded.is_some(), "p99 alone was {quiet} us");

    let server = format!("{}:8080", lab.ip("app", "local"));
    let before = connections(&lab, "node1");
    let hold = ["ambit-echo", "crowd", &server, "--count", "20", "--get", "/bytes?n=1000000000"];
    let stalled = lab.start("app/client", &hold);
    until(&lab, "they stand", |lab| connections(lab, "node1") >= before + 20);
    let beside =
        (0..5).map(|_| measured(&lab, "beside 20 readers that do not read", "2")).find(|p| within(*p));
    assert!(beside.is_some(), "p99 alone was {quiet} us");
    drop((holding, stalled));
}

#[track_caller]
fn until(lab: &Lab, what: &str, holds: impl Fn(&Lab) -> bool) {
    // A full run opens for more than the 15 seconds that one of these waits.
    for _ in 0..12 {
        if holds(lab) {
            return;
        }
        std::thread::park_timeout(std::time::Duration::from_secs(if scaled(10) == 10 { 10 } else { 0 }));
    }
    eventually(what, || holds(lab));
}

/// What a process has at the moment.
#[derive(Debug)]
struct Has {
    descriptors: u64,
    memory_kib: u64,
}

fn ztunnel_has(lab: &Lab, node: &str) -> Has {
    let proc = format!("/proc/{}", lab.node(node)["ztunnel_pid"]);
    let status = std::fs::read_to_string(Path::new(&proc).join("status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    let memory_kib = line.trim().trim_end_matches("kB").trim().parse().expect("a number");
    let descriptors = std::fs::read_dir(Path::new(&proc).join("fd")).expect("its descriptors").count() as u64;
    Has { descriptors, memory_kib }
}

#[test]
fn descriptors_and_memory_stay_flat_however_many_connections_come_and_go() {
    let Some(lab) = world() else { return };
    let url = format!("http://{}:8080/", lab.ip("app", "server"));
    let run = |requests: u64| {
        let n = requests.to_string();
        let load = ["ambit-echo", "load", &url, "--callers", "16", "--pause-ms", "0", "--requests", &n];
        lab.exec("app/client", &load).json()
    };
    // One client of one address has 28,000 ports, and each rests for a minute once it is closed: a pod that makes so many
    // connections lets them be taken again, as any generator of load does.
    let netns = lab.pod("app", "client")["netns"].as_str().expect("a path").to_owned();
    let reuse = "echo 1 > /proc/sys/net/ipv4/tcp_tw_reuse";
    lab.run("nsenter", &[&format!("--net={netns}"), "sh", "-c", reuse]).expect_ok();
    // All that is made once is made.
    run(1_000);
    let before = ["node1", "node2"].map(|node| ztunnel_has(&lab, node));
    // A tenth of the million would take CI minutes, so it gets less: a descriptor or a kilobyte a connection shows there too.
    let told = run(if scaled(10) == 10 { 1_000_000 } else { 12_000 });
    eventually("all connections have ended", || ["node1", "node2"].iter().all(|n| connections(&lab, n) <= 8));
    let after = ["node1", "node2"].map(|node| ztunnel_has(&lab, node));
    testkit::say(&format!("{} connections in {} s: {before:?} -> {after:?}", told["ok"], told["seconds"]));
    for (before, after) in before.iter().zip(&after) {
        assert!(after.descriptors <= before.descriptors + 16, "{before:?} -> {after:?}");
        assert!(
            after.memory_kib <= before.memory_kib + before.memory_kib / 4 + 8 * 1024,
            "{before:?} -> {after:?}"
        );
    }
}

/// The node's proxy connects to the application in the client's name, and so has no more ports than one client has.
#[test]
fn a_client_that_connects_often_finds_a_port_whoever_closes_first() {
    let Some(lab) = world() else { return };
    let netns = lab.pod("app", "server")["netns"].as_str().expect("a path").to_owned();
    let few = "echo 50000 50199 > /proc/sys/net/ipv4/ip_local_port_range";
    lab.run("nsenter", &[&format!("--net={netns}"), "sh", "-c", few]).expect_ok();
    // Five times the ports, within a tenth of the time that each rests.
    let url = format!("http://{}:8080/", lab.ip("app", "server"));
    let load = ["ambit-echo", "load", &url, "--callers", "1", "--pause-ms", "8", "--requests", "1000"];
    let told = lab.exec("app/client", &load).json();
    assert_eq!((&told["ok"], &told["failed"]), (&1000.into(), &0.into()), "{told}");
}
