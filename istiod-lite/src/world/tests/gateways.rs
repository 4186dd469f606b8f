//! Waypoints before services and workloads, and the gateways between networks.

use model::{
    ApplicationTunnel, ApplicationTunnelProtocol, GatewayAddress, GatewayDestination, NetworkId, Service,
};

use super::*;

const WAYPOINT: &str = "istio-waypoint";

fn waypoint(meta: &str) -> String {
    gateway(meta, WAYPOINT, "Same", "")
}

fn labelled(namespace: &str, name: &str, labels: &str) -> String {
    let meta = format!("namespace: {namespace}, labels: {{{labels}}}");
    service(namespace, name, "{selector: {app: web}, ports: [{port: 80}]}").replacen(
        &format!("namespace: {namespace}"),
        &meta,
        1,
    )
}

fn told(gateway: &GatewayAddress) -> String {
    let GatewayAddress { destination, hbone_port } = gateway;
    match destination {
        GatewayDestination::Hostname(key) => format!("{key}:{hbone_port}"),
        GatewayDestination::Address(at) => format!("{}:{hbone_port}", at.ip),
    }
}

impl Mesh {
    fn service(&self, name: &str) -> Arc<Service> {
        let found = self.world.services().find(|service| &*service.name == name);
        found.unwrap_or_else(|| panic!("no service {name}")).clone()
    }

    fn waypoint_of(&self, service: &str) -> Option<String> {
        self.service(service).waypoint.as_ref().map(told)
    }

    fn weighted(&self, service: &str) -> Vec<(String, u32)> {
        let weighted = &self.service(service).weighted_waypoints;
        weighted.iter().map(|w| (told(&w.destination), w.weight)).collect()
    }

    fn noted(&self, word: &str) -> bool {
        self.world.notes().iter().any(|note| note.message.contains(word))
    }
}

const W: &str = "shop/w.shop.svc.cluster.local:15008";

#[test]
fn a_service_has_the_waypoint_that_it_or_its_namespace_names() {
    let mut mesh = Mesh::of(
        &[
            namespace("shop", "istio.io/use-waypoint: w"),
            labelled("shop", "web", "a: b"),
            labelled("shop", "free", "istio.io/use-waypoint: none"),
            labelled("bar", "other", "istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: shop"),
            waypoint("name: w, namespace: shop"),
        ]
        .concat(),
    );
    assert_eq!(mesh.waypoint_of("web").as_deref(), Some(W));
    assert_eq!(mesh.waypoint_of("free"), None);
    assert_eq!(mesh.waypoint_of("other"), None);
    assert!(mesh.noted("takes nothing of namespace bar by its `allowedRoutes`"));
    mesh.apply(&gateway("name: w, namespace: shop", WAYPOINT, "All", "{value: 10.96.0.9}"));
    assert_eq!(mesh.waypoint_of("web").as_deref(), Some("10.96.0.9:15008"));
    assert_eq!(mesh.waypoint_of("other").as_deref(), Some("10.96.0.9:15008"));
    mesh.delete(manifest::Kind::Gateway, "shop", "w");
    assert_eq!(mesh.waypoint_of("web"), None);
    assert!(mesh.noted("there is no waypoint shop/w"));
    mesh.apply(&namespace("shop", ""));
    assert!(!mesh.world.notes().iter().any(|note| note.object.name == "web"));
}

#[test]
fn a_waypoint_is_for_what_it_says_and_never_before_itself() {
    let parts = "gateway.networking.k8s.io/gateway-name: w";
    let mut mesh = Mesh::of(
        &[
            namespace("shop", "istio.io/use-waypoint: w"),
            labelled("shop", "web", ""),
            labelled("shop", "w", ""),
            pod("shop", "web-0", "10.0.0.1", "app: web"),
            pod("shop", "w-0", "10.0.0.2", parts),
            waypoint("name: w, namespace: shop"),
        ]
        .concat(),
    );
    let state = |mesh: &Mesh| {
        let of_pod = |name: &str| mesh.workload(name).waypoint.is_some();
        let of_service = |name: &str| mesh.service(name).waypoint.is_some();
        (of_service("web"), of_pod("web-0"), of_service("w"), of_pod("w-0"))
    };
    assert_eq!(state(&mesh), (true, false, false, false), "for services, where it says nothing");
    for (word, expected) in [
        ("service", (true, false)),
        ("workload", (false, true)),
        ("all", (true, true)),
        ("none", (false, false)),
    ] {
        mesh.apply(&waypoint(&format!(
            "name: w, namespace: shop, labels: {{istio.io/waypoint-for: {word}}}"
        )));
        assert_eq!(state(&mesh), (expected.0, expected.1, false, false), "{word}");
    }
}

