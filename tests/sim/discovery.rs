//! xDS clients and servers converge, whatever gets lost and whoever overtakes whom.
//!
//! Two replicas of the control plane learn of each change at different times and restart; three proxies hold streams to
//! one or the other, which break at any moment with all that is under way. When the faults stop, every proxy must come
//! to know exactly what is true, in few messages.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ambit_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use index::World;
use model::{Policy, Service, Workload};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use testkit::fixtures::{allow, deny, pod, service};
use testkit::sim::seeds;
use xds::server::{Change, Entry, Everything, Limits, Peer, Snapshot};
use xds::{Defaults, Resource, ResourceKey, TypeUrl, client, server};

const REPLICAS: usize = 2;
const PROXIES: usize = 3;

#[test]
fn proxies_converge_under_lost_streams_and_lagging_replicas() {
    for seed in seeds(420) {
        let mut mesh = Mesh::new(seed.number());
        for _ in 0..600 {
            mesh.step();
        }
        mesh.settle();
    }
}

#[test]
fn a_quiet_mesh_says_nothing_and_a_change_costs_one_answer() {
    for seed in seeds(60) {
        let mut mesh = Mesh::new(seed.number());
        for _ in 0..200 {
            mesh.step();
        }
        mesh.settle();
        assert_eq!(mesh.settle(), 0, "nothing is left to say");
        mesh.change_one();
        let messages = mesh.settle();
        assert!(messages <= 2 * PROXIES, "{messages} messages for one change to {PROXIES} proxies");
    }
}

#[test]
fn a_stream_that_comes_back_carries_what_differs_only() {
    for seed in seeds(60) {
        let mut mesh = Mesh::new(seed.number());
        for _ in 0..200 {
            mesh.step();
        }
        mesh.settle();
        (0..PROXIES).for_each(|p| mesh.break_stream(p));
        mesh.carried = 0;
        mesh.change_one();
        mesh.settle();
        assert!(mesh.carried <= PROXIES, "{} resources were carried for one change", mesh.carried);
    }
}

#[test]
fn what_goes_and_comes_back_the_same_during_a_long_answer_is_told_again() {
    let mut mesh = Mesh::new(1);
    let pods: Vec<_> =
        (0..40).map(|n| Resource::Workload(Arc::new(pod("shop", &format!("pod-{n}")).build()))).collect();
    let all = |present: bool| pods.iter().map(move |p| (p.key(), present.then(|| p.clone())));
    mesh.change_to(all(true));
    mesh.settle();
    mesh.break_stream(0);
    // The answer begins with something, so that it is not over at once.
    mesh.change_to([(pods[0].key(), None)]);
    mesh.learn_all();
    mesh.connect(0, 0);
    while mesh.deliver_request(0) {}
    mesh.change_to(all(false));
    mesh.learn_all();
    for _ in 0..3 {
        mesh.deliver_response(0);
        mesh.deliver_request(0);
    }
    mesh.change_to(all(true));
    mesh.settle();
}

#[test]
fn what_changes_and_changes_back_during_a_long_answer_is_told_again() {
    let mut mesh = Mesh::new(1);
    let pods: Vec<_> = (0..40).map(|n| pod("shop", &format!("pod-{n}")).build()).collect();
    let changed = |p: &Workload| pod("shop", &p.name).unhealthy().build();
    let change = |to: Workload| {
        let resource = Resource::Workload(Arc::new(to));
        (resource.key(), Some(resource))
    };
    let gone = |p: &Workload| (change(p.clone()).0, None);
    mesh.change_to(pods.iter().cloned().map(change));
    mesh.settle();
    mesh.break_stream(0);
    // The answer begins with something, so that it is not over at once.
    mesh.change_to([gone(&pods[0])]);
    mesh.learn_all();
    mesh.connect(0, 0);
    while mesh.deliver_request(0) {}
    // They go and come back as others before the server says that they are gone.
    mesh.change_to(pods.iter().map(gone));
    mesh.learn_all();
    mesh.change_to(pods.iter().map(changed).map(change));
    mesh.learn_all();
    for _ in 0..3 {
        mesh.deliver_response(0);
        mesh.deliver_request(0);
    }
    mesh.change_to(pods.iter().cloned().map(change));
    mesh.settle();
}

