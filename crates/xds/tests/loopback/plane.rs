//! A control plane on loopback, and proxies that connect to it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use identity::SystemClock;
use identity::signer::{Signer, SignerSettings};
use index::Update;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use xds::client::{AdsClient, AdsConfig, NodeInfo, State};
use xds::server::{
    AdsService, AuthenticateError, Authenticator, CaService, Change, IssueError, IssueRequest, Issuer,
    Listen, Observer, Peer, Registry, Services, Snapshot, Strangers, Subject, serve,
};
use xds::{ControlPlane, Defaults};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const TOKEN: &str = "a-good-token";

pub(crate) struct Tokens;

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

pub(crate) struct Plane {
    pub(crate) signer: Arc<Signer>,
    pub(crate) feed: watch::Sender<Option<Arc<Snapshot>>>,
    pub(crate) address: SocketAddr,
    pub(crate) registry: Registry,
    pub(crate) cancel: CancellationToken,
    pub(crate) task: JoinHandle<()>,
    pub(crate) files: TempDir,
}

impl Plane {
    pub(crate) async fn start() -> Self {
        Self::with(Strangers::default(), Arc::new(())).await
    }

    /// One that lets in so many strangers, and tells what happens.
    pub(crate) async fn with(strangers: Strangers, observer: Arc<dyn Observer>) -> Self {
        let signer = Arc::new(Signer::ephemeral(SignerSettings::default(), Arc::new(SystemClock)).unwrap());
        let files = TempDir::new().unwrap();
        std::fs::write(files.path().join("root.pem"), signer.roots().to_pem()).unwrap();
        std::fs::write(files.path().join("token"), format!(" {TOKEN}\n")).unwrap();
        let feed = watch::Sender::new(None);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::serving(listener, signer, feed, files, strangers, observer)
    }

    pub(crate) fn on(
        listener: TcpListener,
        signer: Arc<Signer>,
        feed: watch::Sender<Option<Arc<Snapshot>>>,
        files: TempDir,
    ) -> Self {
        Self::serving(listener, signer, feed, files, Strangers::default(), Arc::new(()))
    }

    fn serving(
        listener: TcpListener,
        signer: Arc<Signer>,
        feed: watch::Sender<Option<Arc<Snapshot>>>,
        files: TempDir,
        strangers: Strangers,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let cancel = CancellationToken::new();
        let ads = AdsService::new(feed.subscribe(), Arc::new(Tokens), observer.clone(), cancel.clone());
        let registry = ads.registry();
        let ca = CaService::new(Arc::new(ShopIssuer(signer.clone())), Arc::new(Tokens), observer);
        let names = vec!["istiod.istio-system.svc".parse().unwrap()];
        let tls = Some(signer.serving_config(names).unwrap());
        let served =
            serve(Listen { listener, tls, strangers }, Services { ads, ca: Some(ca) }, cancel.clone());
        let task = tokio::spawn(async move { served.await.unwrap() });
        Self { signer, feed, address, registry, cancel, task, files }
    }

    /// Takes the server down, and another up at the same address with the same source.
    pub(crate) async fn restart(self) -> Self {
        self.cancel.cancel();
        timeout(PATIENCE, self.task).await.expect("a server that is told to stop stops").unwrap();
        let listener = TcpListener::bind(self.address).await.unwrap();
        Self::on(listener, self.signer, self.feed, self.files)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    pub(crate) fn control_plane(&self) -> ControlPlane {
        ControlPlane {
            address: format!("https://{}", self.address).parse().unwrap(),
            roots: Some(self.path("root.pem")),
            alternative_names: vec!["istiod.istio-system.svc".into()],
            token: Some(self.path("token")),
            cluster_id: "Kubernetes".into(),
        }
    }

    pub(crate) fn publish(&self, revision: u64, changes: Vec<Change>) {
        self.feed.send_modify(|current| {
            let before = current.clone().unwrap_or_default();
            *current = Some(Arc::new(before.apply(revision, changes)));
        });
    }

    pub(crate) async fn acked(&self, revision: u64) {
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

pub(crate) struct Proxy {
    pub(crate) updates: mpsc::Receiver<Vec<Update>>,
    pub(crate) state: watch::Receiver<State>,
    pub(crate) cancel: CancellationToken,
}

impl Proxy {
    pub(crate) fn start(control_plane: ControlPlane) -> Self {
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

    pub(crate) async fn next(&mut self) -> Vec<Update> {
        timeout(PATIENCE, self.updates.recv()).await.expect("updates come").unwrap()
    }

    pub(crate) async fn until(&mut self, what: impl FnMut(&State) -> bool) -> State {
        timeout(PATIENCE, self.state.wait_for(what)).await.expect("the state comes about").unwrap().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}
