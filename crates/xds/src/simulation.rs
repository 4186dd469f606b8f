//! Client and server against each other, without a wire: whatever happens on the way, they agree in the end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ambit_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use index::Update;
use model::{Health, ServiceKey};
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::arbitrary::{plain_policy, plain_service, plain_workload};
use crate::client::{self, Connection, NodeInfo};
use crate::server::{self, Change, Entry, Everything, Limits, Peer, Snapshot};
use crate::{Defaults, Resource, ResourceKey, TypeUrl};

mod on_demand;

/// One change of the world, out of a small universe in which collisions are common.
#[derive(Clone, Debug)]
pub(crate) enum Mutation {
    Workload {
        which: u8,
        ip: u8,
        behind: u8,
        healthy: bool,
    },
    Service {
        which: u8,
        ip: u8,
    },
    Policy {
        which: u8,
        dry_run: bool,
    },
    Remove {
        key: u8,
    },
    /// The control plane sends something that cannot be read under that name.
    Garble {
        key: u8,
    },
}

pub(crate) fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        6 => (0..12u8, 0..8u8, 0..8u8, any::<bool>())
            .prop_map(|(which, ip, behind, healthy)| Mutation::Workload { which, ip, behind, healthy }),
        2 => (0..3u8, 8..12u8).prop_map(|(which, ip)| Mutation::Service { which, ip }),
        3 => (0..5u8, any::<bool>()).prop_map(|(which, dry_run)| Mutation::Policy { which, dry_run }),
        4 => (0..20u8).prop_map(|key| Mutation::Remove { key }),
        1 => (0..20u8).prop_map(|key| Mutation::Garble { key }),
    ]
}

fn ip(last: u8) -> IpAddr {
    [10, 0, 0, last].into()
}

/// The resources of the universe in some state: 12 workloads, 3 services, 5 policies.
fn blank(key: u8) -> Resource {
    match key {
        0..12 => plain_workload(&format!("c//Pod/shop/w{key}"), ip(0)).into(),
        12..15 => plain_service(&format!("s{}.shop", key - 12), ip(0)).into(),
        _ => plain_policy(&format!("p{}", key - 15)).into(),
    }
}

/// What the control plane holds to be true, and how it serves it.
pub(crate) struct Truth {
    pub(crate) resources: BTreeMap<ResourceKey, Resource>,
    pub(crate) garbled: BTreeSet<ResourceKey>,
    pub(crate) snapshot: Arc<Snapshot>,
    revision: u64,
}

impl Truth {
    pub(crate) fn new() -> Self {
        Self {
            resources: BTreeMap::new(),
            garbled: BTreeSet::new(),
            snapshot: Arc::new(Snapshot::default()),
            revision: 0,
        }
    }

    pub(crate) fn mutate(&mut self, mutations: &[Mutation]) {
        let changes: Vec<Change> = mutations.iter().map(|m| self.one(m)).collect();
        self.revision += 1;
        self.snapshot = Arc::new(self.snapshot.apply(self.revision, changes));
    }

    fn one(&mut self, mutation: &Mutation) -> Change {
        match *mutation {
            Mutation::Workload { which, ip: last, behind, healthy } => {
                let mut w = plain_workload(&format!("c//Pod/shop/w{which}"), ip(last));
                w.health = if healthy { Health::Healthy } else { Health::Unhealthy };
                for service in (0..3).filter(|s| behind & (1 << s) != 0) {
                    w.services.insert(ServiceKey::new("shop", format!("s{service}.shop")), vec![]);
                }
                self.set(w.into())
            }
            Mutation::Service { which, ip: last } => {
                self.set(plain_service(&format!("s{which}.shop"), ip(last)).into())
            }
            Mutation::Policy { which, dry_run } => {
                let policy = model::Policy { dry_run, ..plain_policy(&format!("p{which}")) };
                self.set(policy.into())
            }
            Mutation::Remove { key } => {
                let key = blank(key).key();
                self.resources.remove(&key);
                self.garbled.remove(&key);
                Change::Remove(key.type_url(), key.to_string().into())
            }
            Mutation::Garble { key } => {
                let blank = blank(key);
                self.resources.remove(&blank.key());
                self.garbled.insert(blank.key());
                Change::Set(Entry::garbled(&blank))
            }
        }
    }

    fn set(&mut self, resource: Resource) -> Change {
        self.garbled.remove(&resource.key());
        let entry = Entry::new(&resource, &Defaults::default());
        self.resources.insert(resource.key(), resource);
        Change::Set(entry)
    }

