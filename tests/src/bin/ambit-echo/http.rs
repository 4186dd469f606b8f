//! The HTTP server: answers with what it saw.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, Query, Request, State};
use axum::http::header::{CONNECTION, HeaderValue};
use axum::http::{StatusCode, Version};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use futures_util::stream;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

const BODY_LIMIT: usize = 64 << 20;
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// Serves until SIGTERM, then finishes what runs.
#[derive(clap::Args)]
pub(crate) struct Http {
    #[command(flatten)]
    listen: crate::Listen,
    /// For how long after SIGTERM requests are still answered, each caller being told to close its connection.
    #[arg(long, default_value_t = 0)]
    lame_duck_ms: u64,
}

impl Http {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let stop = crate::stop_on_sigterm()?;
        let listener = self.listen.open().await?;
        let asked = stop.clone();
        let app = Router::new()
            .route("/call", get(call))
            .route("/bytes", get(bytes))
            .fallback(echo)
            .layer(middleware::from_fn_with_state(asked, farewell))
            .into_make_service_with_connect_info::<SocketAddr>();
        let lame_duck = Duration::from_millis(self.lame_duck_ms);
        let over = async move {
            stop.cancelled().await;
            tokio::time::sleep(lame_duck).await;
        };
        axum::serve(listener, app).with_graceful_shutdown(over).await?;
        Ok(())
    }
}

/// Asks a caller by HTTP/1 to close its connection once this server was asked to end. HTTP/2 has its own words for it.
async fn farewell(State(asked): State<CancellationToken>, request: Request, next: Next) -> Response {
    let takes_it = request.version() < Version::HTTP_2;
    let mut response = next.run(request).await;
    if takes_it && asked.is_cancelled() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn echo(ConnectInfo(peer): ConnectInfo<SocketAddr>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_LIMIT).await else {
        return (StatusCode::PAYLOAD_TOO_LARGE, "body over 64 MiB\n").into_response();
    };
    let headers: Map<String, Value> = head
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), Value::from(String::from_utf8_lossy(value.as_bytes()))))
        .collect();
    Json(json!({
        "pod": pod_name(),
        "client": crate::canonical(peer).ip().to_string(),
        "method": head.method.as_str(),
        "path": head.uri.path_and_query().map(|p| p.as_str()),
        "headers": headers,
        "body": String::from_utf8_lossy(&body[..body.len().min(1024)]),
        "body_bytes": body.len(),
    }))
    .into_response()
}

/// The pod's name as the environment tells it, else the machine's.
fn pod_name() -> String {
    std::env::var("POD_NAME").or_else(|_| std::env::var("HOSTNAME")).unwrap_or_default()
}

/// Calls another server and tells what it answered; 502 with the reason if it did not.
async fn call(Query(call): Query<Map<String, Value>>) -> Response {
    let url = call.get("url").and_then(Value::as_str).and_then(|url| url.parse::<hyper::Uri>().ok());
    let Some(url) = url else {
        return (StatusCode::BAD_REQUEST, "say whom to call: /call?url=http://…\n").into_response();
    };
    match tokio::time::timeout(CALL_LIMIT, fetch(url)).await {
        Ok(Ok((status, body))) => {
            let body =
                serde_json::from_slice(&body).unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&body)));
            Json(json!({ "pod": pod_name(), "status": status, "answer": body })).into_response()
        }
        Ok(Err(error)) => (StatusCode::BAD_GATEWAY, format!("{error:#}\n")).into_response(),
        Err(_) => (StatusCode::GATEWAY_TIMEOUT, "no answer within 10 s\n").into_response(),
    }
}

async fn fetch(url: hyper::Uri) -> anyhow::Result<(u16, Bytes)> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let response = client.get(url).await?;
    let status = response.status().as_u16();
    Ok((status, response.into_body().collect().await?.to_bytes()))
}

/// `n` bytes of `x`.
async fn bytes(Query(query): Query<Map<String, Value>>) -> Response {
    let n = query.get("n").and_then(Value::as_str).and_then(|n| n.parse::<u64>().ok()).unwrap_or(1024);
    const CHUNK: &[u8] = &[b'x'; 64 * 1024];
    let chunks = stream::unfold(n, |left| async move {
        let take = left.min(CHUNK.len() as u64);
        (take > 0)
            .then(|| (Ok::<_, std::io::Error>(Bytes::from_static(&CHUNK[..take as usize])), left - take))
    });
    Body::from_stream(chunks).into_response()
}
