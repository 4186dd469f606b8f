//! Peers that send without end, or begin and never go on: they are cut off and counted, and nobody else notices.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use identity::SystemClock;
use net::Netns;
use testkit::lab::{Lab, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use crate::papers::{Papers, authority_of, id};
use crate::tls::{Intruder, connect, listen_as, local, reads_from_native, server_address};
use crate::world::{curl, meshed, peer_authentication, with_native_pod};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
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

/// `:method: CONNECT` and `:authority`, as literals.
fn connect_to(target: SocketAddr) -> Vec<u8> {
    let target = target.to_string();
    [&[0x02, 7][..], b"CONNECT", &[0x01, target.len() as u8], target.as_bytes()].concat()
}

/// What a peer sends again and again; `n` counts from 0.
type Says = fn(n: u32, target: SocketAddr) -> Vec<u8>;

fn flooding(kind: &str) -> Says {
    match kind {
        "ping" => |_, _| frame(PING, 0, 0, &[0; 8]),
        "settings" => |_, _| frame(SETTINGS, 0, 0, &[]),
        "window_update" => |_, _| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        "reset" => |n, target| {
            let stream = 2 * n + 1;
            let open = frame(HEADERS, END_HEADERS, stream, &connect_to(target));
            [open, frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
        },
        "continuation" => |n, target| match n {
            0 => frame(HEADERS, 0, 1, &connect_to(target)),
            _ => frame(CONTINUATION, 0, 1, &[]),
        },
        "headers" => |n, target| {
            let mut block = connect_to(target);
            // 300 fields of a name of 1 byte and a value of 1000.
            for _ in 0..300 {
                block.extend([0x00, 1, b'x', 0x7f, 0xe9, 0x06]);
                block.extend([b'y'; 1000]);
            }
            frame(HEADERS, END_HEADERS, 2 * n + 1, &block)
        },
        other => panic!("no such flood: {other}"),
    }
}

/// Floods a pod's port 15008 until it is cut off; the code that it was dismissed with, if it heard so.
fn flood(intruder: &Intruder, target: SocketAddr, says: Says) -> Option<u32> {
    local(async {
        let tls = intruder.session(SocketAddr::new(target.ip(), 15008)).await.expect("a handshake");
        let (mut read, mut write) = tokio::io::split(tls);
        let hears = tokio::task::spawn_local(async move {
            let mut heard = Vec::new();
            // Ended with or without a reset: but ended.
            drop(read.read_to_end(&mut heard).await);
            heard
        });
        let greeting = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
        write.write_all(&greeting).await.expect("a greeting");
        for batch in 0.. {
            let says: Vec<u8> = (batch * 500..(batch + 1) * 500).flat_map(|n| says(n, target)).collect();
            if hears.is_finished() || write.write_all(&says).await.is_err() {
                break;
            }
        }
        let heard = hears.await.expect("what it heard");
        let goodbye = heard.windows(9).position(|w| w[3] == 7 && w[..3] == [0, 0, 8] && w[4..] == [0; 5])?;
        let code = heard.get(goodbye + 13..goodbye + 17)?;
        Some(u32::from_be_bytes(code.try_into().ok()?))
    })
}

/// Says so when it is dropped, also by a test that fails.
struct SaysSo<'a>(&'a AtomicBool);

impl Drop for SaysSo<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn flooded(lab: &Lab, kind: &str) -> f64 {
    let reason = format!("reason=\"{kind}\"");
    let labels = [reason.as_str(), "direction=\"inbound\""];
    lab.metric("node2", "ambit_tunnel_connections_flooded_total", &labels)
}

#[test]
fn a_peer_that_floods_its_connection_is_cut_off_and_counted() {
    let Some(lab) = meshed() else { return };
    let target = server_address(&lab);
    let papers = Papers::signed_by(&authority_of(&lab, Arc::new(SystemClock)), &id("app", "other"));
    let intruder = Intruder::in_pod(&lab, "outside", "stranger", Some(papers));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let calls = scope.spawn(|| {
            let mut calls = 0;
            while !over.load(Ordering::Relaxed) {
                lab.exec("app/client", &curl("http://server.app/")).expect_ok();
                calls += 1;
            }
            calls
        });
        let at_the_end = SaysSo(&over);
        for kind in ["ping", "settings", "window_update", "reset", "continuation", "headers"] {
            let before = flooded(&lab, kind);
            let dismissed = flood(&intruder, target, flooding(kind));
            eventually(&format!("a flood is counted: {kind}"), || flooded(&lab, kind) == before + 1.0);
            // What it was told may have been lost with the connection, as it went on sending.
            assert!(matches!(dismissed, Some(11) | None), "{kind}: ENHANCE_YOUR_CALM: {dismissed:?}");
        }
        drop(at_the_end);
        assert!(calls.join().expect("no call failed") > 0, "others were served meanwhile");
    });
    let log = lab.logs("ztunnel@node2");
    let lines = log.matches("ended a tunnel connection whose peer floods it").count();
    assert!((1..6).contains(&lines), "it is told of, and not each time: {lines}");
    assert!(log.contains("ns/app/sa/other"), "and who it was");
}