    /// Replaces all that cannot be read by something that can.
    fn heal(&mut self) {
        let keys = std::mem::take(&mut self.garbled);
        let changes: Vec<Change> = (0..20)
            .map(blank)
            .filter(|r| keys.contains(&r.key()))
            .map(|resource| self.set(resource))
            .collect();
        self.revision += 1;
        self.snapshot = Arc::new(self.snapshot.apply(self.revision, changes));
    }

    /// Another process with the same source.
    fn restart(&mut self) {
        let good = self.resources.values().map(|r| Change::Set(Entry::new(r, &Defaults::default())));
        let bad = (0..20).map(blank).filter(|r| self.garbled.contains(&r.key()));
        let bad = bad.map(|r| Change::Set(Entry::garbled(&r)));
        self.snapshot = Arc::new(Snapshot::default().apply(self.revision, good.chain(bad)));
    }
}

#[derive(Clone, Debug)]
enum Event {
    Mutate(Vec<Mutation>),
    /// The server's session hears of the latest state.
    Tell,
    /// One message of that type arrives; other types' are overtaken.
    ToServer(bool),
    ToClient(bool),
    Disconnect,
    RestartServer,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => proptest::collection::vec(mutation(), 1..6).prop_map(Event::Mutate),
        4 => Just(Event::Tell),
        8 => any::<bool>().prop_map(Event::ToServer),
        8 => any::<bool>().prop_map(Event::ToClient),
        1 => Just(Event::Disconnect),
        1 => Just(Event::RestartServer),
    ]
}

type Queues<T> = [VecDeque<T>; TypeUrl::COUNT];

struct Mesh {
    now: Instant,
    truth: Truth,
    limits: Limits,
    server: server::Session,
    client: client::Session,
    /// What the client has put in force.
    held: BTreeMap<ResourceKey, Resource>,
    to_server: Queues<DeltaDiscoveryRequest>,
    to_client: Queues<DeltaDiscoveryResponse>,
    /// Responses sent and not yet acknowledged, as an onlooker counts them.
    open: [usize; TypeUrl::COUNT],
    messages: usize,
    rng: SmallRng,
}

fn peer() -> Peer {
    Peer { namespace: "istio-system".into(), service_account: "ztunnel".into(), node: None }
}

impl Mesh {
    fn new(response_bytes: usize, resume_bytes: usize) -> Self {
        let now = tokio::time::Instant::now().into_std();
        let truth = Truth::new();
        let limits = Limits { response_bytes, ..Limits::default() };
        let server = server::Session::new(now, peer(), Arc::new(Everything), limits, truth.snapshot.clone());
        let node = NodeInfo { node_name: "node1".into(), ..NodeInfo::default() };
        let client = client::Session::new(node, Defaults::default()).with_resume_bytes(resume_bytes);
        let mut mesh = Self {
            now,
            truth,
            limits,
            server,
            client,
            held: BTreeMap::new(),
            to_server: Default::default(),
            to_client: Default::default(),
            open: [0; TypeUrl::COUNT],
            messages: 0,
            rng: SmallRng::seed_from_u64(1),
        };
        mesh.connect();
        mesh
    }

    fn connect(&mut self) {
        self.open = [0; TypeUrl::COUNT];
        self.to_server = Default::default();
        self.to_client = Default::default();
        let snapshot = self.truth.snapshot.clone();
        self.server = server::Session::new(self.now, peer(), Arc::new(Everything), self.limits, snapshot);
        for request in self.client.connected(self.now) {
            self.request(request);
        }
    }

    fn request(&mut self, request: DeltaDiscoveryRequest) {
        self.messages += 1;
        let type_url = TypeUrl::parse(&request.type_url).unwrap();
        self.to_server[type_url.index()].push_back(request);
    }

    fn happen(&mut self, event: Event) {
        self.now += Duration::from_millis(1);
        match event {
            Event::Mutate(mutations) => self.truth.mutate(&mutations),
            Event::Tell => self.server.handle_snapshot(self.now, self.truth.snapshot.clone()),
            Event::ToServer(which) => self.arrive_at_server(usize::from(which)),
            Event::ToClient(which) => self.arrive_at_client(usize::from(which)),
            Event::Disconnect => self.reconnect(),
            Event::RestartServer => {
                self.truth.restart();
                self.reconnect();
            }
        }
        self.pump();
    }

    fn reconnect(&mut self) {
        let wait = self.client.closed(self.now, "cut", &mut self.rng);
        assert!(wait <= Duration::from_secs(15));
        self.now += wait;
        self.connect();
    }

