use std::cell::Cell;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;

type Outcome = (Result<(), RelayError>, Traffic);

/// A relay between two pipes; what is returned are the ends that the client and the server hold.
fn relayed(capacity: usize) -> (DuplexStream, DuplexStream, tokio::task::JoinHandle<Outcome>) {
    let (client, mut client_side) = duplex(capacity);
    let (server, mut server_side) = duplex(capacity);
    let task = tokio::spawn(async move {
        let traffic = Traffic::default();
        let result = relay(&mut client_side, &mut server_side, &traffic).await;
        (result, traffic)
    });
    (client, server, task)
}

#[tokio::test]
async fn bytes_go_both_ways_and_are_counted() {
    let (mut client, mut server, task) = relayed(1024);
    client.write_all(b"question").await.unwrap();
    let mut buf = [0; 8];
    server.read_exact(&mut buf).await.unwrap();
    assert_eq!(&buf, b"question");
    server.write_all(b"answer").await.unwrap();
    client.read_exact(&mut buf[..6]).await.unwrap();
    assert_eq!(&buf[..6], b"answer");
    client.shutdown().await.unwrap();
    server.shutdown().await.unwrap();
    let (result, traffic) = task.await.unwrap();
    result.unwrap();
    assert_eq!((traffic.received(), traffic.sent()), (8, 6));
}

#[tokio::test]
async fn the_end_of_one_direction_leaves_the_other_open() {
    let (mut client, mut server, task) = relayed(1024);
    client.write_all(b"all I have").await.unwrap();
    client.shutdown().await.unwrap();
    let mut all = Vec::new();
    server.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"all I have");
    server.write_all(b"then hear me").await.unwrap();
    server.shutdown().await.unwrap();
    all.clear();
    client.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"then hear me");
    task.await.unwrap().0.unwrap();
}

#[tokio::test]
async fn the_server_may_end_first() {
    let (mut client, mut server, task) = relayed(16);
    server.write_all(b"bye").await.unwrap();
    server.shutdown().await.unwrap();
    let mut all = Vec::new();
    client.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"bye");
    client.write_all(b"late word").await.unwrap();
    client.shutdown().await.unwrap();
    all.clear();
    server.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"late word");
    task.await.unwrap().0.unwrap();
}

#[tokio::test]
async fn more_than_any_buffer_arrives_whole() {
    let (mut client, mut server, task) = relayed(1000);
    let sent: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
    let expected = sent.clone();
    let writer = tokio::spawn(async move {
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
        client
    });
    let mut received = Vec::new();
    server.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, expected);
    drop(server);
    drop(writer.await.unwrap());
    assert_eq!(task.await.unwrap().1.received(), 1_000_000);
}

#[tokio::test]
async fn an_end_that_takes_no_more_is_named() {
    let (mut client, server, task) = relayed(16);
    drop(server);
    client.write_all(b"anybody there").await.unwrap();
    let error = task.await.unwrap().0.unwrap_err();
    assert_eq!((error.side, error.reading), (Side::Server, false));
    assert_eq!(error.to_string(), "the server's end failed while writing");
}

/// A pipe whose far end can be torn off, which a flush tells.
struct Torn {
    pipe: DuplexStream,
    torn: Rc<Cell<bool>>,
}

impl AsyncRead for Torn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_read(cx, buf)
    }
}

impl AsyncWrite for Torn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.pipe).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.torn.get() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn a_client_that_goes_after_its_last_word_is_noticed() {
    let (mut client_end, pipe) = duplex(64);
    let (mut server_end, mut server) = duplex(64);
    let mut client = Torn { pipe, torn: Rc::default() };
    let torn = client.torn.clone();
    client_end.shutdown().await.unwrap();
    let mut relay = Box::pin(relay(&mut client, &mut server, Traffic::default()));
    assert!(poll_once(&mut relay).await.is_pending());
    assert_eq!(server_end.read(&mut [0]).await.unwrap(), 0, "the server heard the client's end");
    torn.set(true);
    let Poll::Ready(Err(error)) = poll_once(&mut relay).await else { panic!("the relay waits for nobody") };
    assert_eq!((error.side, error.reading), (Side::Client, false));
}

