//! Both ends of HBONE, driven by a list of operations: tunnels are opened, answered, written, read, half-closed, reset and
//! dropped, connections drained and cut, and time passes. Bytes arrive as they were sent and in that order, an end is read
//! only where it was sent, nobody fails whom nothing happened to, and in the end nothing is left.
//!
//! An input whose first byte is odd is a peer instead: the rest are bytes after the preface of HTTP/2, which the accepting end
//! must bear.

#![no_main]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use hbone::client::{ConnectRequest, Connector, Holder, Key, OpenError, Pool, Reached};
use hbone::server::{self, Refusal};
use hbone::{Settings, Tunnel};
use libfuzzer_sys::fuzz_target;
use model::{IdentitySet, SpiffeId, Uid};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{Notify, mpsc};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{sleep, timeout};

/// The most operations of one input.
const OPERATIONS: usize = 150;
/// After so long, by a clock that runs only where nobody has anything to do, what has not happened does not.
const A_MOMENT: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_secs(3600);

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().expect("a runtime");
    LocalSet::new()
        .block_on(&runtime, async { if first % 2 == 1 { hostile(rest).await } else { play(rest).await } });
});

fn settings() -> Settings {
    Settings { streams_per_connection: 3, ..Settings::default() }
}

/// A peer that says anything. Whatever it asks for is accepted, and echoed.
async fn hostile(bytes: &[u8]) {
    let (mut peer, own) = duplex(1 << 16);
    let serving = spawn_local(async move {
        let Ok(mut connection) = server::Connection::handshake(own, &settings()).await else { return };
        while let Ok(Some(request)) = connection.accept().await {
            spawn_local(async move {
                let Ok(tunnel) = request.accept(None) else { return };
                let (mut reader, mut writer) = tokio::io::split(tunnel);
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    // What it is answered it may read or not: its pipe holds little.
    let _ = timeout(A_MOMENT, async {
        peer.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
        peer.write_all(bytes).await
    })
    .await;
    drop(peer);
    timeout(LONG, serving).await.expect("the connection ends with its peer").expect("it does not panic");
}

/// One tunnel at one of its ends.
enum End {
    /// Nobody has answered.
    Asked,
    Open(Tunnel),
    /// Refused, lost, or let go.
    Over,
}

/// What one end of a tunnel has done, for the other to judge by.
#[derive(Default)]
struct Way {
    sent: usize,
    closed: bool,
    /// Read at the far end.
    read: usize,
}

struct Pair {
    client: End,
    server: End,
    up: Way,
    down: Way,
    /// On which connection the server has it.
    connection: Option<usize>,
    /// Something was done to it after which either end may fail.
    harmed: bool,
}

type Pairs = Rc<RefCell<BTreeMap<u16, Pair>>>;

/// The accepting end's connections, and the requests on them that nobody has answered.
#[derive(Clone, Default)]
struct Peers {
    requests: Rc<RefCell<Vec<(usize, server::ConnectRequest)>>>,
    controls: Rc<RefCell<Vec<Control>>>,
}

#[derive(Clone, Default)]
struct Control {
    drain: Rc<Notify>,
    cut: Rc<Notify>,
}

struct Pipes(mpsc::UnboundedSender<DuplexStream>);

impl Connector for Pipes {
    type Io = DuplexStream;
    type Peer = ();
    type Error = io::Error;

    async fn connect(&self, _: &Key) -> io::Result<Reached<DuplexStream, ()>> {
        let (near, far) = duplex(1 << 14);
        self.0.send(far).map_err(|_| io::ErrorKind::ConnectionRefused)?;
        Ok(Reached::new(near, ()))
    }

    fn holds(&self, (): &()) -> bool {
        true
    }
}

fn key() -> Key {
    let id = |text: &str| text.parse::<SpiffeId>().expect("an identity");
    Key {
        source: id("spiffe://cluster.local/ns/a/sa/b"),
        destinations: IdentitySet::one(id("spiffe://cluster.local/ns/a/sa/c")),
        address: SocketAddr::from((Ipv4Addr::new(10, 0, 0, 2), 15008)),
        source_ip: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)),
        holder: Holder { uid: Uid::new("u"), tenancy: 1 },
    }
}

async fn play(data: &[u8]) {
    let (far, mut pipes) = mpsc::unbounded_channel();
    let pool = Pool::new(Pipes(far), settings());
    let (peers, pairs) = (Peers::default(), Pairs::default());
    let accepting = peers.clone();
    let mut connections = spawn_local(async move {
        let mut all = Vec::new();
        while let Some(pipe) = pipes.recv().await {
            let control = Control::default();
            accepting.controls.borrow_mut().push(control.clone());
            all.push(spawn_local(accept(pipe, all.len(), control, accepting.clone())));
        }
        for one in all {
            one.await.expect("no connection panics");
        }
    });
    for operation in data.chunks_exact(2).take(OPERATIONS) {
        step(operation[0], operation[1], &pool, &peers, &pairs).await;
    }
    pairs.borrow_mut().values_mut().for_each(|pair| (pair.client, pair.server) = (End::Over, End::Over));
    peers.requests.borrow_mut().clear();
    timeout(LONG, pool.drain()).await.expect("the pool ends with its tunnels");
    let counts = pool.counts();
    assert_eq!((counts.connections, counts.streams), (0, 0), "nothing is left");
    drop(pool);
    timeout(LONG, &mut connections).await.expect("all connections end").expect("nothing panics");
}

/// One connection of the accepting end.
async fn accept(pipe: DuplexStream, number: usize, control: Control, peers: Peers) {
    let Ok(mut connection) = server::Connection::handshake(pipe, &settings()).await else { return };
    loop {
        tokio::select! {
            biased;
            () = control.cut.notified() => return,
            () = control.drain.notified() => connection.drain(),
            request = connection.accept() => match request {
                Ok(Some(request)) => peers.requests.borrow_mut().push((number, request)),
                Ok(None) | Err(_) => return,
            },
        }
    }
}

async fn step(operation: u8, argument: u8, pool: &Pool<Pipes>, peers: &Peers, pairs: &Pairs) {
    let nth = |count: usize| (count > 0).then(|| usize::from(argument) % count);
    match operation % 14 {
        0 => open(pool, pairs),
        1 | 2 => {
            // What was opened reaches the other end in a moment.
            sleep(A_MOMENT).await;
            let request = {
                let mut requests = peers.requests.borrow_mut();
                nth(requests.len()).map(|n| requests.remove(n))
            };
            let Some((connection, request)) = request else { return };
            let mut pairs = pairs.borrow_mut();
            let pair = pairs.get_mut(&request.authority().port()).expect("somebody asked for it");
            pair.connection = Some(connection);
            if operation % 14 == 1 {
                match request.accept(None) {
                    Ok(tunnel) => pair.server = End::Open(tunnel),
                    Err(_) => pair.harmed = true,
                }
            } else {
                request.refuse(
                    [Refusal::Denied, Refusal::Unavailable, Refusal::BadRequest][usize::from(argument % 3)],
                );
            }
        }
        3 | 4 => write(operation % 14 == 3, argument, pairs).await,
        5 | 6 => read(operation % 14 == 5, argument, pairs).await,
        7 | 8 => close(operation % 14 == 7, argument, pairs).await,
        9 | 10 => {
            let mut pairs = pairs.borrow_mut();
            let Some(n) = nth(pairs.len()) else { return };
            let Some(pair) = pairs.values_mut().nth(n) else { return };
            let end = if operation % 14 == 9 { &mut pair.client } else { &mut pair.server };
            if let End::Open(tunnel) = std::mem::replace(end, End::Over) {
                pair.harmed = true;
                if argument > 127 { tunnel.reset() } else { drop(tunnel) }
            } else {
                // Who asks goes on asking.
                *end = if pair.harmed { End::Over } else { End::Asked };
            }
        }
        11 => {
            let controls = peers.controls.borrow();
            if let Some(n) = nth(controls.len()) {
                controls[n].drain.notify_one();
            }
        }
        12 => {
            let controls = peers.controls.borrow();
            let Some(n) = nth(controls.len()) else { return };
            controls[n].cut.notify_one();
            // Who has not been answered may be on it.
            let mut pairs = pairs.borrow_mut();
            let hurt = pairs.values_mut().filter(|pair| pair.connection.is_none_or(|on| on == n));
            hurt.for_each(|pair| pair.harmed = true);
        }
        _ => sleep(Duration::from_millis(u64::from(argument) * 100)).await,
    }
}

/// Asks for a tunnel, and keeps what comes of it.
fn open(pool: &Pool<Pipes>, pairs: &Pairs) {
    let (pool, pairs) = (pool.clone(), Rc::clone(pairs));
    let port = u16::try_from(pairs.borrow().len() + 1).expect("a few");
    let pair = Pair {
        client: End::Asked,
        server: End::Asked,
        up: Way::default(),
        down: Way::default(),
        connection: None,
        harmed: false,
    };
    pairs.borrow_mut().insert(port, pair);
    spawn_local(async move {
        let authority = SocketAddr::from((Ipv4Addr::new(10, 0, 0, 2), port)).into();
        let opened = pool.open(&key(), &ConnectRequest::to(authority)).await;
        let mut pairs = pairs.borrow_mut();
        let pair = pairs.get_mut(&port).expect("it was put there");
        match opened {
            Ok(opened) if matches!(pair.client, End::Asked) => pair.client = End::Open(opened.tunnel),
            Ok(_) => pair.harmed = true,
            Err(error) => {
                assert!(!matches!(error, OpenError::Authority), "it can be written: {error}");
                (pair.client, pair.harmed) = (End::Over, true);
            }
        }
    });
}

/// Takes an open tunnel out, so that nothing is borrowed while it is waited for.
fn take(of_client: bool, argument: u8, pairs: &Pairs) -> Option<(u16, Tunnel)> {
    let mut pairs = pairs.borrow_mut();
    let count = pairs.len();
    let (port, pair) = pairs.iter_mut().nth(usize::from(argument).checked_rem(count)?)?;
    let end = if of_client { &mut pair.client } else { &mut pair.server };
    match std::mem::replace(end, End::Over) {
        End::Open(tunnel) => Some((*port, tunnel)),
        other => {
            *end = other;
            None
        }
    }
}

/// Puts it back and tells what has become of it.
fn put(of_client: bool, port: u16, tunnel: Tunnel, pairs: &Pairs, then: impl FnOnce(&mut Pair)) {
    let mut pairs = pairs.borrow_mut();
    let pair = pairs.get_mut(&port).expect("it was there");
    *(if of_client { &mut pair.client } else { &mut pair.server }) = End::Open(tunnel);
    then(pair);
}

fn byte(port: u16, at: usize) -> u8 {
    (usize::from(port) * 31 + at * 7) as u8
}

async fn write(of_client: bool, argument: u8, pairs: &Pairs) {
    let Some((port, mut tunnel)) = take(of_client, argument, pairs) else { return };
    let (sent, closed) = {
        let pairs = pairs.borrow();
        let way = if of_client { &pairs[&port].up } else { &pairs[&port].down };
        (way.sent, way.closed)
    };
    if closed {
        return put(of_client, port, tunnel, pairs, |_| {});
    }
    let bytes: Vec<u8> = (0..usize::from(argument) * 97).map(|n| byte(port, sent + n)).collect();
    let written = timeout(A_MOMENT, tunnel.write(&bytes)).await;
    put(of_client, port, tunnel, pairs, |pair| match written {
        Ok(Ok(n)) => {
            assert!(n <= bytes.len());
            (if of_client { &mut pair.up } else { &mut pair.down }).sent += n;
        }
        Ok(Err(error)) => {
            assert!(pair.harmed, "it cannot be written, and nothing has happened to it: {error}")
        }
        Err(_) => {}
    });
}

async fn read(of_client: bool, argument: u8, pairs: &Pairs) {
    let Some((port, mut tunnel)) = take(of_client, argument, pairs) else { return };
    let mut buffer = vec![0; usize::from(argument) * 61 + 1];
    let got = timeout(A_MOMENT, tunnel.read(&mut buffer)).await;
    put(of_client, port, tunnel, pairs, |pair| {
        let way = if of_client { &mut pair.down } else { &mut pair.up };
        match got {
            Ok(Ok(0)) => {
                assert!(way.closed && way.read == way.sent, "an end that was not sent is read");
            }
            Ok(Ok(n)) => {
                for (k, got) in buffer[..n].iter().enumerate() {
                    assert_eq!(*got, byte(port, way.read + k), "another byte than was sent");
                }
                way.read += n;
                assert!(way.read <= way.sent, "more than was sent");
            }
            Ok(Err(error)) => assert!(pair.harmed, "it fails, and nothing has happened to it: {error}"),
            Err(_) => {}
        }
    });
}

async fn close(of_client: bool, argument: u8, pairs: &Pairs) {
    let Some((port, mut tunnel)) = take(of_client, argument, pairs) else { return };
    let closed = timeout(A_MOMENT, tunnel.shutdown()).await;
    put(of_client, port, tunnel, pairs, |pair| match closed {
        Ok(Err(error)) => {
            assert!(pair.harmed, "it cannot be closed, and nothing has happened to it: {error}")
        }
        _ => (if of_client { &mut pair.up } else { &mut pair.down }).closed = true,
    });
}
