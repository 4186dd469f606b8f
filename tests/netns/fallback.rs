//! Redirection by nftables, where programs do not load. `cargo xtask test` runs other tests of this tier by it too.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::lab::{Lab, eventually};

use crate::world::{curl, manifests};

/// What must not be readable on the wire.
const CANARY: &str = "canary-of-the-fallback";

fn meshed_by_nftables() -> Option<Lab> {
    let lab = Lab::up_with(&manifests(), &[("AMBIT_REDIRECTION", "nftables")])?;
    lab.join("app");
    Some(lab)
}

fn in_pod(lab: &Lab, pod: &str, command: &str) -> String {
    let netns = lab.pod("app", pod)["netns"].as_str().expect("a path").to_owned();
    let net = format!("--net={netns}");
    lab.run("nsenter", &[&net, "sh", "-c", command]).expect_ok().stdout
}

#[test]
fn where_programs_do_not_load_nftables_redirects_and_status_says_why() {
    let echo = testkit::lab::program("ambit-echo").display().to_string();
    let Some(lab) = Lab::up_under(&[&echo, "without-bpf"], &manifests(), &[]) else { return };
    lab.join("app");
    let status = lab.status();
    assert_eq!(status["redirection"], "nftables");
    let reason = status["redirection_reason"].as_str().expect("a reason");
    assert!(reason.contains("does not take the eBPF programs"), "{reason}");
    assert!(lab.ambit(["lab", "status"]).stdout.contains("redirection: nftables (this kernel"));
    let told = lab.on_node("node1", &["curl", "-s", "localhost:15022/metrics"]).expect_ok().stdout;
    assert!(told.contains("ambit_agent_redirection{by=\"nftables\"} 1"), "{told}");
    let capture = lab.capture("node1");
    let seen = lab.exec("app/client", &curl(&format!("http://server.app/{CANARY}"))).json();
    let wire = capture.stop();
    assert_eq!(seen["client"], lab.ip("app", "client"), "the client's address is kept");
    assert!(!wire.contain(CANARY));
    assert!(wire.count("tcp port 15008") > 0);
}

#[test]
fn an_agent_that_is_to_use_ebpf_does_not_use_anything_else() {
    let Some(lab) = Lab::up("") else { return };
    let [echo, agent] =
        ["ambit-echo", "ambit-agent"].map(|name| testkit::lab::program(name).display().to_string());
    let (bpffs, objects) = (lab.state_dir().join("spare-bpffs"), lab.state_dir().join("spare-objects"));
    for folder in [&bpffs, &objects] {
        std::fs::create_dir(folder).expect("the lab's folder");
    }
    let [bpffs, objects] = [bpffs, objects].map(|folder| folder.display().to_string());
    let command = [
        "-m",
        &echo,
        "without-bpf",
        &agent,
        "--redirection",
        "ebpf",
        "--node-name",
        "n",
        "--bpffs",
        &bpffs,
        "--objects",
        &objects,
    ];
    let told = lab.run("unshare", &command);
    assert!(!told.ok(), "{told}");
    assert!(told.stderr.contains("this kernel cannot redirect by ebpf"), "{told}");
}

#[test]
fn a_table_that_is_taken_away_is_put_back_and_what_got_past_is_counted() {
    let Some(lab) = meshed_by_nftables() else { return };
    let repairs = || -> f64 {
        let page = lab.on_node("node1", &["curl", "-s", "localhost:15022/metrics"]).expect_ok().stdout;
        let line = page.lines().find(|line| line.starts_with("ambit_repairs_total{what=\"table\"}"));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
    };
    let tables = || in_pod(&lab, "client", "nft list tables");
    assert!(tables().contains("ambit_"), "{}", tables());
    in_pod(&lab, "client", "nft flush ruleset");
    eventually("the table is put back", || repairs() == 1.0 && tables().contains("ambit_"));
    assert_eq!(lab.pod("app", "client")["bypassed"], 0, "nothing connected meanwhile");

    // While the agent cannot look, something gets out.
    let agent = lab.node("node1")["agent_pid"].as_i64().expect("a pid");
    let agent = Pid::from_raw(agent.try_into().expect("a pid"));
    kill(agent, Signal::SIGSTOP).expect("the agent is the test's");
    in_pod(&lab, "client", "nft flush ruleset");
    let server = lab.ip("app", "server");
    let script =
        format!("import socket, time; s = socket.create_connection(('{server}', 8080)); time.sleep(60)");
    let stray = lab.start("app/client", &["python3", "-c", &script]);
    eventually("it has connected", || {
        in_pod(&lab, "client", "ss -Htn state established").contains(&format!("{server}:8080"))
    });
    kill(agent, Signal::SIGCONT).expect("the agent is the test's");
    eventually("it is counted", || lab.pod("app", "client")["bypassed"] == 1);
    assert!(repairs() >= 2.0);
    let capture = lab.capture("node1");
    lab.exec("app/client", &curl(&format!("http://server.app/{CANARY}"))).expect_ok();
    assert!(!capture.stop().contain(CANARY));
    drop(stray);
}

/// Somebody's rules of an earlier priority send a connection elsewhere before ours do.
#[test]
fn what_others_rules_would_let_past_does_not_leave() {
    let Some(lab) = meshed_by_nftables() else { return };
    let server = lab.ip("app", "server");
    let rules = format!(
        "nft add table ip others && nft 'add chain ip others c {{ type nat hook output priority -150; }}' && \
         nft add rule ip others c ip daddr 192.0.2.9 tcp dport 80 dnat to {server}:8080"
    );
    in_pod(&lab, "client", &rules);
    let capture = lab.capture("node1");
    let url = format!("http://192.0.2.9/{CANARY}");
    assert!(!lab.exec("app/client", &["curl", "-s", "-m", "2", &url]).ok());
    let wire = capture.stop();
    assert!(!wire.contain(CANARY));
    assert_eq!(wire.count(&format!("host {server} and tcp port 8080")), 0);
    let page = || lab.on_node("node1", &["curl", "-s", "localhost:15022/debug/pods"]).expect_ok().stdout;
    eventually("the agent says so", || page().contains("would have left past the mesh were dropped"));
}

#[test]
fn an_agent_that_comes_again_goes_on_with_the_tables_that_are_there() {
    let Some(lab) = meshed_by_nftables() else { return };
    let load = lab.start("app/client", &["ambit-echo", "load", "http://server.app/", "--seconds", "4"]);
    lab.ambit(["lab", "restart", "agent@node1"]).expect_ok();
    let tally = load.wait().expect_ok().json();
    assert_eq!(tally["failed"], 0, "{tally}");
    lab.leave("app");
    for pod in ["client", "server"] {
        eventually("nothing is left in the pod", || in_pod(&lab, pod, "nft list ruleset").is_empty());
    }
    lab.exec("app/client", &curl("http://server.app/")).expect_ok();
}
