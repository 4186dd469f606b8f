//! Peers that send what carries nothing, without end; and peers that seem to, and do not.
//!
//! Time stands still in these tests but where everybody waits, so that nothing is forgiven meanwhile.

use std::cell::RefCell;
use std::future::pending;
use std::rc::Rc;
use std::time::Duration;

use hbone::client::OpenError;
use hbone::frames::{Flood, Kind, Rate};
use hbone::server::{ConnectRequest, Connection, Refusal};
use hbone::{Settings, TransportError};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, sleep};

use crate::fixtures::{Bench, bench, echo, key, request, serve, settle};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// `:method: CONNECT`, `:authority: 10.0.0.2:80`, as literals.
fn connect_block() -> Vec<u8> {
    [&[0x02, 7][..], b"CONNECT", &[0x01, 11], b"10.0.0.2:80"].concat()
}

fn connect(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &connect_block())
}

fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])
}

/// Headers that are so large as a list.
fn large(bytes: usize) -> Vec<u8> {
    let mut block = connect_block();
    for _ in 0..bytes / 1000 {
        // Name and value as literals, of 1 and 967 bytes; 32 more count for each (RFC 9113 6.5.2).
        block.extend([0x00, 1, b'x', 0x7f, 0xc8, 0x06]);
        block.extend([b'y'; 967]);
    }
    block
}

/// The frames that have come in.
fn frames(mut bytes: &[u8]) -> Vec<(u8, u32, Vec<u8>)> {
    let mut frames = Vec::new();
    while let [a, b, c, kind, _, s1, s2, s3, s4, rest @ ..] = bytes {
        let len = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let Some((payload, after)) = rest.split_at_checked(len) else { break };
        frames.push((*kind, u32::from_be_bytes([*s1, *s2, *s3, *s4]), payload.to_vec()));
        bytes = after;
    }
    frames
}

/// Says what it likes, and keeps what it hears.
struct Hostile {
    write: WriteHalf<DuplexStream>,
    heard: Rc<RefCell<Vec<u8>>>,
}

impl Hostile {
    fn new(io: DuplexStream) -> Self {
        let (mut read, write): (ReadHalf<_>, _) = split(io);
        let heard: Rc<RefCell<Vec<u8>>> = Rc::default();
        let hears = Rc::clone(&heard);
        spawn_local(async move {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = read.read(&mut bytes).await {
                hears.borrow_mut().extend(&bytes[..n]);
            }
        });
        Self { write, heard }
    }

    /// Whether that went out.
    async fn say(&mut self, bytes: &[u8]) -> bool {
        self.write.write_all(bytes).await.is_ok()
    }

    /// So many times, as long as it goes out.
    async fn repeat(&mut self, times: usize, bytes: &[u8]) {
        for _ in 0..times {
            if !self.say(bytes).await {
                return;
            }
        }
    }

    /// The code of the goodbye.
    fn dismissed_with(&self) -> Option<u32> {
        let heard = frames(&self.heard.borrow());
        let (_, _, payload) = heard.iter().find(|(kind, ..)| *kind == GOAWAY)?;
        Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()))
    }

    /// The head of a stream's answer, as it was written.
    fn answer(&self, stream: u32) -> Option<Vec<u8>> {
        let heard = frames(&self.heard.borrow());
        heard.into_iter().find(|(kind, s, _)| *kind == HEADERS && *s == stream).map(|(.., block)| block)
    }
}

type Served = JoinHandle<Result<(), TransportError>>;

/// A hostile client, and a server that treats its requests so.
fn client<F: Future<Output = ()> + 'static>(
    settings: Settings,
    each: impl Fn(ConnectRequest) -> F + 'static,
) -> (Hostile, Served) {
    let (near, far) = duplex(64 << 10);
    let served = spawn_local(async move { serve(Connection::handshake(far, &settings).await?, each).await });
    (Hostile::new(near), served)
}

async fn greet(hostile: &mut Hostile) {
    hostile.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    hostile.say(&frame(SETTINGS, 0, 0, &[])).await;
}

async fn refuse(request: ConnectRequest) {
    request.refuse(Refusal::Denied);
}

/// Holds a tunnel and never reads.
async fn hold(request: ConnectRequest) {
    let _tunnel = request.accept(None).unwrap();
    pending().await
}

