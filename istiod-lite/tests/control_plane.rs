//! The control plane on loopback: a directory in, node proxies out.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ambit_proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use ambit_proto::discovery::{DeltaDiscoveryRequest, Node, Status};
use clap::Parser;
use identity::{Curve, KeyPair, Svid};
use index::Update;
use istiod_lite::config::{Config, Flags};
use istiod_lite::program::{self, Running};
use model::{SpiffeId, Workload};
use runtime::{Env, Grace, Readiness, Tasks};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use xds::ca::CaError;
use xds::client::{AdsClient, AdsConfig, NodeInfo};
use xds::server::Proxy;
use xds::{ControlPlane, Defaults, TypeUrl};

const PATIENCE: Duration = Duration::from_secs(20);
const TTL: Duration = Duration::from_secs(3600);
/// The files that a control plane works on.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(TempDir::new().unwrap());
        fs::create_dir(files.path("objects")).unwrap();
        for node in ["node1", "node2"] {
            fs::write(files.path(node), format!("token-of-{node}\n")).unwrap();
        }
        fs::write(files.path("tokens.yaml"), tokens()).unwrap();
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn flags(&self) -> Vec<String> {
        let path = |name: &str| self.path(name).display().to_string();
        let flags = [
            "istiod-lite",
            "--source-dir",
            &path("objects"),
            "--ca-dir",
            &path("ca"),
            "--token-file",
            &path("tokens.yaml"),
            "--tls-address",
            "127.0.0.1:0",
            "--plaintext-address",
            "127.0.0.1:0",
            "--http-address",
            "127.0.0.1:0",
        ];
        flags.map(str::to_owned).to_vec()
    }

    /// Writes an object as the lab does.
    fn write(&self, name: &str, text: &str) {
        let path = self.path("objects").join(name);
        let temp = path.with_file_name(".tmp");
        fs::write(&temp, text).unwrap();
        fs::rename(temp, path).unwrap();
    }

    fn revision(&self, n: u64) {
        self.write(".revision", &n.to_string());
    }
}

fn tokens() -> String {
    use sha2::{Digest, Sha256};
    let line = |node: &str| {
        let hash = Sha256::digest(format!("token-of-{node}").as_bytes());
        let hash: String = hash.iter().map(|b| format!("{b:02x}")).collect();
        format!(
            "- {{token_sha256: '{hash}', namespace: istio-system, service_account: ztunnel, node: {node}}}\n"
        )
    };
    [line("node1"), line("node2")].concat()
}

/// A control plane in this process.
struct Plane {
    files: Files,
    running: Running,
    tasks: Tasks,
    readiness: Readiness,
}

impl Plane {
    async fn start(files: Files) -> Self {
        let config = Config::new(Flags::parse_from(files.flags()), Env::of::<&str, &str>([])).unwrap();
        let (tasks, readiness) = (Tasks::default(), Readiness::default());
        let running = program::start(&config, &tasks, &readiness).await.unwrap();
        timeout(PATIENCE, readiness.ready()).await.expect("the source is read");
        Self { files, running, tasks, readiness }
    }

    fn control_plane(&self, node: &str) -> ControlPlane {
        ControlPlane {
            address: format!("https://{}", self.running.tls_address).parse().unwrap(),
            roots: Some(self.files.path("ca/root-cert.pem")),
            alternative_names: Vec::new(),
            token: Some(self.files.path(node)),
            cluster_id: "Kubernetes".to_owned(),
        }
    }

    /// A node proxy, and all that it is told.
    fn proxy(&self, node: &str) -> (mpsc::UnboundedReceiver<Update>, CancellationToken) {
        let (sender, updates) = mpsc::unbounded_channel();
        let config = AdsConfig {
            control_plane: self.control_plane(node),
            node: NodeInfo {
                instance_ip: "127.0.0.1".to_owned(),
                pod_name: format!("ztunnel-{node}"),
                namespace: "istio-system".to_owned(),
                node_name: node.to_owned(),
                cluster_id: "Kubernetes".to_owned(),
                ..NodeInfo::default()
            },
            defaults: Defaults::default(),
            demand: None,
        };
        let sink = move |batch: Vec<Update>| batch.into_iter().for_each(|update| drop(sender.send(update)));
        let cancel = CancellationToken::new();
        tokio::spawn(AdsClient::new(config, sink, Arc::new(())).run(cancel.clone()));
        (updates, cancel)
    }

