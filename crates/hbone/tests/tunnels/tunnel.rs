//! A tunnel behaves like a TCP connection.

use std::io;

use bytes::Bytes;
use hbone::client::Opened;
use hbone::{Settings, Tunnel};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::spawn_local;

use crate::fixtures::{Bench, bench, key, request, serve};

/// Both ends of a tunnel.
async fn ends(bench: &mut Bench) -> (Tunnel, Tunnel) {
    let (accepted, far) = tokio::sync::oneshot::channel();
    let accepted = std::rc::Rc::new(std::cell::Cell::new(Some(accepted)));
    let opening = {
        let pool = bench.pool.clone();
        spawn_local(async move { pool.open(&key(2), &request()).await.unwrap() })
    };
    let peer = bench.peer().await;
    spawn_local(serve(peer, move |request| {
        let accepted = accepted.take();
        async move {
            let tunnel = request.accept(None).unwrap();
            let _ = accepted.unwrap().send(tunnel);
        }
    }));
    let Opened { tunnel, .. } = opening.await.unwrap();
    (tunnel, far.await.unwrap())
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 % 251) as u8).collect()
}

#[tokio::test(flavor = "local")]
async fn a_mebibyte_each_way_arrives_whole() {
    let bench = Bench::echoing(Settings::default());
    let Opened { mut tunnel, .. } = bench.pool.open(&key(2), &request()).await.unwrap();
    let sent = pattern(1 << 20);
    let (mut read, mut write) = tokio::io::split(&mut tunnel);
    let mut got = Vec::new();
    let (written, read) = tokio::join!(
        async {
            write.write_all(&sent).await?;
            write.shutdown().await
        },
        read.read_to_end(&mut got)
    );
    written.unwrap();
    assert_eq!(read.unwrap(), sent.len());
    assert!(got == sent);
}

#[tokio::test(flavor = "local")]
async fn more_than_the_windows_goes_through() {
    let small = Settings { stream_window: 70_000, connection_window: 70_000, ..Settings::default() };
    let mut bench = bench(small);
    let (mut near, mut far) = ends(&mut bench).await;
    let sent = pattern(1 << 20);
    let copy = sent.clone();
    let writer = spawn_local(async move {
        far.write_all(&copy).await.unwrap();
        far.shutdown().await.unwrap();
    });
    let mut got = Vec::new();
    near.read_to_end(&mut got).await.unwrap();
    assert!(got == sent);
    writer.await.unwrap();
}

#[tokio::test(flavor = "local")]
async fn a_reader_that_waits_makes_the_writer_wait() {
    let mut bench = bench(Settings { stream_window: 70_000, ..Settings::default() });
    let (mut near, mut far) = ends(&mut bench).await;
    let sent = pattern(4 << 20);
    let mut written = 0;
    // Nobody reads: only what windows and buffers hold can be written.
    loop {
        let write = far.write(&sent[written..]);
        let n = tokio::select! {
            biased;
            n = write => n.unwrap(),
            () = crate::fixtures::settle() => break,
        };
        written += n;
        assert!(written <= 1 << 20, "written without bound");
    }
    let mut got = vec![0; written];
    near.read_exact(&mut got).await.unwrap();
    assert!(got == sent[..written]);
    far.write_all(&sent[..70_000]).await.unwrap();
}

#[tokio::test(flavor = "local")]
async fn either_half_may_close_first() {
    let mut bench = bench(Settings::default());
    let (mut near, mut far) = ends(&mut bench).await;
    near.write_all(b"question").await.unwrap();
    near.shutdown().await.unwrap();
    let mut got = Vec::new();
    far.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"question");
    far.write_all(b"a late answer").await.unwrap();
    far.shutdown().await.unwrap();
    got.clear();
    near.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"a late answer");
    assert_eq!(near.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);

    let (mut near, mut far) = ends(&mut crate::fixtures::bench(Settings::default())).await;
    far.shutdown().await.unwrap();
    assert_eq!(near.read(&mut [0; 8]).await.unwrap(), 0);
    near.write_all(b"still talking").await.unwrap();
    near.shutdown().await.unwrap();
    got.clear();
    far.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"still talking");
}

#[tokio::test(flavor = "local")]
async fn a_dropped_end_is_a_reset_connection_to_the_other() {
    let mut bench = bench(Settings::default());
    let (near, mut far) = ends(&mut bench).await;
    drop(near);
    assert_eq!(far.read(&mut [0; 8]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);

    let (mut near, far) = ends(&mut crate::fixtures::bench(Settings::default())).await;
    far.reset();
    assert_eq!(near.read(&mut [0; 8]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let error = near.write_all(b"x").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "local")]
async fn a_flush_tells_that_the_other_end_broke_off_after_its_half_had_ended() {
    let mut bench = bench(Settings::default());
    let (mut near, mut far) = ends(&mut bench).await;
    near.shutdown().await.unwrap();
    assert_eq!(far.read(&mut [0; 8]).await.unwrap(), 0);
    far.flush().await.unwrap();
    let gone = spawn_local(async move {
        // As a relay does that waits for something else meanwhile.
        std::future::poll_fn(|cx| match std::pin::Pin::new(&mut far).poll_flush(cx) {
            std::task::Poll::Ready(Err(e)) => std::task::Poll::Ready(e),
            _ => std::task::Poll::Pending,
        })
        .await
    });
    crate::fixtures::settle().await;
    drop(near);
    assert_eq!(gone.await.unwrap().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "local")]
async fn what_was_sent_before_a_clean_close_arrives_though_the_tunnel_is_dropped() {
    let mut bench = bench(Settings::default());
    let (mut near, mut far) = ends(&mut bench).await;
    far.shutdown().await.unwrap();
    assert_eq!(near.read(&mut [0; 8]).await.unwrap(), 0);
    let sent = pattern(200_000);
    near.write_all(&sent).await.unwrap();
    near.shutdown().await.unwrap();
    drop(near);
    let mut got = Vec::new();
    far.read_to_end(&mut got).await.unwrap();
    assert!(got == sent);
}

#[tokio::test(flavor = "local")]
async fn chunks_come_and_go_without_copies() {
    let mut bench = bench(Settings::default());
    let (mut near, mut far) = ends(&mut bench).await;
    let mut data = Bytes::from(pattern(100_000));
    let sent = data.clone();
    let writer = spawn_local(async move {
        while !data.is_empty() {
            std::future::poll_fn(|cx| near.poll_send(cx, &mut data)).await.unwrap();
        }
        near.shutdown().await.unwrap();
        near
    });
    let mut got = Vec::new();
    // A part by copy first, the rest of that chunk and all others as they are.
    let mut first = [0; 10];
    far.read_exact(&mut first).await.unwrap();
    got.extend_from_slice(&first);
    while let Some(chunk) = far.chunk().await.unwrap() {
        assert!(!chunk.is_empty());
        got.extend_from_slice(&chunk);
    }
    assert!(got == sent);
    drop(writer.await.unwrap());
}
