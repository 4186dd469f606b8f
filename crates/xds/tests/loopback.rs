//! Client and server over TLS on loopback.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use identity::signer::{Signer, SignerSettings};
use identity::{CertificateAuthority, Curve, KeyPair, SignError, SystemClock};
use index::Update;
use model::policy::{Action, PolicyScope};
use model::{Policy, PolicyKey, SpiffeId, TrustDomain};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use xds::client::{AdsClient, AdsConfig, Connection, NodeInfo, State};
use xds::server::{
    AdsService, AuthenticateError, Authenticator, CaService, Change, Entry, IssueError, IssueRequest, Issuer,
    Listen, Peer, Registry, Services, Snapshot, Subject, serve,
};
use xds::{ControlPlane, Defaults, Resource, TypeUrl, ca};

const PATIENCE: Duration = Duration::from_secs(20);
const TOKEN: &str = "a-good-token";

struct Tokens;

#[async_trait]
impl Authenticator for Tokens {
    async fn authenticate(&self, token: &str) -> Result<Peer, AuthenticateError> {
        match token {
            TOKEN => Ok(Peer {
                namespace: "istio-system".into(),
                service_account: "ztunnel".into(),
                node: Some("node1".into()),
            }),
            _ => Err(AuthenticateError::Refused("unknown".into())),
        }
    }
}

/// Signs for namespace `shop` only.
struct ShopIssuer(Arc<Signer>);

#[async_trait]
impl Issuer for ShopIssuer {
    async fn issue(&self, request: IssueRequest) -> Result<Vec<String>, IssueError> {
        let Subject::Impersonated(id) = request.subject else {
            return Err(IssueError::Denied("ask for a workload".into()));
        };
        if id.namespace() != "shop" || request.peer.node.as_deref() != Some("node1") {
            return Err(IssueError::Denied(format!("{id} does not run there")));
        }
        let signed = self.0.sign(&request.csr_pem, &id, request.ttl);
        signed.map(|s| s.chain).map_err(|e| IssueError::BadRequest(e.to_string()))
    }
}

struct Plane {
    signer: Arc<Signer>,
    feed: watch::Sender<Option<Arc<Snapshot>>>,
    address: SocketAddr,
    registry: Registry,
    cancel: CancellationToken,
    task: JoinHandle<()>,
    files: TempDir,
}

impl Plane {
    async fn start() -> Self {
        let signer = Arc::new(Signer::ephemeral(SignerSettings::default(), Arc::new(SystemClock)).unwrap());
        let files = TempDir::new().unwrap();
        std::fs::write(files.path().join("root.pem"), signer.roots().to_pem()).unwrap();
        std::fs::write(files.path().join("token"), format!(" {TOKEN}\n")).unwrap();
        let feed = watch::Sender::new(None);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, signer, feed, files)
    }

    fn on(
        listener: TcpListener,
        signer: Arc<Signer>,
        feed: watch::Sender<Option<Arc<Snapshot>>>,
        files: TempDir,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let cancel = CancellationToken::new();
        let ads = AdsService::new(feed.subscribe(), Arc::new(Tokens), Arc::new(()), cancel.clone());
        let registry = ads.registry();
        let ca = CaService::new(Arc::new(ShopIssuer(signer.clone())), Arc::new(Tokens), Arc::new(()));
        let names = vec!["istiod.istio-system.svc".parse().unwrap()];
        let tls = Some(signer.serving_config(names).unwrap());
        let served = serve(Listen { listener, tls }, Services { ads, ca: Some(ca) }, cancel.clone());
        let task = tokio::spawn(async move { served.await.unwrap() });
        Self { signer, feed, address, registry, cancel, task, files }
    }

    /// Takes the server down, and another up at the same address with the same source.
    async fn restart(self) -> Self {
        self.cancel.cancel();
        timeout(PATIENCE, self.task).await.expect("a server that is told to stop stops").unwrap();
        let listener = TcpListener::bind(self.address).await.unwrap();
        Self::on(listener, self.signer, self.feed, self.files)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn control_plane(&self) -> ControlPlane {
        ControlPlane {
            address: format!("https://{}", self.address).parse().unwrap(),
            roots: Some(self.path("root.pem")),
            alternative_names: vec!["istiod.istio-system.svc".into()],
            token: Some(self.path("token")),
            cluster_id: "Kubernetes".into(),
        }
    }

    fn publish(&self, revision: u64, changes: Vec<Change>) {
        self.feed.send_modify(|current| {
            let before = current.clone().unwrap_or_default();
            *current = Some(Arc::new(before.apply(revision, changes)));
        });
    }

    async fn acked(&self, revision: u64) {
        let mut changes = self.registry.changes();
        let done = async {
            loop {
                changes.borrow_and_update();
                let proxies = self.registry.proxies();
                if proxies.iter().any(|p| p.connected && p.status.acked_revision >= revision) {
                    return;
                }
                changes.changed().await.unwrap();
            }
        };
        timeout(PATIENCE, done).await.expect("the proxy acknowledges");
    }
}

