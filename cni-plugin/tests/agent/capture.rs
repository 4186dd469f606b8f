//! What happens to connections of an enrolled pod.

use std::io::ErrorKind;
use std::net::SocketAddr;

use cni_plugin::status::Shown;
use ebpf_loader::{DEFAULT_MARK, DEFAULT_MASK};

use super::enrolment::gone;
use crate::app::{Call, Greeter};
use crate::bench::{Bench, Running};
use crate::proxy::{Captured, Proxy};
use crate::town::Town;

/// A pod that is enrolled, a neighbour that is not, and an application in each.
pub(super) struct Enrolled {
    pub(super) town: Town,
    pub(super) proxy: Proxy,
    pub(super) agent: Running,
    pub(super) _greeters: Vec<Greeter>,
    pub(super) bench: Bench,
}

impl Enrolled {
    pub(super) async fn pod() -> Self {
        let (town, bench) = (Town::build().await, Bench::new());
        let greeters = greeters(&town);
        bench.put_pod("cart", &town.pod);
        bench.label_ambient();
        let (agent, proxy) = (bench.start(), Proxy::start(bench.socket()));
        agent.shows("cart", Shown::Enrolled).await;
        Self { town, proxy, agent, _greeters: greeters, bench }
    }
}

pub(super) fn greeters(town: &Town) -> Vec<Greeter> {
    let mut greeters = Vec::new();
    for (place, name) in [(&town.pod, "pod"), (&town.neighbour, "neighbour")] {
        for ip in place.ips() {
            greeters.push(Greeter::start(&place.netns, SocketAddr::new(ip, 80), name));
        }
    }
    greeters
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_pod_sends_is_captured_in_both_families() {
    let Enrolled { town, proxy, .. } = &Enrolled::pod().await;
    let mapped = SocketAddr::new(town.neighbour.v4.to_ipv6_mapped().into(), 80);
    let [v4, v6] = town.neighbour.ips().map(|ip| SocketAddr::new(ip, 80));
    for (to, original, from) in
        [(v4, v4, town.pod.ips()[0]), (v6, v6, town.pod.ips()[1]), (mapped, v4, town.pod.ips()[0])]
    {
        let mut call = Call::to(&town.pod.netns, to).await.unwrap();
        assert_eq!((call.server.as_str(), call.caller), ("neighbour", from));
        assert_eq!(call.stream.get_ref().peer_addr().unwrap(), to, "the application sees whom it called");
        call.say("hello").await.unwrap();
        assert_eq!(proxy.take_captured(), [Captured { inbound: false, from, to: original }]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_from_the_network_is_captured_and_keeps_its_callers_address() {
    let Enrolled { town, proxy, .. } = &Enrolled::pod().await;
    for (to, from) in town.pod.ips().into_iter().zip(town.neighbour.ips()) {
        let to = SocketAddr::new(to, 80);
        let mut call = Call::to(&town.neighbour.netns, to).await.unwrap();
        assert_eq!((call.server.as_str(), call.caller), ("pod", from));
        call.say("hello").await.unwrap();
        assert_eq!(proxy.take_captured(), [Captured { inbound: true, from, to }]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_port_is_captured_whether_the_application_listens_or_not() {
    let Enrolled { town, proxy, .. } = &Enrolled::pod().await;
    let to = SocketAddr::new(town.pod.v4.into(), 9999);
    Call::to(&town.neighbour.netns, to).await.unwrap_err();
    assert_eq!(proxy.take_captured().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn hbone_from_the_network_reaches_its_own_listener() {
    let Enrolled { town, proxy, .. } = &Enrolled::pod().await;
    for ip in town.pod.ips() {
        let call = Call::to(&town.neighbour.netns, SocketAddr::new(ip, 15008)).await.unwrap();
        assert_eq!(call.server, "hbone");
    }
    assert_eq!(proxy.take_captured(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_calls_itself_is_left_alone() {
    let Enrolled { town, proxy, .. } = &Enrolled::pod().await;
    let _local = Greeter::start(&town.pod.netns, SocketAddr::from(([127, 0, 0, 1], 8080)), "local");
    for ip in town.pod.ips() {
        assert_eq!(Call::to(&town.pod.netns, SocketAddr::new(ip, 80)).await.unwrap().server, "pod");
    }
    let loopback = SocketAddr::from(([127, 0, 0, 1], 8080));
    assert_eq!(Call::to(&town.pod.netns, loopback).await.unwrap().server, "local");
    assert_eq!(proxy.take_captured(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_outside_the_mesh_is_left_alone() {
    let (enrolled, plain) = (Enrolled::pod().await, Town::build().await);
    let _greeters = greeters(&plain);
    let routing = plain.pod.routing().await;
    enrolled.bench.put_pod_outside("plain", &plain.pod);
    // A later pod that is enrolled shows that the earlier one has been looked at.
    let later = Town::build().await;
    enrolled.bench.put_pod("later", &later.pod);
    enrolled.agent.shows("later", Shown::Enrolled).await;
    for (from, to) in [(&plain.pod, &plain.neighbour), (&plain.neighbour, &plain.pod)] {
        for ip in to.ips() {
            Call::to(&from.netns, SocketAddr::new(ip, 80)).await.unwrap();
        }
    }
    assert_eq!(enrolled.proxy.take_captured(), []);
    assert_eq!(plain.pod.routing().await, routing);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_mark_does_not_bypass_capture() {
    let Enrolled { town, proxy, .. } = &Enrolled::pod().await;
    for forged in [0x539, 0x111, DEFAULT_MARK, DEFAULT_MASK, u32::MAX] {
        for ip in town.neighbour.ips() {
            let to = SocketAddr::new(ip, 80);
            let call = Call::with(&town.pod.netns, to, |socket| socket.set_mark(forged).unwrap());
            assert_eq!(call.await.unwrap().server, "neighbour");
            assert_eq!(proxy.take_captured().len(), 1, "mark {forged:#x} to {to}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn multipath_connections_are_captured() {
    let Enrolled { town, proxy, .. } = &Enrolled::pod().await;
    for ip in town.neighbour.ips() {
        let mut call = Call::by_mptcp(&town.pod.netns, SocketAddr::new(ip, 80)).await.unwrap();
        call.say("hello").await.unwrap();
        assert_eq!(proxy.take_captured().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_without_ipv6_is_captured_all_the_same() {
    let (town, bench) = (Town::build().await, Bench::new());
    let _greeters = greeters(&town);
    town.pod.switch_ipv6_off();
    let before = town.pod.routing().await;
    bench.put_pod_without_ipv6("cart", &town.pod);
    bench.label_ambient();
    let (agent, proxy) = (bench.start(), Proxy::start(bench.socket()));
    agent.shows("cart", Shown::Enrolled).await;
    Call::to(&town.pod.netns, SocketAddr::new(town.neighbour.v4.into(), 80)).await.unwrap();
    assert_eq!(proxy.take_captured().len(), 1);
    bench.label("");
    gone(&bench).await;
    assert_eq!(town.pod.routing().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_bound_to_the_pods_address_is_captured() {
    let Enrolled { town, proxy, .. } = &Enrolled::pod().await;
    for (own, other) in town.pod.ips().into_iter().zip(town.neighbour.ips()) {
        let bind = |socket: &socket2::Socket| socket.bind(&SocketAddr::new(own, 0).into()).unwrap();
        Call::with(&town.pod.netns, SocketAddr::new(other, 80), bind).await.unwrap();
        assert_eq!(proxy.take_captured().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_ztunnel_nothing_leaves_and_nothing_comes_in() {
    let enrolled = Enrolled::pod().await;
    let Enrolled { town, proxy, agent, .. } = enrolled;
    drop(proxy);
    agent.shows_with("cart", |pod| pod.reason.is_some()).await;
    let out = Call::to(&town.pod.netns, SocketAddr::new(town.neighbour.v4.into(), 80)).await.unwrap_err();
    assert!(matches!(out.kind(), ErrorKind::TimedOut | ErrorKind::ConnectionRefused), "{out}");
    let into = Call::to(&town.neighbour.netns, SocketAddr::new(town.pod.v4.into(), 80)).await.unwrap_err();
    assert_eq!(into.kind(), ErrorKind::ConnectionRefused);
}

/// Where the host's own choice is reno this shows nothing; elsewhere it shows that the route's metric was taken.
#[tokio::test(flavor = "multi_thread")]
async fn captured_connections_use_reno() {
    let Enrolled { town, .. } = &Enrolled::pod().await;
    for ip in town.neighbour.ips() {
        let call = Call::to(&town.pod.netns, SocketAddr::new(ip, 80)).await.unwrap();
        let algorithm = socket2::SockRef::from(call.stream.get_ref()).tcp_congestion().unwrap();
        assert_eq!(String::from_utf8_lossy(&algorithm).trim_end_matches('\0'), "reno");
    }
}