/// All that takes part.
struct Mesh {
    rng: StdRng,
    now: Instant,
    /// Every change that there has been, in order.
    log: Vec<(ResourceKey, Option<Resource>)>,
    truth: BTreeMap<ResourceKey, Resource>,
    /// Every state that a thing was ever in.
    history: BTreeMap<ResourceKey, Vec<Resource>>,
    replicas: Vec<Replica>,
    proxies: Vec<Proxy>,
    /// Resources in responses that arrived.
    carried: usize,
}

/// A server of the control plane.
struct Replica {
    snapshot: Arc<Snapshot>,
    /// How much of the log it has taken in.
    learnt: usize,
}

struct Proxy {
    session: client::Session,
    world: World,
    stream: Option<Stream>,
}

/// A stream: messages keep their order, and are lost together.
struct Stream {
    replica: usize,
    session: server::Session,
    requests: VecDeque<DeltaDiscoveryRequest>,
    responses: VecDeque<DeltaDiscoveryResponse>,
}

impl Mesh {
    fn new(seed: u64) -> Self {
        let proxy = |n: usize| {
            let node = client::NodeInfo {
                instance_ip: format!("192.168.0.{n}"),
                pod_name: format!("ztunnel-{n}"),
                namespace: "istio-system".into(),
                node_name: format!("node{n}"),
                cluster_id: testkit::fixtures::CLUSTER.into(),
                metadata: BTreeMap::new(),
            };
            let session = client::Session::new(node, Defaults::default());
            Proxy { session, world: World::default(), stream: None }
        };
        let replica = |_| Replica { snapshot: Arc::new(Snapshot::default()), learnt: 0 };
        Self {
            rng: StdRng::seed_from_u64(seed),
            now: tokio::time::Instant::now().into_std(),
            log: vec![],
            truth: BTreeMap::new(),
            history: BTreeMap::new(),
            replicas: (0..REPLICAS).map(replica).collect(),
            proxies: (0..PROXIES).map(proxy).collect(),
            carried: 0,
        }
    }

    /// Lets something happen.
    fn step(&mut self) {
        self.now += Duration::from_millis(self.rng.random_range(0..50));
        let proxy = self.rng.random_range(0..PROXIES);
        let replica = self.rng.random_range(0..REPLICAS);
        match self.rng.random_range(0..100) {
            0..20 => self.change_one(),
            20..45 => self.learn(replica),
            45..65 => drop(self.deliver_request(proxy)),
            65..85 => drop(self.deliver_response(proxy)),
            85..95 => self.connect(proxy, replica),
            95..99 => self.break_stream(proxy),
            _ => self.restart(replica),
        }
        self.check(proxy);
    }

    /// Changes what is true.
    fn change_one(&mut self) {
        let removes = self.rng.random_bool(0.3);
        let known: Vec<_> = self.truth.keys().cloned().collect();
        let change = match known.choose(&mut self.rng) {
            Some(key) if removes => (key.clone(), None),
            _ => {
                let resource = any_resource(&mut self.rng);
                (resource.key(), Some(resource))
            }
        };
        self.change_to([change]);
    }

    fn change_to(&mut self, changes: impl IntoIterator<Item = (ResourceKey, Option<Resource>)>) {
        for (key, resource) in changes {
            match &resource {
                Some(resource) => {
                    self.truth.insert(key.clone(), resource.clone());
                    self.history.entry(key.clone()).or_default().push(resource.clone());
                }
                None => drop(self.truth.remove(&key)),
            }
            self.log.push((key, resource));
        }
    }

    /// A replica hears of some of what it does not know yet.
    fn learn(&mut self, replica: usize) {
        let behind = self.log.len() - self.replicas[replica].learnt;
        let count = self.rng.random_range(0..=behind.min(4));
        self.learn_next(replica, count);
    }

