//! Small HTTP requests from within a network namespace: probes, and the mesh's own pages.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use net::Netns;
use thiserror::Error;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// The longest answer that is read.
const MAX_BODY: usize = 16 << 20;

/// Why there is no answer.
#[derive(Debug, Error)]
pub(crate) enum HttpError {
    #[error("cannot connect: {0}")]
    Connect(#[source] std::io::Error),
    #[error("no HTTP: {0}")]
    Protocol(#[source] hyper::Error),
    #[error("no such request: {0}")]
    Request(#[source] http::Error),
    #[error("the answer breaks off or is too long")]
    Body,
    #[error("no answer in time")]
    Late,
}

/// Opens a connection in a namespace.
pub(crate) async fn connect(netns: &Netns, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = netns
        .run(|| if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() })
        .map_err(std::io::Error::other)??;
    socket.connect(to).await
}

/// Asks for a page. The answer's status is not judged.
pub(crate) async fn get(
    netns: &Netns,
    to: SocketAddr,
    path: &str,
    headers: &[(String, String)],
    patience: Duration,
) -> Result<(u16, Bytes), HttpError> {
    let asked = async {
        let stream = connect(netns, to).await.map_err(HttpError::Connect)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(HttpError::Protocol)?;
        let mut request = http::Request::get(path);
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request = request.header("host", to.to_string());
        }
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(HttpError::Request)?;
        let answered = async {
            let (head, body) = sender.send_request(request).await.map_err(HttpError::Protocol)?.into_parts();
            let body = Limited::new(body, MAX_BODY).collect().await.map_err(|_| HttpError::Body)?;
            Ok((head.status.as_u16(), body.to_bytes()))
        };
        tokio::pin!(answered);
        tokio::select! {
            answer = &mut answered => answer,
            // The connection ends by itself only after the answer was read, or by a failure that the request tells of.
            _ = connection => answered.await,
        }
    };
    timeout(patience, asked).await.map_err(|_| HttpError::Late)?
}
