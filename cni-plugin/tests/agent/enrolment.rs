//! Joining the mesh and leaving it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use cni_plugin::status::{PodStatus, Shown};
use net::Netns;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::capture::greeters;
use crate::app::Call;
use crate::bench::Bench;
use crate::proxy::{Proxy, plain};
use crate::town::Town;
use zds::{PodState, PodUid, Stage};

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_waits_for_ztunnel_uncaptured() {
    let (town, bench) = (Town::build().await, Bench::new());
    let _greeters = greeters(&town);
    bench.put_pod("cart", &town.pod);
    bench.label_ambient();
    let agent = bench.start();
    let pending = agent.shows("cart", Shown::Pending).await;
    assert_eq!(pending.reason.as_deref(), Some("ztunnel does not serve it yet"));
    let outside = SocketAddr::new(town.neighbour.v4.into(), 80);
    assert_eq!(Call::to(&town.pod.netns, outside).await.unwrap().server, "neighbour");

    let proxy = Proxy::start(bench.socket());
    let enrolled = agent.shows("cart", Shown::Enrolled).await;
    assert_eq!((enrolled.reason, enrolled.ips), (None, town.pod.ips().to_vec()));
    Call::to(&town.pod.netns, outside).await.unwrap();
    assert_eq!(proxy.take_captured().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ztunnel_without_redirection_has_no_pod_captured_for_it() {
    const CANNOT: &str = "this ztunnel cannot take eBPF redirection: ";
    let (town, bench) = (Town::build().await, Bench::new());
    let _greeters = greeters(&town);
    bench.put_pod("cart", &town.pod);
    bench.label_ambient();
    let agent = bench.start();
    let _plain = plain(bench.socket());
    let says_so = |pod: &PodStatus| pod.reason.as_ref().is_some_and(|reason| reason.contains(CANNOT));
    let pending = agent.shows_with("cart", says_so).await;
    assert_eq!(pending.state, Shown::Pending);
    let outside = SocketAddr::new(town.neighbour.v4.into(), 80);
    assert_eq!(Call::to(&town.pod.netns, outside).await.unwrap().server, "neighbour");

    let proxy = Proxy::start(bench.socket());
    agent.shows("cart", Shown::Enrolled).await;
    drop(proxy);
    let captured = agent.shows_with("cart", says_so).await;
    assert_eq!(captured.state, Shown::Enrolled, "what is captured stays captured");
    assert!(Call::to(&town.pod.netns, outside).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_leaves_nothing() {
    let (town, bench) = (Town::build().await, Bench::new());
    let _greeters = greeters(&town);
    let before = town.pod.routing().await;
    bench.put_pod("cart", &town.pod);
    bench.label_ambient();
    let (agent, mut proxy) = (bench.start(), Proxy::start(bench.socket()));
    agent.shows("cart", Shown::Enrolled).await;
    assert_ne!(town.pod.routing().await, before);

    bench.label("");
    agent.shows_none().await;
    proxy.serves(0).await;
    gone(&bench).await;
    assert_eq!(town.pod.routing().await, before);
    let outside = SocketAddr::new(town.neighbour.v4.into(), 80);
    Call::to(&town.pod.netns, outside).await.unwrap();
    assert_eq!(proxy.take_captured(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn ztunnel_hears_of_a_pods_end_while_the_pod_is_still_captured() {
    let (town, bench) = (Town::build().await, Bench::new());
    bench.put_pod("cart", &town.pod);
    bench.label_ambient();
    let (agent, mut proxy) = (bench.start(), Proxy::start(bench.socket()));
    agent.shows("cart", Shown::Enrolled).await;
    let state = |stage| PodState { uid: PodUid::new("uid-cart"), stage, addresses: town.pod.ips().to_vec() };
    bench.end_pod("cart");
    assert_eq!(proxy.hears(1).await, [state(Stage::Terminating)]);
    agent.shows("cart", Shown::Enrolled).await;
    bench.delete_pod("cart");
    assert_eq!(proxy.hears(2).await[1], state(Stage::Ended));
    proxy.serves(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_leaves_the_mesh_has_not_come_to_its_end() {
    let (town, bench) = (Town::build().await, Bench::new());
    bench.put_pod("cart", &town.pod);
    bench.label_ambient();
    let (agent, mut proxy) = (bench.start(), Proxy::start(bench.socket()));
    agent.shows("cart", Shown::Enrolled).await;
    bench.label("");
    proxy.serves(0).await;
    assert_eq!(proxy.hears(0).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_outlives_both_joining_and_leaving() {
    let (town, bench) = (Town::build().await, Bench::new());
    let _greeters = greeters(&town);
    bench.put_pod("cart", &town.pod);
    let (agent, mut proxy) = (bench.start(), Proxy::start(bench.socket()));
    let outside = SocketAddr::new(town.neighbour.v4.into(), 80);
    let inside = SocketAddr::new(town.pod.v4.into(), 80);
    let mut older_out = Call::to(&town.pod.netns, outside).await.unwrap();
    let mut older_in = Call::to(&town.neighbour.netns, inside).await.unwrap();

    bench.label_ambient();
    agent.shows("cart", Shown::Enrolled).await;
    older_out.say("still here").await.unwrap();
    older_in.say("still here").await.unwrap();
    assert_eq!(proxy.take_captured(), []);
    let mut captured_out = Call::to(&town.pod.netns, outside).await.unwrap();
    let mut captured_in = Call::to(&town.neighbour.netns, inside).await.unwrap();
    assert_eq!(proxy.take_captured().len(), 2);

    bench.label("");
    agent.shows_none().await;
    proxy.serves(0).await;
    for call in [&mut captured_out, &mut captured_in, &mut older_out, &mut older_in] {
        call.say("still here").await.unwrap();
    }
    let needed = town.pod.routing().await;
    drop((captured_out, captured_in));
    gone(&bench).await;
    assert_ne!(town.pod.routing().await, needed, "the routing went with the last connection that needed it");
    older_out.say("still here").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_connection_fails_while_a_pod_joins_and_leaves_under_load() {
    let (town, bench) = (Town::build().await, Bench::new());
    let _greeters = greeters(&town);
    bench.put_pod("cart", &town.pod);
    let (agent, mut proxy) = (bench.start(), Proxy::start(bench.socket()));
    let [v4, v6] = town.neighbour.ips().map(|ip| SocketAddr::new(ip, 80));
    let inside = SocketAddr::new(town.pod.v4.into(), 80);
    let load = [
        Load::start(&town.pod.netns, v4),
        Load::start(&town.pod.netns, v6),
        Load::start(&town.neighbour.netns, inside),
    ];
    for _ in 0..3 {
        for load in &load {
            load.some_more().await;
        }
        bench.label_ambient();
        agent.shows("cart", Shown::Enrolled).await;
        for load in &load {
            load.some_more().await;
        }
        bench.label("");
        agent.shows_none().await;
    }
    proxy.serves(0).await;
    for load in load {
        let (calls, failures) = load.stop().await;
        assert_eq!(failures, Vec::<String>::new(), "of {calls} calls");
    }
    assert!(!proxy.take_captured().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_agent_adopts_what_the_old_one_left() {
    let (town, bench) = (Town::build().await, Bench::new());
    let _greeters = greeters(&town);
    let before = town.pod.routing().await;
    bench.put_pod("cart", &town.pod);
    bench.label_ambient();
    let (agent, proxy) = (bench.start(), Proxy::start(bench.socket()));
    agent.shows("cart", Shown::Enrolled).await;
    let outside = SocketAddr::new(town.neighbour.v4.into(), 80);
    let load = Load::start(&town.pod.netns, outside);
    load.some_more().await;
    proxy.take_captured();

    agent.kill().await;
    Call::to(&town.pod.netns, outside).await.unwrap();
    assert!(!proxy.take_captured().is_empty(), "captured without an agent");

    let agent = bench.start();
    agent.shows_with("cart", |pod| pod.state == Shown::Enrolled && pod.reason.is_none()).await;
    load.some_more().await;
    assert!(!proxy.take_captured().is_empty());
    let (_, failures) = load.stop().await;
    assert_eq!(failures, Vec::<String>::new());

    bench.label("");
    gone(&bench).await;
    assert_eq!(town.pod.routing().await, before, "what was adopted is let go like one's own");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_agent_lets_go_of_what_left_the_mesh_meanwhile() {
    let (town, bench) = (Town::build().await, Bench::new());
    let before = town.pod.routing().await;
    bench.put_pod("cart", &town.pod);
    bench.label_ambient();
    let (agent, mut proxy) = (bench.start(), Proxy::start(bench.socket()));
    agent.shows("cart", Shown::Enrolled).await;
    agent.kill().await;
    bench.label("");
    let _agent = bench.start();
    proxy.serves(0).await;
    gone(&bench).await;
    assert_eq!(town.pod.routing().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_agent_lets_nothing_go_for_a_file_that_it_cannot_read() {
    let (town, bench) = (Town::build().await, Bench::new());
    let _greeters = greeters(&town);
    bench.put_pod("cart", &town.pod);
    bench.label_ambient();
    let (agent, proxy) = (bench.start(), Proxy::start(bench.socket()));
    agent.shows("cart", Shown::Enrolled).await;
    agent.kill().await;
    bench.break_namespace();
    // This one's own word shows when the new agent has acted upon what it can read.
    bench.put_pod_ambient("other", &town.neighbour);
    let agent = bench.start();
    agent.shows_with("other", |pod| pod.state == Shown::Enrolled && pod.reason.is_none()).await;
    let cart = agent.shows("cart", Shown::Enrolled).await;
    assert!(cart.reason.unwrap().contains("not known yet"));
    proxy.take_captured();
    let outside = SocketAddr::new(town.neighbour.v4.into(), 80);
    Call::to(&town.pod.netns, outside).await.unwrap();
    assert!(!proxy.take_captured().is_empty(), "still captured, and served by ztunnel");

    bench.label_ambient();
    agent.shows_with("cart", |pod| pod.state == Shown::Enrolled && pod.reason.is_none()).await;
    bench.delete_pod("other");
    bench.label("");
    agent.shows_none().await;
    gone(&bench).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_ztunnel_is_told_everything_again() {
    let (town, bench) = (Town::build().await, Bench::new());
    let _greeters = greeters(&town);
    bench.put_pod("cart", &town.pod);
    bench.label_ambient();
    let (agent, proxy) = (bench.start(), Proxy::start(bench.socket()));
    agent.shows("cart", Shown::Enrolled).await;
    drop(proxy);
    agent.shows_with("cart", |pod| pod.reason.is_some()).await;
    let proxy = Proxy::start(bench.socket());
    agent.shows_with("cart", |pod| pod.state == Shown::Enrolled && pod.reason.is_none()).await;
    let outside = SocketAddr::new(town.neighbour.v4.into(), 80);
    Call::to(&town.pod.netns, outside).await.unwrap();
    assert_eq!(proxy.take_captured().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_pod_is_let_go_at_once() {
    let (town, bench) = (Town::build().await, Bench::new());
    bench.put_pod("cart", &town.pod);
    bench.label_ambient();
    let (agent, mut proxy) = (bench.start(), Proxy::start(bench.socket()));
    agent.shows("cart", Shown::Enrolled).await;
    bench.delete_pod("cart");
    agent.shows_none().await;
    proxy.serves(0).await;
    gone(&bench).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_in_a_new_sandbox_is_enrolled_there() {
    let (old, new, bench) = (Town::build().await, Town::build().await, Bench::new());
    let _greeters = greeters(&new);
    bench.put_pod("cart", &old.pod);
    bench.label_ambient();
    let (agent, proxy) = (bench.start(), Proxy::start(bench.socket()));
    agent.shows("cart", Shown::Enrolled).await;
    bench.put_pod("cart", &new.pod);
    let there = new.pod.path();
    agent.shows_with("cart", |pod| pod.netns.as_ref() == Some(&there) && pod.state == Shown::Enrolled).await;
    let outside = SocketAddr::new(new.neighbour.v4.into(), 80);
    Call::to(&new.pod.netns, outside).await.unwrap();
    assert_eq!(proxy.take_captured().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_own_namespace_is_never_enrolled() {
    let (town, bench) = (Town::build().await, Bench::new());
    bench.put_pod_at("rogue", &town.pod, Path::new("/proc/self/ns/net"));
    bench.put_pod_at("lost", &town.pod, Path::new("/nowhere/netns"));
    bench.label_ambient();
    let (agent, _proxy) = (bench.start(), Proxy::start(bench.socket()));
    let rogue = agent.shows("rogue", Shown::Failed).await;
    assert_eq!(rogue.reason.as_deref(), Some("its network namespace is the node's own"));
    let lost = agent.shows("lost", Shown::Failed).await;
    assert!(lost.reason.unwrap().contains("/nowhere/netns"));
    assert_eq!(bench.pins.pods().unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_gets_no_other_pods_namespace() {
    let (town, bench) = (Town::build().await, Bench::new());
    // By its name it comes before the pod whose namespace it names.
    bench.put_pod_at("a-rogue", &town.neighbour, &town.pod.path());
    bench.label_ambient();
    let (agent, _proxy) = (bench.start(), Proxy::start(bench.socket()));
    let rogue = agent.shows("a-rogue", Shown::Failed).await;
    assert!(rogue.reason.unwrap().contains("does not have its address 10.77.0.2"));
    assert_eq!(bench.pins.pods().unwrap(), []);
    bench.put_pod("cart", &town.pod);
    agent.shows("cart", Shown::Enrolled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pods_cannot_share_a_namespace() {
    let (town, bench) = (Town::build().await, Bench::new());
    bench.put_pod("cart", &town.pod);
    bench.put_pod("copy", &town.pod);
    bench.label_ambient();
    let (agent, _proxy) = (bench.start(), Proxy::start(bench.socket()));
    agent.shows("cart", Shown::Enrolled).await;
    let copy = agent.shows("copy", Shown::Failed).await;
    assert!(copy.reason.unwrap().contains("uid-cart"));
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_of_two_instances_coexist() {
    let (ours, theirs) = (Town::build().await, Town::build().await);
    let bench = Bench::new();
    let other = bench.beside("other");
    let _greeters = (greeters(&ours), greeters(&theirs));
    for (bench, town) in [(&bench, &ours), (&other, &theirs)] {
        bench.put_pod("cart", &town.pod);
        bench.label_ambient();
    }
    let agents = [bench.start(), other.start()];
    let proxies = [Proxy::start(bench.socket()), Proxy::start(other.socket())];
    for agent in &agents {
        agent.shows("cart", Shown::Enrolled).await;
    }
    for (town, proxy) in [&ours, &theirs].into_iter().zip(&proxies) {
        Call::to(&town.pod.netns, SocketAddr::new(town.neighbour.v4.into(), 80)).await.unwrap();
        assert_eq!(proxy.take_captured().len(), 1);
    }
    bench.label("");
    gone(&bench).await;
    Call::to(&theirs.pod.netns, SocketAddr::new(theirs.neighbour.v4.into(), 80)).await.unwrap();
    assert_eq!(proxies[1].take_captured().len(), 1);
}

/// Waits until no pod is pinned. There is no event for the end of pins, so they are looked at.
pub(super) async fn gone(bench: &Bench) {
    let mut looks = tokio::time::interval(std::time::Duration::from_millis(20));
    let pinned = async {
        while !bench.pins.pods().unwrap().is_empty() {
            looks.tick().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), pinned).await.expect("pins are left");
}

/// Calls one after the other, without pause.
struct Load {
    calls: Arc<AtomicUsize>,
    called: Arc<Notify>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<Vec<String>>,
}

impl Load {
    fn start(netns: &Netns, to: SocketAddr) -> Self {
        let (calls, called, stop) =
            (Arc::<AtomicUsize>::default(), Arc::<Notify>::default(), Arc::<AtomicBool>::default());
        let counted = (calls.clone(), called.clone(), stop.clone());
        let netns = netns.clone();
        let task = tokio::spawn(async move {
            let (calls, called, stop) = counted;
            let mut failures = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let said = match Call::to(&netns, to).await {
                    Ok(mut call) => call.say("hello").await,
                    Err(error) => Err(error),
                };
                if let Err(error) = said {
                    failures.push(format!("{to}: {error}"));
                }
                calls.fetch_add(1, Ordering::Relaxed);
                called.notify_waiters();
            }
            failures
        });
        Self { calls, called, stop, task }
    }

    /// Waits for some more calls.
    async fn some_more(&self) {
        let goal = self.calls.load(Ordering::Relaxed) + 100;
        loop {
            let next = self.called.notified();
            if self.calls.load(Ordering::Relaxed) >= goal {
                return;
            }
            next.await;
        }
    }

    async fn stop(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self.task.await.unwrap();
        (self.calls.load(Ordering::Relaxed), failures)
    }
}