/// A server that floods its clients, which are ztunnels.
#[test]
fn a_server_that_floods_its_clients_is_cut_off_and_counted() {
    let Some(lab) = with_native_pod() else { return };
    let papers = Papers::signed_by(&authority_of(&lab, Arc::new(SystemClock)), &id("outside", "native"));
    let (listener, acceptor) = listen_as(&lab, &papers);
    let labels = ["reason=\"ping\"", "direction=\"outbound\""];
    let flooded = || lab.metric("node1", "ambit_tunnel_connections_flooded_total", &labels);
    let before = flooded();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            local(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                let (stream, _) = listener.accept().await.expect("a client");
                let (mut read, mut write) =
                    tokio::io::split(acceptor.accept(stream).await.expect("a handshake"));
                let hears = tokio::task::spawn_local(async move {
                    while let Ok(1..) = read.read(&mut [0; 4096]).await {}
                });
                let pings = frame(PING, 0, 0, &[0; 8]).repeat(500);
                write.write_all(&frame(SETTINGS, 0, 0, &[])).await.expect("a greeting");
                while !hears.is_finished() && write.write_all(&pings).await.is_ok() {}
            });
        });
        assert_eq!(reads_from_native(&lab), "", "it never answered");
    });
    eventually("the flood is counted", || flooded() == before + 1.0);
    lab.exec("app/client", &curl("http://server.app/")).expect_ok();
    assert!(
        lab.logs("ztunnel@node1").contains("ended a tunnel connection whose peer floods it"),
        "and told of"
    );
}

/// How long a session lasts on which somebody says this and no more, in seconds.
async fn lasts(intruder: &Intruder, target: SocketAddr, says: &[u8]) -> u64 {
    let mut tls = intruder.session(SocketAddr::new(target.ip(), 15008)).await.expect("a handshake");
    tls.write_all(says).await.expect("a beginning");
    let begun = Instant::now();
    // Ended with or without a reset: but ended.
    while let Ok(1..) = tls.read(&mut [0; 1024]).await {}
    begun.elapsed().as_secs()
}

#[test]
fn who_begins_and_does_not_go_on_is_cut_off_and_counted() {
    let Some(lab) = meshed() else { return };
    let target = server_address(&lab);
    let papers = Papers::signed_by(&authority_of(&lab, Arc::new(SystemClock)), &id("app", "other"));
    let intruder = Intruder::in_pod(&lab, "outside", "stranger", Some(papers));
    let half_a_preface = &PREFACE[..10];
    let half_a_block =
        [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, 0, 1, &connect_to(target))].concat();
    let counts = || {
        let failed = ["reporter=\"destination\"", "response_flags=\"H2_HANDSHAKE_FAILURE\""];
        [
            lab.metric("node2", "istio_tcp_connections_failed_total", &failed),
            lab.metric("node2", "ambit_tunnel_connections_lost_total", &[]),
        ]
    };
    let before = counts();
    let (preface, headers) = local(async {
        tokio::join!(lasts(&intruder, target, half_a_preface), lasts(&intruder, target, &half_a_block))
    });
    testkit::say(&format!("given up: a preface after {preface} s, headers after {headers} s"));
    assert!(preface <= 15 && headers <= 40, "{preface} s, {headers} s");
    eventually("both are counted", || counts() == before.map(|n| n + 1.0));
    lab.exec("app/client", &curl("http://server.app/")).expect_ok();
}

