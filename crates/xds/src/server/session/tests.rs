use ambit_proto::discovery::{Node, Resource as WireResource, Status as RpcStatus};
use model::{ServiceKey, Workload};
use prost::Message;
use prost_types::{Struct, Value, value::Kind};

use super::*;
use crate::arbitrary::{plain_policy, plain_service, plain_workload};
use crate::server::{Change, Everything};
use crate::{Defaults, Resource};

const ADDRESS: TypeUrl = TypeUrl::Address;
const AUTHORIZATION: TypeUrl = TypeUrl::Authorization;

struct Bench {
    session: Session,
    snapshot: Arc<Snapshot>,
    now: Instant,
}

type Got = (Vec<String>, Vec<String>);

impl Bench {
    fn new(resources: impl IntoIterator<Item = Resource>) -> Self {
        Self::with(resources, Limits::default(), Arc::new(Everything))
    }

    fn with(
        resources: impl IntoIterator<Item = Resource>,
        limits: Limits,
        visibility: Arc<dyn Visibility>,
    ) -> Self {
        let snapshot = Arc::new(Snapshot::default().apply(1, resources.into_iter().map(set)));
        let now = tokio::time::Instant::now().into_std();
        let peer = Peer { namespace: "istio-system".into(), service_account: "ztunnel".into(), node: None };
        let session = Session::new(now, peer, visibility, limits, snapshot.clone());
        Self { session, snapshot, now }
    }

    fn change(&mut self, revision: u64, changes: impl IntoIterator<Item = Change>) {
        self.snapshot = Arc::new(self.snapshot.apply(revision, changes));
        self.session.handle_snapshot(self.now, self.snapshot.clone());
    }

    fn ask(&mut self, request: DeltaDiscoveryRequest) -> Option<Acknowledged> {
        self.session.handle_request(self.now, request).unwrap()
    }

    fn poll(&mut self) -> Option<DeltaDiscoveryResponse> {
        self.session.poll_response(self.now).map(|(response, _)| response)
    }

    fn acked(&self) -> u64 {
        self.session.status().acked_revision
    }

    /// Names got and names removed by the next response, which is acknowledged.
    fn next(&mut self) -> Option<Got> {
        let response = self.poll()?;
        let got = (names(&response), response.removed_resources.clone());
        self.ask(ack(&response));
        Some(got)
    }
}

fn set(resource: impl Into<Resource>) -> Change {
    Change::Set(Entry::new(&resource.into(), &Defaults::default()))
}

fn unset(type_url: TypeUrl, name: &str) -> Change {
    Change::Remove(type_url, name.into())
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<String> {
    let mut names: Vec<String> =
        response.resources.iter().map(|b| WireResource::decode(b.clone()).unwrap().name).collect();
    names.sort();
    names
}

fn ask(type_url: TypeUrl) -> DeltaDiscoveryRequest {
    let node_name = Value { kind: Some(Kind::StringValue("node1".into())) };
    let metadata = Some(Struct { fields: [("NODE_NAME".to_owned(), node_name)].into() });
    DeltaDiscoveryRequest {
        node: Some(Node { id: "ztunnel~10.0.0.9~z.istio-system~x".into(), metadata, ..Node::default() }),
        type_url: type_url.as_str().into(),
        ..Default::default()
    }
}

fn subscribe(names: &[&str], unsubscribe: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
        resource_names_unsubscribe: unsubscribe.iter().map(ToString::to_string).collect(),
        ..ask(ADDRESS)
    }
}

fn ack(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        ..Default::default()
    }
}

fn nack(response: &DeltaDiscoveryResponse, message: &str) -> DeltaDiscoveryRequest {
    let error = RpcStatus { code: 3, message: message.into(), details: vec![] };
    DeltaDiscoveryRequest { error_detail: Some(error), ..ack(response) }
}

fn ip(last: u8) -> std::net::IpAddr {
    [10, 0, 0, last].into()
}

fn workload(uid: &str, last: u8) -> Workload {
    plain_workload(uid, ip(last))
}

