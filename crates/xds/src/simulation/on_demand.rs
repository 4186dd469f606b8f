//! A client that asks for single names.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ambit_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use index::Update;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::{Mutation, Truth, mutation, peer};
use crate::client::NodeInfo;
use crate::server::{Entry, Everything, Limits};
use crate::{Defaults, Resource, ResourceKey, TypeUrl, client, server};

#[derive(Clone, Debug)]
enum Event {
    Mutate(Vec<Mutation>),
    Tell,
    Subscribe(Vec<String>),
    Unsubscribe(Vec<String>),
    Ask,
    Deliver,
    Reconnect,
}

/// Names of all kinds out of the small universe, some of which stand for nothing.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        (0..14u8).prop_map(|n| format!("c//Pod/shop/w{n}")),
        (0..14u8).prop_map(|n| format!("/10.0.0.{n}")),
        (0..4u8).prop_map(|n| format!("shop/s{n}.shop")),
    ]
}

/// What cannot be read is no answer, and what a client keeps of it is the other simulation's matter.
fn readable() -> impl Strategy<Value = Mutation> {
    mutation().prop_filter("readable", |m| !matches!(m, Mutation::Garble { .. }))
}

fn event() -> impl Strategy<Value = Event> {
    let names = || proptest::collection::vec(name(), 1..4);
    prop_oneof![
        4 => proptest::collection::vec(readable(), 1..6).prop_map(Event::Mutate),
        4 => Just(Event::Tell),
        3 => names().prop_map(Event::Subscribe),
        1 => names().prop_map(Event::Unsubscribe),
        8 => Just(Event::Ask),
        8 => Just(Event::Deliver),
        1 => Just(Event::Reconnect),
    ]
}

struct Mesh {
    now: Instant,
    truth: Truth,
    server: server::Session,
    client: client::Session,
    asked: BTreeSet<Arc<str>>,
    /// Of what is asked for, what was answered since.
    answered: BTreeSet<Arc<str>>,
    /// What the client has put in force.
    held: BTreeMap<ResourceKey, Resource>,
    to_server: VecDeque<DeltaDiscoveryRequest>,
    response: Option<DeltaDiscoveryResponse>,
    rng: SmallRng,
}

impl Mesh {
    fn new() -> Self {
        let now = tokio::time::Instant::now().into_std();
        let truth = Truth::new();
        let node = NodeInfo { node_name: "node1".into(), ..NodeInfo::default() };
        let mut mesh = Self {
            now,
            server: session(now, &truth),
            truth,
            client: client::Session::new(node, Defaults::default()).on_demand(),
            asked: BTreeSet::new(),
            answered: BTreeSet::new(),
            held: BTreeMap::new(),
            to_server: VecDeque::new(),
            response: None,
            rng: SmallRng::seed_from_u64(1),
        };
        mesh.connect();
        mesh
    }

    fn connect(&mut self) {
        self.server = session(self.now, &self.truth);
        self.response = None;
        self.client.ask_for(self.asked.clone());
        let unwanted = self.client.forget_unwanted();
        self.apply(unwanted);
        self.to_server = self.client.connected(self.now).into();
    }

    fn happen(&mut self, event: Event) {
        self.now += Duration::from_millis(1);
        match event {
            Event::Mutate(mutations) => self.truth.mutate(&mutations),
            Event::Tell => self.server.handle_snapshot(self.now, self.truth.snapshot.clone()),
            Event::Subscribe(names) => self.ask(names.iter().map(|n| n.as_str().into()).collect(), vec![]),
            Event::Unsubscribe(names) => {
                let names: Vec<Arc<str>> = names.iter().map(|n| n.as_str().into()).collect();
                self.ask(vec![], names);
            }
            Event::Ask => {
                if let Some(request) = self.to_server.pop_front() {
                    self.server.handle_request(self.now, request).unwrap();
                }
            }
            Event::Deliver => self.deliver(),
            Event::Reconnect => {
                self.now += self.client.closed(self.now, "cut", &mut self.rng);
                self.connect();
            }
        }
        self.to_server.extend(self.client.next_request(self.now));
        if self.response.is_none() {
            self.response = self.server.poll_response(self.now).map(|(r, _)| r);
        }
    }

