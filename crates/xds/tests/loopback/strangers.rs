//! Those who come and do not prove who they are.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use xds::server::{AdsService, Listen, Observer, Services, Strangers, TurnedAway, serve};

use crate::plane::{PATIENCE, Plane, Proxy, Tokens};
use crate::{policy, set};

/// Counts who is turned away.
struct Heard(watch::Sender<Vec<TurnedAway>>);

impl Observer for Heard {
    fn turned_away(&self, why: TurnedAway) {
        self.0.send_modify(|all| all.push(why));
    }
}

impl Heard {
    fn new() -> Arc<Self> {
        Arc::new(Self(watch::Sender::new(Vec::new())))
    }

    async fn until(&self, what: impl FnMut(&Vec<TurnedAway>) -> bool) {
        let mut all = self.0.subscribe();
        timeout(PATIENCE, all.wait_for(what)).await.expect("it comes about").unwrap();
    }
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags, 0, 0, 0, stream]);
    bytes.extend(payload);
    bytes
}

/// The start of HTTP/2.
fn greeting() -> Vec<u8> {
    [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 0, &[])].concat()
}

/// A call without a token, with a header of so many bytes.
fn call(stream: u8, filling: usize) -> Vec<u8> {
    let path = b"/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
    // POST, http; the others as literals.
    let mut block = vec![0x83, 0x86, 0x04, path.len() as u8];
    block.extend(path);
    block.extend(
        [&[0x01, 1][..], b"a", &[0x0f, 0x10, 16], b"application/grpc", &[0x00, 2], b"te", &[8], b"trailers"]
            .concat(),
    );
    for _ in 0..filling / 1000 {
        block.extend([0x00, 1, b'x', 0x7f, 0xe9, 0x06]);
        block.extend([b'y'; 1000]);
    }
    let mut pieces = block.chunks(16_000).peekable();
    let mut frames = Vec::new();
    let mut kind = 1;
    while let Some(piece) = pieces.next() {
        let flags = if pieces.peek().is_none() { 4 } else { 0 };
        frames.extend(frame(kind, flags, stream, piece));
        kind = 9;
    }
    frames
}

/// A server in plaintext, so that a test can say what it likes.
async fn plain(strangers: Strangers, heard: &Arc<Heard>) -> (std::net::SocketAddr, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, cancel) = (listener.local_addr().unwrap(), CancellationToken::new());
    let (_, feed) = watch::channel(None);
    let ads = AdsService::new(feed, Arc::new(Tokens), heard.clone(), cancel.clone());
    let listen = Listen { listener, tls: None, strangers };
    tokio::spawn(serve(listen, Services { ads, ca: None }, cancel.clone()));
    (address, cancel)
}

async fn says(address: std::net::SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // It may have been turned away before it has said all.
    let _ = stream.write_all(bytes).await;
    stream
}

/// All that comes until the end, which must come.
async fn heard_out(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the server hangs up");
    bytes
}

const A_MOMENT: Strangers = Strangers { most: 100, patience: Duration::from_millis(300) };

#[tokio::test]
async fn whoever_does_not_prove_who_he_is_is_turned_away() {
    let heard = Heard::new();
    let (address, _cancel) = plain(A_MOMENT, &heard).await;
    let nothing = Vec::new();
    let half_a_preface = greeting()[..10].to_vec();
    let half_a_head = [greeting(), call(1, 0)[..20].to_vec()].concat();
    let no_token = [greeting(), call(1, 0)].concat();
    let cases = [nothing, half_a_preface, greeting(), half_a_head, no_token];
    for (n, said) in cases.iter().enumerate() {
        let mut stream = says(address, said).await;
        heard_out(&mut stream).await;
        heard.until(|all| all.len() == n + 1).await;
    }
    assert_eq!(*heard.0.borrow(), [TurnedAway::Late; 5]);
}

#[tokio::test]
async fn a_handshake_that_never_begins_or_fails_is_turned_away() {
    let heard = Heard::new();
    let plane = Plane::with(A_MOMENT, heard.clone()).await;
    heard_out(&mut says(plane.address, b"").await).await;
    heard_out(&mut says(plane.address, b"GET / HTTP/1.1\r\n\r\n").await).await;
    heard.until(|all| *all == [TurnedAway::Late, TurnedAway::Tls]).await;
}

#[tokio::test]
async fn strangers_keep_no_proxy_out() {
    let heard = Heard::new();
    let strangers = Strangers { most: 5, ..Strangers::default() };
    let plane = Plane::with(strangers, heard.clone()).await;
    plane.publish(1, vec![set(policy("a"))]);
    let mut before = Proxy::start(plane.control_plane());
    assert_eq!(before.next().await.len(), 1);
    let mut held = Vec::new();
    for _ in 0..30 {
        held.push(says(plane.address, b"").await);
    }
    heard.until(|all| all.len() == 25).await;
    let mut after = Proxy::start(plane.control_plane());
    assert_eq!(after.next().await.len(), 1, "the newest finds a place");
    plane.publish(2, vec![set(policy("b"))]);
    assert_eq!(before.next().await.len(), 1, "and who was known has kept his connection");
    plane.acked(2).await;
    assert!(heard.0.borrow().iter().all(|why| *why == TurnedAway::Displaced));
}

#[tokio::test]
async fn a_flood_is_cut_off() {
    let heard = Heard::new();
    let (address, _cancel) = plain(Strangers::default(), &heard).await;
    let pings = frame(6, 1, 0, &[0; 8]).repeat(15_000);
    let mut stream = says(address, &[greeting(), pings].concat()).await;
    heard_out(&mut stream).await;
    heard.until(|all| *all == [TurnedAway::Flood]).await;
}

#[tokio::test]
async fn headers_that_are_too_large_are_refused_and_far_too_large_ones_end_the_connection() {
    let heard = Heard::new();
    let (address, _cancel) = plain(Strangers::default(), &heard).await;
    let mut stream = says(address, &[greeting(), call(1, 40_000)].concat()).await;
    // `:status: 431`, the first header of the first answer.
    let too_large = [0x48, 0x83, 0x69, 0x90, 0xff];
    let mut answer = Vec::new();
    while !answer.windows(5).any(|w| w == too_large) {
        let read = timeout(PATIENCE, stream.read_buf(&mut answer)).await.expect("an answer").unwrap();
        assert_ne!(read, 0, "{answer:?}");
    }
    let mut stream = says(address, &[greeting(), call(1, 150_000)].concat()).await;
    let answer = heard_out(&mut stream).await;
    assert!(answer.windows(4).any(|w| w == [0, 0, 0, 11]), "ENHANCE_YOUR_CALM: {answer:?}");
}
