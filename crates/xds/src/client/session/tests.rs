use ambit_proto::discovery::Resource as WireResource;
use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::*;
use crate::arbitrary::{plain_policy, plain_service, plain_workload};
use crate::{Resource, encode};

fn ip() -> std::net::IpAddr {
    [10, 0, 0, 1].into()
}

fn wire(resource: &Resource, version: &str) -> Bytes {
    let any = Any {
        type_url: resource.type_url().as_str().into(),
        value: encode::content(resource, &Defaults::default()).into(),
    };
    let name = resource.key().to_string();
    WireResource { name, version: version.into(), resource: Some(any), aliases: vec![] }
        .encode_to_vec()
        .into()
}

fn response(type_url: TypeUrl, resources: Vec<Bytes>) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: type_url.as_str().into(),
        nonce: "n".into(),
        resources,
        ..Default::default()
    }
}

fn connected() -> (Session, Instant) {
    let now = tokio::time::Instant::now().into_std();
    let node = NodeInfo { node_name: "node1".into(), ..NodeInfo::default() };
    let mut session = Session::new(node, Defaults::default());
    session.connected(now);
    (session, now)
}

fn exchange(
    session: &mut Session,
    now: Instant,
    response: DeltaDiscoveryResponse,
) -> (Vec<Update>, DeltaDiscoveryRequest) {
    let received = session.receive(now, response).unwrap();
    let request = session.applied(now, received.ticket);
    (received.updates, request)
}

#[test]
fn the_first_requests_are_wildcards_that_say_who_asks_policies_first() {
    let now = tokio::time::Instant::now().into_std();
    let mut session = Session::new(NodeInfo::default(), Defaults::default());
    let requests = session.connected(now);
    let types: Vec<&str> = requests.iter().map(|r| r.type_url.as_str()).collect();
    assert_eq!(types, TypeUrl::ALL.map(TypeUrl::as_str));
    for request in requests {
        assert!(request.node.unwrap().id.starts_with("ztunnel~"));
        assert!(request.resource_names_subscribe.is_empty() && request.initial_resource_versions.is_empty());
    }
}

#[test]
fn the_next_stream_names_what_is_known() {
    let (mut session, now) = connected();
    let policy = Resource::from(plain_policy("p"));
    exchange(&mut session, now, response(TypeUrl::Authorization, vec![wire(&policy, "7")]));
    session.closed(now, "cut", &mut SmallRng::seed_from_u64(1));
    let requests = session.connected(now);
    assert_eq!(requests[0].initial_resource_versions, [("shop/p".to_owned(), "7".to_owned())].into());
    assert!(requests[1].initial_resource_versions.is_empty());
}

#[test]
fn a_response_of_a_type_that_was_not_asked_for_is_passed_over() {
    let (mut session, now) = connected();
    let other = DeltaDiscoveryResponse { type_url: "type.googleapis.com/x".into(), ..Default::default() };
    assert!(session.receive(now, other).is_none());
}

#[test]
fn of_duplicates_the_last_is_in_force_and_is_what_is_resumed_with() {
    let (mut session, now) = connected();
    let first = Resource::from(plain_policy("p"));
    let last = Resource::from(model::Policy { dry_run: true, ..plain_policy("p") });
    let both = response(TypeUrl::Authorization, vec![wire(&first, "1"), wire(&last, "2")]);
    let (updates, _) = exchange(&mut session, now, both);
    assert_eq!(updates.last(), Some(&last.into()));
    let requests = session.connected(now);
    assert_eq!(requests[0].initial_resource_versions["shop/p"], "2");
}

#[test]
fn a_name_that_is_removed_and_set_at_once_is_set() {
    let (mut session, now) = connected();
    let policy = Resource::from(plain_policy("p"));
    exchange(&mut session, now, response(TypeUrl::Authorization, vec![wire(&policy, "1")]));
    let mut both = response(TypeUrl::Authorization, vec![wire(&policy, "2")]);
    both.removed_resources = vec!["shop/p".into(), "shop/never-known".into()];
    let (updates, _) = exchange(&mut session, now, both);
    assert_eq!(updates, [policy.key().into(), policy.into()]);
}

#[test]
fn a_name_that_passes_from_a_workload_to_a_service_leaves_no_workload_behind() {
    let (mut session, now) = connected();
    let workload = Resource::from(plain_workload("shop/web", ip()));
    let service = Resource::from(plain_service("web", ip()));
    assert_eq!(workload.key().to_string(), service.key().to_string());
    exchange(&mut session, now, response(TypeUrl::Address, vec![wire(&workload, "1")]));
    let (updates, _) = exchange(&mut session, now, response(TypeUrl::Address, vec![wire(&service, "2")]));
    assert_eq!(updates, [workload.key().into(), service.clone().into()]);
    let mut gone = response(TypeUrl::Address, vec![]);
    gone.removed_resources = vec!["shop/web".into()];
    let (updates, _) = exchange(&mut session, now, gone);
    assert_eq!(updates, [service.key().into()]);
}

