//! Takes connections and puts the services behind them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use super::door::{Door, Entered, Guarded, Standing};
use super::{AdsService, CaService, Strangers};
use crate::maybe_tls::MaybeTls;

/// Connections that wait to be served.
const ACCEPTED: usize = 64;
/// How long to wait when no connection can be accepted, as when descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often a quiet connection is tried, and how long it may stay silent then.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_PATIENCE: Duration = Duration::from_secs(20);
/// How long streams may take to end when the server goes down.
const DRAIN: Duration = Duration::from_secs(5);
/// Calls at once on one connection: a stream, and certificates for a node's pods.
const CALLS: u32 = 256;
/// Bytes of a call's headers, a token among them.
const HEADERS: u32 = 32 << 10;
/// Calls that a client may cancel before they are looked at, and calls that it may break; more end its connection.
const CANCELLED: usize = 64;
const BROKEN: usize = 64;

/// Where to listen.
pub struct Listen {
    /// Bound already.
    pub listener: TcpListener,
    /// TLS, or plaintext. ALPN is set here.
    pub tls: Option<Arc<ServerConfig>>,
    /// What those may have who have not proved who they are.
    pub strangers: Strangers,
}

/// What to serve.
#[derive(Clone)]
pub struct Services {
    /// The delta stream.
    pub ads: AdsService,
    /// Certificates, where they are signed on this listener.
    pub ca: Option<CaService>,
}

/// Why serving ended.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The server failed.
    #[error("gRPC server")]
    Server(#[from] tonic::transport::Error),
}

type Connection = Guarded<MaybeTls<TlsStream<TcpStream>>>;

impl Connected for Connection {
    type ConnectInfo = Standing;

    fn connect_info(&self) -> Standing {
        self.standing()
    }
}

/// Serves until cancelled, and then gives streams a few seconds to end.
pub async fn serve(listen: Listen, services: Services, cancel: CancellationToken) -> Result<(), ListenError> {
    let (accepted, incoming) = mpsc::channel(ACCEPTED);
    let Services { ads, ca } = services;
    let router = Server::builder()
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_PATIENCE))
        .max_concurrent_streams(CALLS)
        .http2_max_header_list_size(HEADERS)
        .http2_max_pending_accept_reset_streams(Some(CANCELLED))
        .http2_max_local_error_reset_streams(Some(BROKEN))
        .initial_connection_window_size(1 << 20)
        .add_service(ads.clone().into_grpc())
        .add_optional_service(ca.map(CaService::into_grpc));
    let connections = ReceiverStream::new(incoming);
    let server = router.serve_with_incoming_shutdown(connections, cancel.clone().cancelled_owned());
    let door = Door::new(listen.strangers, ads.observer());
    let accepting = accept(listen, door, accepted, cancel.clone());
    let gone = async {
        cancel.cancelled().await;
        let _ = timeout(DRAIN, ads.drained()).await;
        // Connections end when their streams have, which is just now.
        sleep(ACCEPT_PAUSE).await;
    };
    tokio::select! {
        served = async { tokio::join!(server, accepting).0 } => served.map_err(ListenError::from),
        () = gone => Ok(()),
    }
}

/// Accepts connections and hands on those whose handshake succeeds.
async fn accept(
    listen: Listen,
    door: Door,
    accepted: mpsc::Sender<Result<Connection, io::Error>>,
    cancel: CancellationToken,
) {
    let acceptor = listen.tls.map(|config| {
        let mut config = ServerConfig::clone(&config);
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    });
    let mut handshakes = JoinSet::new();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            connection = listen.listener.accept() => match connection {
                Ok((tcp, from)) => {
                    handshakes.spawn(handshake(door.enter(from), tcp, from, acceptor.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(done) = handshakes.join_next() => {
                if let Ok(Some(connection)) = done && accepted.send(Ok(connection)).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn handshake(
    stranger: Entered,
    tcp: TcpStream,
    from: SocketAddr,
    acceptor: Option<TlsAcceptor>,
) -> Option<Connection> {
    let _ = tcp.set_nodelay(true);
    let begun = async {
        let Some(acceptor) = acceptor else { return Ok(MaybeTls::Plain(tcp)) };
        let session = acceptor.accept(tcp).await.inspect_err(|error| {
            tracing::debug!(%from, %error, "TLS handshake failed");
        });
        session.map(|tls| MaybeTls::Tls(Box::new(tls)))
    };
    let prepared = stranger.prepare(begun).await;
    prepared.inspect_err(|why| tracing::debug!(%from, %why, "a connection ends before it began")).ok()
}