fn behind(uid: &str, last: u8, hostname: &str) -> Workload {
    let mut w = workload(uid, last);
    w.services.insert(ServiceKey::new("shop", hostname), vec![]);
    w
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

#[test]
fn the_first_request_gets_everything_and_an_empty_world_an_empty_answer() {
    let mut full = Bench::new([workload("a", 1).into(), plain_policy("p").into()]);
    full.ask(ask(ADDRESS));
    full.ask(ask(AUTHORIZATION));
    assert_eq!(full.next().unwrap().0, ["shop/p"], "policies go first");
    assert_eq!(full.next().unwrap().0, ["a"]);
    assert_eq!(full.next(), None);

    let mut empty = Bench::new([]);
    empty.ask(ask(ADDRESS));
    assert_eq!(empty.next(), Some((vec![], vec![])));
    assert_eq!(empty.next(), None);
}

#[test]
fn nothing_is_said_of_a_type_that_was_not_asked_for() {
    let mut bench = Bench::new([workload("a", 1).into(), plain_policy("p").into()]);
    bench.ask(ask(ADDRESS));
    assert_eq!(bench.next().unwrap().0, ["a"]);
    bench.change(2, [set(plain_policy("q"))]);
    assert_eq!(bench.next(), None);
}

#[test]
fn a_client_that_comes_back_gets_only_the_difference() {
    let mut bench = Bench::new([workload("same", 1).into(), workload("changed", 2).into()]);
    let same = bench.snapshot.get(ADDRESS, "same").unwrap().version().to_owned();
    bench.ask(DeltaDiscoveryRequest {
        initial_resource_versions: [
            ("same".to_owned(), same),
            ("changed".to_owned(), "old".to_owned()),
            ("gone".to_owned(), "old".to_owned()),
        ]
        .into(),
        ..ask(ADDRESS)
    });
    assert_eq!(bench.next(), Some((strings(&["changed"]), strings(&["gone"]))));
    assert_eq!(bench.next(), None);
}

#[test]
fn versions_are_a_function_of_the_content() {
    let one = Snapshot::default().apply(1, [set(workload("a", 1)), set(workload("b", 2))]);
    let other = Snapshot::default().apply(9, [set(workload("b", 2)), set(workload("a", 1))]);
    let version = |s: &Snapshot, name: &str| s.get(ADDRESS, name).unwrap().version().to_owned();
    assert_eq!(version(&one, "a"), version(&other, "a"));
    assert_ne!(version(&one, "a"), version(&one, "b"));
}

#[test]
fn changes_merge_while_a_response_waits_for_its_acknowledgement() {
    let mut bench = Bench::new([workload("a", 1).into()]);
    bench.ask(ask(ADDRESS));
    let first = bench.poll().unwrap();
    bench.change(2, [set(workload("b", 2))]);
    bench.change(3, [set(workload("b", 3)), set(workload("c", 4))]);
    bench.change(4, [unset(ADDRESS, "c"), unset(ADDRESS, "a")]);
    assert_eq!(bench.poll(), None, "one response in flight");
    bench.ask(ack(&first));
    assert_eq!(bench.next(), Some((strings(&["b"]), strings(&["a", "c"]))));
    assert_eq!(bench.next(), None);
}

#[test]
fn a_change_that_is_undone_or_is_none_is_not_pushed() {
    let mut bench = Bench::new([workload("a", 1).into()]);
    bench.ask(ask(ADDRESS));
    bench.next().unwrap();
    bench.change(2, [set(workload("a", 1))]);
    assert_eq!(bench.next(), None);
    let there = Arc::new(bench.snapshot.apply(3, [set(workload("a", 9))]));
    bench.snapshot = Arc::new(there.apply(4, [set(workload("a", 1))]));
    bench.session.handle_snapshot(bench.now, bench.snapshot.clone());
    assert_eq!(bench.next(), None);
}

#[test]
fn a_stale_nonce_acknowledges_nothing() {
    let mut bench = Bench::new([workload("a", 1).into()]);
    bench.ask(ask(ADDRESS));
    let first = bench.poll().unwrap();
    bench.change(2, [set(workload("b", 2))]);
    assert_eq!(bench.ask(DeltaDiscoveryRequest { response_nonce: "other".into(), ..ack(&first) }), None);
    assert_eq!(bench.poll(), None);
    assert!(bench.ask(ack(&first)).is_some());
    assert!(bench.poll().is_some());
}

#[test]
fn a_refused_resource_is_shown_and_not_sent_again_until_it_changes() {
    let mut bench = Bench::new([workload("a", 1).into()]);
    bench.ask(ask(AUTHORIZATION));
    bench.next().unwrap();
    bench.ask(ask(ADDRESS));
    bench.next().unwrap();
    assert_eq!(bench.acked(), 1);

    bench.change(2, [set(workload("b", 2))]);
    let push = bench.poll().unwrap();
    let acknowledged = bench.ask(nack(&push, "no thanks")).unwrap();
    assert_eq!(acknowledged.refused.len(), 1);
    assert_eq!(bench.poll(), None);
    let status = bench.session.status();
    assert_eq!((&*status.nacks[0].resource, &*status.nacks[0].message), ("b", "no thanks"));
    assert_eq!(status.acked_revision, 1);

    bench.change(3, [set(workload("c", 3))]);
    assert_eq!(bench.next().unwrap().0, ["c"]);
    assert_eq!(bench.acked(), 1, "what was refused is still not in force");

    bench.change(4, [set(workload("b", 4))]);
    assert_eq!(bench.next().unwrap().0, ["b"]);
    assert_eq!(bench.session.status().nacks, []);
    assert_eq!(bench.acked(), 4);
}

#[test]
fn a_refusal_that_names_resources_is_about_those() {
    use ambit_proto::discovery::{BadRequest, bad_request::FieldViolation};
    let mut bench = Bench::new([workload("a", 1).into(), workload("b", 2).into()]);
    bench.ask(ask(ADDRESS));
    let push = bench.poll().unwrap();
    let violation = |name: &str| FieldViolation { field: name.into(), description: "bad".into() };
    let details = BadRequest { field_violations: vec![violation("b"), violation("never sent")] };
    let mut request = nack(&push, "two");
    request.error_detail.as_mut().unwrap().details = vec![prost_types::Any {
        type_url: "type.googleapis.com/google.rpc.BadRequest".into(),
        value: details.encode_to_vec(),
    }];
    let refused = bench.ask(request).unwrap().refused;
    assert_eq!(refused.iter().map(|n| &*n.resource).collect::<Vec<_>>(), ["b"]);
}

#[test]
fn a_revision_counts_when_all_that_it_caused_is_acknowledged() {
    let mut bench = Bench::new([workload("a", 1).into(), plain_policy("p").into()]);
    assert_eq!(bench.acked(), 0);
    bench.ask(ask(AUTHORIZATION));
    bench.next().unwrap();
    assert_eq!(bench.acked(), 0, "addresses were not asked for yet");
    bench.ask(ask(ADDRESS));
    let first = bench.poll().unwrap();
    assert_eq!(bench.acked(), 0);
    bench.ask(ack(&first));
    assert_eq!(bench.acked(), 1);

    bench.change(2, []);
    assert_eq!(bench.acked(), 2, "a revision that changes nothing counts at once");

    bench.change(3, [set(workload("b", 2))]);
    bench.change(4, []);
    assert_eq!(bench.acked(), 2);
    let push = bench.poll().unwrap();
    bench.change(5, [set(plain_policy("q"))]);
    assert_eq!(bench.session.status().pending, [AUTHORIZATION, ADDRESS]);
    bench.ask(ack(&push));
    assert_eq!(bench.acked(), 4);
    bench.next().unwrap();
    assert_eq!(bench.acked(), 5);
    assert_eq!(bench.session.status().pending, []);
}

#[test]
fn a_changed_policy_reaches_the_client_before_the_workload_that_it_selects() {
    let mut bench = Bench::new([]);
    bench.ask(ask(AUTHORIZATION));
    bench.next().unwrap();
    bench.ask(ask(ADDRESS));
    bench.next().unwrap();
    bench.change(2, [set(workload("a", 1)), set(plain_policy("p"))]);
    let policies = bench.poll().unwrap();
    assert_eq!(names(&policies), ["shop/p"]);
    assert_eq!(bench.poll(), None, "addresses wait for the policies' acknowledgement");
    bench.ask(ack(&policies));
    assert_eq!(bench.next().unwrap().0, ["a"]);
}

#[test]
fn a_large_answer_comes_in_parts_that_say_so() {
    let limits = Limits { response_bytes: 300, ..Limits::default() };
    let all = (0..20).map(|n| workload(&format!("w{n:02}"), n).into());
    let mut bench = Bench::with(all, limits, Arc::new(Everything));
    bench.ask(ask(ADDRESS));
    let mut seen = Vec::new();
    let mut parts = 0;
    while let Some(part) = bench.poll() {
        assert!(part.encoded_len() < 500, "{}", part.encoded_len());
        seen.extend(names(&part));
        parts += 1;
        assert_eq!(part.more_follows, seen.len() < 20);
        bench.ask(ack(&part));
    }
    assert!(parts > 5);
    seen.sort();
    assert_eq!(seen, (0..20).map(|n| format!("w{n:02}")).collect::<Vec<_>>());
}

#[test]
fn a_single_resource_beyond_the_limit_still_goes_out() {
    let limits = Limits { response_bytes: 1, ..Limits::default() };
    let mut bench = Bench::with([workload("a", 1).into()], limits, Arc::new(Everything));
    bench.ask(ask(ADDRESS));
    assert_eq!(bench.next().unwrap().0, ["a"]);
}

fn shop() -> [Resource; 4] {
    [
        plain_service("web.shop", ip(100)).into(),
        behind("w1", 1, "web.shop").into(),
        behind("w2", 2, "web.shop").into(),
        workload("other", 3).into(),
    ]
}

fn on_demand(resources: impl IntoIterator<Item = Resource>) -> Bench {
    let mut bench = Bench::new(resources);
    bench.ask(subscribe(&["*"], &["*"]));
    assert_eq!(
        bench.next(),
        Some((vec![], vec![])),
        "the first request is answered though nothing is asked for"
    );
    bench
}

#[test]
fn on_demand_each_name_gets_an_answer_or_a_removal() {
    for (name, got) in [
        ("w1", &["w1"][..]),
        ("/10.0.0.1", &["w1"]),
        ("shop/web.shop", &["shop/web.shop", "w1", "w2"]),
        ("/10.0.0.100", &["shop/web.shop", "w1", "w2"]),
    ] {
        let mut bench = on_demand(shop());
        bench.ask(subscribe(&[name], &[]));
        assert_eq!(bench.next(), Some((strings(got), vec![])), "{name}");
        assert_eq!(bench.next(), None);
    }
    for name in ["w9", "/10.0.0.9", "shop/none", "rubbish"] {
        let mut bench = on_demand(shop());
        bench.ask(subscribe(&[name], &[]));
        assert_eq!(bench.next(), Some((vec![], strings(&[name]))), "{name}");
        assert_eq!(bench.next(), None);
    }
}

#[test]
fn on_demand_what_was_absent_is_sent_when_it_comes() {
    let mut bench = on_demand(shop());
    bench.ask(subscribe(&["/10.0.0.50"], &[]));
    assert_eq!(bench.next(), Some((vec![], strings(&["/10.0.0.50"]))));
    bench.change(2, [set(workload("new", 50)), set(workload("unrelated", 51))]);
    assert_eq!(bench.next(), Some((strings(&["new"]), vec![])));
    bench.change(3, [set(workload("new", 52))]);
    assert_eq!(bench.next(), Some((vec![], strings(&["new"]))), "it is not at that address any more");
}

#[test]
fn on_demand_a_service_brings_its_endpoints_as_they_come_and_go() {
    let mut bench = on_demand(shop());
    bench.ask(subscribe(&["/10.0.0.100"], &[]));
    bench.next().unwrap();
    bench.change(2, [set(behind("w3", 4, "web.shop")), set(workload("w1", 1)), set(workload("other", 5))]);
    assert_eq!(bench.next(), Some((strings(&["w3"]), strings(&["w1"]))));
    bench.change(3, [set(plain_service("web.shop", ip(101)))]);
    assert_eq!(bench.next(), Some((vec![], strings(&["shop/web.shop", "w2", "w3"]))));
    bench.change(4, [set(plain_service("web.shop", ip(100)))]);
    assert_eq!(bench.next(), Some((strings(&["shop/web.shop", "w2", "w3"]), vec![])));
}

#[test]
fn on_demand_what_is_unsubscribed_is_not_spoken_of_again() {
    let mut bench = on_demand(shop());
    bench.ask(subscribe(&["w1", "other"], &[]));
    bench.next().unwrap();
    bench.ask(subscribe(&[], &["w1"]));
    bench.change(2, [set(workload("w1", 7)), set(workload("other", 8))]);
    assert_eq!(bench.next(), Some((strings(&["other"]), vec![])));
}

#[test]
fn on_demand_what_is_asked_for_again_is_answered_again() {
    let mut bench = on_demand(shop());
    for _ in 0..2 {
        bench.ask(subscribe(&["w1"], &[]));
        assert_eq!(bench.next(), Some((strings(&["w1"]), vec![])));
    }
}

#[test]
fn on_demand_a_client_that_comes_back_gets_only_the_difference() {
    let mut bench = Bench::new(shop());
    let version = bench.snapshot.get(ADDRESS, "w1").unwrap().version().to_owned();
    bench.ask(DeltaDiscoveryRequest {
        initial_resource_versions: [("w1".to_owned(), version), ("left".to_owned(), "1".to_owned())].into(),
        ..subscribe(&["w1", "/10.0.0.3", "/10.0.0.9"], &[])
    });
    assert_eq!(bench.next(), Some((strings(&["other"]), strings(&["left", "/10.0.0.9"]))));
}

#[test]
fn the_wildcard_can_be_taken_up_and_laid_down() {
    let mut bench = on_demand(shop());
    bench.ask(subscribe(&["*"], &[]));
    assert_eq!(bench.next().unwrap().0.len(), 4);
    bench.ask(subscribe(&["w1"], &["*"]));
    bench.next().unwrap();
    bench.change(2, [set(workload("other", 8)), set(workload("w1", 9))]);
    assert_eq!(bench.next(), Some((strings(&["w1"]), vec![])));
}

#[test]
fn what_is_given_up_before_it_was_sent_is_owed_no_more() {
    let mut bench = on_demand([workload("w1", 1).into()]);
    bench.ask(ask(AUTHORIZATION));
    bench.next().unwrap();
    bench.ask(subscribe(&["w1"], &[]));
    let sent = bench.poll().unwrap();
    bench.ask(subscribe(&["nobody"], &[]));
    bench.ask(subscribe(&[], &["nobody"]));
    bench.ask(ack(&sent));
    bench.change(2, []);
    assert_eq!(bench.poll(), None);
    assert_eq!(bench.acked(), 2);
}

#[test]
fn what_is_refused_and_given_up_holds_up_nothing() {
    let mut bench = on_demand([workload("w1", 1).into(), workload("w2", 2).into()]);
    bench.ask(ask(AUTHORIZATION));
    bench.next().unwrap();
    bench.ask(subscribe(&["w1"], &[]));
    let sent = bench.poll().unwrap();
    bench.ask(nack(&sent, "no"));
    bench.change(2, []);
    assert_eq!(bench.acked(), 1);
    bench.ask(subscribe(&[], &["w1"]));
    assert_eq!(bench.session.status().nacks, []);
    assert_eq!(bench.acked(), 2);

    bench.ask(subscribe(&["w2"], &[]));
    let sent = bench.poll().unwrap();
    bench.ask(subscribe(&[], &["w2"]));
    bench.change(3, []);
    bench.ask(nack(&sent, "given up before it was refused"));
    assert_eq!(bench.acked(), 3);
}

#[test]
fn what_goes_before_a_wildcard_has_come_to_it_is_removed_where_the_client_had_it() {
    let limits = Limits { response_bytes: 1, ..Limits::default() };
    let mut bench = Bench::with(shop(), limits, Arc::new(Everything));
    bench.ask(subscribe(&["w1", "w2", "other"], &[]));
    while bench.next().is_some() {}
    bench.ask(subscribe(&["*"], &[]));
    let first = bench.poll().unwrap();
    bench.change(2, [unset(ADDRESS, "w1"), unset(ADDRESS, "w2"), unset(ADDRESS, "other")]);
    bench.ask(ack(&first));
    let mut removed: Vec<String> =
        std::iter::from_fn(|| bench.next()).flat_map(|(_, removed)| removed).collect();
    removed.sort();
    assert_eq!(removed, ["other", "w1", "w2"]);
}

#[test]
fn what_a_peer_may_not_see_does_not_exist_for_it() {
    struct NotOther;
    impl Visibility for NotOther {
        fn sees(&self, _: &Peer, _: TypeUrl, entry: &Entry) -> bool {
            entry.name() != "other"
        }
    }
    let mut bench = Bench::with(shop(), Limits::default(), Arc::new(NotOther));
    bench.ask(ask(ADDRESS));
    assert_eq!(bench.next().unwrap().0, ["shop/web.shop", "w1", "w2"]);
    bench.change(2, [set(workload("other", 9))]);
    assert_eq!(bench.next(), None);

    let mut bench = Bench::with(shop(), Limits::default(), Arc::new(NotOther));
    bench.ask(subscribe(&["other"], &[]));
    assert_eq!(bench.next(), Some((vec![], strings(&["other"]))));
}

#[test]
fn a_session_that_is_far_behind_compares_states() {
    let mut bench = Bench::new(shop());
    bench.ask(ask(ADDRESS));
    bench.next().unwrap();
    let mut snapshot = bench.snapshot.apply(2, [unset(ADDRESS, "w1"), set(workload("fresh", 77))]);
    for revision in 3..200 {
        snapshot = snapshot.apply(revision, [set(workload("w2", revision as u8))]);
    }
    bench.session.handle_snapshot(bench.now, Arc::new(snapshot));
    assert_eq!(bench.next(), Some((strings(&["fresh", "w2"]), strings(&["w1"]))));
}

#[test]
fn a_stream_must_say_who_it_is() {
    let mut bench = Bench::new([]);
    let nameless = DeltaDiscoveryRequest { node: None, ..ask(ADDRESS) };
    assert_eq!(bench.session.handle_request(bench.now, nameless), Err(ProtocolError::NoNode));
    bench.ask(ask(ADDRESS));
    assert_eq!(&*bench.session.status().node.node, "node1");
}

#[test]
fn a_type_of_the_future_is_passed_over() {
    let mut bench = Bench::new([]);
    bench.ask(DeltaDiscoveryRequest { type_url: "type.googleapis.com/future.Thing".into(), ..ask(ADDRESS) });
    assert_eq!(bench.poll(), None);
}

#[test]
fn names_are_not_subscribed_without_bound() {
    let limits = Limits { names: 2, ..Limits::default() };
    let mut bench = Bench::with([], limits, Arc::new(Everything));
    bench.ask(subscribe(&["a", "b"], &[]));
    let error = bench.session.handle_request(bench.now, subscribe(&["c"], &[])).unwrap_err();
    assert_eq!(error, ProtocolError::TooManyNames { limit: 2 });
}

#[test]
fn a_client_that_does_not_acknowledge_is_given_up() {
    let mut bench = Bench::new([]);
    let patience = Limits::default().patience;
    assert_eq!(bench.session.deadline(), Some(bench.now + patience), "no request yet");
    bench.ask(ask(ADDRESS));
    assert_eq!(bench.session.deadline(), None);
    let response = bench.poll().unwrap();
    assert_eq!(bench.session.handle_timeout(bench.now), Ok(()));
    assert!(bench.session.handle_timeout(bench.now + patience).is_err());
    bench.ask(ack(&response));
    assert_eq!(bench.session.handle_timeout(bench.now + patience), Ok(()));
}