    /// Waits until a proxy is as the caller wants it.
    async fn until(&self, wanted: impl Fn(&Proxy) -> bool) -> Proxy {
        let registry = &self.running.pages.registry;
        let mut changes = registry.changes();
        let found = async {
            loop {
                changes.borrow_and_update();
                if let Some(proxy) = registry.proxies().into_iter().find(|proxy| wanted(proxy)) {
                    return proxy;
                }
                changes.changed().await.unwrap();
            }
        };
        timeout(PATIENCE, found).await.expect("the proxy gets there")
    }

    async fn acked(&self, revision: u64) -> Proxy {
        self.until(|proxy| proxy.connected && proxy.status.acked_revision >= revision).await
    }

    async fn page(&self, path: &str) -> serde_json::Value {
        let (status, body) = get(self.running.http_address, path).await;
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    async fn stop(self) {
        self.tasks.begin_drain();
        self.tasks.run_until_stopped(&self.readiness, Grace::default()).await.unwrap();
    }
}

/// A page by HTTP/1.0, so that the body ends with the connection.
async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let answer = timeout(PATIENCE, exchange).await.expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn pod(name: &str, node: &str, ip: &str, account: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{istio.io/dataplane-mode: ambient}}}}\nspec: {{nodeName: {node}, serviceAccountName: {account}, containers: [{{name: c}}]}}\nstatus: {{phase: Running, podIP: {ip}, conditions: [{{type: Ready, status: 'True'}}]}}\n"
    )
}

