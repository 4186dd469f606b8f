//! Who may be chosen as an endpoint, and what services say of the choice.

use manifest::Kind;
use model::{HealthPolicy, LoadBalancing, LoadBalancingMode, Scope};

use super::*;

const ENDING: &str = "metadata: {deletionTimestamp: '2026-01-01T00:00:00Z', ";

fn slice(endpoints: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: ext-1, namespace: shop, labels: {{kubernetes.io/service-name: ext}}}}\naddressType: IPv4\nports: [{{name: http, port: 9090}}]\nendpoints:\n{endpoints}---\n"
    )
}

#[test]
fn a_pod_that_is_deleted_may_go_on_serving_until_it_is_not_ready() {
    let ready = pod("shop", "web-0", "10.0.0.1", "");
    let ending = ready.replacen("metadata: {", ENDING, 1);
    let health = |text: &str| Mesh::of(text).workload("web-0").health;
    assert_eq!(health(&ready), Health::Healthy);
    assert_eq!(health(&ending), Health::Terminating);
    assert_eq!(health(&ending.replace("'True'", "'False'")), Health::Unhealthy);
}

#[test]
fn conditions_of_endpoints_mean_what_kubernetes_says() {
    let of = |conditions: &str| {
        let endpoint = format!("- {{addresses: [192.0.2.7]{conditions}}}\n");
        let ext = service("shop", "ext", "{clusterIP: 10.96.0.2, ports: [{name: http, port: 80}]}");
        Mesh::of(&[slice(&endpoint), ext].concat()).workload("ext-1/192.0.2.7").health
    };
    assert_eq!(of(""), Health::Healthy);
    assert_eq!(of(", conditions: {ready: true, serving: true, terminating: true}"), Health::Healthy);
    assert_eq!(of(", conditions: {ready: false, serving: true, terminating: true}"), Health::Terminating);
    assert_eq!(of(", conditions: {ready: false, serving: false, terminating: true}"), Health::Unhealthy);
    assert_eq!(of(", conditions: {ready: false, terminating: true}"), Health::Unhealthy);
    assert_eq!(of(", conditions: {ready: false, serving: true}"), Health::Unhealthy);
}

#[test]
fn a_slice_that_names_a_pod_as_not_serving_gives_it_no_service() {
    let named = |conditions: &str| {
        let target = "targetRef: {kind: Pod, name: web-0, namespace: shop}";
        slice(&format!("- {{addresses: [10.0.0.1], {target}, conditions: {conditions}}}\n"))
    };
    let ext = service("shop", "ext", "{clusterIP: 10.96.0.2, ports: [{name: http, port: 80}]}");
    let web = pod("shop", "web-0", "10.0.0.1", "");
    let mut mesh = Mesh::of(&[named("{ready: false}"), web, ext].concat());
    assert!(mesh.workload("web-0").services.is_empty());
    mesh.apply(&named("{ready: true}"));
    assert_eq!(mesh.workload("web-0").services.len(), 1);
}

#[test]
fn services_say_where_their_traffic_is_kept() {
    let balancing = |text: &str| {
        let mesh = Mesh::of(text);
        mesh.world.services().next().unwrap().load_balancing.clone()
    };
    let of = |spec: &str| balancing(&service("shop", "web", &format!("{{ports: [{{port: 80}}]{spec}}}")));
    assert_eq!(of(""), LoadBalancing::default());
    let zone = [Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone];
    for word in ["PreferClose", "PreferSameZone"] {
        let close = of(&format!(", trafficDistribution: {word}"));
        assert_eq!((close.mode, &close.routing_preference[..]), (LoadBalancingMode::Failover, &zone[..]));
    }
    let same_node = of(", trafficDistribution: PreferSameNode");
    assert_eq!(same_node.routing_preference[..], [&zone[..], &[Scope::Node]].concat()[..]);
    let local = of(
        ", internalTrafficPolicy: Local, trafficDistribution: PreferClose, publishNotReadyAddresses: true",
    );
    assert_eq!(local.routing_preference, [Scope::Node]);
    assert_eq!((local.mode, local.health_policy), (LoadBalancingMode::Strict, HealthPolicy::AllowAll));
}

#[test]
fn a_namespaces_traffic_distribution_holds_for_what_has_none_of_its_own() {
    let home = |word: &str| {
        let annotations = format!("annotations: {{networking.istio.io/traffic-distribution: {word}}}");
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, {annotations}}}\n---\n")
    };
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: db, namespace: shop, annotations: {networking.istio.io/traffic-distribution: PreferSameZone}}\nspec: {hosts: [db.example.com], addresses: [240.0.0.1], ports: [{number: 5432, name: tcp}], resolution: STATIC, endpoints: [{address: 192.0.2.1}]}\n---\n";
    let web = service("shop", "web", "{ports: [{port: 80}]}");
    let mut mesh = Mesh::of(&[namespace("shop", ""), web, entry.to_owned()].concat());
    let length = |mesh: &Mesh, host: &str| {
        let mut services = mesh.world.services();
        services.find(|s| s.hostname.starts_with(host)).unwrap().load_balancing.routing_preference.len()
    };
    assert_eq!((length(&mesh, "web"), length(&mesh, "db")), (0, 4));
    mesh.apply(&home("PreferSameNode"));
    assert_eq!((length(&mesh, "web"), length(&mesh, "db")), (5, 4));
    mesh.apply(&namespace("shop", ""));
    assert_eq!((length(&mesh, "web"), length(&mesh, "db")), (0, 4));
}

#[test]
fn a_service_entry_gets_no_address_of_a_pod_while_the_pod_lives() {
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: thief, namespace: aaa}\nspec:\n  hosts: [thief.example]\n  addresses: [10.0.0.1, 240.0.0.1]\n  ports: [{number: 80, name: tcp}]\n  resolution: STATIC\n  endpoints: [{address: 192.0.2.1}]\n---\n";
    let addresses = |mesh: &Mesh| mesh.world.services().next().unwrap().addresses.len();
    let mut mesh = Mesh::of(entry);
    assert_eq!(addresses(&mesh), 2);
    let web = pod("shop", "web-0", "10.0.0.1", "");
    mesh.apply(&web);
    assert_eq!(addresses(&mesh), 1);
    assert!(mesh.world.notes()[0].message.ends_with("it is that of Pod shop/web-0"));
    mesh.apply(&web.replace("Running", "Succeeded"));
    assert_eq!(addresses(&mesh), 2, "its address may be anybody's now");
    mesh.apply(&web);
    mesh.delete(Kind::Pod, "shop", "web-0");
    assert_eq!(addresses(&mesh), 2);
}

#[test]
fn an_external_name_is_no_service_of_the_mesh() {
    let named =
        service("shop", "ext", "{type: ExternalName, externalName: x.example.com, selector: {app: web}}");
    let mesh = Mesh::of(&[named, pod("shop", "web-0", "10.0.0.1", "app: web")].concat());
    assert_eq!(mesh.world.services().count(), 0);
    assert!(mesh.workload("web-0").services.is_empty());
}
