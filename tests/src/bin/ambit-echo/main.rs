//! `ambit-echo`: the workload of tests and samples. It answers with what it saw of its caller, so that a test can ask
//! the application, not the mesh, what arrived.

mod crowd;
mod digest;
mod greet;
mod hold;
mod http;
mod load;
mod without_bpf;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use clap::{Parser, Subcommand};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The workload of Ambit's tests and samples.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Subcommand)]
enum Mode {
    /// HTTP/1.1: answers every request with JSON about it; `/call?url=` asks another server; `/bytes?n=` sends n bytes.
    Http(http::Http),
    /// A server that speaks first: greets with the caller's address, then echoes line by line.
    Greet(Listen),
    /// Reads to the end of the stream, then answers with length and SHA-256: only half-close gets an answer.
    Digest(Listen),
    /// Sends bytes to a digest server, closes its sending half, and compares the answer.
    Send(digest::Send),
    /// Repeats HTTP requests and counts what failed.
    Load(load::Load),
    /// Keeps one connection to a greeter busy until it ends, and tells when and how that was.
    Hold(hold::Hold),
    /// Opens connections, says something on each, and then neither reads nor ends until it is ended itself.
    Crowd(crowd::Crowd),
    /// Runs a command that the kernel refuses bpf(2).
    WithoutBpf(without_bpf::WithoutBpf),
}

#[derive(clap::Args)]
struct Listen {
    /// The port to listen on.
    #[arg(long)]
    port: u16,
    /// The address to listen on; `::` takes IPv4 too.
    #[arg(long, default_value_t = IpAddr::V6(Ipv6Addr::UNSPECIFIED))]
    bind: IpAddr,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    match Arguments::parse().mode {
        Mode::Http(http) => http.run().await,
        Mode::Greet(listen) => serve(listen.open().await?, greet::converse).await,
        Mode::Digest(listen) => serve(listen.open().await?, digest::answer).await,
        Mode::Send(send) => send.run().await,
        Mode::Load(load) => load.run().await,
        Mode::Hold(hold) => hold.run().await,
        Mode::Crowd(crowd) => crowd.run().await,
        Mode::WithoutBpf(command) => command.run(),
    }
}

impl Listen {
    async fn open(&self) -> anyhow::Result<TcpListener> {
        let listener = match TcpListener::bind((self.bind, self.port)).await {
            // A kernel without IPv6 still gets a server.
            Err(_) if self.bind == IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {
                TcpListener::bind(("0.0.0.0", self.port)).await?
            }
            other => other?,
        };
        Ok(listener)
    }
}

/// Accepts until SIGTERM, then lets what runs come to its end.
async fn serve<F, Fut>(listener: TcpListener, converse: F) -> anyhow::Result<()>
where
    F: Fn(TcpStream, SocketAddr) -> Fut,
    Fut: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let stop = stop_on_sigterm()?;
    let tasks = TaskTracker::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => {
                let (stream, peer) = accepted?;
                let conversation = converse(stream, canonical(peer));
                // A caller that goes away in the middle is the caller's affair.
                tasks.spawn(async move { drop(conversation.await) });
            }
        }
    }
    tasks.close();
    tasks.wait().await;
    Ok(())
}

fn stop_on_sigterm() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let stopped = stop.clone();
    tokio::spawn(async move {
        terminate.recv().await;
        stopped.cancel();
    });
    Ok(stop)
}

fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}