#[test]
fn a_refusal_names_the_bad_resources_and_keeps_the_good_ones() {
    let (mut session, now) = connected();
    let good = Resource::from(plain_policy("good"));
    let bad = WireResource { name: "shop/bad".into(), ..Default::default() }.encode_to_vec().into();
    let both = response(TypeUrl::Authorization, vec![bad, wire(&good, "1")]);
    let (updates, request) = exchange(&mut session, now, both);
    assert_eq!(updates, [good.into()]);
    let error = request.error_detail.unwrap();
    assert_eq!((error.code, error.message.as_str()), (3, "shop/bad: `resource` is missing"));
    let details = BadRequest::decode(&*error.details[0].value).unwrap();
    assert_eq!(details.field_violations[0].field, "shop/bad");
    assert_eq!(request.response_nonce, "n");
}

#[test]
fn a_refusal_of_what_has_not_even_a_name_is_about_the_whole_response() {
    let (mut session, now) = connected();
    let rubbish = response(TypeUrl::Authorization, vec![Bytes::from_static(&[0xff])]);
    let (_, request) = exchange(&mut session, now, rubbish);
    assert!(request.error_detail.unwrap().details.is_empty());
}

#[test]
fn a_refusal_stays_small() {
    let (mut session, now) = connected();
    let bad =
        |n: usize| WireResource { name: format!("shop/{n}"), ..Default::default() }.encode_to_vec().into();
    let (_, request) =
        exchange(&mut session, now, response(TypeUrl::Authorization, (0..20_000).map(bad).collect()));
    assert!(request.encoded_len() < 1 << 20);
    assert!(request.error_detail.unwrap().message.ends_with("; and 19980 more"));
}

#[test]
fn what_was_refused_is_asked_for_again_on_the_next_stream() {
    let (mut session, now) = connected();
    let good = Resource::from(plain_policy("p"));
    exchange(&mut session, now, response(TypeUrl::Authorization, vec![wire(&good, "1")]));
    let bad = WireResource { name: "shop/p".into(), version: "2".into(), ..Default::default() };
    exchange(&mut session, now, response(TypeUrl::Authorization, vec![bad.encode_to_vec().into()]));
    assert_eq!(session.connected(now)[0].initial_resource_versions["shop/p"], "1");
}

#[test]
fn a_server_that_answers_nothing_is_given_up() {
    let (mut session, now) = connected();
    assert_eq!(session.deadline(), Some(now + ANSWER));
    exchange(&mut session, now, response(TypeUrl::Authorization, vec![]));
    assert!(session.deadline().is_some());
    exchange(&mut session, now, response(TypeUrl::Address, vec![]));
    assert_eq!(session.deadline(), None);
    session.closed(now, "cut", &mut SmallRng::seed_from_u64(1));
    assert_eq!(session.deadline(), None);
}

#[test]
fn staleness_shows_its_age() {
    let (mut session, now) = connected();
    exchange(&mut session, now, response(TypeUrl::Authorization, vec![]));
    let later = now + Duration::from_secs(5);
    session.closed(later, "cut", &mut SmallRng::seed_from_u64(1));
    session.closed(later + Duration::from_secs(1), "no route", &mut SmallRng::seed_from_u64(1));
    let report = session.state().report(later + Duration::from_secs(7));
    assert!(!report.connected);
    assert_eq!((report.for_seconds, report.reason.as_deref()), (Some(7.0), Some("no route")));
    assert_eq!(report.types[0].last_ack_seconds, Some(12.0));
}

#[test]
fn nothing_is_asked_for_before_the_server_has_heard_of_what_was_given_up() {
    let now = tokio::time::Instant::now().into_std();
    let mut session = Session::new(NodeInfo::default(), Defaults::default()).on_demand();
    let names = |names: &[&str]| names.iter().map(|n| Arc::from(*n)).collect::<Vec<Arc<str>>>();
    let old = Resource::from(plain_workload("c//Pod/shop/old", ip()));
    session.ask_for(names(&["c//Pod/shop/old"]).into_iter().collect());
    session.connected(now);
    exchange(&mut session, now, response(TypeUrl::Authorization, vec![]));
    exchange(&mut session, now, response(TypeUrl::Address, vec![wire(&old, "1")]));

    session.ask(names(&["shop/new.shop"]), names(&["c//Pod/shop/old"]));
    let given_up = session.next_request(now).unwrap();
    assert_eq!(given_up.resource_names_unsubscribe, ["c//Pod/shop/old"]);
    let [mark] = &given_up.resource_names_subscribe[..] else { panic!("{given_up:?}") };
    assert_eq!(session.next_request(now), None);
    assert_eq!(session.deadline(), Some(now + ANSWER), "a server that never says so is given up");

    // Said before the server has heard of it.
    let (updates, _) = exchange(&mut session, now, response(TypeUrl::Address, vec![wire(&old, "2")]));
    assert_eq!(updates.len(), 1);
    assert_eq!(session.next_request(now), None);

    let heard = DeltaDiscoveryResponse {
        removed_resources: vec![mark.clone()],
        ..response(TypeUrl::Address, vec![])
    };
    let received = session.receive(now, heard).unwrap();
    assert_eq!(received.updates.len(), 1, "only now nobody counts on it");
    assert!(matches!(received.updates[0], Update::RemoveWorkload(_)));
    assert!(received.answered.is_empty());
    session.applied(now, received.ticket);
    let next = session.next_request(now).unwrap();
    assert_eq!(next.resource_names_subscribe, ["shop/new.shop"]);
    assert_eq!(next.resource_names_unsubscribe, std::slice::from_ref(mark));
    assert_eq!((session.next_request(now), session.deadline()), (None, None));
}
