//! The machine's own troubles: links that swallow packets or go down, disks that are full.

use std::fs::{self, OpenOptions};
use std::process::{Child, Command, Stdio};

use testkit::lab::{Lab, eventually, program};
use tokio::time::Instant;

use crate::world::{curl, meshed};

/// Drops what passes a node's uplink to the port of tunnels, or from it.
fn swallow_tunnels(lab: &Lab, node: &str) {
    let uplink = lab.node(node)["uplink"].as_str().expect("an uplink").to_owned();
    let rules = format!(
        "table inet fault {{\nchain forward {{\ntype filter hook forward priority -300;\n\
         oifname {uplink} tcp dport 15008 drop\noifname {uplink} tcp sport 15008 drop\n\
         iifname {uplink} tcp dport 15008 drop\niifname {uplink} tcp sport 15008 drop\n}}\n}}\n"
    );
    lab.on_node(node, &["nft", &rules]).expect_ok();
}

fn heal(lab: &Lab, node: &str) {
    lab.on_node(node, &["nft", "delete table inet fault"]).expect_ok();
}

/// The client's connection ends with an error in bounded time, whatever was pooled, and the mesh is as before afterwards.
#[test]
fn a_link_that_swallows_packets_fails_calls_in_time_and_is_forgotten_when_it_heals() {
    let Some(lab) = meshed() else { return };
    let patient = ["curl", "-sS", "-o", "/dev/null", "-m", "40", "http://server.app/"];
    swallow_tunnels(&lab, "node1");
    // Nothing is pooled: the connect itself is not answered.
    let began = Instant::now();
    let refused = lab.exec("app/client", &patient);
    testkit::say(&format!("a new tunnel over a dead link: given up after {:?}", began.elapsed()));
    assert_ne!(refused.code, 28, "it ends by the mesh's own limit, not by the client's patience: {refused}");
    assert!(!refused.ok());
    lab.exec("app/client", &curl("http://local.app/")).expect_ok();
    heal(&lab, "node1");
    lab.exec("app/client", &curl("http://server.app/")).expect_ok();

    // Now a tunnel is pooled, and looks healthy.
    swallow_tunnels(&lab, "node1");
    let began = Instant::now();
    let refused = lab.exec("app/client", &patient);
    testkit::say(&format!("a pooled tunnel over a dead link: given up after {:?}", began.elapsed()));
    assert!(!refused.ok() && refused.code != 28, "{refused}");
    heal(&lab, "node1");
    eventually("calls go through again", || lab.exec("app/client", &curl("http://server.app/")).ok());
    let log = lab.logs("ztunnel@node1");
    assert!(log.contains("does not answer") || log.contains("no answer"), "the log says why: {log}");
}

/// What is under way when a peer's node vanishes is ended, and ends as broken rather than as complete.
#[test]
fn a_stream_whose_peer_falls_silent_is_reset() {
    let Some(lab) = meshed() else { return };
    // The greeter answers each line; the second one is never answered.
    let script = "import socket, time\n\
                  s = socket.create_connection(('greeter.app', 7000), 5)\n\
                  f = s.makefile('rw')\n\
                  print(f.readline().strip(), flush=True)\n\
                  s.settimeout(60)\n\
                  began = time.time()\n\
                  time.sleep(2)\n\
                  f.write('again\\n'); f.flush()\n\
                  try:\n    print('end' if s.recv(1) == b'' else 'data')\n\
                  except ConnectionResetError: print('reset after %d s' % (time.time() - began))\n\
                  except TimeoutError: print('still waiting')\n";
    let running = lab.start("app/client", &["python3", "-uc", script]);
    eventually("the stream stands", || {
        lab.metric("node1", "istio_tcp_connections_opened_total", &["destination_workload=\"greeter\""])
            >= 1.0
    });
    swallow_tunnels(&lab, "node2");
    let heard = running.wait().expect_ok().stdout;
    testkit::say(&format!("a stream over a dead link: {}", heard.trim()));
    assert!(heard.contains("reset after"), "{heard}");
}

