//! The pool: one connection for many streams, and what happens when it goes.

use std::error::Error;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use hbone::client::{OpenError, Opened, PoolCounts};
use hbone::server::Refusal;
use hbone::{Settings, TransportError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_local};

use crate::fixtures::{Bench, Fate, MINUTE, bench, echo, key, meanwhile, request, serve, settle};

type Outcome = Result<Opened<usize>, OpenError<io::Error>>;

fn open(bench: &Bench, host: u8) -> JoinHandle<Outcome> {
    let pool = bench.pool.clone();
    spawn_local(async move { pool.open(&key(host), &request()).await })
}

async fn round_trip(opened: &mut Opened<usize>) -> io::Result<()> {
    opened.tunnel.write_all(b"ping").await?;
    let mut got = [0; 4];
    opened.tunnel.read_exact(&mut got).await.map(|_| ())
}

#[tokio::test(flavor = "local")]
async fn a_burst_shares_one_connection() {
    let bench = Bench::echoing(Settings::default());
    let opening: Vec<_> = (0..100).map(|_| open(&bench, 2)).collect();
    let mut tunnels = Vec::new();
    for opening in opening {
        tunnels.push(opening.await.unwrap().unwrap());
    }
    assert_eq!(bench.opened(), 1);
    assert_eq!(bench.pool.counts(), PoolCounts { connections: 1, streams: 100 });
    tunnels.push(open(&bench, 2).await.unwrap().unwrap());
    assert_eq!(bench.opened(), 2);
    for tunnel in &mut tunnels {
        round_trip(tunnel).await.unwrap();
    }
    drop(tunnels);
    assert_eq!(bench.pool.counts().streams, 0);
}

