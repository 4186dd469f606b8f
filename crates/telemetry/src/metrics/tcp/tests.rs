use std::collections::BTreeMap;

use model::{Health, Locality, NetworkId, NetworkMode, TrustDomain, TunnelProtocol, Uid, WorkloadKind};

use super::super::Exposition;
use super::*;

fn workload(pod: &str, revision: &str) -> Arc<Workload> {
    Arc::new(Workload {
        uid: Uid::new(format!("Kubernetes//Pod/shop/{pod}")),
        name: pod.into(),
        namespace: "shop".into(),
        addresses: vec![],
        hostname: None,
        network: NetworkId::default(),
        tunnel: TunnelProtocol::Hbone,
        trust_domain: TrustDomain::default(),
        service_account: "frontend".into(),
        waypoint: None,
        network_gateway: None,
        node: "node1".into(),
        canonical_name: "frontend".into(),
        canonical_revision: revision.into(),
        kind: WorkloadKind::Deployment,
        workload_name: "frontend".into(),
        native_tunnel: false,
        application_tunnel: None,
        services: BTreeMap::new(),
        authorization_policies: vec![],
        health: Health::Healthy,
        cluster_id: "Kubernetes".into(),
        locality: Locality::default(),
        network_mode: NetworkMode::Standard,
        capacity: 1,
    })
}

fn from<'a>(source: &'a Arc<Workload>) -> Connection<'a> {
    Connection {
        reporter: Reporter::Source,
        source: Peer { workload: Some(source), identity: None },
        destination: Peer::default(),
        service: None,
        security: Security::MutualTls,
    }
}

fn metrics() -> (TcpMetrics, Exposition) {
    let mut registry = Registry::default();
    (TcpMetrics::register(&mut registry), Exposition::new(registry))
}

#[test]
fn what_is_not_known_is_labelled_unknown() {
    let (metrics, exposition) = metrics();
    let source = workload("frontend-0", "");
    let identity: SpiffeId = "spiffe://cluster.local/ns/shop/sa/frontend".parse().unwrap();
    let mut connection = from(&source);
    connection.source.identity = Some(&identity);
    metrics.series(&connection).opened();
    let body = exposition.render(None).body;
    let line = body.lines().find(|l| l.starts_with("istio_tcp_connections_opened_total{")).unwrap();
    assert_eq!(
        line,
        "istio_tcp_connections_opened_total{reporter=\"source\",\
         source_workload=\"frontend\",source_workload_namespace=\"shop\",source_canonical_service=\"frontend\",\
         source_canonical_revision=\"unknown\",source_principal=\"spiffe://cluster.local/ns/shop/sa/frontend\",\
         source_app=\"frontend\",source_version=\"unknown\",source_cluster=\"Kubernetes\",\
         destination_workload=\"unknown\",destination_workload_namespace=\"unknown\",\
         destination_canonical_service=\"unknown\",destination_canonical_revision=\"unknown\",\
         destination_principal=\"unknown\",destination_app=\"unknown\",destination_version=\"unknown\",\
         destination_cluster=\"unknown\",destination_service=\"unknown\",destination_service_name=\"unknown\",\
         destination_service_namespace=\"unknown\",request_protocol=\"tcp\",response_flags=\"-\",\
         connection_security_policy=\"mutual_tls\"} 1"
    );
}

#[test]
fn two_pods_of_one_deployment_share_a_series() {
    let (metrics, _) = metrics();
    let (a, b) = (workload("frontend-0", "v1"), workload("frontend-1", "v1"));
    let (one, two) = (metrics.series(&from(&a)), metrics.series(&from(&b)));
    assert!(Arc::ptr_eq(&one, &two));
}

#[test]
fn a_workload_whose_labels_change_gets_another_series() {
    let (metrics, _) = metrics();
    let (before, after) = (workload("frontend-0", "v1"), workload("frontend-0", "v2"));
    let (one, two) = (metrics.series(&from(&before)), metrics.series(&from(&after)));
    assert!(!Arc::ptr_eq(&one, &two));
}

#[test]
fn a_failure_is_shown_under_its_flag_alone() {
    let (metrics, exposition) = metrics();
    let source = workload("frontend-0", "v1");
    metrics.series(&from(&source)).failed(ResponseFlags::TlsFailure);
    let body = exposition.render(None).body;
    let failed: Vec<_> =
        body.lines().filter(|l| l.starts_with("istio_tcp_connections_failed_total{")).collect();
    let [line] = &failed[..] else { panic!("{failed:?}") };
    assert!(line.contains("response_flags=\"TLS_FAILURE\"") && line.ends_with(" 1"), "{line}");
}

#[test]
fn what_the_world_has_dropped_is_forgotten_after_some_scrapes() {
    let (metrics, exposition) = metrics();
    let source = workload("frontend-0", "v1");
    let held = metrics.series(&from(&source));
    drop(source);
    let shown = || exposition.render(None).body.contains("source_workload=\"frontend\"");
    for _ in 0..=SCRAPES_KEPT {
        assert!(shown(), "a live connection keeps its series");
    }
    drop(held);
    for _ in 0..SCRAPES_KEPT {
        assert!(shown());
    }
    assert!(!shown());
}

#[test]
fn pairs_that_are_gone_do_not_accumulate_without_scrapes() {
    let (metrics, _) = metrics();
    for n in 0..State::SWEEP_AT_LEAST * 4 {
        let source = workload(&format!("job-{n}"), "v1");
        metrics.series(&from(&source));
    }
    assert!(metrics.0.read().known.len() <= State::SWEEP_AT_LEAST);
}
