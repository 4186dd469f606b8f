//! Load that no packaged tool makes: new connections timed from `connect` to the last byte, and connections that idle.
//!
//! The benchmark runs these in a pod, as `xtask load …`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Child;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Subcommand;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::stage::Stopwatch;

/// A load generator.
#[derive(Subcommand)]
pub(crate) enum Load {
    /// Clients that open a connection for each request, over and over.
    Connect {
        target: SocketAddr,
        #[arg(long)]
        clients: usize,
        #[arg(long)]
        seconds: u64,
    },
    /// Connections that each make one request and then idle until standard input ends.
    Hold {
        target: SocketAddr,
        #[arg(long)]
        connections: usize,
    },
}

const CLOSE: &[u8] = b"GET / HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n";
const KEEP: &[u8] = b"GET / HTTP/1.1\r\nhost: bench\r\n\r\n";
const PATIENCE: Duration = Duration::from_secs(10);
const HELD: &str = "HELD";

impl Load {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        match *self {
            Self::Connect { target, clients, seconds } => {
                connect(target, clients, Duration::from_secs(seconds))
            }
            Self::Hold { target, connections } => hold(target, connections),
        }
    }
}

fn connect(target: SocketAddr, clients: usize, time: Duration) -> anyhow::Result<()> {
    let begun = Stopwatch::start();
    let threads: Vec<_> = (0..clients)
        .map(|_| {
            thread::spawn(move || {
                let (mut times, mut errors) = (Vec::new(), 0u64);
                while begun.elapsed() < time {
                    let one = Stopwatch::start();
                    match request(target) {
                        Ok(()) => times.push(one.elapsed().as_micros()),
                        Err(_) => errors += 1,
                    }
                }
                (times, errors)
            })
        })
        .collect();
    let (mut times, mut errors) = (Vec::new(), 0);
    for thread in threads {
        let (more, failed) = thread.join().ok().context("a client panicked")?;
        times.extend(more);
        errors += failed;
    }
    let us = begun.elapsed().as_micros();
    times.sort_unstable();
    let percentile = |p: usize| times.get(times.len() * p / 100).or(times.last()).copied().unwrap_or(0);
    println!(
        "RESULT {{\"count\":{},\"us\":{us},\"p50\":{},\"p99\":{},\"errors\":{errors}}}",
        times.len(),
        percentile(50),
        percentile(99)
    );
    Ok(())
}

fn request(target: SocketAddr) -> anyhow::Result<()> {
    let mut stream = open(target)?;
    stream.write_all(CLOSE)?;
    let mut answer = Vec::with_capacity(512);
    stream.read_to_end(&mut answer)?;
    ensure!(answer.starts_with(b"HTTP/1.1 200 "), "no good answer");
    Ok(())
}

fn open(target: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn hold(target: SocketAddr, connections: usize) -> anyhow::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let mut held = Vec::with_capacity(connections);
    for n in 0..connections {
        let mut stream = open(target).with_context(|| format!("connection {n}"))?;
        stream.write_all(KEEP)?;
        let read = stream.read(&mut [0; 4096]).with_context(|| format!("connection {n}"))?;
        ensure!(read > 0, "connection {n} was closed");
        held.push(stream);
    }
    println!("{HELD}");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Waits until all connections of a `load hold` stand.
pub(super) fn wait_until_held(holder: &mut Child) -> anyhow::Result<()> {
    let output = holder.stdout.take().context("the output is not ours to read")?;
    let held = BufReader::new(output).lines().map_while(Result::ok).any(|line| line == HELD);
    if !held {
        bail!("the idle connections could not all be opened");
    }
    Ok(())
}
