//! What goes past the mesh is counted and shown.

use std::net::SocketAddr;

use cni_plugin::status::Shown;

use super::capture::{Enrolled, greeters};
use crate::app::{Call, Greeter};
use crate::bench::Bench;
use crate::proxy::Proxy;
use crate::town::Town;

const CLOSE: &str = "istio.io/dataplane-mode: ambient, ambit.dev/existing-connections: close";

#[tokio::test(flavor = "multi_thread")]
async fn no_connection_of_an_enrolled_pod_gets_past_the_mesh() {
    let Enrolled { town, agent, bench, .. } = &Enrolled::pod().await;
    let _local = Greeter::start(&town.pod.netns, SocketAddr::from(([127, 0, 0, 1], 8080)), "local");
    let call_all = async || {
        for (own, other) in town.pod.ips().into_iter().zip(town.neighbour.ips()) {
            let [own, other, hbone] = [(own, 80), (other, 80), (own, 15008)].map(SocketAddr::from);
            Call::to(&town.pod.netns, other).await.unwrap();
            Call::by_mptcp(&town.pod.netns, other).await.unwrap();
            Call::to(&town.neighbour.netns, own).await.unwrap();
            Call::to(&town.neighbour.netns, hbone).await.unwrap();
            Call::to(&town.pod.netns, own).await.unwrap();
        }
        Call::to(&town.pod.netns, ([127, 0, 0, 1], 8080).into()).await.unwrap();
    };
    call_all().await;
    let bypassed = || bench.bypassed(&town.pod);
    assert_eq!(bypassed(), (0, 0));
    bench.uncapture(&town.pod);
    let [v4, v6] = town.neighbour.ips().map(|ip| SocketAddr::new(ip, 80));
    let leaked = Call::to(&town.pod.netns, v4).await.unwrap();
    assert_eq!(leaked.caller, town.pod.ips()[0]);
    agent.shows_with("cart", |pod| pod.bypassed == 1 && pod.repairs >= 1).await;
    agent.shows_with("cart", |pod| pod.older_connections == 0).await;
    call_all().await;
    assert_eq!(bypassed(), (1, 0));
    bench.uncapture(&town.pod);
    Call::by_mptcp(&town.pod.netns, v6).await.unwrap();
    agent.shows_with("cart", |pod| pod.bypassed == 2).await;
}

async fn with_older_connections(labels: &str) -> (Town, Bench, Vec<Greeter>, [Call; 4]) {
    let (town, bench) = (Town::build().await, Bench::new());
    let greeters = greeters(&town);
    let call =
        async |from: &crate::town::Place, to| Call::to(&from.netns, SocketAddr::new(to, 80)).await.unwrap();
    let [own4, own6] = town.pod.ips();
    let [other4, other6] = town.neighbour.ips();
    let calls = [
        call(&town.pod, other4).await,
        call(&town.pod, other6).await,
        call(&town.neighbour, own4).await,
        call(&town.neighbour, own6).await,
    ];
    // One within the pod is nobody's business.
    let within = Call::to(&town.pod.netns, SocketAddr::new(own4, 80)).await.unwrap();
    tokio::spawn(async move {
        let _kept = within;
        std::future::pending::<()>().await;
    });
    bench.put_pod("cart", &town.pod);
    bench.label(labels);
    (town, bench, greeters, calls)
}

#[tokio::test(flavor = "multi_thread")]
async fn older_connections_are_kept_and_counted_while_they_last() {
    let (town, bench, _greeters, calls) = with_older_connections("istio.io/dataplane-mode: ambient").await;
    let (agent, _proxy) = (bench.start(), Proxy::start(bench.socket()));
    agent.shows_with("cart", |pod| pod.state == Shown::Enrolled && pod.older_connections == 4).await;
    // Later ones are captured, and none of these.
    let later = Call::to(&town.pod.netns, SocketAddr::new(town.neighbour.v4.into(), 80)).await.unwrap();
    let mut calls = Vec::from(calls);
    for call in &mut calls {
        call.say("still here").await.unwrap();
    }
    // One that gets past the mesh later is none of them either.
    bench.uncapture(&town.pod);
    let leaked = Call::to(&town.pod.netns, SocketAddr::new(town.neighbour.v4.into(), 80)).await.unwrap();
    agent.shows_with("cart", |pod| pod.bypassed == 1).await;
    drop(calls.pop());
    agent.shows_with("cart", |pod| pod.older_connections == 3).await;
    drop(leaked);
    // Another agent knows them too.
    agent.kill().await;
    let agent = bench.start();
    agent.shows_with("cart", |pod| pod.older_connections == 3).await;
    drop(calls);
    let shown = agent.shows_with("cart", |pod| pod.older_connections == 0).await;
    assert_eq!(shown.bypassed, 1);
    drop(later);
}

#[tokio::test(flavor = "multi_thread")]
async fn older_connections_are_closed_where_that_is_wished() {
    let (town, bench, _greeters, mut calls) = with_older_connections(CLOSE).await;
    let (agent, proxy) = (bench.start(), Proxy::start(bench.socket()));
    agent.shows_with("cart", |pod| pod.state == Shown::Enrolled && pod.older_connections == 0).await;
    for call in &mut calls {
        call.say("still here").await.unwrap_err();
    }
    let mut again = Call::to(&town.pod.netns, SocketAddr::new(town.neighbour.v4.into(), 80)).await.unwrap();
    assert_eq!(proxy.take_captured().len(), 1, "whoever calls again is captured");
    again.say("and stays").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn older_connections_are_closed_when_that_is_wished_later() {
    let (_town, bench, _greeters, mut calls) =
        with_older_connections("istio.io/dataplane-mode: ambient").await;
    let (agent, _proxy) = (bench.start(), Proxy::start(bench.socket()));
    agent.shows_with("cart", |pod| pod.older_connections == 4).await;
    bench.label(CLOSE);
    agent.shows_with("cart", |pod| pod.older_connections == 0).await;
    for call in &mut calls {
        call.say("still here").await.unwrap_err();
    }
}