struct Proxy {
    updates: mpsc::Receiver<Vec<Update>>,
    state: watch::Receiver<State>,
    cancel: CancellationToken,
}

impl Proxy {
    fn start(control_plane: ControlPlane) -> Self {
        let node = NodeInfo {
            instance_ip: "10.0.0.1".into(),
            pod_name: "ztunnel-1".into(),
            namespace: "istio-system".into(),
            node_name: "node1".into(),
            cluster_id: "Kubernetes".into(),
            ..NodeInfo::default()
        };
        let (sender, updates) = mpsc::channel(64);
        let sink = move |batch| sender.try_send(batch).unwrap();
        let config = AdsConfig { control_plane, node, defaults: Defaults::default(), demand: None };
        let client = AdsClient::new(config, sink, Arc::new(()));
        let state = client.state();
        let cancel = CancellationToken::new();
        tokio::spawn(client.run(cancel.clone()));
        Self { updates, state, cancel }
    }

    async fn next(&mut self) -> Vec<Update> {
        timeout(PATIENCE, self.updates.recv()).await.expect("updates come").unwrap()
    }

    async fn until(&mut self, what: impl FnMut(&State) -> bool) -> State {
        timeout(PATIENCE, self.state.wait_for(what)).await.expect("the state comes about").unwrap().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn policy(name: &str) -> Policy {
    Policy {
        key: PolicyKey::new("shop", name),
        scope: PolicyScope::Namespace,
        action: Action::Deny,
        rules: vec![],
        dry_run: false,
    }
}

fn set(policy: Policy) -> Change {
    Change::Set(Entry::new(&Resource::from(policy), &Defaults::default()))
}

fn down(state: &State, part: &str) -> bool {
    matches!(&state.connection, Connection::Down { reason, .. } if reason.contains(part))
}

#[tokio::test]
async fn a_proxy_learns_the_world_and_its_changes_and_survives_a_restart_of_the_server() {
    let plane = Plane::start().await;
    let mut proxy = Proxy::start(plane.control_plane());
    // The stream stands before the source has been read, and says nothing until then.
    proxy.until(|s| matches!(s.connection, Connection::Up { .. })).await;
    plane.publish(1, vec![set(policy("a")), set(policy("b"))]);
    assert_eq!(proxy.next().await.len(), 2);
    proxy.until(|s| s.ready).await;
    plane.acked(1).await;

    plane.publish(2, vec![Change::Remove(TypeUrl::Authorization, "shop/a".into())]);
    assert_eq!(proxy.next().await, [Update::RemovePolicy(PolicyKey::new("shop", "a"))]);
    plane.acked(2).await;
    let status = plane.registry.proxies()[0].status.clone();
    assert_eq!(&*status.node.id, "ztunnel~10.0.0.1~ztunnel-1.istio-system~istio-system.svc.cluster.local");
    assert_eq!(&*status.node.node, "node1");

    let plane = plane.restart().await;
    plane.publish(3, vec![set(policy("c"))]);
    assert_eq!(proxy.next().await, [Update::from(policy("c"))], "only what differs");
    plane.acked(3).await;
    assert!(proxy.until(|s| s.streams >= 2).await.ready, "readiness does not fall");
}

#[tokio::test]
async fn a_proxy_without_a_good_token_is_told_so_and_served_once_it_has_one() {
    let plane = Plane::start().await;
    plane.publish(1, vec![set(policy("a"))]);
    std::fs::write(plane.path("token"), "another").unwrap();
    let mut proxy = Proxy::start(plane.control_plane());
    proxy.until(|s| down(s, "the token is not accepted")).await;
    std::fs::write(plane.path("token"), TOKEN).unwrap();
    assert_eq!(proxy.next().await.len(), 1);
    assert_eq!(plane.registry.proxies().len(), 1);
}

#[tokio::test]
async fn a_server_that_cannot_prove_its_name_is_not_spoken_to() {
    let plane = Plane::start().await;
    let nameless = ControlPlane { alternative_names: vec![], ..plane.control_plane() };
    Proxy::start(nameless).until(|s| down(s, "TLS handshake")).await;

    let foreign = Signer::ephemeral(SignerSettings::default(), Arc::new(SystemClock)).unwrap();
    std::fs::write(plane.path("foreign.pem"), foreign.roots().to_pem()).unwrap();
    let foreign = ControlPlane { roots: Some(plane.path("foreign.pem")), ..plane.control_plane() };
    Proxy::start(foreign).until(|s| down(s, "TLS handshake")).await;

    let missing = ControlPlane { roots: Some(plane.path("missing.pem")), ..plane.control_plane() };
    Proxy::start(missing).until(|s| down(s, "missing.pem")).await;
    assert!(plane.registry.proxies().is_empty());
}

#[tokio::test]
async fn a_proxy_whose_control_plane_is_not_there_tries_again() {
    let plane = Plane::start().await;
    let control_plane = plane.control_plane();
    plane.publish(1, vec![set(policy("a"))]);
    plane.cancel.cancel();
    timeout(PATIENCE, plane.task).await.unwrap().unwrap();
    let mut proxy = Proxy::start(control_plane);
    proxy.until(|s| down(s, "connection with 127.0.0.1")).await;
    let listener = TcpListener::bind(plane.address).await.unwrap();
    let _plane = Plane::on(listener, plane.signer, plane.feed, plane.files);
    assert_eq!(proxy.next().await.len(), 1);
}

#[tokio::test]
async fn plaintext_serves_too_where_it_is_asked_for() {
    let plane = Plane::start().await;
    plane.publish(1, vec![set(policy("a"))]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let ads = AdsService::new(plane.feed.subscribe(), Arc::new(Tokens), Arc::new(()), plane.cancel.clone());
    let services = Services { ads, ca: None };
    tokio::spawn(serve(Listen { listener, tls: None }, services, plane.cancel.clone()));
    let mut proxy = Proxy::start(ControlPlane { address, roots: None, ..plane.control_plane() });
    assert_eq!(proxy.next().await.len(), 1);
}

#[tokio::test]
async fn certificates_are_signed_for_those_who_may_have_them() {
    let plane = Plane::start().await;
    let client = ca::Client::new(plane.control_plane());
    let id = |ns| SpiffeId::new(TrustDomain::default(), ns, "web").unwrap();
    let key = KeyPair::generate(Curve::P256).unwrap();
    let csr = key.request(&id("shop")).unwrap();
    let day = Duration::from_secs(24 * 3600);

    let chain = client.create_certificate(&csr, day, &id("shop")).await.unwrap();
    assert_eq!(chain.len(), 2);
    assert_eq!(chain[1], plane.signer.roots().to_pem());
    let denied = client.sign(&id("bank"), &csr, day).await.unwrap_err();
    assert!(matches!(&denied, SignError::Denied(why) if why.contains("does not run there")), "{denied}");
    let refused = client.sign(&id("shop"), "rubbish", day).await.unwrap_err();
    assert!(matches!(refused, SignError::Refused(_)));

    plane.cancel.cancel();
    timeout(PATIENCE, plane.task).await.unwrap().unwrap();
    let unreachable = client.sign(&id("shop"), &csr, day).await.unwrap_err();
    assert!(matches!(unreachable, SignError::Unreachable(_)), "{unreachable}");
}

#[tokio::test]
async fn strangers_and_rubbish_do_not_disturb_the_server() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let plane = Plane::start().await;
    plane.publish(1, vec![set(policy("a"))]);
    let mut idle = Vec::new();
    for _ in 0..20 {
        let mut stranger = tokio::net::TcpStream::connect(plane.address).await.unwrap();
        stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        // The server answers with an alert and hangs up.
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, stranger.read_to_end(&mut answer)).await.expect("the server hangs up");
        idle.push(tokio::net::TcpStream::connect(plane.address).await.unwrap());
    }
    assert_eq!(Proxy::start(plane.control_plane()).next().await.len(), 1);
}