async fn flooded(served: Served) -> Kind {
    match served.await.unwrap() {
        Err(TransportError::Flood(Flood { kind })) => kind,
        other => panic!("not told as a flood: {other:?}"),
    }
}

/// So few that what is not paid for is found out.
const FEW: Rate = Rate { burst: 500, per_second: 100 };

const ENHANCE_YOUR_CALM: Option<u32> = Some(11);

#[tokio::test(flavor = "local", start_paused = true)]
async fn frames_that_carry_nothing_end_the_connection_when_they_are_too_many() {
    let cases = [
        (Kind::Ping, frame(PING, 0, 0, &[0; 8])),
        (Kind::Settings, frame(SETTINGS, 0, 0, &[])),
        (Kind::WindowUpdate, frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        (Kind::Priority, frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 9])),
        (Kind::Other, frame(0x42, 0, 0, b"what is this?")),
    ];
    for (kind, frame) in cases {
        let (mut hostile, served) = client(Settings::default(), hold);
        greet(&mut hostile).await;
        hostile.say(&connect(1)).await;
        hostile.repeat(19_000, &frame).await;
        settle().await;
        assert!(!served.is_finished(), "{kind:?}: a burst is borne");
        hostile.repeat(2_000, &frame).await;
        assert_eq!(flooded(served).await, kind);
        settle().await;
        assert_eq!(hostile.dismissed_with(), ENHANCE_YOUR_CALM, "{kind:?}");
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_burst_is_forgiven_in_two_seconds() {
    let (mut hostile, served) = client(Settings::default(), hold);
    greet(&mut hostile).await;
    for _ in 0..3 {
        hostile.repeat(19_000, &frame(PING, 0, 0, &[0; 8])).await;
        sleep(Duration::from_secs(2)).await;
    }
    assert!(!served.is_finished());
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn data_without_data_ends_the_connection() {
    let (mut hostile, served) = client(Settings::default(), hold);
    greet(&mut hostile).await;
    hostile.say(&connect(1)).await;
    hostile.repeat(21_000, &frame(DATA, 0, 1, &[])).await;
    assert_eq!(flooded(served).await, Kind::Data);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn data_byte_by_byte_to_who_does_not_read_ends_the_connection() {
    let settings = Settings { framing_budget: 256 * 500, ..Settings::default() };
    let (mut hostile, served) = client(settings, hold);
    greet(&mut hostile).await;
    hostile.say(&connect(1)).await;
    hostile.repeat(400, &frame(DATA, 0, 1, b"x")).await;
    settle().await;
    assert!(!served.is_finished());
    hostile.repeat(200, &frame(DATA, 0, 1, b"x")).await;
    assert_eq!(flooded(served).await, Kind::Data);
}

/// Rapid reset, as fast as it can be sent: the server has not looked at the streams yet.
#[tokio::test(flavor = "local", start_paused = true)]
async fn streams_that_end_before_anybody_looks_end_the_connection() {
    let (mut hostile, served) = client(Settings::default(), refuse);
    greet(&mut hostile).await;
    let pairs: Vec<u8> = (0..150).flat_map(|n| [connect(2 * n + 1), reset(2 * n + 1)].concat()).collect();
    hostile.say(&pairs).await;
    assert_eq!(flooded(served).await, Kind::Reset);
}

/// Rapid reset at a pace at which the server looks at each.
#[tokio::test(flavor = "local", start_paused = true)]
async fn requests_that_are_taken_back_end_the_connection_when_they_are_too_many() {
    let settings = Settings { fruitless: Rate { burst: 200, per_second: 100 }, ..Settings::default() };
    let (mut hostile, served) = client(settings, |mut request| async move {
        request.withdrawn().await;
        request.refuse(Refusal::Unavailable);
    });
    greet(&mut hostile).await;
    for n in 0..300 {
        hostile.say(&connect(2 * n + 1)).await;
        settle().await;
        assert_eq!(served.is_finished(), n > 200, "at {n}");
        if served.is_finished() {
            break;
        }
        hostile.say(&reset(2 * n + 1)).await;
        settle().await;
    }
    assert_eq!(flooded(served).await, Kind::Withdrawn);
    assert_eq!(hostile.dismissed_with(), ENHANCE_YOUR_CALM);
}

/// Each stream is answered before it is reset, so only the resets count.
#[tokio::test(flavor = "local", start_paused = true)]
async fn streams_that_are_opened_to_be_ended_end_the_connection() {
    let settings = Settings { empty_frames: Rate { burst: 200, per_second: 100 }, ..Settings::default() };
    let (mut hostile, served) = client(settings, hold);
    greet(&mut hostile).await;
    for n in 0..300 {
        hostile.say(&connect(2 * n + 1)).await;
        settle().await;
        hostile.say(&reset(2 * n + 1)).await;
        settle().await;
        if served.is_finished() {
            break;
        }
    }
    assert_eq!(flooded(served).await, Kind::Reset);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn headers_in_too_many_pieces_end_the_connection() {
    let (mut hostile, served) = client(Settings::default(), refuse);
    greet(&mut hostile).await;
    hostile.say(&frame(HEADERS, 0, 1, &connect_block())).await;
    hostile.repeat(5, &frame(CONTINUATION, 0, 1, &[])).await;
    settle().await;
    assert!(!served.is_finished(), "a few pieces are borne");
    hostile.say(&frame(CONTINUATION, 0, 1, &[])).await;
    assert_eq!(flooded(served).await, Kind::Continuation);
    settle().await;
    assert_eq!(hostile.dismissed_with(), ENHANCE_YOUR_CALM);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn headers_that_are_too_large_are_refused_and_the_connection_stays() {
    let (mut hostile, served) = client(Settings::default(), refuse);
    greet(&mut hostile).await;
    // `:status: 431` in Huffman's code, and then by its place in the table.
    let too_large = [&[0x48, 0x83, 0x69, 0x90, 0xff][..], &[0xbe]];
    for (stream, size, answer) in [(1, 70_000, too_large[0]), (3, 200_000, too_large[1])] {
        hostile.say(&frame(HEADERS, END_HEADERS, stream, &large(size))).await;
        settle().await;
        assert_eq!(hostile.answer(stream).as_deref(), Some(answer), "{size} bytes");
    }
    hostile.say(&connect(5)).await;
    settle().await;
    assert!(hostile.answer(5).is_some_and(|answer| !too_large.contains(&&answer[..])), "others are answered");
    assert!(!served.is_finished() && hostile.dismissed_with().is_none());
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn headers_that_are_too_large_again_and_again_end_the_connection() {
    let (mut hostile, served) =
        client(Settings { fruitless: Rate { burst: 10, per_second: 1 }, ..Settings::default() }, refuse);
    greet(&mut hostile).await;
    for n in 0..20 {
        hostile.say(&frame(HEADERS, END_HEADERS, 2 * n + 1, &large(70_000))).await;
        settle().await;
        assert_eq!(served.is_finished(), n >= 10, "at {n}");
        if served.is_finished() {
            break;
        }
    }
    assert_eq!(flooded(served).await, Kind::Headers);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn headers_that_are_far_too_large_end_the_connection() {
    let (mut hostile, served) = client(Settings::default(), refuse);
    greet(&mut hostile).await;
    hostile.say(&frame(HEADERS, END_HEADERS, 1, &large(300_000))).await;
    assert_eq!(flooded(served).await, Kind::Headers);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_preface_that_trickles_is_given_up() {
    let (mut hostile, served) = client(Settings::default(), refuse);
    let begun = Instant::now();
    for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" {
        hostile.say(&[*byte]).await;
        sleep(Duration::from_secs(1)).await;
    }
    assert!(matches!(served.await.unwrap(), Err(TransportError::Slow(_))));
    assert_eq!(begun.elapsed(), Duration::from_secs(24), "it was over by then");
    assert!(!hostile.say(b"x").await);
}

/// Nothing else can be said amid a frame, nor amid a header block: so the PING stays unanswered.
#[tokio::test(flavor = "local", start_paused = true)]
async fn headers_that_trickle_are_given_up_in_thirty_seconds() {
    let whole = frame(HEADERS, END_HEADERS, 1, &large(1_000));
    let begun_block = frame(HEADERS, 0, 1, &connect_block());
    for (first, then) in [(&whole[..20], &b"y"[..]), (&begun_block[..], b"")] {
        let (mut hostile, served) = client(Settings::default(), refuse);
        greet(&mut hostile).await;
        hostile.say(first).await;
        let begun = Instant::now();
        while !served.is_finished() {
            hostile.say(then).await;
            sleep(Duration::from_secs(1)).await;
            assert!(begun.elapsed() < Duration::from_secs(32));
        }
        assert!(matches!(served.await.unwrap(), Err(TransportError::Silent(_))));
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_server_that_floods_loses_the_connection_and_its_streams_are_told_why() {
    let answer = frame(HEADERS, END_HEADERS, 1, &[0x88]);
    for (kind, flood) in [
        (Kind::Ping, frame(PING, 0, 0, &[0; 8])),
        (Kind::Settings, frame(SETTINGS, 0, 0, &[])),
        (Kind::WindowUpdate, frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        (Kind::Continuation, [&answer[..4], &[0], &answer[5..], &frame(CONTINUATION, 0, 1, &[])].concat()),
    ] {
        let mut bench = bench(Settings::default());
        let opening = {
            let pool = bench.pool.clone();
            spawn_local(async move { pool.open(&key(2), &request()).await.map(drop) })
        };
        let mut hostile = Hostile::new(bench.peers.recv().await.unwrap());
        hostile.say(&frame(SETTINGS, 0, 0, &[])).await;
        settle().await;
        if kind == Kind::Continuation {
            hostile.say(&flood).await;
            hostile.repeat(10, &frame(CONTINUATION, 0, 1, &[])).await;
        } else {
            hostile.repeat(21_000, &flood).await;
        }
        let ended = opening.await.unwrap();
        let is_told = |e: &TransportError| matches!(e, TransportError::Flood(flood) if flood.kind == kind);
        assert!(matches!(&ended, Err(OpenError::Lost(e)) if is_told(e)), "{kind:?}: {ended:?}");
        settle().await;
        assert!(matches!(&bench.pipes.lost.borrow()[..], [e] if is_told(e)), "{:?}", bench.pipes.lost);
        assert_eq!(bench.pool.counts().connections, 0);
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn small_messages_however_many_are_no_flood() {
    let bench = Bench::echoing(Settings::default());
    let mut tunnels = Vec::new();
    for _ in 0..10 {
        tunnels.push(bench.pool.open(&key(2), &request()).await.unwrap().tunnel);
    }
    let mut got = [0; 10];
    for _ in 0..3_000 {
        for tunnel in &mut tunnels {
            tunnel.write_all(b"a message!").await.unwrap();
        }
        for tunnel in &mut tunnels {
            tunnel.read_exact(&mut got).await.unwrap();
        }
    }
    assert_eq!(bench.opened(), 1);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn bytes_in_bulk_are_no_flood_though_the_windows_are_small() {
    // Each window that is granted anew is a frame that carries nothing, and there are thousands.
    let small = Settings {
        stream_window: 70_000,
        connection_window: 70_000,
        empty_frames: FEW,
        ..Settings::default()
    };
    let mut bench = bench(small.clone());
    let pool = bench.pool.clone();
    let opening = spawn_local(async move { pool.open(&key(2), &request()).await.unwrap().tunnel });
    let io = bench.peers.recv().await.unwrap();
    spawn_local(async move { echo(Connection::handshake(io, &small).await.unwrap()).await });
    let (mut read, mut write) = split(opening.await.unwrap());
    let total = 256 << 20;
    let sending = spawn_local(async move {
        let chunk = vec![7; 64 << 10];
        for _ in 0..total / chunk.len() {
            write.write_all(&chunk).await.unwrap();
        }
        write.shutdown().await.unwrap();
    });
    let (mut got, mut bytes) = (0, vec![0; 64 << 10]);
    while let n @ 1.. = read.read(&mut bytes).await.unwrap() {
        got += n;
    }
    sending.await.unwrap();
    assert_eq!(got, total);
}

/// Also where each is broken off, which the peer is told by a reset.
#[tokio::test(flavor = "local", start_paused = true)]
async fn short_connections_however_many_are_no_flood() {
    let bench = Bench::echoing(Settings { empty_frames: FEW, ..Settings::default() });
    for n in 0..6_000 {
        let mut tunnel = bench.pool.open(&key(2), &request()).await.unwrap().tunnel;
        tunnel.write_all(b"ping").await.unwrap();
        tunnel.read_exact(&mut [0; 4]).await.unwrap();
        if n % 2 == 0 {
            tunnel.shutdown().await.unwrap();
            assert_eq!(tunnel.read(&mut [0; 1]).await.unwrap(), 0);
        }
    }
    assert_eq!(bench.opened(), 1);
}