#[tokio::test]
async fn an_idle_relay_holds_no_buffer() {
    let (mut client_end, mut client) = duplex(64);
    let (mut server_end, mut server) = duplex(64);
    let traffic = Traffic::default();
    let mut relay = Box::pin(relay(&mut client, &mut server, &traffic));
    assert!(poll_once(&mut relay).await.is_pending());
    let before = buffer::kept();
    client_end.write_all(b"x").await.unwrap();
    assert!(poll_once(&mut relay).await.is_pending());
    let mut buf = [0];
    server_end.read_exact(&mut buf).await.unwrap();
    assert_eq!(buffer::kept(), before, "what it borrowed is back in the store");
    let held = buffer::kept();
    drop(relay);
    assert_eq!(buffer::kept(), held, "nothing was left to give back");
}

/// One poll of a future that is not to be awaited to its end.
async fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx))).await
}

/// Remembers what it was told of buffers.
#[derive(Default)]
struct Ledger {
    scarce: Cell<bool>,
    held: Cell<usize>,
    ends: Cell<usize>,
}

impl Meter for Ledger {
    fn count_received(&self, _: u64) {}

    fn count_sent(&self, _: u64) {}

    fn half_closed(&self) {
        self.ends.set(self.ends.get() + 1);
    }

    fn is_scarce(&self) -> bool {
        self.scarce.get()
    }

    fn hold(&self, bytes: usize) {
        self.held.set(self.held.get() + bytes);
    }

    fn let_go(&self, bytes: usize) {
        self.held.set(self.held.get() - bytes);
    }
}

#[tokio::test]
async fn what_waits_for_a_slow_reader_is_told_and_is_little_where_memory_is_scarce() {
    for (scarce, least) in [(false, 32 * 1024), (true, 1)] {
        let (mut client_end, mut client) = duplex(1 << 20);
        let (mut server_end, mut server) = duplex(16);
        let ledger = Ledger::default();
        ledger.scarce.set(scarce);
        client_end.write_all(&[7; 100_000]).await.unwrap();
        client_end.shutdown().await.unwrap();
        let mut relay = Box::pin(relay(&mut client, &mut server, &ledger));
        assert!(poll_once(&mut relay).await.is_pending());
        let held = ledger.held.get();
        assert!(held >= least && (scarce == (held <= 2048)), "{held}");
        let mut taken = vec![0; 100_000];
        let mut server_takes = Box::pin(server_end.read_exact(&mut taken));
        while poll_once(&mut server_takes).await.is_pending() {
            assert!(poll_once(&mut relay).await.is_pending());
            // All this happens in one task, whose share of the processor is bounded too.
            tokio::task::yield_now().await;
        }
        assert!(poll_once(&mut relay).await.is_pending());
        assert_eq!((ledger.held.get(), ledger.ends.get()), (0, 1), "all is read, and one half is over");
    }
}

#[tokio::test]
async fn a_relay_between_fast_ends_lets_others_go_first() {
    let (mut client_end, mut client) = duplex(4 * TURN);
    let (server_end, mut server) = duplex(4 * TURN);
    client_end.write_all(&vec![7; 3 * TURN]).await.unwrap();
    let traffic = Traffic::default();
    let mut relay = Box::pin(tokio::task::coop::unconstrained(relay(&mut client, &mut server, &traffic)));
    assert!(poll_once(&mut relay).await.is_pending());
    assert_eq!(traffic.received(), TURN as u64);
    assert!(poll_once(&mut relay).await.is_pending());
    assert_eq!(traffic.received(), 2 * TURN as u64);
    drop(server_end);
}