#[test]
fn a_canary_waypoint_takes_its_share_and_only_where_it_is_one() {
    let shared = |weight: &str| {
        let labels = "istio.io/use-waypoint: w, istio.io/use-waypoint-canary: c, istio.io/use-waypoint-canary-namespace: infra";
        labelled("shop", "web", labels).replacen(
            "labels:",
            &format!("annotations: {{istio.io/use-waypoint-canary-weight: '{weight}'}}, labels:"),
            1,
        )
    };
    let mut mesh = Mesh::of(&[shared("10"), waypoint("name: w, namespace: shop")].concat());
    assert_eq!((mesh.waypoint_of("web").as_deref(), mesh.weighted("web")), (Some(W), vec![]));
    assert!(mesh.noted("there is no waypoint infra/c"));
    mesh.apply(&gateway("name: c, namespace: infra", WAYPOINT, "All", ""));
    let c = "infra/c.infra.svc.cluster.local:15008".to_owned();
    assert_eq!(mesh.weighted("web"), [(W.to_owned(), 90), (c.clone(), 10)]);
    assert!(!mesh.noted("infra/c"));
    mesh.apply(&shared("100"));
    assert_eq!(mesh.weighted("web"), [(W.to_owned(), 0), (c, 100)]);
    mesh.delete(manifest::Kind::Gateway, "shop", "w");
    assert_eq!((mesh.waypoint_of("web"), mesh.weighted("web")), (None, vec![]), "a canary alone is none");
}

#[test]
fn the_pods_of_a_gateway_take_connections_as_it_says() {
    let part = "gateway.networking.k8s.io/gateway-name: w";
    let mut mesh =
        Mesh::of(&[pod("shop", "w-0", "10.0.0.2", part), pod("shop", "web-0", "10.0.0.1", "")].concat());
    assert_eq!(mesh.workload("w-0").application_tunnel, None);
    let bound =
        "name: w, namespace: shop, annotations: {ambient.istio.io/waypoint-inbound-binding: PROXY/15088}";
    let translated = mesh.apply(&waypoint(bound)).translated;
    assert_eq!(translated, 2, "the Gateway and its pod");
    let tunnel = ApplicationTunnel { protocol: ApplicationTunnelProtocol::Proxy, port: Some(15088) };
    assert_eq!(mesh.workload("w-0").application_tunnel, Some(tunnel));
    assert_eq!(mesh.workload("web-0").application_tunnel, None);
    mesh.apply(&waypoint("name: w, namespace: shop"));
    assert_eq!(mesh.workload("w-0").application_tunnel, None);
}

#[test]
fn what_is_in_another_network_names_the_gateway_to_it() {
    let east = "topology.istio.io/network: east";
    let mut mesh =
        Mesh::of(&[pod("shop", "far-0", "10.9.0.1", east), pod("shop", "near-0", "10.0.0.1", "")].concat());
    assert_eq!(mesh.workload("far-0").network, NetworkId::new("east"));
    assert_eq!(mesh.workload("far-0").network_gateway, None);
    let meta = format!(
        "name: gate, namespace: istio-system, labels: {{{east}}}, annotations: {{gateway.istio.io/service-account: eastgate}}"
    );
    mesh.apply(&gateway(&meta, "istio-remote", "Same", "{value: 192.0.2.9}"));
    assert_eq!(mesh.workload("far-0").network_gateway.as_ref().map(told).as_deref(), Some("192.0.2.9:15008"));
    assert_eq!(mesh.workload("near-0").network_gateway, None);
    let gate = mesh.workload("Gateway/istio-system/gate");
    assert_eq!(gate.identity().unwrap().to_string(), "spiffe://cluster.local/ns/istio-system/sa/eastgate");
    assert_eq!((gate.tunnel, &gate.network), (TunnelProtocol::Hbone, &NetworkId::new("east")));
    // One that leads nowhere yet.
    mesh.apply(&gateway(&meta, "istio-remote", "Same", ""));
    assert_eq!(mesh.workload("far-0").network_gateway, None);
    assert!(mesh.noted("has no IP address"));
    mesh.delete(manifest::Kind::Gateway, "istio-system", "gate");
    assert!(mesh.world.workloads().all(|w| w.network_gateway.is_none()));
}