    fn learn_all(&mut self) {
        for replica in 0..REPLICAS {
            self.learn_next(replica, self.log.len() - self.replicas[replica].learnt);
        }
    }

    fn learn_next(&mut self, replica: usize, count: usize) {
        let at = &mut self.replicas[replica];
        let changes = self.log[at.learnt..at.learnt + count].iter().map(|(key, resource)| match resource {
            Some(resource) => Change::Set(Entry::new(resource, &Defaults::default())),
            None => Change::Remove(key.type_url(), key.to_string().into()),
        });
        at.snapshot = Arc::new(at.snapshot.apply((at.learnt + count) as u64, changes));
        at.learnt += count;
        for stream in
            self.proxies.iter_mut().filter_map(|p| p.stream.as_mut()).filter(|s| s.replica == replica)
        {
            stream.session.handle_snapshot(self.now, at.snapshot.clone());
            stream.poll(self.now);
        }
    }

    /// A replica loses its memory of what it sent, and its streams; it reads its source anew.
    fn restart(&mut self, replica: usize) {
        for proxy in 0..PROXIES {
            if self.proxies[proxy].stream.as_ref().is_some_and(|s| s.replica == replica) {
                self.break_stream(proxy);
            }
        }
        let learnt = self.replicas[replica].learnt;
        self.replicas[replica] = Replica { snapshot: Arc::new(Snapshot::default()), learnt: 0 };
        self.learn_next(replica, learnt);
    }

    fn connect(&mut self, proxy: usize, replica: usize) {
        let proxy = &mut self.proxies[proxy];
        if proxy.stream.is_some() {
            return;
        }
        let peer = Peer { namespace: "istio-system".into(), service_account: "ztunnel".into(), node: None };
        // Small responses, so that answers come in parts and break off between them.
        let limits = Limits { response_bytes: 600, ..Limits::default() };
        let snapshot = self.replicas[replica].snapshot.clone();
        let session = server::Session::new(self.now, peer, Arc::new(Everything), limits, snapshot);
        let requests = proxy.session.connected(self.now).into();
        proxy.stream = Some(Stream { replica, session, requests, responses: VecDeque::new() });
    }

    fn break_stream(&mut self, proxy: usize) {
        let proxy = &mut self.proxies[proxy];
        if proxy.stream.take().is_some() {
            let wait = proxy.session.closed(self.now, "the link broke", &mut self.rng);
            assert!(wait <= Duration::from_secs(20), "{wait:?}");
        }
    }

    /// Whether there was one.
    fn deliver_request(&mut self, proxy: usize) -> bool {
        let Some(stream) = &mut self.proxies[proxy].stream else { return false };
        let Some(request) = stream.requests.pop_front() else { return false };
        stream.session.handle_request(self.now, request).expect("the client keeps to the protocol");
        stream.poll(self.now);
        true
    }

    /// Whether there was one. The acknowledgement may get lost with the stream.
    fn deliver_response(&mut self, proxy: usize) -> bool {
        let Proxy { session, world, stream } = &mut self.proxies[proxy];
        let Some(stream) = stream else { return false };
        let Some(response) = stream.responses.pop_front() else { return false };
        self.carried += response.resources.len() + response.removed_resources.len();
        let received = session.receive(self.now, response).expect("only what was asked for comes");
        assert!(received.refused.is_empty(), "{:?}", received.refused);
        *world = world.apply(received.updates).0;
        stream.requests.push_back(session.applied(self.now, received.ticket));
        true
    }

    /// What a proxy knows was true at some time, and no two things of it under one name.
    fn check(&self, proxy: usize) {
        for resource in known(&self.proxies[proxy].world) {
            let states = self.history.get(&resource.key());
            assert!(states.is_some_and(|s| s.contains(&resource)), "proxy {proxy} made up {resource:?}");
        }
    }

