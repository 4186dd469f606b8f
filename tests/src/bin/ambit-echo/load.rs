//! Repeated requests, counted: what a test runs while it changes the mesh underneath.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::future::join_all;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Repeats HTTP requests and counts what failed. Prints one JSON object; fails if a request did.
#[derive(clap::Args)]
pub(crate) struct Load {
    /// What to ask for.
    url: Uri,
    /// How long.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// End before, once this file is gone.
    #[arg(long = "while")]
    file: Option<PathBuf>,
    /// How many callers at once.
    #[arg(long, default_value_t = 4)]
    callers: usize,
    /// Keep each caller's connection instead of opening one a request.
    #[arg(long)]
    keep_alive: bool,
    /// How long a caller rests between two requests, in milliseconds.
    #[arg(long, default_value_t = 5)]
    pause_ms: u64,
    /// End after so many requests, however long they take.
    #[arg(long)]
    requests: Option<u64>,
}

/// In seconds.
const A_DAY: u64 = 24 * 3600;
/// How many requests of a caller are remembered.
const SAMPLES: usize = 100_000;

#[derive(Default)]
struct Tally {
    ok: u64,
    failed: u64,
    slowest: Duration,
    first_errors: Vec<String>,
    /// In microseconds.
    took: Vec<u32>,
}

impl Load {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let started = Instant::now();
        let until = started + Duration::from_secs(if self.requests.is_some() { A_DAY } else { self.seconds });
        let tallies = join_all((0..self.callers).map(|_| self.one_caller(until))).await;
        let mut total = Tally::default();
        for tally in tallies {
            total.ok += tally.ok;
            total.failed += tally.failed;
            total.slowest = total.slowest.max(tally.slowest);
            total.first_errors.extend(tally.first_errors);
            total.took.extend(tally.took);
        }
        total.took.sort_unstable();
        let part = |per_mille: usize| total.took.get(total.took.len() * per_mille / 1000).copied();
        let told = json!({
            "ok": total.ok,
            "failed": total.failed,
            "slowest_ms": u64::try_from(total.slowest.as_millis()).unwrap_or(u64::MAX),
            "errors": total.first_errors,
            "seconds": started.elapsed().as_secs_f64(),
            "p50_us": part(500),
            "p99_us": part(990),
        });
        print(&told.to_string());
        if total.failed > 0 || total.ok == 0 {
            bail!("{} of {} requests failed", total.failed, total.ok + total.failed);
        }
        Ok(())
    }

    async fn one_caller(&self, until: Instant) -> Tally {
        let mut tally = Tally::default();
        let mut kept = None;
        let share = self.requests.map_or(u64::MAX, |n| n.div_ceil(self.callers as u64));
        let goes_on = |tally: &Tally| {
            Instant::now() < until
                && tally.ok + tally.failed < share
                && self.file.as_ref().is_none_or(|file| file.exists())
        };
        while goes_on(&tally) {
            let began = Instant::now();
            let outcome = tokio::time::timeout(Duration::from_secs(10), self.one_request(&mut kept)).await;
            match outcome.context("no answer within 10 s").flatten() {
                Ok(()) => {
                    tally.ok += 1;
                    let took = began.elapsed();
                    tally.slowest = tally.slowest.max(took);
                    if tally.took.len() < SAMPLES {
                        tally.took.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
                    }
                }
                Err(error) => {
                    kept = None;
                    tally.failed += 1;
                    if tally.first_errors.len() < 3 {
                        tally.first_errors.push(format!("{error:#}"));
                    }
                }
            }
            if self.pause_ms > 0 {
                tokio::time::sleep(Duration::from_millis(self.pause_ms)).await;
            }
        }
        tally
    }

    async fn one_request(&self, kept: &mut Option<Sender>) -> anyhow::Result<()> {
        let mut sender = match kept.take() {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let host = self.url.authority().context("the URL has no host")?.as_str();
        let path = self.url.path_and_query().map_or("/", |p| p.as_str());
        let request = Request::get(path).header("host", host).body(Empty::<Bytes>::new())?;
        sender.ready().await.context("the kept connection")?;
        let response = sender.send_request(request).await.context("request")?;
        let status = response.status();
        let closes = response.headers().get("connection").is_some_and(|value| value == "close");
        response.into_body().collect().await.context("body")?;
        if !status.is_success() {
            bail!("status {status}");
        }
        // One that is told to close its connection does, and makes another.
        if self.keep_alive && !closes {
            *kept = Some(sender);
        }
        Ok(())
    }

    async fn connect(&self) -> anyhow::Result<Sender> {
        let host = self.url.host().context("the URL has no host")?.trim_matches(['[', ']']);
        let stream =
            TcpStream::connect((host, self.url.port_u16().unwrap_or(80))).await.context("connect")?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Its errors reach the sender, where they are counted.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }
}

type Sender = hyper::client::conn::http1::SendRequest<Empty<Bytes>>;

#[expect(clippy::print_stdout, reason = "the tally is what this mode is run for")]
fn print(line: &str) {
    println!("{line}");
}