    fn ask(&mut self, added: Vec<Arc<str>>, dropped: Vec<Arc<str>>) {
        for name in &dropped {
            self.asked.remove(name);
            self.answered.remove(name);
        }
        self.asked.extend(added.iter().cloned());
        self.client.ask(added, dropped);
    }

    fn deliver(&mut self) {
        let Some(response) = self.response.take() else { return };
        let received = self.client.receive(self.now, response).unwrap();
        assert!(received.refused.is_empty(), "{:?}", received.refused);
        self.apply(received.updates);
        self.answered.extend(received.answered.into_iter().filter(|name| self.asked.contains(name)));
        self.to_server.push_back(self.client.applied(self.now, received.ticket));
    }

    fn apply(&mut self, updates: Vec<Update>) {
        for update in updates {
            match update {
                Update::Workload(w) => self.hold(Resource::Workload(w)),
                Update::Service(s) => self.hold(Resource::Service(s)),
                Update::Policy(p) => self.hold(Resource::Policy(p)),
                Update::RemoveWorkload(uid) => self.remove(&ResourceKey::Workload(uid)),
                Update::RemoveService(key) => self.remove(&ResourceKey::Service(key)),
                Update::RemovePolicy(key) => self.remove(&ResourceKey::Policy(key)),
                other => panic!("{other:?}"),
            }
        }
    }

    fn hold(&mut self, resource: Resource) {
        self.held.insert(resource.key(), resource);
    }

    fn remove(&mut self, key: &ResourceKey) {
        assert!(self.held.remove(key).is_some(), "{key} was removed without having been there");
    }

    fn settle(&mut self) {
        self.happen(Event::Tell);
        let mut messages = 0;
        while self.response.is_some() || !self.to_server.is_empty() {
            self.happen(Event::Ask);
            self.happen(Event::Deliver);
            messages += 1;
            assert!(messages < 300, "a storm of messages");
        }
    }

    /// What the names stand for, by the plain reading of the truth: name, address, and what is behind a service; and all
    /// policies.
    fn wanted(&self) -> BTreeSet<String> {
        let snapshot = &self.truth.snapshot;
        let addresses = self.asked.iter().flat_map(|name| snapshot.resolve(TypeUrl::Address, name));
        addresses.chain(snapshot.entries(TypeUrl::Authorization)).map(|e| e.name().to_owned()).collect()
    }

    fn check(&self) {
        let held: BTreeSet<String> = self.held.keys().map(ToString::to_string).collect();
        assert_eq!(held, self.wanted());
        for resource in self.held.values() {
            let snapshot = &self.truth.snapshot;
            let is = snapshot.get(resource.type_url(), &resource.key().to_string()).unwrap().version();
            assert_eq!(Entry::new(resource, &Defaults::default()).version(), is, "{}", resource.key());
        }
        assert_eq!(self.answered, self.asked, "what is asked for is answered");
    }
}

fn session(now: Instant, truth: &Truth) -> server::Session {
    let limits = Limits { response_bytes: 300, ..Limits::default() };
    server::Session::new(now, peer(), Arc::new(Everything), limits, truth.snapshot.clone())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_client_holds_what_its_names_stand_for(events in proptest::collection::vec(event(), 0..60)) {
        let mut mesh = Mesh::new();
        for event in events {
            mesh.happen(event);
        }
        mesh.settle();
        mesh.check();
        // And what is asked for again.
        let all: Vec<String> = mesh.asked.iter().map(ToString::to_string).collect();
        mesh.answered.clear();
        mesh.happen(Event::Subscribe(all));
        mesh.settle();
        mesh.check();
    }
}
