//! What a server makes of its peers, well-behaved and not.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use hbone::frames::{Flood, Kind};
use hbone::server::{Connection, Refusal};
use hbone::{Authority, Baggage, BaggageHeader, Forwarded, Settings, TransportError};
use http::{Method, Request, Uri, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::Instant;

use crate::fixtures::{MINUTE, bench, handshake, key, request, settle};

/// A client that can misbehave: the HTTP/2 library itself.
async fn raw() -> (h2::client::SendRequest<Bytes>, DuplexStream) {
    let (near, far) = duplex(256 << 10);
    let (send, connection) = h2::client::handshake(near).await.unwrap();
    spawn_local(connection);
    (send, far)
}

fn connect(authority: &str) -> Request<()> {
    let mut parts = http::uri::Parts::default();
    parts.authority = Some(authority.parse().unwrap());
    let request = Request::builder().method(Method::CONNECT).version(Version::HTTP_2);
    request.uri(Uri::from_parts(parts).unwrap()).body(()).unwrap()
}

#[tokio::test(flavor = "local")]
async fn what_either_side_says_of_itself_reaches_the_other() {
    let mut bench = bench(Settings::default());
    let speaks = |name: &str| Baggage { service_name: Some(name.into()), ..Baggage::default() };
    let mut request = request();
    request.baggage = Some(BaggageHeader::from(&speaks("frontend")));
    let forwarded = Forwarded::new("10.0.0.7:41000".parse().unwrap(), Some("catalog.shop.svc".into()));
    request.forwarded = Some(forwarded.clone());
    request.traceparent = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap());
    let pool = bench.pool.clone();
    let sent = request.clone();
    let opening = spawn_local(async move { pool.open(&key(2), &sent).await.unwrap() });

    let mut peer = bench.peer().await;
    let got = peer.accept().await.unwrap().unwrap();
    assert_eq!(got.authority(), &request.authority);
    assert_eq!(got.baggage(), &speaks("frontend"));
    assert_eq!(got.forwarded(), Some(&forwarded));
    assert_eq!(got.traceparent(), request.traceparent.as_ref());
    let _tunnel = got.accept(Some(&BaggageHeader::from(&speaks("catalog")))).unwrap();
    spawn_local(async move { peer.accept().await });
    assert_eq!(opening.await.unwrap().baggage, speaks("catalog"));
}

#[tokio::test(flavor = "local")]
async fn refusals_are_the_statuses_that_peers_know() {
    for (refusal, status) in [(Refusal::BadRequest, 400), (Refusal::Denied, 401), (Refusal::Unavailable, 503)]
    {
        let (mut send, far) = raw().await;
        spawn_local(async move {
            let mut peer = handshake(far).await;
            peer.accept().await.unwrap().unwrap().refuse(refusal);
            peer.accept().await
        });
        let (answer, _body) = send.send_request(connect("10.0.0.2:80"), false).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), status);
        assert!(answer.headers().is_empty() && answer.into_body().is_end_stream());
    }
}

#[tokio::test(flavor = "local")]
async fn what_is_no_tunnel_request_is_answered_with_400_and_not_shown() {
    let (mut send, far) = raw().await;
    let server = spawn_local(async move {
        let mut peer = handshake(far).await;
        let shown = peer.accept().await.unwrap().unwrap();
        let authority = shown.authority().clone();
        shown.refuse(Refusal::Denied);
        let counted = (peer.take_malformed(), peer.take_malformed());
        let _ = peer.accept().await;
        (authority, counted)
    });
    let get = Request::get("https://10.0.0.2:80/").version(Version::HTTP_2).body(()).unwrap();
    for bad in [get, connect("10.0.0.2"), connect("10.0.0.2:0"), connect("user@10.0.0.2:80")] {
        let (answer, _body) = send.send_request(bad, false).unwrap();
        assert_eq!(answer.await.unwrap().status(), 400);
    }
    let (answer, _body) = send.send_request(connect("10.0.0.2:81"), false).unwrap();
    assert_eq!(answer.await.unwrap().status(), 401);
    drop((send, _body));
    let expected: Authority = "10.0.0.2:81".parse().unwrap();
    assert_eq!(server.await.unwrap(), (expected, (4, 0)), "each is counted once");
}

#[tokio::test(flavor = "local")]
async fn a_request_dropped_unanswered_is_reset() {
    let (mut send, far) = raw().await;
    spawn_local(async move {
        let mut peer = handshake(far).await;
        drop(peer.accept().await.unwrap());
        peer.accept().await
    });
    let (answer, _body) = send.send_request(connect("10.0.0.2:80"), false).unwrap();
    assert_eq!(answer.await.unwrap_err().reason(), Some(Reason::CANCEL));
}

#[tokio::test(flavor = "local")]
async fn a_request_tells_when_its_sender_has_gone() {
    let (mut send, far) = raw().await;
    let (answer, body) = send.send_request(connect("10.0.0.2:80"), false).unwrap();
    let mut peer = handshake(far).await;
    let mut request = peer.accept().await.unwrap().unwrap();
    spawn_local(async move { peer.accept().await });
    tokio::select! {
        () = request.withdrawn() => panic!("nobody has gone"),
        () = settle() => {}
    }
    drop((answer, body));
    request.withdrawn().await;
}