/// The cable is pulled on the far side, as it happens to real nodes.
#[test]
fn a_link_that_goes_down_and_comes_back_costs_only_its_own_time() {
    let Some(lab) = meshed() else { return };
    lab.exec("app/client", &curl("http://server.app/")).expect_ok();
    let control = lab.status()["istiod_pid"].to_string();
    let fabric = |arguments: &[&str]| {
        let output = Command::new("nsenter").args(["-t", &control, "-n", "ip"]).args(arguments).output();
        let output = output.expect("run ip");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let ports = fabric(&["-o", "link", "show", "type", "veth"]);
    let ports: Vec<&str> = ports.lines().filter_map(|l| l.split(": ").nth(1)?.split('@').next()).collect();
    assert!(!ports.is_empty(), "the fabric has ports");
    for port in &ports {
        fabric(&["link", "set", "dev", port, "down"]);
    }
    // By address: the cluster's DNS is behind the cable too.
    let (server, local) = (lab.ip("app", "server"), lab.ip("app", "local"));
    let (server, local) = (format!("http://{server}:8080/"), format!("http://{local}:8080/"));
    assert!(!lab.exec("app/client", &["curl", "-sS", "-m", "8", &server]).ok());
    lab.exec("app/client", &curl(&local)).expect_ok();
    for port in &ports {
        fabric(&["link", "set", "dev", port, "up"]);
    }
    let began = Instant::now();
    eventually("calls go through again", || lab.exec("app/client", &curl("http://server.app/")).ok());
    testkit::say(&format!("a link that was down: calls go through {:?} after it is up", began.elapsed()));
}

/// A process of a test, ended with it.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A proxy that cannot write its log goes on. Every write to `/dev/full` fails as on a full disk.
#[test]
fn a_proxy_whose_log_is_on_a_full_disk_goes_on() {
    if !nix::unistd::geteuid().is_root() {
        return testkit::ignore("needs root: network namespaces");
    }
    let files = tempfile::TempDir::new().expect("a folder");
    let roots = files.path().join("root-cert.pem");
    let signer = identity::signer::Signer::ephemeral(
        identity::signer::SignerSettings::default(),
        std::sync::Arc::new(identity::SystemClock),
    );
    fs::write(&roots, signer.expect("an authority").roots().to_pem()).expect("write the roots");
    let full = || Stdio::from(OpenOptions::new().write(true).open("/dev/full").expect("/dev/full"));
    let child = Command::new("unshare")
        .args(["--net", "--"])
        .arg(program("ztunnel"))
        .env_clear()
        .envs([("NODE_NAME", "node"), ("RUST_LOG", "trace"), ("XDS_ADDRESS", "https://127.0.0.1:1")])
        .envs([("XDS_ROOT_CA", &roots), ("CA_ROOT_CA", &roots)])
        .env("INPOD_UDS", files.path().join("agent.sock"))
        .stdin(Stdio::null())
        .stdout(full())
        .stderr(full())
        .spawn();
    let mut started = Started(child.expect("start ztunnel"));
    let pid = started.0.id().to_string();
    let answers = || {
        let page = "for dev in lo; do ip link set $dev up; done; curl -s -m 2 http://127.0.0.1:15020/metrics";
        let output = Command::new("nsenter").args(["-t", &pid, "-n", "sh", "-c", page]).output();
        output.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains("istio_build"))
    };
    eventually("its pages answer", answers);
    // By now it has tried to write that it runs, and that the control plane cannot be reached, at every level of detail.
    assert!(started.0.try_wait().expect("its state").is_none(), "it still runs");
    assert!(answers());
}

/// A root that could be written only half must not be taken for one later.
#[test]
fn an_authority_on_a_full_disk_says_so_and_leaves_nothing_behind() {
    if !nix::unistd::geteuid().is_root() {
        return testkit::ignore("needs root: mounts");
    }
    let files = tempfile::TempDir::new().expect("a folder");
    let (objects, tokens) = (files.path().join("objects"), files.path().join("tokens"));
    fs::create_dir(&objects).expect("a folder");
    fs::write(&tokens, "[]").expect("write");
    let run = format!(
        "mount -t tmpfs -o size=64k none '{dir}/ca' && chmod 700 '{dir}/ca' \
         && head -c 65536 /dev/zero > '{dir}/ca/ballast'; \
         timeout 10 {istiod} --source-dir '{dir}/objects' --ca-dir '{dir}/ca' --token-file '{dir}/tokens'; \
         echo \"status $?\"; ls -A '{dir}/ca'; rm '{dir}/ca/ballast'; \
         timeout 3 {istiod} --source-dir '{dir}/objects' --ca-dir '{dir}/ca' --token-file '{dir}/tokens' >/dev/null; \
         echo \"status $?\"; ls -A '{dir}/ca'",
        dir = files.path().display(),
        istiod = program("istiod-lite").display(),
    );
    fs::create_dir(files.path().join("ca")).expect("a folder");
    let output = Command::new("unshare").args(["--mount", "--net", "--", "sh", "-c", &run]).output();
    let output = output.expect("run unshare");
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let mut lines = said.lines().filter(|line| !line.contains("INFO"));
    assert_eq!(lines.next(), Some("status 1"), "{said}{complained}");
    assert_eq!(lines.next(), Some("ballast"), "neither a key nor a draft of one: {said}");
    assert!(complained.contains("No space left") && complained.contains("ca/"), "{complained}");
    // With room again it makes its root and runs, until `timeout` ends it.
    assert_eq!(lines.next(), Some("status 124"), "{said}{complained}");
    assert!(said.contains("root-cert.pem"), "{said}");
}