    /// Stops the faults and lets everything arrive; tells how many messages that took. Then all must know what is true.
    fn settle(&mut self) -> usize {
        self.learn_all();
        for proxy in 0..PROXIES {
            let replica = self.rng.random_range(0..REPLICAS);
            self.connect(proxy, replica);
        }
        let mut messages = 0;
        loop {
            let before = messages;
            for proxy in 0..PROXIES {
                messages += usize::from(self.deliver_request(proxy));
                messages += usize::from(self.deliver_response(proxy));
            }
            if messages == before {
                break;
            }
            assert!(messages < 10_000, "they never stop talking");
        }
        let truth: Vec<_> = self.truth.values().cloned().collect();
        for (number, proxy) in self.proxies.iter().enumerate() {
            let known = known(&proxy.world);
            let missing: Vec<_> = truth.iter().filter(|r| !known.contains(r)).collect();
            let stale: Vec<_> = known.iter().filter(|r| !truth.contains(r)).collect();
            assert!(
                missing.is_empty() && stale.is_empty(),
                "proxy {number} lacks {missing:#?} and keeps {stale:#?}"
            );
            assert!(proxy.session.state().ready, "proxy {number} has everything and is not ready");
            let stream = proxy.stream.as_ref().expect("connected");
            let status = stream.session.status();
            assert_eq!(status.acked_revision, self.log.len() as u64, "proxy {number}: {status:?}");
            assert!(status.pending.is_empty() && status.nacks.is_empty(), "proxy {number}: {status:?}");
        }
        messages
    }
}

impl Stream {
    /// Sends what the server has to say: of each type one response at a time.
    fn poll(&mut self, now: Instant) {
        while let Some((response, _)) = self.session.poll_response(now) {
            self.responses.push_back(response);
        }
        for type_url in TypeUrl::ALL {
            let under_way = self.responses.iter().filter(|r| r.type_url == type_url.as_str()).count();
            assert!(under_way <= 1, "{under_way} responses of {} are under way", type_url.as_str());
        }
    }
}

/// All that a proxy knows, by name.
fn known(world: &World) -> Vec<Resource> {
    let workloads = world.workloads().cloned().map(Resource::Workload);
    let services = world.services().cloned().map(Resource::Service);
    let policies = world.policies().cloned().map(Resource::Policy);
    let mut all: Vec<Resource> = workloads.chain(services).chain(policies).collect();
    all.sort_by_key(Resource::key);
    all
}

fn any_resource(rng: &mut StdRng) -> Resource {
    match rng.random_range(0..10) {
        0..6 => Resource::Workload(Arc::new(any_workload(rng))),
        6..8 => Resource::Service(Arc::new(any_service(rng))),
        _ => Resource::Policy(Arc::new(any_policy(rng))),
    }
}

fn any_workload(rng: &mut StdRng) -> Workload {
    let mut workload = pod("shop", &format!("pod-{}", rng.random_range(0..20)));
    // Few addresses, so that they are used again.
    workload = workload.ip(&format!("10.0.0.{}", rng.random_range(0..10)));
    for n in 0..4 {
        if rng.random_bool(0.3) {
            workload = workload.backs(&service("shop", &format!("svc-{n}")).build());
        }
    }
    if rng.random_bool(0.2) {
        workload = workload.selected_by("policy-0");
    }
    if rng.random_bool(0.3) { workload.unhealthy().build() } else { workload.build() }
}

fn any_service(rng: &mut StdRng) -> Service {
    let n = rng.random_range(0..4);
    let vip = format!("10.96.0.{}", rng.random_range(0..3));
    service("shop", &format!("svc-{n}")).vip(&vip).port(80, rng.random_range(8080..8083)).build()
}

fn any_policy(rng: &mut StdRng) -> Policy {
    let name = format!("policy-{}", rng.random_range(0..3));
    let policy = if rng.random_bool(0.5) { allow("shop", &name) } else { deny("shop", &name) };
    policy.from("shop", ["a", "b"].choose(rng).expect("one of two")).build()
}