/// More than there are places on all threads together.
const HELD: usize = 4_000;

#[test]
fn handshakes_that_never_end_keep_nobody_out_and_are_counted() {
    let Some(lab) = meshed() else { return };
    let hbone = SocketAddr::new(server_address(&lab).ip(), 15008).to_string();
    let hold = format!("ulimit -n $(ulimit -Hn); exec ambit-echo crowd {hbone} --count {HELD}");
    let refused = || lab.metric("node2", "ambit_quota_refusals_total", &["reason=\"handshakes\""]);
    let before = refused();
    let holding = lab.start("outside/stranger", &["sh", "-c", &hold]);
    eventually("the oldest give way", || refused() > before);
    // Each by a tunnel that is new, for which there must be a handshake.
    for client in ["app/client", "app/other"] {
        lab.exec(client, &curl("http://server.app/")).expect_ok();
    }
    eventually("and all but those that have a place", || refused() >= before + HELD as f64 / 2.0);
    drop(holding);
}

/// The control plane's address, as a node's ztunnel has it.
fn control_plane(lab: &Lab) -> String {
    let dump: serde_json::Value =
        serde_json::from_str(&lab.ztunnel("node1", 15000, "/config_dump")).expect("JSON");
    let address = dump["config"]["xds"]["address"].as_str().expect("the control plane's address");
    address.trim_start_matches("https://").trim_end_matches('/').to_owned()
}

#[test]
fn strangers_at_the_control_plane_keep_no_proxy_out_and_are_counted() {
    let Some(lab) = meshed() else { return };
    let address = control_plane(&lab);
    let host = address.split(':').next().expect("a host");
    let pages = format!("http://{host}:15014/metrics");
    let turned_away = |reason: &str| {
        let label = format!("ambit_xds_connections_turned_away_total{{reason=\"{reason}\"}} ");
        let page = lab.on_node("node1", &["curl", "-sS", "-m", "5", &pages]).expect_ok().stdout;
        let line = page.lines().find_map(|line| line.strip_prefix(&label)).expect("a count");
        line.parse::<f64>().expect("a number")
    };
    let (late, displaced) = (turned_away("late"), turned_away("displaced"));
    let node =
        Netns::open(lab.node("node1")["netns"].as_str().expect("a path")).expect("the node's namespace");
    let to: SocketAddr = address.parse().expect("an address");
    let holding: Vec<_> = (0..1_300).map(|_| connect(&node, to).expect("a connection")).collect();
    eventually("the oldest give way", || turned_away("displaced") > displaced);
    // Another proxy comes, from the very address of those who hold the places; and a change reaches all.
    lab.ambit(["lab", "restart", "ztunnel@node1"]).expect_ok();
    lab.apply(&peer_authentication("STRICT", "")).expect_ok();
    lab.exec("app/client", &curl("http://server.app/")).expect_ok();
    eventually("and the others in time", || turned_away("late") > late);
    drop(holding);
}

#[test]
fn callers_that_say_nothing_keep_nobody_from_the_pages() {
    let Some(lab) = meshed() else { return };
    let node =
        Netns::open(lab.node("node1")["netns"].as_str().expect("a path")).expect("the node's namespace");
    let istiod = control_plane(&lab);
    let istiod = istiod.split(':').next().expect("a host");
    // Readiness last, which fails where its callers cannot be told.
    for (host, port, page) in [
        ("127.0.0.1", 15000, "/logging"),
        ("127.0.0.1", 15020, "/metrics"),
        ("127.0.0.1", 15022, "/metrics"),
        (istiod, 15014, "/metrics"),
        ("127.0.0.1", 15021, "/healthz/ready"),
    ] {
        let to: SocketAddr = format!("{host}:{port}").parse().expect("an address");
        let silent: Vec<_> = (0..100).map(|_| connect(&node, to).expect("a connection")).collect();
        let url = format!("http://{to}{page}");
        lab.on_node("node1", &["curl", "-sS", "-f", "-m", "3", "-o", "/dev/null", &url]).expect_ok();
        drop(silent);
    }
    let displaced = ["port=\"readiness\"", "reason=\"displaced\""];
    eventually("they are counted", || {
        lab.metric("node1", "ambit_page_connections_ended_total", &displaced) >= 30.0
    });
}
