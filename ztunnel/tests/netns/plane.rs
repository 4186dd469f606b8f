//! The control plane that a test plays: xDS and certificates over TLS, on loopback.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use identity::SystemClock;
use identity::signer::{Signer, SignerSettings};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use xds::server::{
    AdsService, AuthenticateError, Authenticator, CaService, Change, Entry, IssueError, IssueRequest, Issuer,
    Listen, Peer, Registry, Services, Snapshot, Strangers, Subject, serve,
};
use xds::{Defaults, Resource};

use crate::node::PATIENCE;

pub(crate) const TOKEN: &str = "the-nodes-token";

struct Tokens;

#[async_trait]
impl Authenticator for Tokens {
    async fn authenticate(&self, token: &str) -> Result<Peer, AuthenticateError> {
        if token != TOKEN {
            return Err(AuthenticateError::Refused("unknown".into()));
        }
        let namespace = "istio-system".into();
        Ok(Peer { namespace, service_account: "ztunnel".into(), node: Some("node1".into()) })
    }
}

struct Anyone(Arc<Signer>);

#[async_trait]
impl Issuer for Anyone {
    async fn issue(&self, request: IssueRequest) -> Result<Vec<String>, IssueError> {
        let Subject::Impersonated(id) = request.subject else {
            return Err(IssueError::Denied("ask for a workload".into()));
        };
        let signed = self.0.sign(&request.csr_pem, &id, request.ttl);
        signed.map(|s| s.chain).map_err(|e| IssueError::BadRequest(e.to_string()))
    }
}

pub(crate) struct Plane {
    runtime: Runtime,
    feed: watch::Sender<Option<Arc<Snapshot>>>,
    registry: Registry,
    pub(crate) address: SocketAddr,
    files: TempDir,
}

impl Plane {
    pub(crate) fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let signer = Arc::new(Signer::ephemeral(SignerSettings::default(), Arc::new(SystemClock)).unwrap());
        let files = TempDir::new().unwrap();
        std::fs::write(files.path().join("root.pem"), signer.roots().to_pem()).unwrap();
        std::fs::write(files.path().join("token"), TOKEN).unwrap();
        let feed = watch::Sender::new(None);
        let (registry, address) = runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let cancel = CancellationToken::new();
            let ads = AdsService::new(feed.subscribe(), Arc::new(Tokens), Arc::new(()), cancel.clone());
            let registry = ads.registry();
            let ca = CaService::new(Arc::new(Anyone(signer.clone())), Arc::new(Tokens), Arc::new(()));
            let tls = Some(signer.serving_config(vec!["127.0.0.1".parse().unwrap()]).unwrap());
            tokio::spawn(serve(
                Listen { listener, tls, strangers: Strangers::default() },
                Services { ads, ca: Some(ca) },
                cancel,
            ));
            (registry, address)
        });
        Self { runtime, feed, registry, address, files }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    pub(crate) fn folder(&self) -> &Path {
        self.files.path()
    }

    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(work);
    }

    pub(crate) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Publishes resources and waits until the proxy has taken them in.
    pub(crate) fn publish(&self, resources: impl IntoIterator<Item = Resource>) {
        let changes: Vec<Change> =
            resources.into_iter().map(|r| Change::Set(Entry::new(&r, &Defaults::default()))).collect();
        let mut revision = 0;
        self.feed.send_modify(|current| {
            let before = current.clone().unwrap_or_default();
            revision = before.revision() + 1;
            *current = Some(Arc::new(before.apply(revision, changes)));
        });
        self.runtime.block_on(async {
            let mut changes = self.registry.changes();
            let acked = async {
                loop {
                    changes.borrow_and_update();
                    let acked = |p: &xds::server::Proxy| p.connected && p.status.acked_revision >= revision;
                    if self.registry.proxies().iter().any(acked) {
                        return;
                    }
                    changes.changed().await.unwrap();
                }
            };
            tokio::time::timeout(PATIENCE, acked).await.expect("the proxy takes in what is published");
        });
    }
}
