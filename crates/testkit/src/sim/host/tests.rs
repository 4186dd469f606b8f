use std::time::Duration;

use net::{Listener, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::*;

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Two hosts on two nodes.
fn two() -> (SimNet, SimHost, SimHost) {
    let net = SimNet::new(1);
    let a = net.host("node1", ["10.0.0.1", "fd00::1"]);
    let b = net.host("node2", ["10.0.0.2", "fd00::2"]);
    (net, a, b)
}

/// A connection from a to b.
async fn connected(a: &SimHost, b: &SimHost) -> (SimStream, SimStream) {
    let listener = b.listen(&Bind::plain(addr("[::]:80"))).await.unwrap();
    let client = a.connect(&Dial::to(addr("10.0.0.2:80"))).await.unwrap();
    (client, listener.accept().await.unwrap().stream)
}

#[tokio::test(start_paused = true)]
async fn bytes_arrive_in_order_and_the_end_after_them() {
    let (net, a, b) = two();
    net.link("node1", "node2", Duration::from_millis(1)..Duration::from_millis(50), 0.2);
    let (mut client, mut server) = connected(&a, &b).await;
    let sent: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
    let copy = sent.clone();
    let writing = tokio::spawn(async move {
        client.write_all(&copy).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    });
    let mut received = vec![];
    server.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, sent);
    server.write_all(b"half-closed").await.unwrap();
    drop(server);
    assert_eq!(writing.await.unwrap(), "half-closed");
}

#[tokio::test(start_paused = true)]
async fn both_ends_know_each_others_address() {
    let (_net, a, b) = two();
    let (client, server) = connected(&a, &b).await;
    assert_eq!((client.peer_addr(), server.local_addr()), (addr("10.0.0.2:80"), addr("10.0.0.2:80")));
    assert_eq!(client.local_addr(), server.peer_addr());
    assert_eq!(server.peer_addr().ip(), a.ip());
}

#[tokio::test(start_paused = true)]
async fn nobody_there_is_told_as_such() {
    let (_net, a, _b) = two();
    let refused = a.connect(&Dial::to(addr("10.0.0.2:80"))).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    let unreachable = a.connect(&Dial::to(addr("10.0.0.99:80"))).await.unwrap_err();
    assert_eq!(unreachable.kind(), io::ErrorKind::HostUnreachable);
}

