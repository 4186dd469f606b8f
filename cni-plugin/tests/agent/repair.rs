//! What somebody takes away in a live pod or on the node is put back, and nothing leaks meanwhile.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use cni_plugin::status::Shown;
use tokio::time::{Instant, timeout};

use super::capture::Enrolled;
use crate::app::Call;
use crate::wire::{Frame, Wire};

/// The bound, and slack for a machine that does other things too.
const WITHIN: Duration = Duration::from_secs(3);

impl Enrolled {
    /// Damages something and waits until it is shown as put back; how long that took.
    async fn mended_after(&self, damage: impl AsyncFnOnce(&Self)) -> Duration {
        let before = self.agent.shows("cart", Shown::Enrolled).await.repairs;
        damage(self).await;
        let begun = Instant::now();
        self.agent.shows_with("cart", |pod| pod.repairs > before && pod.state == Shown::Enrolled).await;
        begun.elapsed()
    }

    /// Both directions and families are captured.
    async fn is_captured(&self) {
        self.proxy.take_captured();
        let Self { town, .. } = self;
        for (own, other) in town.pod.ips().into_iter().zip(town.neighbour.ips()) {
            Call::to(&town.pod.netns, SocketAddr::new(other, 80)).await.unwrap();
            Call::to(&town.neighbour.netns, SocketAddr::new(own, 80)).await.unwrap();
        }
        assert_eq!(self.proxy.take_captured().len(), 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_away_in_a_live_pod_is_put_back_within_a_second() {
    let enrolled = Enrolled::pod().await;
    let routing = enrolled.town.pod.routing().await;
    let mut took = Vec::new();
    took.push(("routing", enrolled.mended_after(async |on| on.town.pod.drop_routing().await).await));
    for sysctl in ["ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect"] {
        took.push((sysctl, enrolled.mended_after(async |on| on.town.pod.refuse_marks(sysctl)).await));
    }
    took.push(("MESHED", enrolled.mended_after(async |on| on.bench.uncapture(&on.town.pod)).await));
    took.push(("programs", enrolled.mended_after(async |on| on.bench.pins.detach().unwrap()).await));
    for (what, took) in &took {
        testkit::say(&format!("{what}: put back after {} ms", took.as_millis()));
    }
    for (what, took) in took {
        assert!(took < WITHIN, "{what} took {took:?}");
    }
    let (rules, routes, sysctls) = enrolled.town.pod.routing().await;
    assert_eq!((rules.len(), routes.len(), sysctls), (routing.0.len(), routing.1.len(), routing.2));
    enrolled.is_captured().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pins_that_are_removed_are_put_back_and_the_next_agent_finds_them() {
    let mut enrolled = Enrolled::pod().await;
    enrolled.mended_after(async |on| fs::remove_dir_all(on.bench.pins.root()).unwrap()).await;
    enrolled.is_captured().await;
    enrolled.agent.kill().await;
    enrolled.agent = enrolled.bench.start();
    enrolled.agent.shows_with("cart", |pod| pod.state == Shown::Enrolled && pod.reason.is_none()).await;
    enrolled.is_captured().await;
    assert_eq!(enrolled.bench.bypassed(&enrolled.town.pod), (0, 0), "and whose sockets are the proxy's");
}

/// Without an agent nothing is put back: a marked packet then goes nowhere, not out.
#[tokio::test(flavor = "multi_thread")]
async fn without_its_routing_nothing_of_a_pod_leaves_in_plaintext() {
    let enrolled = Enrolled::pod().await;
    let Enrolled { town, proxy, agent, bench, .. } = enrolled;
    let [v4, v6] = town.neighbour.ips().map(|ip| SocketAddr::new(ip, 80));
    let wire = Wire::tap(&town.neighbour.netns);
    let mut standing = Call::to(&town.pod.netns, v4).await.unwrap();
    standing.say("before").await.unwrap();
    let passed = wire.take();
    assert!(
        passed.iter().any(Frame::opens) && passed.iter().any(|frame| frame.says(b"before")),
        "{passed:?}"
    );
    agent.kill().await;
    town.pod.drop_routing().await;
    for to in [v4, v6] {
        let called = timeout(Duration::from_millis(1500), Call::to(&town.pod.netns, to)).await;
        assert!(called.is_err(), "{called:?}");
    }
    let said = timeout(Duration::from_millis(500), standing.say("canary")).await;
    assert!(said.is_err(), "{said:?}");
    let leaked = wire.take().into_iter().find(|frame| frame.opens() || frame.says(b"canary"));
    assert!(leaked.is_none(), "{leaked:?}");

    proxy.take_captured();
    let agent = bench.start();
    agent.shows_with("cart", |pod| pod.state == Shown::Enrolled && pod.reason.is_none()).await;
    for to in [v4, v6] {
        Call::to(&town.pod.netns, to).await.unwrap();
    }
    assert_eq!(proxy.take_captured().len(), 2);
}