async fn workload(updates: &mut mpsc::UnboundedReceiver<Update>, name: &str) -> Arc<Workload> {
    let found = async {
        loop {
            if let Update::Workload(workload) = updates.recv().await.expect("more updates")
                && &*workload.name == name
            {
                return workload;
            }
        }
    };
    timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("no word of {name}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_reach_proxies_and_a_bad_file_keeps_what_it_held() {
    let files = Files::new();
    files.write("web.yaml", &pod("web-0", "node1", "10.0.0.1", "web"));
    files.revision(1);
    let plane = Plane::start(files).await;
    let (mut updates, _cancel) = plane.proxy("node1");
    let web = workload(&mut updates, "web-0").await;
    assert_eq!(web.uid.as_str(), "Kubernetes//Pod/shop/web-0");
    plane.acked(1).await;

    plane.files.write("db.yaml", &pod("db-0", "node2", "10.0.0.2", "db"));
    plane.files.revision(2);
    assert_eq!(&*workload(&mut updates, "db-0").await.node, "node2");
    plane.acked(2).await;

    // A file that is bad changes nothing, but its revision is taken in and its mistake is shown.
    let bad = pod("web-0", "node1", "10.0.0.9", "web").replace("nodeName", "nodeNam");
    plane.files.write("web.yaml", &bad);
    plane.files.revision(3);
    let proxy = plane.acked(3).await;
    assert_eq!(proxy.status.node.node.as_ref(), "node1");
    let sync = plane.page("/debug/sync").await;
    assert_eq!(sync["observed_revision"], 3);
    assert_eq!(sync["proxies"][0]["acked_revision"], 3);
    assert_eq!(sync["proxies"][0]["node"], "node1");
    assert_eq!(sync["rejected"][0]["file"], "web.yaml");
    assert_eq!(sync["rejected"][0]["line"], 4);
    let message = sync["rejected"][0]["message"].as_str().unwrap();
    assert!(message.contains("did you mean `nodeName`?"), "{message}");
    let workloads = plane.page("/debug/workloads").await;
    assert_eq!(workloads[1]["addresses"][0], "10.0.0.1");

    // Put right, it counts again.
    plane.files.write("web.yaml", &pod("web-0", "node1", "10.0.0.9", "web"));
    plane.files.revision(4);
    assert_eq!(
        workload(&mut updates, "web-0").await.addresses,
        ["10.0.0.9".parse::<std::net::IpAddr>().unwrap()]
    );
    plane.acked(4).await;
    assert_eq!(plane.page("/debug/sync").await["rejected"], serde_json::json!([]));
    let (_, metrics) = get(plane.running.http_address, "/metrics").await;
    for name in ["pilot_xds{", "pilot_xds_pushes", "pilot_proxy_convergence_time", "pilot_push_triggers"] {
        assert!(metrics.contains(name), "{name}");
    }
    assert_eq!(get(plane.running.http_address, "/ready").await.0, 200);
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_by_a_proxy_is_shown() {
    let files = Files::new();
    files.write("web.yaml", &pod("web-0", "node1", "10.0.0.1", "web"));
    files.revision(1);
    let plane = Plane::start(files).await;
    let address = format!("http://{}", plane.running.plaintext_address.unwrap());
    let mut client = AggregatedDiscoveryServiceClient::connect(address).await.unwrap();
    let (requests, outgoing) = mpsc::channel(4);
    let first = |type_url: TypeUrl| DeltaDiscoveryRequest {
        node: Some(Node { id: "ztunnel~1~p.n~n.svc".to_owned(), ..Node::default() }),
        type_url: type_url.as_str().to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    let mut call = tonic::Request::new(tokio_stream::wrappers::ReceiverStream::new(outgoing));
    call.metadata_mut().insert("authorization", "Bearer token-of-node1".parse().unwrap());
    requests.send(first(TypeUrl::Address)).await.unwrap();
    let mut responses = client.delta_aggregated_resources(call).await.unwrap().into_inner();
    let response = timeout(PATIENCE, responses.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(response.resources.len(), 1);
    requests
        .send(DeltaDiscoveryRequest {
            response_nonce: response.nonce,
            error_detail: Some(Status { code: 3, message: "cannot use it".to_owned(), ..Status::default() }),
            ..first(TypeUrl::Address)
        })
        .await
        .unwrap();
    plane.until(|proxy| !proxy.status.nacks.is_empty()).await;
    let sync = plane.page("/debug/sync").await;
    let nack = &sync["proxies"][0]["nacks"][0];
    assert_eq!(nack["type"], TypeUrl::Address.as_str());
    assert_eq!(nack["message"], "cannot use it");
    assert_eq!(sync["proxies"][0]["acked_revision"], 0);
    drop(requests);
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_certificates_for_its_own_pods_alone() {
    let files = Files::new();
    files.write("web.yaml", &pod("web-0", "node1", "10.0.0.1", "web"));
    files.write("db.yaml", &pod("db-0", "node2", "10.0.0.2", "db"));
    let plane = Plane::start(files).await;
    let ca = xds::ca::Client::new(plane.control_plane("node1"));
    let ask = async |id: &str| {
        let id: SpiffeId = id.parse().unwrap();
        let key = KeyPair::generate(Curve::P256).unwrap();
        let csr = key.request(&id).unwrap();
        let chain = ca.create_certificate(&csr, TTL, &id).await?;
        assert!(chain.len() >= 2);
        Ok::<_, CaError>(Svid::from_response(&id, key, &chain, std::time::SystemTime::now()).unwrap())
    };
    let svid = ask("spiffe://cluster.local/ns/shop/sa/web").await.unwrap();
    assert_eq!(svid.id().principal(), "cluster.local/ns/shop/sa/web");
    let foreign = ask("spiffe://cluster.local/ns/shop/sa/db").await.unwrap_err();
    let CaError::Denied { reason, .. } = &foreign else { panic!("{foreign}") };
    assert!(reason.contains("node `node1` runs no pod of spiffe://cluster.local/ns/shop/sa/db"), "{reason}");

    // Once the pod has moved there, it may.
    let (_updates, _cancel) = plane.proxy("node1");
    plane.files.write("db.yaml", &pod("db-0", "node1", "10.0.0.2", "db"));
    plane.files.revision(1);
    plane.acked(1).await;
    ask("spiffe://cluster.local/ns/shop/sa/db").await.unwrap();

    // An unknown token gets nothing.
    fs::write(plane.files.path("node1"), "made-up").unwrap();
    assert!(matches!(ask("spiffe://cluster.local/ns/shop/sa/web").await, Err(CaError::Denied { .. })));
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_starts_with_an_absent_directory_and_ends_when_asked() {
    let files = Files::new();
    fs::remove_dir(files.path("objects")).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_istiod-lite"))
        .args(&files.flags()[1..])
        .env("LOG_FORMAT", "json")
        .env_remove("RUST_LOG")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = Log(BufReader::new(child.stdout.take().unwrap()));
    let started = log.wait("control plane started");
    let http: SocketAddr = started["http"].as_str().unwrap().parse().unwrap();
    assert_eq!(get(http, "/ready").await.0, 503, "what is not there has not been read");
    fs::create_dir(files.path("objects")).unwrap();
    log.wait("push");
    assert_eq!(get(http, "/ready").await.0, 200);
    let key = fs::metadata(files.path("ca/root-key.pem")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&key.permissions()) & 0o777, 0o600);
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_a_bad_file_publishes_nothing_and_says_why() {
    let files = Files::new();
    files.write("db.yaml", &pod("db-0", "node2", "10.0.0.2", "db"));
    let good = pod("web-0", "node1", "10.0.0.1", "web");
    files.write("web.yaml", &good.replace("nodeName", "nodeNam"));
    files.revision(5);
    let mut child = Command::new(env!("CARGO_BIN_EXE_istiod-lite"))
        .args(&files.flags()[1..])
        .env("LOG_FORMAT", "json")
        .env_remove("RUST_LOG")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = Log(BufReader::new(child.stdout.take().unwrap()));
    let (mut http, mut held) = (None, None);
    while http.is_none() || held.is_none() {
        let event = log.next();
        match event["message"].as_str() {
            Some("control plane started") => http = event["http"].as_str().and_then(|at| at.parse().ok()),
            Some("nothing is published until these files can be used or are removed") => held = Some(event),
            Some("push") => panic!("{event}"),
            _ => {}
        }
    }
    assert_eq!(held.unwrap()["files"], "web.yaml");
    let http: SocketAddr = http.unwrap();
    let (status, reason) = get(http, "/ready").await;
    assert_eq!(status, 503);
    assert!(reason.contains("web.yaml:4:") && reason.contains("did you mean `nodeName`?"), "{reason}");
    let sync: serde_json::Value = serde_json::from_str(&get(http, "/debug/sync").await.1).unwrap();
    assert_eq!(sync["held_back_by"], serde_json::json!(["web.yaml"]));
    assert_eq!(sync["observed_revision"], 0);
    files.write("web.yaml", &good);
    let push = log.wait("push");
    assert_eq!((&push["revision"], &push["set"]), (&5.into(), &3.into()), "two pods and a policy: {push}");
    assert_eq!(get(http, "/ready").await.0, 200);
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
}

/// A program's log, one JSON object a line.
struct Log(BufReader<std::process::ChildStdout>);

impl Log {
    /// Reads up to a message.
    fn wait(&mut self, message: &str) -> serde_json::Value {
        loop {
            let event = self.next();
            if event["message"] == message {
                return event;
            }
        }
    }

    fn next(&mut self) -> serde_json::Value {
        let mut line = String::new();
        assert!(self.0.read_line(&mut line).unwrap() > 0, "the log goes on");
        serde_json::from_str(&line).unwrap()
    }
}

#[test]
fn mistakes_in_the_flags_are_told() {
    let files = Files::new();
    let told = |flags: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_istiod-lite")).args(flags).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(told(&["--source-dir", "x"]).contains("--ca-dir"));
    let own = files.flags();
    let mut flags: Vec<&str> = own[1..].iter().map(String::as_str).collect();
    let missing = Path::new("/nonexistent/tokens.yaml").display().to_string();
    flags[5] = &missing;
    assert!(told(&flags).contains("cannot read /nonexistent/tokens.yaml"));
}