#[tokio::test(start_paused = true)]
async fn a_closed_link_delivers_when_it_opens() {
    let (net, a, b) = two();
    let (mut client, mut server) = connected(&a, &b).await;
    net.close("node1", "node2");
    client.write_all(b"late").await.unwrap();
    let opening = net.clone();
    tokio::spawn(async move {
        sleep(Duration::from_secs(60)).await;
        opening.open("node2", "node1");
    });
    let before = Instant::now();
    let mut buf = [0; 4];
    server.read_exact(&mut buf).await.unwrap();
    assert_eq!(&buf, b"late");
    assert!(before.elapsed() >= Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn a_connection_over_a_closed_link_times_out() {
    let (net, a, _b) = two();
    net.close("node1", "node2");
    let error = a.connect(&Dial::to(addr("10.0.0.2:80"))).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

#[tokio::test(start_paused = true)]
async fn a_cut_resets_both_ends() {
    let (net, a, b) = two();
    let (mut client, mut server) = connected(&a, &b).await;
    net.cut("node1", "node2");
    for end in [&mut client, &mut server] {
        assert_eq!(end.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test(start_paused = true)]
async fn dropping_ends_in_order_unless_something_was_left_unread() {
    let (_net, a, b) = two();
    let (mut client, server) = connected(&a, &b).await;
    drop(server);
    assert_eq!(client.read_u8().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    let (mut client, server) = connected(&a, &b).await;
    client.write_all(b"unread").await.unwrap();
    drop(server);
    assert_eq!(client.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let (mut client, server) = connected(&a, &b).await;
    server.reset_on_drop();
    drop(server);
    assert_eq!(client.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test(start_paused = true)]
async fn a_writer_waits_for_the_reader() {
    let (_net, a, b) = two();
    let (mut client, server) = connected(&a, &b).await;
    let writing = client.write_all(&[0; 1_000_000]);
    assert!(timeout(Duration::from_secs(60), writing).await.is_err());
    drop(server);
}

#[tokio::test(start_paused = true)]
async fn redirection_takes_what_applications_open() {
    let (_net, a, b) = two();
    a.enrol(true);
    let outbound = a.listen(&Bind::captured(addr("127.0.0.1:15001"))).await.unwrap();
    let _app = a.app().connect(&Dial::to(addr("10.96.0.1:80"))).await.unwrap();
    let accepted = outbound.accept().await.unwrap();
    assert_eq!(accepted.original_dst, addr("10.96.0.1:80"));
    assert_eq!(accepted.peer.ip(), a.ip());

    let _listener = b.listen(&Bind::plain(addr("[::]:80"))).await.unwrap();
    let direct = a.connect(&Dial::to(addr("10.0.0.2:80"))).await.unwrap();
    assert_eq!(direct.peer_addr(), addr("10.0.0.2:80"), "but not what the proxy opens");
}

#[tokio::test(start_paused = true)]
async fn redirection_takes_what_comes_from_the_network() {
    let (_net, a, b) = two();
    b.enrol(true);
    let plaintext = b.listen(&Bind::captured(addr("[::]:15006"))).await.unwrap();
    let hbone = b.listen(&Bind::captured(addr("[::]:15008"))).await.unwrap();
    let app = b.app().listen(&Bind::plain(addr("[::]:80"))).await.unwrap();

    let _client = a.connect(&Dial::to(addr("10.0.0.2:80"))).await.unwrap();
    assert_eq!(plaintext.accept().await.unwrap().original_dst, addr("10.0.0.2:80"));
    let _client = a.connect(&Dial::to(addr("10.0.0.2:15008"))).await.unwrap();
    assert_eq!(hbone.accept().await.unwrap().original_dst, addr("10.0.0.2:15008"));

    let foreign = Dial { source: Source::Foreign(a.ip()), ..Dial::to(addr("10.0.0.2:80")) };
    let _delivered = b.connect(&foreign).await.unwrap();
    assert_eq!(
        app.accept().await.unwrap().peer.ip(),
        a.ip(),
        "the proxy's own delivery reaches the application"
    );
}

#[tokio::test(start_paused = true)]
async fn listeners_of_a_group_take_turns_and_others_exclude_each_other() {
    let (_net, a, b) = two();
    let group = Bind { reuse_port: true, ..Bind::plain(addr("[::]:80")) };
    let (one, two) = (b.listen(&group).await.unwrap(), b.listen(&group).await.unwrap());
    let mut clients = vec![];
    for _ in 0..4 {
        clients.push(a.connect(&Dial::to(addr("10.0.0.2:80"))).await.unwrap());
    }
    for listener in [&one, &two] {
        for _ in 0..2 {
            timeout(Duration::from_secs(1), listener.accept()).await.unwrap().unwrap();
        }
    }
    let alone = b.listen(&Bind::plain(addr("[::]:80"))).await.unwrap_err();
    assert_eq!(alone.kind(), io::ErrorKind::AddrInUse);
}

#[tokio::test(start_paused = true)]
async fn one_seed_gives_one_course_of_events() {
    async fn course(seed: u64) -> Vec<u128> {
        let net = SimNet::new(seed);
        net.link("node1", "node2", Duration::from_millis(1)..Duration::from_millis(90), 0.3);
        let (a, b) = (net.host("node1", ["10.0.0.1"]), net.host("node2", ["10.0.0.2"]));
        let (mut client, mut server) = connected(&a, &b).await;
        let start = Instant::now();
        let mut times = vec![];
        for _ in 0..20 {
            client.write_all(b"x").await.unwrap();
            server.read_u8().await.unwrap();
            times.push(start.elapsed().as_millis());
        }
        times
    }
    assert_eq!(course(5).await, course(5).await);
    assert_ne!(course(5).await, course(6).await);
}