    fn arrive_at_server(&mut self, at: usize) {
        let Some(request) = self.to_server[at].pop_front() else { return };
        if self.server.handle_request(self.now, request).unwrap().is_some() {
            self.open[at] -= 1;
        }
    }

    fn arrive_at_client(&mut self, at: usize) {
        let Some(response) = self.to_client[at].pop_front() else { return };
        let received = self.client.receive(self.now, response).unwrap();
        for update in received.updates {
            match update {
                Update::Workload(w) => self.hold(Resource::Workload(w)),
                Update::Service(s) => self.hold(Resource::Service(s)),
                Update::Policy(p) => self.hold(Resource::Policy(p)),
                Update::RemoveWorkload(uid) => self.drop(&ResourceKey::Workload(uid)),
                Update::RemoveService(key) => self.drop(&ResourceKey::Service(key)),
                Update::RemovePolicy(key) => self.drop(&ResourceKey::Policy(key)),
                Update::RemoveAddress(name) => panic!("{name}"),
                Update::Narrowed(key) => panic!("{key}"),
            }
        }
        let request = self.client.applied(self.now, received.ticket);
        self.request(request);
    }

    fn hold(&mut self, resource: Resource) {
        self.held.insert(resource.key(), resource);
    }

    fn drop(&mut self, key: &ResourceKey) {
        assert!(self.held.remove(key).is_some(), "{key} was removed without having been there");
    }

    /// Sends what the server has to say, watching over its manners.
    fn pump(&mut self) {
        while let Some((response, _)) = self.server.poll_response(self.now) {
            let type_url = TypeUrl::parse(&response.type_url).unwrap();
            let at = type_url.index();
            self.messages += 1;
            self.open[at] += 1;
            assert_eq!(self.open[at], 1, "one response in flight a type");
            if type_url == TypeUrl::Address {
                assert_eq!(self.open[TypeUrl::Authorization.index()], 0, "policies before addresses");
            }
            assert!(
                response.resources.len() <= 1
                    || response.resources.iter().map(|r| r.len()).sum::<usize>()
                        <= self.limits.response_bytes
            );
            self.to_client[at].push_back(response);
        }
    }

    /// Delivers everything until nothing is under way any more.
    fn settle(&mut self) {
        self.happen(Event::Tell);
        // Each of the 20 resources could travel alone, once for the sweep and once for a change, with its
        // acknowledgement; then a first request, an empty answer and an acknowledgement for each type.
        let most = self.messages + 2 * 2 * 20 + 12;
        while self.to_server.iter().any(|q| !q.is_empty()) || self.to_client.iter().any(|q| !q.is_empty()) {
            for which in [false, true] {
                self.happen(Event::ToServer(which));
                self.happen(Event::ToClient(which));
            }
            assert!(self.messages <= most, "a storm of messages");
        }
    }

    fn readable(&self) -> BTreeMap<ResourceKey, Resource> {
        self.held
            .iter()
            .filter(|(k, _)| !self.truth.garbled.contains(k))
            .map(|(k, r)| (k.clone(), r.clone()))
            .collect()
    }

    fn check(&self) {
        assert_eq!(self.readable(), self.truth.resources);
        let status = self.server.status();
        let refused: BTreeSet<String> = status.nacks.iter().map(|n| n.resource.to_string()).collect();
        assert_eq!(refused, self.truth.garbled.iter().map(ToString::to_string).collect());
        assert_eq!(status.pending, []);
        let shown: BTreeSet<String> =
            self.client.state().types.values().flat_map(|t| t.refused.keys().cloned()).collect();
        assert_eq!(shown, refused);
        if refused.is_empty() {
            assert_eq!(status.acked_revision, self.truth.revision);
            assert!(self.client.state().ready);
        } else {
            assert!(status.acked_revision < self.truth.revision);
        }
    }
}

fn run(events: Vec<Event>, response_bytes: usize, resume_bytes: usize) {
    let mut mesh = Mesh::new(response_bytes, resume_bytes);
    for event in events {
        mesh.happen(event);
    }
    mesh.settle();
    mesh.check();
    mesh.truth.heal();
    mesh.settle();
    mesh.check();
    mesh.reconnect();
    mesh.settle();
    mesh.check();
    assert!(matches!(mesh.client.state().connection, Connection::Up { .. }));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn client_and_server_agree_in_the_end(
        events in proptest::collection::vec(event(), 0..60),
        response_bytes in prop_oneof![Just(1usize), Just(300), Just(1 << 20)],
        resume_bytes in prop_oneof![Just(0usize), Just(150), Just(1 << 20)],
    ) {
        run(events, response_bytes, resume_bytes);
    }
}

