//! Tunnels over TLS between two workloads of one mesh.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hbone::client::{Connector, Key, OpenError, Pool, Reached};
use hbone::{Settings, server};
use identity::signer::{Signer, SignerSettings};
use identity::store::StoreSettings;
use identity::{
    LiveBundle, PeerError, SvidStore, SystemClock, TlsFailure, TlsIdentity, TrustDomains, peer_identity,
    unnamed,
};
use model::{IdentitySet, TrustDomain};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::task::spawn_local;
use tokio_rustls::{TlsAcceptor, TlsConnector, client};

use crate::fixtures::{id, key, request};

struct Mesh {
    store: SvidStore,
}

impl Mesh {
    fn new() -> Self {
        let clock = Arc::new(SystemClock);
        let signer = Arc::new(Signer::ephemeral(SignerSettings::default(), clock.clone()).unwrap());
        let bundle = LiveBundle::new(signer.roots().clone());
        let settings = StoreSettings::accepting(TrustDomains::of([TrustDomain::default()]));
        let runtime = tokio::runtime::Handle::current();
        Self { store: SvidStore::new(signer, settings, bundle, clock, runtime) }
    }

    async fn identity(&self, account: &str) -> Arc<TlsIdentity> {
        self.store.fetch(&id(account), Duration::from_secs(10)).await.unwrap()
    }
}

/// Connects as the client; whoever listens is whom the test put there.
struct Tls {
    client: Arc<TlsIdentity>,
    peers: mpsc::UnboundedSender<DuplexStream>,
}

impl Connector for Tls {
    type Io = client::TlsStream<DuplexStream>;
    type Peer = ();
    type Error = std::io::Error;

    async fn connect(&self, key: &Key) -> std::io::Result<Reached<Self::Io, ()>> {
        let (near, far) = duplex(256 << 10);
        self.peers.send(far).unwrap();
        let connector = TlsConnector::from(self.client.client_config(&key.destinations));
        Ok(Reached::new(connector.connect(unnamed(), near).await?, ()))
    }

    fn holds(&self, (): &()) -> bool {
        true
    }
}

/// Serves as `server`: echoes, and tells whom it let in or why not.
fn listen(
    server: Arc<TlsIdentity>,
    mut far: mpsc::UnboundedReceiver<DuplexStream>,
) -> mpsc::UnboundedReceiver<String> {
    let (tell, told) = mpsc::unbounded_channel();
    spawn_local(async move {
        while let Some(io) = far.recv().await {
            let accepted = TlsAcceptor::from(server.server_config()).accept(io).await;
            let io = match accepted {
                Ok(io) => io,
                Err(e) => {
                    let _ = tell.send(TlsFailure::find(&e).unwrap().to_string());
                    continue;
                }
            };
            let _ = tell.send(peer_identity(io.get_ref().1).unwrap().to_string());
            spawn_local(async move {
                let mut connection = server::Connection::handshake(io, &Settings::default()).await.unwrap();
                while let Ok(Some(request)) = connection.accept().await {
                    let mut tunnel = request.accept(None).unwrap();
                    spawn_local(async move {
                        let (mut read, mut write) = tokio::io::split(&mut tunnel);
                        let _ = tokio::io::copy(&mut read, &mut write).await;
                        let _ = write.shutdown().await;
                    });
                }
            });
        }
    });
    told
}

#[tokio::test(flavor = "local")]
async fn a_mebibyte_each_way_through_mutual_tls() {
    let mesh = Mesh::new();
    let (peers, far) = mpsc::unbounded_channel();
    let mut told = listen(mesh.identity("server").await, far);
    let pool = Pool::new(Tls { client: mesh.identity("client").await, peers }, Settings::default());
    let mut streams = Vec::new();
    let sent: Rc<Vec<u8>> = Rc::new((0..1 << 20).map(|i| (i % 253) as u8).collect());
    for _ in 0..4 {
        let mut opened = pool.open(&key(2), &request()).await.unwrap();
        let sent = Rc::clone(&sent);
        streams.push(spawn_local(async move {
            let (mut read, mut write) = tokio::io::split(&mut opened.tunnel);
            let mut got = Vec::new();
            let send = async {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let ((), read) = tokio::join!(send, read.read_to_end(&mut got));
            read.unwrap();
            assert!(got == *sent);
        }));
    }
    for stream in streams {
        stream.await.unwrap();
    }
    assert_eq!(told.recv().await.unwrap(), id("client").to_string());
    assert_eq!(pool.counts().connections, 1);
}

#[tokio::test(flavor = "local")]
async fn an_imposter_is_named() {
    let mesh = Mesh::new();
    let (peers, far) = mpsc::unbounded_channel();
    let _told = listen(mesh.identity("imposter").await, far);
    let pool = Pool::new(Tls { client: mesh.identity("client").await, peers }, Settings::default());
    let error = pool.open(&key(2), &request()).await.unwrap_err();
    assert!(matches!(error, OpenError::Connect(_)));
    let expected =
        PeerError::WrongIdentity { expected: IdentitySet::one(id("server")), presented: id("imposter") };
    assert_eq!(TlsFailure::find(&error), Some(TlsFailure::Peer(expected)));
}

#[tokio::test(flavor = "local")]
async fn a_client_that_the_server_refuses_is_told_so() {
    let (mesh, foreign) = (Mesh::new(), Mesh::new());
    let (peers, far) = mpsc::unbounded_channel();
    let mut told = listen(mesh.identity("server").await, far);
    let client = foreign.identity("client").await;
    // It trusts the server, and the server does not trust it.
    foreign.store.bundle().set_up(mesh.store.bundle().load());
    let pool = Pool::new(Tls { client, peers }, Settings::default());
    let error = pool.open(&key(2), &request()).await.unwrap_err();
    let failure = TlsFailure::find(&error).unwrap_or_else(|| panic!("{error:?}"));
    assert!(failure.is_identity(), "{failure}");
    assert!(told.recv().await.unwrap().contains("unknown root"));
}