#[tokio::test(flavor = "local")]
async fn other_keys_have_other_connections() {
    let bench = Bench::echoing(Settings::default());
    let _a = open(&bench, 2).await.unwrap().unwrap();
    let _b = open(&bench, 3).await.unwrap().unwrap();
    let other_source = hbone::client::Key { source: crate::fixtures::id("other"), ..key(2) };
    let _c = bench.pool.open(&other_source, &request()).await.unwrap();
    assert_eq!(bench.opened(), 3);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_connection_goes_after_five_idle_minutes() {
    let bench = Bench::echoing(Settings::default());
    let opened = open(&bench, 2).await.unwrap().unwrap();
    tokio::time::sleep(MINUTE * 12).await;
    assert_eq!(bench.pool.counts(), PoolCounts { connections: 1, streams: 1 });
    drop(opened);
    tokio::time::sleep(MINUTE * 4).await;
    drop(open(&bench, 2).await.unwrap().unwrap());
    tokio::time::sleep(MINUTE * 4).await;
    assert_eq!(bench.pool.counts().connections, 1, "it was used meanwhile");
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!(bench.pool.counts().connections, 0);
    assert_eq!(bench.opened(), 1);
    open(&bench, 2).await.unwrap().unwrap();
    assert_eq!(bench.opened(), 2);
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_connection_that_is_old_gives_way_to_another_and_its_streams_run_on() {
    let bench = Bench::echoing(Settings::default());
    bench.pipes.life.set(Some(MINUTE));
    let mut old = open(&bench, 2).await.unwrap().unwrap();
    tokio::time::sleep(MINUTE - Duration::from_secs(1)).await;
    drop(open(&bench, 2).await.unwrap().unwrap());
    assert_eq!(bench.opened(), 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut new = open(&bench, 2).await.unwrap().unwrap();
    assert_eq!(bench.opened(), 2);
    for opened in [&mut old, &mut new] {
        round_trip(opened).await.unwrap();
    }
    assert_eq!(bench.pool.counts(), PoolCounts { connections: 2, streams: 2 });
    drop(old);
    settle().await;
    assert_eq!(
        bench.pool.counts(),
        PoolCounts { connections: 1, streams: 1 },
        "it closes with its last stream"
    );
    drop(new);
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!(bench.pool.counts(), PoolCounts::default(), "one that is idle closes at once");
}

#[tokio::test(flavor = "local")]
async fn a_peer_that_is_accepted_no_more_gets_no_more_streams() {
    let bench = Bench::echoing(Settings::default());
    let (stream, idle) = (open(&bench, 2).await.unwrap().unwrap(), open(&bench, 3).await.unwrap().unwrap());
    drop(idle);
    let kept = open(&bench, 4).await.unwrap().unwrap();
    assert_eq!((stream.peer, kept.peer), (1, 3));
    bench.pipes.refused.set(2);
    assert_eq!(open(&bench, 2).await.unwrap().unwrap().peer, 4, "also before anybody has swept");
    bench.pool.sweep();
    settle().await;
    assert_eq!(bench.pool.counts(), PoolCounts { connections: 3, streams: 2 }, "the idle one is closed");
    assert_eq!(open(&bench, 3).await.unwrap().unwrap().peer, 5);
    assert_eq!(open(&bench, 4).await.unwrap().unwrap().peer, 3);
}

#[tokio::test(flavor = "local")]
async fn all_that_waited_hear_why_there_is_no_connection() {
    let bench = bench(Settings::default());
    bench.pipes.fate.borrow_mut().push_back(Fate::Fail(io::ErrorKind::ConnectionRefused));
    let opening: Vec<_> = (0..10).map(|_| open(&bench, 2)).collect();
    for opening in opening {
        let error = opening.await.unwrap().unwrap_err();
        let OpenError::Connect(inner) = &error else { panic!("{error:?}") };
        assert_eq!(inner.kind(), io::ErrorKind::ConnectionRefused);
        assert!(error.source().is_some());
    }
    assert_eq!((bench.opened(), bench.pool.counts()), (1, PoolCounts::default()));
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_connect_that_never_ends_is_given_up() {
    let bench = bench(Settings::default());
    bench.pipes.fate.borrow_mut().push_back(Fate::Never);
    let error = open(&bench, 2).await.unwrap().unwrap_err();
    assert!(matches!(error, OpenError::ConnectTimeout));
    assert_eq!(bench.pool.counts(), PoolCounts::default());
}

#[tokio::test(flavor = "local")]
async fn a_connection_goes_on_being_opened_when_who_asked_first_gives_up() {
    let bench = Bench::echoing(Settings::default());
    let gate = Rc::new(Notify::new());
    bench.pipes.fate.borrow_mut().push_back(Fate::Wait(Rc::clone(&gate)));
    let first = open(&bench, 2);
    settle().await;
    let second = open(&bench, 2);
    settle().await;
    first.abort();
    gate.notify_one();
    second.await.unwrap().unwrap();
    assert_eq!(bench.opened(), 1);
}

#[tokio::test(flavor = "local")]
async fn a_refusal_is_told_by_its_status_and_the_connection_stays() {
    let mut bench = bench(Settings::default());
    let opening = open(&bench, 2);
    let peer = bench.peer().await;
    spawn_local(serve(peer, |request| async move { request.refuse(Refusal::Denied) }));
    assert!(matches!(opening.await.unwrap(), Err(OpenError::Refused { status: 401 })));
    assert!(matches!(open(&bench, 2).await.unwrap(), Err(OpenError::Refused { status: 401 })));
    assert_eq!(bench.opened(), 1);
    assert_eq!(bench.pool.counts(), PoolCounts { connections: 1, streams: 0 });
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn an_answer_that_never_comes_is_given_up() {
    let mut bench = bench(Settings::default());
    let opening = open(&bench, 2);
    let peer = bench.peer().await;
    spawn_local(serve(peer, |request| async move {
        let _kept = request;
        std::future::pending().await
    }));
    assert!(matches!(opening.await.unwrap(), Err(OpenError::AnswerTimeout)));
    assert_eq!(bench.pool.counts().streams, 0);
}

#[tokio::test(flavor = "local")]
async fn a_leaving_peer_keeps_its_tunnels_and_gets_no_more() {
    let mut bench = bench(Settings::default());
    let opening = open(&bench, 2);
    let mut peer = bench.peer().await;
    let mut far = peer.accept().await.unwrap().unwrap().accept(None).unwrap();
    let mut first = meanwhile(&mut peer, opening).await.unwrap().unwrap();
    peer.drain();
    let leaving = spawn_local(async move { peer.accept().await.unwrap().is_none() });
    settle().await;

    let opening = open(&bench, 2);
    spawn_local(echo(bench.peer().await));
    let mut second = opening.await.unwrap().unwrap();
    round_trip(&mut second).await.unwrap();

    far.write_all(b"pong").await.unwrap();
    let mut got = [0; 4];
    first.tunnel.read_exact(&mut got).await.unwrap();
    drop((first, far));
    assert!(leaving.await.unwrap());
}

#[tokio::test(flavor = "local")]
async fn a_stream_that_crosses_a_goodbye_is_opened_elsewhere() {
    let mut bench = bench(Settings::default());
    // A peer that says goodbye to all streams after the first, the HTTP/2 library itself.
    let opening = open(&bench, 2);
    let mut peer = h2::server::handshake(bench.peers.recv().await.unwrap()).await.unwrap();
    let (_, mut respond) = peer.accept().await.unwrap().unwrap();
    let _far = respond.send_response(http::Response::new(()), false).unwrap();
    let _first = tokio::select! {
        biased;
        first = opening => first.unwrap().unwrap(),
        _ = peer.accept() => panic!("nothing else was sent"),
    };
    let opening = open(&bench, 2);
    settle().await;
    peer.abrupt_shutdown(h2::Reason::NO_ERROR);
    spawn_local(async move { peer.accept().await.is_none() });

    spawn_local(echo(bench.peer().await));
    let mut second = opening.await.unwrap().unwrap();
    round_trip(&mut second).await.unwrap();
    assert_eq!(bench.opened(), 2);
}

#[tokio::test(flavor = "local")]
async fn a_stream_that_the_peer_began_and_gave_up_is_not_opened_twice() {
    let mut bench = bench(Settings::default());
    let opening = open(&bench, 2);
    let peer = bench.peer().await;
    spawn_local(serve(peer, |request| async move { drop(request) }));
    let error = opening.await.unwrap().unwrap_err();
    assert!(matches!(error, OpenError::Lost(TransportError::Ended(_))), "{error:?}");
    assert_eq!(bench.opened(), 1);
}

#[tokio::test(flavor = "local")]
async fn a_dead_connection_is_replaced_without_the_stream_noticing() {
    let mut bench = bench(Settings::default());
    let opening = open(&bench, 2);
    let mut peer = bench.peer().await;
    let far = peer.accept().await.unwrap().unwrap().accept(None).unwrap();
    drop(meanwhile(&mut peer, opening).await.unwrap().unwrap());
    drop(far);
    // The peer dies, and the pool has not been told when the next stream takes the connection.
    let opening = open(&bench, 2);
    drop(peer);
    spawn_local(echo(bench.peer().await));
    let mut opened = opening.await.unwrap().unwrap();
    round_trip(&mut opened).await.unwrap();
}

#[tokio::test(flavor = "local")]
async fn a_new_connection_that_dies_at_once_is_reported_and_not_tried_forever() {
    let mut bench = bench(Settings::default());
    let opening = open(&bench, 2);
    drop(bench.peers.recv().await);
    let error = opening.await.unwrap().unwrap_err();
    assert!(matches!(error, OpenError::Lost(_) | OpenError::Handshake(_)), "{error:?}");
    settle().await;
    assert_eq!((bench.opened(), bench.pool.counts()), (1, PoolCounts::default()));
}

#[tokio::test(flavor = "local")]
async fn a_peer_that_takes_fewer_streams_is_asked_for_fewer() {
    let mut bench = bench(Settings::default());
    let serve_two = |io| async move {
        let settings = Settings { accepted_streams: 2, ..Settings::default() };
        echo(hbone::server::Connection::handshake(io, &settings).await.unwrap()).await;
    };
    let first = open(&bench, 2);
    spawn_local(serve_two(bench.peers.recv().await.unwrap()));
    let mut tunnels = vec![first.await.unwrap().unwrap()];
    for n in 1..5 {
        let opening = open(&bench, 2);
        if n % 2 == 0 {
            spawn_local(serve_two(bench.peers.recv().await.unwrap()));
        }
        tunnels.push(opening.await.unwrap().unwrap());
    }
    assert_eq!(bench.opened(), 3);
    for tunnel in &mut tunnels {
        round_trip(tunnel).await.unwrap();
    }
}

#[tokio::test(flavor = "local")]
async fn a_peer_that_refuses_one_stream_more_keeps_room_for_as_many_as_stand() {
    let mut bench = bench(Settings::default());
    let first = open(&bench, 2);
    let io = bench.peers.recv().await.unwrap();
    spawn_local(async move {
        let mut peer = h2::server::handshake(io).await.unwrap();
        let mut held = Vec::new();
        while let Some(Ok((request, mut respond))) = peer.accept().await {
            if held.len() == 1 {
                respond.send_reset(h2::Reason::REFUSED_STREAM);
            } else {
                held.push(Some((respond.send_response(http::Response::new(()), false).unwrap(), request)));
                continue;
            }
            held.push(None);
        }
    });
    let first = first.await.unwrap().unwrap();
    let second = open(&bench, 2);
    spawn_local(echo(bench.peer().await));
    let _second = second.await.unwrap().unwrap();
    drop(first);
    settle().await;
    let _third = open(&bench, 2).await.unwrap().unwrap();
    assert_eq!(bench.opened(), 2, "the first connection has room again");
}

#[tokio::test(flavor = "local")]
async fn connections_to_a_peer_that_takes_no_stream_do_not_pile_up() {
    let mut bench = bench(Settings::default());
    let (_, closed) = tokio::sync::mpsc::unbounded_channel();
    let mut peers = std::mem::replace(&mut bench.peers, closed);
    spawn_local(async move {
        while let Some(io) = peers.recv().await {
            spawn_local(async move {
                let mut peer = h2::server::handshake(io).await.unwrap();
                while let Some(Ok((_, mut respond))) = peer.accept().await {
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                }
            });
        }
    });
    for _ in 0..20 {
        let error = open(&bench, 2).await.unwrap().unwrap_err();
        assert!(matches!(error, OpenError::Lost(_)), "{error:?}");
        settle().await;
        assert!(bench.pool.counts().connections <= 1, "{:?}", bench.pool.counts());
    }
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_peer_that_falls_silent_loses_its_connection() {
    let mut bench = bench(Settings::default());
    let opening = open(&bench, 2);
    let mut peer = bench.peer().await;
    let _far = peer.accept().await.unwrap().unwrap().accept(None).unwrap();
    let mut opened = meanwhile(&mut peer, opening).await.unwrap().unwrap();
    // From here on nobody moves the peer's end, which stays open.
    let begun = tokio::time::Instant::now();
    let error = opened.tunnel.read(&mut [0; 1]).await.unwrap_err();
    assert!(begun.elapsed() <= Duration::from_secs(30), "{error}");
    assert!(opened.tunnel.write_all(b"x").await.is_err());
    settle().await;
    assert_eq!(bench.pool.counts().connections, 0);
}

#[tokio::test(flavor = "local")]
async fn a_dropped_pool_lets_its_tunnels_finish() {
    let bench = Bench::echoing(Settings::default());
    let mut opened = open(&bench, 2).await.unwrap().unwrap();
    drop(bench);
    settle().await;
    round_trip(&mut opened).await.unwrap();
    opened.tunnel.shutdown().await.unwrap();
    assert_eq!(opened.tunnel.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test(flavor = "local")]
async fn draining_waits_for_the_tunnels() {
    let bench = Bench::echoing(Settings::default());
    let mut opened = open(&bench, 2).await.unwrap().unwrap();
    let pool = bench.pool.clone();
    let draining = spawn_local(async move { pool.drain().await });
    settle().await;
    assert!(matches!(open(&bench, 2).await.unwrap(), Err(OpenError::Closed)));
    round_trip(&mut opened).await.unwrap();
    assert!(!draining.is_finished());
    drop(opened);
    draining.await.unwrap();
}

#[tokio::test(flavor = "local")]
async fn aborting_ends_everything() {
    let bench = Bench::echoing(Settings::default());
    let mut opened = open(&bench, 2).await.unwrap().unwrap();
    bench.pipes.fate.borrow_mut().push_back(Fate::Never);
    let waiting = open(&bench, 3);
    settle().await;
    bench.pool.abort();
    assert!(matches!(waiting.await.unwrap(), Err(OpenError::Closed)));
    assert!(opened.tunnel.read(&mut [0; 1]).await.is_err());
    assert!(matches!(open(&bench, 2).await.unwrap(), Err(OpenError::Closed)));
}

#[tokio::test(flavor = "local")]
async fn nothing_is_left_when_streams_are_given_up_at_any_moment() {
    for yields in 0..40 {
        let bench = Bench::echoing(Settings::default());
        let opening: Vec<_> = (0..5).map(|_| open(&bench, 2)).collect();
        for _ in 0..yields {
            tokio::task::yield_now().await;
        }
        for opening in opening {
            opening.abort();
            let _ = opening.await;
        }
        settle().await;
        assert_eq!(bench.pool.counts().streams, 0, "after {yields} steps");
        let mut opened = open(&bench, 2).await.unwrap().unwrap();
        round_trip(&mut opened).await.unwrap();
        assert_eq!(bench.opened(), 1);
    }
}