#[tokio::test(flavor = "local")]
async fn streams_beyond_the_limit_are_refused_one_by_one() {
    let (mut send, far) = raw().await;
    let server = spawn_local(async move {
        let settings = Settings { accepted_streams: 3, ..Settings::default() };
        let mut peer = Connection::handshake(far, &settings).await.unwrap();
        let mut held = Vec::new();
        while let Ok(Some(request)) = peer.accept().await {
            held.push(request.accept(None).unwrap());
        }
        held.len()
    });
    // All five go out before the peer's limit has come in.
    let mut streams = Vec::new();
    for _ in 0..5 {
        streams.push(send.send_request(connect("10.0.0.2:80"), false).unwrap());
    }
    let (mut open, mut refused) = (Vec::new(), 0);
    for (n, (answer, body)) in streams.into_iter().enumerate() {
        let answer = tokio::time::timeout(MINUTE, answer).await.unwrap();
        match answer {
            Ok(answer) => {
                assert!(n < 3);
                open.push((answer, body));
            }
            Err(e) => {
                assert_eq!(e.reason(), Some(Reason::REFUSED_STREAM));
                refused += 1;
            }
        }
    }
    assert_eq!((open.len(), refused), (3, 2));
    drop((send, open));
    assert_eq!(server.await.unwrap(), 3);
}

#[tokio::test(flavor = "local")]
async fn opening_and_cancelling_in_a_loop_ends_the_connection() {
    let (mut send, far) = raw().await;
    // The server looks only after that many, as one under load would.
    for _ in 0..300 {
        let (_answer, mut body) = send.send_request(connect("10.0.0.2:80"), false).unwrap();
        tokio::task::yield_now().await;
        body.send_reset(Reason::CANCEL);
        tokio::task::yield_now().await;
    }
    let mut peer = handshake(far).await;
    let error = loop {
        match peer.accept().await {
            Ok(Some(request)) => drop(request),
            Ok(None) => panic!("the connection must end with an error"),
            Err(e) => break e,
        }
    };
    assert!(matches!(error, TransportError::Flood(Flood { kind: Kind::Reset })), "{error:?}");
}

#[tokio::test(flavor = "local")]
async fn draining_lets_open_tunnels_finish() {
    let mut bench = bench(Settings::default());
    let pool = bench.pool.clone();
    let opening = spawn_local(async move { pool.open(&key(2), &request()).await.unwrap().tunnel });
    let mut peer = bench.peer().await;
    let mut far = peer.accept().await.unwrap().unwrap().accept(None).unwrap();
    peer.drain();
    let ended = spawn_local(async move { peer.accept().await.unwrap().is_none() });
    let mut near = opening.await.unwrap();
    near.write_all(b"before the end").await.unwrap();
    near.shutdown().await.unwrap();
    let mut got = Vec::new();
    far.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"before the end");
    assert!(!ended.is_finished());
    far.shutdown().await.unwrap();
    drop((near, far));
    assert!(ended.await.unwrap());
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_silent_peer_is_given_up() {
    let (near, far) = duplex(256 << 10);
    let (mut send, connection) = h2::client::handshake(near).await.unwrap();
    let freeze = Rc::new(Notify::new());
    let frozen = Rc::clone(&freeze);
    spawn_local(async move {
        let mut connection = connection;
        tokio::select! {
            _ = &mut connection => {}
            () = frozen.notified() => std::future::pending().await,
        }
    });
    let mut peer = handshake(far).await;
    let (answer, _body) = send.send_request(connect("10.0.0.2:80"), false).unwrap();
    let mut tunnel = peer.accept().await.unwrap().unwrap().accept(None).unwrap();
    let watching = spawn_local(async move { peer.accept().await.map(|_| ()) });
    let _answer = answer.await.unwrap();
    tokio::time::sleep(MINUTE).await;
    assert!(!watching.is_finished(), "a peer that answers is kept");

    freeze.notify_one();
    let begun = Instant::now();
    let error = watching.await.unwrap().unwrap_err();
    assert!(matches!(error, TransportError::Silent(_)), "{error:?}");
    assert!(begun.elapsed() <= Duration::from_secs(30));
    assert!(tunnel.read(&mut [0; 1]).await.is_err());
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_peer_that_reads_nothing_is_given_up_in_thirty_seconds() {
    let (mut near, far) = duplex(256 << 10);
    near.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00").await.unwrap();
    let mut peer = handshake(far).await;
    let begun = Instant::now();
    let error = peer.accept().await.unwrap_err();
    assert!(matches!(error, TransportError::Silent(_)), "{error:?}");
    assert_eq!(begun.elapsed().as_secs(), 30);
    drop(near);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_peer_that_does_not_begin_is_given_up() {
    let (_near, far) = duplex(1024);
    let refused = Connection::handshake(far, &Settings::default()).await.unwrap_err();
    assert!(matches!(refused, TransportError::Slow(_)));
}

#[tokio::test(flavor = "local")]
async fn rubbish_is_refused() {
    let (mut near, far) = duplex(1024);
    near.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let refused = Connection::handshake(far, &Settings::default()).await.unwrap_err();
    assert!(matches!(refused, TransportError::Protocol(_)), "{refused:?}");
}
