//! What it costs to look after a node that nobody disturbs.

use std::time::Duration;

use futures_util::future::join_all;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};
use tokio::time::timeout;

use crate::bench::Bench;
use crate::proxy::Proxy;
use crate::town::Place;

/// As many as a node has in Kubernetes, about.
const PODS: u8 = 100;
const SPELL: Duration = Duration::from_secs(5);

fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let of = |time: TimeVal| Duration::from_micros(time.num_microseconds().unsigned_abs());
    of(usage.user_time()) + of(usage.system_time())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_pods_that_nobody_disturbs_are_left_alone_at_little_cost() {
    let bench = Bench::new();
    let places = join_all((1..=PODS).map(Place::alone)).await;
    for (number, place) in places.iter().enumerate() {
        bench.put_pod(&format!("pod-{number}"), place);
    }
    bench.label_ambient();
    let (agent, _proxy) = (bench.start(), Proxy::start(bench.socket()));
    agent.shows_enrolled(PODS.into()).await;
    let before = cpu();
    let repaired = timeout(SPELL, agent.shows_any(|pod| pod.repairs > 0 || pod.reason.is_some())).await;
    let spent = cpu() - before;
    assert!(repaired.is_err(), "nobody damaged anything: {repaired:?}");
    testkit::say(&format!(
        "looking after {PODS} pods takes {:.1} % of a processor",
        100.0 * spent.as_secs_f64() / SPELL.as_secs_f64()
    ));
}