#[test]
fn a_reconnect_transfers_only_what_differs() {
    let mut mesh = Mesh::new(1 << 20, 1 << 20);
    let many: Vec<Mutation> =
        (0..12).map(|which| Mutation::Workload { which, ip: which, behind: 0, healthy: true }).collect();
    mesh.truth.mutate(&many);
    mesh.settle();
    mesh.truth.mutate(&[Mutation::Remove { key: 3 }, Mutation::Service { which: 1, ip: 9 }]);
    mesh.truth.restart();
    mesh.reconnect();
    for which in [0, 1] {
        mesh.arrive_at_server(which);
    }
    mesh.server.handle_snapshot(mesh.now, mesh.truth.snapshot.clone());
    mesh.pump();
    mesh.arrive_at_client(TypeUrl::Authorization.index());
    mesh.arrive_at_server(TypeUrl::Authorization.index());
    mesh.pump();
    let answer = mesh.to_client[TypeUrl::Address.index()].front().unwrap();
    assert_eq!((answer.resources.len(), answer.removed_resources.len()), (1, 1));
    mesh.settle();
    mesh.check();
}

#[test]
fn readiness_waits_for_the_last_part_of_the_first_answer_of_both_types() {
    let mut mesh = Mesh::new(1, 1 << 20);
    mesh.truth.mutate(&[
        Mutation::Policy { which: 0, dry_run: false },
        Mutation::Workload { which: 0, ip: 0, behind: 0, healthy: true },
        Mutation::Workload { which: 1, ip: 1, behind: 0, healthy: true },
    ]);
    mesh.happen(Event::Tell);
    let [authorization, address] = TypeUrl::ALL.map(TypeUrl::index);
    mesh.happen(Event::ToServer(authorization == 1));
    mesh.happen(Event::ToClient(authorization == 1));
    assert!(!mesh.client.state().ready, "one type is not enough");
    mesh.happen(Event::ToServer(authorization == 1));
    mesh.happen(Event::ToServer(address == 1));
    mesh.happen(Event::ToClient(address == 1));
    assert!(!mesh.client.state().ready, "a part is not enough");
    mesh.settle();
    assert!(mesh.client.state().ready);
}

#[test]
fn only_a_stream_that_stood_for_a_while_makes_the_next_wait_short() {
    let mut mesh = Mesh::new(1 << 20, 1 << 20);
    let mut wait = Duration::ZERO;
    for _ in 0..15 {
        mesh.settle();
        wait = mesh.client.closed(mesh.now, "cut", &mut mesh.rng);
        mesh.connect();
    }
    assert!(wait > Duration::from_secs(7), "{wait:?}");
    mesh.settle();
    mesh.now += Duration::from_secs(60);
    let wait = mesh.client.closed(mesh.now, "cut", &mut mesh.rng);
    assert!(wait <= Duration::from_millis(10), "{wait:?}");
}

#[test]
fn a_resource_that_cannot_be_read_leaves_its_last_good_state_in_force() {
    let mut mesh = Mesh::new(1 << 20, 1 << 20);
    mesh.truth.mutate(&[Mutation::Policy { which: 0, dry_run: true }]);
    mesh.settle();
    let good = mesh.held.clone();
    mesh.truth.mutate(&[Mutation::Garble { key: 15 }, Mutation::Policy { which: 1, dry_run: false }]);
    mesh.settle();
    let key = blank(15).key();
    assert_eq!(mesh.held.get(&key), good.get(&key));
    assert_eq!(mesh.held.len(), 2, "the good resources of the same push are in force");
    let report = mesh.client.state().report(mesh.now);
    let policies = report.types.iter().find(|t| t.type_url == TypeUrl::Authorization).unwrap();
    assert!(policies.refused["shop/p0"].contains("not a protobuf message"));
}

#[test]
fn what_did_not_fit_into_the_first_request_and_is_gone_is_dropped_at_the_answers_end() {
    let mut mesh = Mesh::new(1, 0);
    mesh.truth.mutate(&[
        Mutation::Workload { which: 0, ip: 0, behind: 0, healthy: true },
        Mutation::Workload { which: 1, ip: 1, behind: 0, healthy: true },
        Mutation::Workload { which: 2, ip: 2, behind: 0, healthy: true },
    ]);
    mesh.settle();
    mesh.truth.mutate(&[Mutation::Remove { key: 1 }]);
    mesh.reconnect();
    mesh.settle();
    mesh.check();
}
