//! The way to the control plane: TCP, TLS where the address says so, HTTP/2.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use identity::{BundleError, LiveBundle, SystemClock, TrustBundle, control};
use rustls_pki_types::ServerName;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::maybe_tls::MaybeTls;

/// How long a TCP connection and its TLS handshake may take together.
const CONNECT: Duration = Duration::from_secs(10);
/// How often a quiet connection is tried, and how long it may stay silent then.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_PATIENCE: Duration = Duration::from_secs(20);
/// Enough that a large first answer is not held up by a window.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// Where a control plane is and how it is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlPlane {
    /// `https://host:port`, or `http://host:port` for plaintext.
    pub address: Uri,
    /// The roots that vouch for the server, PEM. Read anew for each connection, so that they may rotate. Required for
    /// `https`.
    pub roots: Option<PathBuf>,
    /// Names that the server's certificate may carry beside the address's host.
    pub alternative_names: Vec<String>,
    /// A file with a bearer token. Read anew for each call; white space around it is dropped.
    pub token: Option<PathBuf>,
    /// Sent as `clusterid` with each call.
    pub cluster_id: String,
}

/// Why there is no way to the control plane.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The address is of no use.
    #[error("`{0}` is no control-plane address: use https://host:port or http://host:port")]
    Address(Uri),
    /// A server's certificate cannot be checked without roots.
    #[error("no root certificates are configured for {0}")]
    NoRoots(Uri),
    /// A file could not be read.
    #[error("cannot read {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The roots are of no use.
    #[error("root certificates in {path}")]
    Roots {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: BundleError,
    },
    /// A configured name is no name.
    #[error("`{0}` is no DNS name or IP address")]
    Name(String),
    /// The token or the cluster's name cannot be written in a header.
    #[error("the {0} has characters that no header can carry")]
    Header(&'static str),
    /// The server is not there, or is not who it must be.
    #[error("{stage} with {host}:{port}")]
    Dial {
        /// What was tried.
        stage: &'static str,
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No connection came about.
    #[error("no connection to {address}")]
    Transport {
        /// Where to.
        address: Uri,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
}

impl ControlPlane {
    /// Opens a connection, which then opens itself again whenever it is used after it has failed.
    pub(crate) async fn connect(&self) -> Result<Channel, ConnectError> {
        let server = Arc::new(Server::of(self)?);
        let endpoint = Endpoint::from(self.address.clone())
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_PATIENCE)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let dial = service_fn(move |_: Uri| {
            let server = server.clone();
            async move { server.dial().await.map(TokioIo::new) }
        });
        endpoint
            .connect_with_connector(dial)
            .await
            .map_err(|source| ConnectError::Transport { address: self.address.clone(), source })
    }

    /// Adds what every call carries.
    pub(crate) async fn authorize(&self, metadata: &mut MetadataMap) -> Result<(), ConnectError> {
        if let Some(path) = &self.token {
            let token = read(path).await?;
            let mut bearer: MetadataValue<Ascii> =
                format!("Bearer {}", token.trim()).parse().map_err(|_| ConnectError::Header("token"))?;
            bearer.set_sensitive(true);
            metadata.insert("authorization", bearer);
        }
        let cluster = self.cluster_id.parse().map_err(|_| ConnectError::Header("cluster id"))?;
        metadata.insert("clusterid", cluster);
        Ok(())
    }
}

/// A [`ControlPlane`]'s address, checked.
struct Server {
    host: String,
    port: u16,
    tls: Option<Tls>,
}

struct Tls {
    roots: PathBuf,
    name: ServerName<'static>,
    also: Vec<ServerName<'static>>,
}

impl Server {
    fn of(control_plane: &ControlPlane) -> Result<Self, ConnectError> {
        let address = &control_plane.address;
        let host = address.host().ok_or_else(|| ConnectError::Address(address.clone()))?;
        let host = host.trim_matches(['[', ']']).to_owned();
        let (tls, default_port) = match address.scheme_str() {
            Some("https") => {
                let roots =
                    control_plane.roots.clone().ok_or_else(|| ConnectError::NoRoots(address.clone()))?;
                let also = control_plane.alternative_names.iter().map(|n| server_name(n));
                let tls = Tls { roots, name: server_name(&host)?, also: also.collect::<Result<_, _>>()? };
                (Some(tls), 443)
            }
            Some("http") => (None, 80),
            _ => return Err(ConnectError::Address(address.clone())),
        };
        Ok(Self { host, port: address.port_u16().unwrap_or(default_port), tls })
    }

    /// The channel's connect time-out bounds the whole of it.
    async fn dial(&self) -> Result<MaybeTls<TlsStream<TcpStream>>, ConnectError> {
        let failed = |stage| {
            move |source| ConnectError::Dial { stage, host: self.host.clone(), port: self.port, source }
        };
        let connector = match &self.tls {
            Some(tls) => Some((tls.connector().await?, tls.name.clone())),
            None => None,
        };
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(failed("connection"))?;
        tcp.set_nodelay(true).map_err(failed("connection"))?;
        let Some((connector, name)) = connector else { return Ok(MaybeTls::Plain(tcp)) };
        let tls = connector.connect(name, tcp).await.map_err(failed("TLS handshake"))?;
        Ok(MaybeTls::Tls(Box::new(tls)))
    }
}

impl Tls {
    async fn connector(&self) -> Result<TlsConnector, ConnectError> {
        let bundle = TrustBundle::from_pem(&read(&self.roots).await?)
            .map_err(|source| ConnectError::Roots { path: self.roots.clone(), source })?;
        let config =
            control::client_config(LiveBundle::new(bundle), self.also.clone(), Arc::new(SystemClock));
        Ok(TlsConnector::from(config))
    }
}

async fn read(path: &Path) -> Result<String, ConnectError> {
    tokio::fs::read_to_string(path)
        .await
        .map_err(|source| ConnectError::File { path: path.to_owned(), source })
}

fn server_name(name: &str) -> Result<ServerName<'static>, ConnectError> {
    ServerName::try_from(name.to_owned()).map_err(|_| ConnectError::Name(name.to_owned()))
}
