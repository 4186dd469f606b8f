//! The routes.

use axum::Router;
use axum::extract::{Query, Request, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use telemetry::log::{LogFilter, LogHandle};
use telemetry::metrics::Exposition;

use super::server::Caller;
use crate::{Readiness, Tasks};

/// The same pages, for callers over loopback alone; others get 403. For a port that must be reachable and has more to tell
/// than everybody should know.
pub fn private(pages: Router) -> Router {
    pages.layer(from_fn(refuse_strangers))
}

async fn refuse_strangers(request: Request, next: Next) -> Response {
    let caller = request.extensions().get::<Caller>();
    if caller.is_some_and(|caller| caller.0.ip().to_canonical().is_loopback()) {
        return next.run(request).await;
    }
    let why = "this page is for callers on loopback: ask from the program's own network namespace\n";
    (StatusCode::FORBIDDEN, why).into_response()
}

/// `GET /healthz/ready`: 200 when every part stands, else 503 with the names of those that do not, one a line.
pub fn readiness(readiness: Readiness) -> Router {
    Router::new().route("/healthz/ready", get(ready)).with_state(readiness)
}

async fn ready(State(readiness): State<Readiness>) -> Response {
    let pending = readiness.pending();
    if pending.is_empty() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, pending.join("\n") + "\n").into_response()
}

/// `GET /metrics` and its older name `/stats/prometheus`, in the format that the scraper accepts.
pub fn metrics(exposition: Exposition) -> Router {
    Router::new()
        .route("/metrics", get(scrape))
        .route("/stats/prometheus", get(scrape))
        .with_state(exposition)
}

async fn scrape(State(exposition): State<Exposition>, headers: HeaderMap) -> Response {
    let accept = headers.get(ACCEPT).and_then(|v| v.to_str().ok());
    let rendered = exposition.render(accept);
    ([(CONTENT_TYPE, rendered.content_type)], rendered.body).into_response()
}

/// What every admin port has: `GET /logging` (the filter in force), `POST /logging?level=FILTER` or `?reset` (another
/// one), `POST /quitquitquit` (drain and end). Merge the program's own pages, such as `/config_dump`, into it.
pub fn control(log: LogHandle, tasks: Tasks) -> Router {
    Router::new()
        .route("/logging", get(show_log).post(change_log))
        .with_state(log)
        .merge(Router::new().route("/quitquitquit", post(quit)).with_state(tasks))
}

async fn show_log(State(log): State<LogHandle>) -> String {
    format!("current log filter: {}\n", log.current())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogChange {
    level: Option<String>,
    reset: Option<String>,
}

async fn change_log(
    State(log): State<LogHandle>,
    change: Result<Query<LogChange>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let usage = "use POST /logging?level=info,hbone=debug or POST /logging?reset\n";
    let Ok(Query(change)) = change else { return (StatusCode::BAD_REQUEST, usage).into_response() };
    match (change.level, change.reset) {
        (Some(level), None) => match level.parse::<LogFilter>() {
            Ok(filter) => log.set(&filter),
            Err(error) => return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
        },
        (None, Some(_)) => log.reset(),
        (None, None) => {}
        (Some(_), Some(_)) => return (StatusCode::BAD_REQUEST, usage).into_response(),
    }
    show_log(State(log)).await.into_response()
}

async fn quit(State(tasks): State<Tasks>) -> &'static str {
    tasks.begin_drain();
    "draining\n"
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt as _;
    use telemetry::metrics::Registry;
    use tower::ServiceExt as _;

    use super::*;

    async fn ask(router: Router, method: &str, path: &str) -> (StatusCode, String) {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn private_pages_are_shown_on_loopback_alone() {
        let page = || private(Router::new().route("/", get(|| async { "here" })));
        let from = |caller: &str| page().layer(axum::Extension(Caller(caller.parse().unwrap())));
        for caller in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(ask(from(caller), "GET", "/").await, (StatusCode::OK, "here".into()), "{caller}");
        }
        for caller in ["10.0.0.1:1", "[fd00::1]:1", "[::ffff:10.0.0.1]:1"] {
            assert_eq!(ask(from(caller), "GET", "/").await.0, StatusCode::FORBIDDEN, "{caller}");
        }
        assert_eq!(ask(page(), "GET", "/").await.0, StatusCode::FORBIDDEN, "who it is must be known");
    }

    #[tokio::test]
    async fn readiness_names_what_lacks() {
        let state = Readiness::default();
        let mut part = state.part("xds");
        let page = || ask(readiness(state.clone()), "GET", "/healthz/ready");
        assert_eq!(page().await, (StatusCode::SERVICE_UNAVAILABLE, "xds\n".into()));
        part.ready();
        assert_eq!(page().await, (StatusCode::OK, "ready\n".into()));
    }

    #[tokio::test]
    async fn metrics_say_what_they_are() {
        let router = metrics(Exposition::new(Registry::default()));
        let request = Request::builder().uri("/metrics").body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        assert_eq!(response.headers()[CONTENT_TYPE], "text/plain; version=0.0.4; charset=utf-8");
    }

    #[tokio::test]
    async fn a_bad_filter_is_refused_with_the_reason() {
        let router = || control(LogHandle::detached(), Tasks::default());
        let (status, body) = ask(router(), "POST", "/logging?level=inof").await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(body.contains("did you mean `info`?"), "{body}");
        let (status, body) = ask(router(), "POST", "/logging?lvl=info").await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(body.starts_with("use POST"), "{body}");
    }

    #[tokio::test]
    async fn quitting_is_a_drain_and_needs_a_post() {
        let tasks = Tasks::default();
        let (status, _) = ask(control(LogHandle::detached(), tasks.clone()), "GET", "/quitquitquit").await;
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
        assert!(!tasks.drain_token().is_cancelled());
        ask(control(LogHandle::detached(), tasks.clone()), "POST", "/quitquitquit").await;
        assert!(tasks.drain_token().is_cancelled());
    }
}
