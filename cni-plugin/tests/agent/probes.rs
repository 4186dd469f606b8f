//! The kubelet's probes reach the application itself; what else comes from its node does not.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use cni_plugin::status::Shown;
use ebpf_loader::cgroup2_root;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::capture::greeters;
use crate::app::{Call, Greeter};
use crate::bench::{Bench, Running};
use crate::proxy::Proxy;
use crate::town::{Place, Town};

const PATIENCE: Duration = Duration::from_secs(30);

/// A cgroup of a kubelet, which has no process but while it probes.
struct Kubelet {
    cgroup: PathBuf,
}

impl Kubelet {
    fn new() -> Self {
        let cgroup = cgroup2_root().unwrap().join(format!("ambit-kubelet-{}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        Self { cgroup }
    }

    /// Connects from a namespace. Gives what the server greets with, nothing where nobody is there, and who holds the
    /// connection.
    async fn call(&self, from: &Place, to: SocketAddr) -> (String, Child) {
        const CALL: &str =
            r#"echo $$ > "$1/cgroup.procs" && exec 3<>"/dev/tcp/$2/$3" && head -n1 <&3 && read -r"#;
        let mut bash = Command::new("bash");
        bash.args(["-c", CALL, "call"]).arg(&self.cgroup).args([to.ip().to_string(), to.port().to_string()]);
        bash.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut bash = from.netns.run(|| bash.spawn()).unwrap().unwrap();
        let mut greeting = String::new();
        let mut said = BufReader::new(bash.stdout.take().unwrap());
        timeout(PATIENCE, said.read_line(&mut greeting)).await.unwrap().unwrap();
        (greeting.trim_end().to_owned(), bash)
    }

    /// The same, and hangs up.
    async fn probe(&self, from: &Place, to: SocketAddr) -> String {
        let (greeting, mut bash) = self.call(from, to).await;
        drop(bash.stdin.take());
        timeout(PATIENCE, bash.wait()).await.unwrap().unwrap();
        greeting
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        // Where a test fails a process may be in it still.
        fs::remove_dir(&self.cgroup).ok();
    }
}

/// A pod that is enrolled by the agent of its neighbour's node, on which there is a kubelet.
struct Node {
    agent: Option<Running>,
    proxy: Proxy,
    town: Town,
    _greeters: Vec<Greeter>,
    bench: Bench,
    kubelet: Kubelet,
}

impl Node {
    async fn new() -> Self {
        let (town, bench, kubelet) = (Town::build().await, Bench::new(), Kubelet::new());
        let greeters = greeters(&town);
        bench.put_pod("cart", &town.pod);
        bench.label_ambient();
        let proxy = Proxy::start(bench.socket());
        let mut node = Self { agent: None, proxy, town, _greeters: greeters, bench, kubelet };
        node.restart(Some(node.kubelet.cgroup.clone()).as_deref()).await;
        node
    }

    async fn restart(&mut self, kubelet: Option<&Path>) {
        if let Some(agent) = self.agent.take() {
            agent.kill().await;
        }
        let agent = self.bench.start_on(&self.town.neighbour, kubelet);
        agent.shows("cart", Shown::Enrolled).await;
        self.agent = Some(agent);
    }

    fn applications(&self) -> [SocketAddr; 2] {
        self.town.pod.ips().map(|ip| SocketAddr::new(ip, 80))
    }

    async fn probe(&self, to: SocketAddr) -> String {
        self.kubelet.probe(&self.town.neighbour, to).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_reach_the_application_and_nobody_else_of_the_node_does() {
    let node = Node::new().await;
    for (to, ip) in node.applications().into_iter().zip(node.town.neighbour.ips()) {
        assert_eq!(node.probe(to).await, format!("pod {ip}"));
        assert_eq!(node.proxy.take_captured(), [], "a probe is nothing to ztunnel");
        assert_eq!(node.bench.probes_on_their_way(), 0, "it has arrived, and is forgotten");
        Call::to(&node.town.neighbour.netns, to).await.unwrap();
        assert_eq!(node.proxy.take_captured().len(), 1, "the kubelet's neighbour is a stranger");
    }
    assert_eq!(node.bench.bypassed(&node.town.pod), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_that_nobody_answers_fails_and_is_forgotten() {
    let node = Node::new().await;
    for ip in node.town.pod.ips() {
        assert_eq!(node.probe(SocketAddr::new(ip, 9)).await, "", "ztunnel would have taken it");
        assert_eq!(node.bench.probes_on_their_way(), 0);
    }
    assert_eq!(node.proxy.take_captured(), []);
}

/// As a service it gets another cgroup of the same path. The pods have nothing to do with it meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_that_starts_anew_is_known_again() {
    let node = Node::new().await;
    let agent = node.agent.as_ref().unwrap();
    fs::remove_dir(&node.kubelet.cgroup).unwrap();
    // Something else is put back meanwhile, so the agent has looked.
    node.bench.uncapture(&node.town.pod);
    let shown = agent.shows_with("cart", |pod| pod.repairs == 1).await;
    assert_eq!((shown.state, shown.reason), (Shown::Enrolled, None));
    fs::create_dir(&node.kubelet.cgroup).unwrap();
    // The first of these may be put back by a look that began before.
    for repairs in [2, 3] {
        node.bench.uncapture(&node.town.pod);
        agent.shows_with("cart", |pod| pod.repairs == repairs).await;
    }
    assert!(node.probe(node.applications()[0]).await.starts_with("pod"));
    assert_eq!(node.proxy.take_captured(), []);
}

/// Another network has the same addresses: another node's, or one that somebody in the kubelet's cgroup made.
#[tokio::test(flavor = "multi_thread")]
async fn the_kubelet_probes_from_its_node_alone() {
    let node = Node::new().await;
    let elsewhere = Town::build().await;
    let _greeters = greeters(&elsewhere);
    for to in node.applications() {
        let (greeting, mut held) = node.kubelet.call(&elsewhere.neighbour, to).await;
        assert!(greeting.starts_with("pod"), "{greeting}");
        assert_eq!(node.bench.probes_on_their_way(), 0, "no probe of this node");
        held.kill().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whether_probes_are_let_in_is_for_the_last_agent_to_say() {
    let mut node = Node::new().await;
    let to = node.applications()[0];
    node.restart(None).await;
    assert!(node.probe(to).await.starts_with("pod"));
    assert_eq!(node.proxy.take_captured().len(), 1, "taken for anybody's connection");
    let cgroup = node.kubelet.cgroup.clone();
    for _ in 0..2 {
        node.restart(Some(&cgroup)).await;
        assert!(node.probe(to).await.starts_with("pod"));
        assert_eq!(node.proxy.take_captured(), []);
    }
}
