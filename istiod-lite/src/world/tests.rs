use std::collections::BTreeMap;
use std::sync::Arc;

use manifest::{Object, ObjectKey};
use model::{Health, NetworkMode, TunnelProtocol, Workload, WorkloadKind};
use proptest::prelude::*;

use super::*;
use crate::store::Settings;

mod endpoints;
mod gateways;

/// A store and its world, fed with YAML.
struct Mesh {
    store: Store,
    world: World,
    last: Delta,
}

fn objects(text: &str) -> Vec<Arc<Object>> {
    let parsed = manifest::parse("t.yaml", text);
    let errors: Vec<_> = parsed.problems.iter().filter(|p| p.severity == manifest::Severity::Error).collect();
    assert!(errors.is_empty(), "{errors:?}\n{text}");
    parsed.documents.into_iter().map(|document| Arc::new(document.object)).collect()
}

impl Mesh {
    fn of(text: &str) -> Self {
        let mut mesh =
            Self { store: Store::new(Settings::default()), world: World::default(), last: Delta::default() };
        mesh.apply(text);
        mesh
    }

    fn apply(&mut self, text: &str) -> &Delta {
        let changes = self.store.apply(&objects(text), []);
        self.last = self.world.translate(&self.store, changes);
        &self.last
    }

    fn delete(&mut self, kind: manifest::Kind, namespace: &str, name: &str) -> &Delta {
        let changes = self.store.apply([], [&ObjectKey::new(kind, namespace, name)]);
        self.last = self.world.translate(&self.store, changes);
        &self.last
    }

    fn workload(&self, name: &str) -> Arc<Workload> {
        let found = self.world.workloads().find(|w| w.uid.as_str().ends_with(name));
        found.unwrap_or_else(|| panic!("no workload {name}")).clone()
    }

    fn policies_of(&self, name: &str) -> Vec<String> {
        self.workload(name).authorization_policies.iter().map(ToString::to_string).collect()
    }
}

fn namespace(name: &str, labels: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n---\n")
}

fn pod(namespace: &str, name: &str, ip: &str, labels: &str) -> String {
    pod_on("node1", namespace, name, ip, labels, "")
}

fn pod_on(node: &str, namespace: &str, name: &str, ip: &str, labels: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}\nspec: {{nodeName: {node}, serviceAccountName: web, containers: [{{name: c, ports: [{{name: http, containerPort: 8080}}]}}]{more}}}\nstatus: {{phase: Running, podIP: {ip}, podIPs: [{{ip: {ip}}}], conditions: [{{type: Ready, status: 'True'}}]}}\n---\n"
    )
}

fn service(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"
    )
}

fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"
    )
}

/// A Gateway that takes HBONE from the namespaces that `from` says, with addresses.
fn gateway(meta: &str, class: &str, from: &str, addresses: &str) -> String {
    let listener = format!(
        "{{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {{namespaces: {{from: {from}}}}}}}"
    );
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{{meta}}}\nspec: {{gatewayClassName: {class}, listeners: [{listener}], addresses: [{addresses}]}}\n---\n"
    )
}

fn peer(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"
    )
}

const AMBIENT: &str = "istio.io/dataplane-mode: ambient";

#[test]
fn a_pod_of_the_mesh_takes_hbone() {
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: node1, labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: z}}\n---\n";
    let mut mesh = Mesh::of(
        &[&namespace("shop", AMBIENT), node, &pod("shop", "web-0", "10.0.0.1", "app: web, version: v2")]
            .concat(),
    );
    let web = mesh.workload("web-0");
    assert_eq!(web.uid.as_str(), "Kubernetes//Pod/shop/web-0");
    assert_eq!(
        (web.tunnel, web.health, web.network_mode),
        (TunnelProtocol::Hbone, Health::Healthy, NetworkMode::Standard)
    );
    assert_eq!((&*web.canonical_name, &*web.canonical_revision, web.kind), ("web", "v2", WorkloadKind::Pod));
    assert_eq!((&*web.locality.region, &*web.locality.zone, &*web.node), ("r", "z", "node1"));
    assert_eq!(web.identity().unwrap().to_string(), "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(mesh.apply(&namespace("shop", "")).translated, 1);
    assert_eq!(mesh.workload("web-0").tunnel, TunnelProtocol::None);
    let opted = pod("shop", "web-0", "10.0.0.1", AMBIENT);
    mesh.apply(&opted);
    assert_eq!(mesh.workload("web-0").tunnel, TunnelProtocol::Hbone, "the pod's label beats the namespace's");
    let pending = opted.replace("labels:", "annotations: {ambient.istio.io/redirection: pending}, labels:");
    mesh.apply(&pending);
    assert_eq!(mesh.workload("web-0").tunnel, TunnelProtocol::None, "not captured yet");
}

#[test]
fn a_pod_on_the_node_s_network_is_not_captured() {
    let host = pod_on("node1", "shop", "agent", "10.9.9.9", "", ", hostNetwork: true");
    let mesh = Mesh::of(&[namespace("shop", AMBIENT), host].concat());
    let agent = mesh.workload("agent");
    assert_eq!((agent.tunnel, agent.network_mode), (TunnelProtocol::None, NetworkMode::HostNetwork));
}

#[test]
fn a_pod_without_address_or_life_is_no_workload() {
    let mut mesh = Mesh::of(&pod("shop", "web-0", "10.0.0.1", ""));
    assert_eq!(mesh.world.workloads().count(), 1);
    mesh.apply(&pod("shop", "web-0", "10.0.0.1", "").replace("Running", "Succeeded"));
    assert_eq!(mesh.last.removed.len(), 1);
    mesh.apply(&pod("shop", "web-0", "10.0.0.1", "").replace("'True'", "'False'"));
    assert_eq!(mesh.workload("web-0").health, Health::Unhealthy);
}

#[test]
fn a_service_is_found_at_its_pods_with_their_ports() {
    let spec = "{clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}, {name: raw, port: 81, targetPort: 9000}, {name: u, port: 53, protocol: UDP}]}";
    let mut mesh = Mesh::of(
        &[
            pod("shop", "web-0", "10.0.0.1", "app: web"),
            pod("shop", "db-0", "10.0.0.2", "app: db"),
            service("shop", "web", spec),
        ]
        .concat(),
    );
    let web = mesh.workload("web-0");
    let (key, ports) = web.services.first_key_value().unwrap();
    assert_eq!(key.to_string(), "shop/web.shop.svc.cluster.local");
    let pairs: Vec<_> = ports.iter().map(|p| (p.service_port, p.target_port)).collect();
    assert_eq!(pairs, [(80, Some(8080)), (81, Some(9000))]);
    let service = mesh.world.services().next().unwrap().clone();
    assert_eq!(service.port(80).unwrap().target_port, None, "each pod has its own");
    assert_eq!(service.addresses[0].to_string(), "/10.96.0.1");
    assert!(service.canonical && mesh.workload("db-0").services.is_empty());
    let delta = mesh.apply(&self::service(
        "shop",
        "web",
        "{clusterIP: None, selector: {app: db}, ports: [{port: 80}]}",
    ));
    assert_eq!(delta.translated, 3, "the service and the pods it selected and selects");
    assert!(mesh.workload("web-0").services.is_empty());
    assert_eq!(mesh.workload("db-0").services.len(), 1);
    assert!(mesh.world.services().next().unwrap().addresses.is_empty());
}

#[test]
fn a_service_without_selector_takes_what_its_slices_say() {
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: ext-1, namespace: shop, labels: {kubernetes.io/service-name: ext}}\naddressType: IPv4\nports: [{name: http, port: 9090}]\nendpoints:\n- {addresses: [10.0.0.1], targetRef: {kind: Pod, name: web-0, namespace: shop}}\n- {addresses: [192.0.2.7], conditions: {ready: false}}\n---\n";
    let ext = service("shop", "ext", "{clusterIP: 10.96.0.2, ports: [{name: http, port: 80}]}");
    let mut mesh = Mesh::of(&[slice, &pod("shop", "web-0", "10.0.0.1", "app: web"), &ext].concat());
    let outside = mesh.workload("ext-1/192.0.2.7");
    assert_eq!((outside.health, outside.tunnel), (Health::Unhealthy, TunnelProtocol::None));
    for workload in [outside, mesh.workload("web-0")] {
        assert_eq!(workload.services.values().next().unwrap()[0].target_port, Some(9090));
    }
    mesh.delete(manifest::Kind::Service, "shop", "ext");
    assert!(mesh.workload("web-0").services.is_empty());
    assert_eq!(mesh.world.workloads().count(), 1);
}

#[test]
fn a_service_entry_brings_its_endpoints_or_selects_them() {
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: db, namespace: shop}\nspec:\n  hosts: [db.example.com]\n  addresses: [240.0.0.1]\n  ports: [{number: 5432, name: tcp, protocol: TCP}]\n  resolution: STATIC\n";
    let inline = format!(
        "{entry}  endpoints: [{{address: 192.0.2.1, ports: {{tcp: 6432}}, weight: 3, locality: r/z}}]\n---\n"
    );
    let mut mesh = Mesh::of(&inline);
    let endpoint = mesh.workload("db/192.0.2.1");
    assert_eq!((endpoint.capacity, &*endpoint.locality.zone), (3, "z"));
    assert_eq!(endpoint.services.values().next().unwrap()[0].target_port, Some(6432));
    let selecting = format!("{entry}  workloadSelector: {{labels: {{app: db}}}}\n---\n");
    let vm = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm, namespace: shop, labels: {app: db}}\nspec: {address: 192.0.2.9, serviceAccount: db}\n---\n";
    mesh.apply(&[&selecting, vm, &pod("shop", "db-0", "10.0.0.3", "app: db")].concat());
    assert_eq!(mesh.workload("WorkloadEntry/shop/vm").services.len(), 1);
    assert_eq!(mesh.workload("db-0").services.len(), 1);
    assert!(!mesh.world.workloads().any(|w| w.uid.as_str().ends_with("192.0.2.1")));
}

fn service_entry(meta: &str, hosts: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{{meta}}}\nspec: {{hosts: [{hosts}], ports: [{{number: 443, name: tls}}], {spec}}}\n---\n"
    )
}

#[test]
fn a_host_without_addresses_gets_one_of_its_own_for_as_long_as_it_is_there() {
    let told = |mesh: &Mesh, host: &str| -> Vec<String> {
        let service = mesh.world.services().find(|service| &*service.hostname == host).unwrap();
        service.addresses.iter().map(ToString::to_string).collect()
    };
    let entry = |name: &str, host: &str| {
        service_entry(&format!("name: {name}, namespace: shop"), host, "resolution: DNS")
    };
    let mut mesh = Mesh::of(&entry("a", "api.example.com"));
    let first = told(&mesh, "api.example.com");
    assert!(first[0].starts_with("/240.240.") && first[1].starts_with("/2001:2::"), "{first:?}");
    mesh.apply(&(0..50).map(|n| entry(&format!("b{n}"), &format!("h{n}.example.com"))).collect::<String>());
    let all: BTreeSet<String> =
        mesh.world.services().flat_map(|s| &s.addresses).map(ToString::to_string).collect();
    assert_eq!(all.len(), 2 * 51);
    assert_eq!(
        told(&Mesh::of(&entry("a", "api.example.com")), "api.example.com"),
        first,
        "it is always the same"
    );
    for spec in ["resolution: NONE", "resolution: DNS, addresses: [240.0.0.9]"] {
        mesh.apply(&service_entry("name: a, namespace: shop", "api.example.com", spec));
        let told = told(&mesh, "api.example.com");
        assert!(told.iter().all(|a| a == "/240.0.0.9"), "{spec}: {told:?}");
    }
    mesh.apply(&service_entry(
        "name: a, namespace: shop",
        "'*.example.com'",
        "resolution: STATIC, endpoints: [{address: 192.0.2.1}]",
    ));
    assert_eq!(told(&mesh, "*.example.com"), [""; 0], "a wildcard stands for no place in particular");
}

#[test]
fn hosts_that_are_looked_up_are_endpoints_by_name() {
    let mut mesh = Mesh::of(&service_entry(
        "name: api, namespace: shop",
        "api.example.com, www.example.com",
        "resolution: DNS",
    ));
    for host in ["api.example.com", "www.example.com"] {
        let endpoint = mesh.workload(&format!("api/{host}"));
        assert_eq!((endpoint.hostname.as_deref(), &endpoint.addresses[..]), (Some(host), &[][..]));
        let services: Vec<_> = endpoint.services.keys().map(|key| &*key.hostname).collect();
        assert_eq!(services, [host], "each is its own endpoint");
    }
    mesh.apply(&service_entry(
        "name: api, namespace: shop",
        "api.example.com, www.example.com",
        "resolution: DNS, endpoints: [{address: Eu.example.com, weight: 2}, {address: 192.0.2.1}]",
    ));
    assert_eq!(mesh.world.workloads().count(), 2);
    let named = mesh.workload("api/Eu.example.com");
    assert_eq!(
        (named.hostname.as_deref(), named.capacity, named.services.len()),
        (Some("eu.example.com"), 2, 2)
    );
    assert_eq!(mesh.workload("api/192.0.2.1").hostname, None);
}

#[test]
fn blocks_and_none_leave_the_address_to_clients() {
    let mesh = Mesh::of(&service_entry(
        "name: vpc, namespace: shop",
        "'*.vpc.example'",
        "addresses: [192.0.2.77/24, 198.51.100.7], resolution: NONE",
    ));
    let service = mesh.world.services().next().unwrap();
    assert_eq!(service.load_balancing.mode, model::LoadBalancingMode::Passthrough);
    assert_eq!(service.addresses[0].to_string(), "/198.51.100.7");
    assert_eq!(service.blocks[0].block.to_string(), "192.0.2.0/24");
    assert_eq!((service.addresses.len(), service.blocks.len(), mesh.world.workloads().count()), (1, 1, 0));
}

#[test]
fn of_two_declarations_of_a_host_one_counts_and_the_other_is_told() {
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a, namespace: shop}\nspec:\n  hosts: [web.shop.svc.cluster.local]\n  addresses: [240.0.0.1]\n  ports: [{number: 80, name: tcp}]\n  resolution: STATIC\n  endpoints: [{address: 192.0.2.1}]\n---\n";
    let mut mesh = Mesh::of(entry);
    assert_eq!(mesh.world.services().next().unwrap().addresses[0].to_string(), "/240.0.0.1");
    mesh.apply(&service("shop", "web", "{clusterIP: 10.96.0.1, ports: [{port: 80}]}"));
    assert_eq!(mesh.world.services().next().unwrap().addresses[0].to_string(), "/10.96.0.1");
    assert_eq!(mesh.world.workloads().count(), 0, "the loser's endpoints go with it");
    assert!(mesh.last.notes[0].message.contains("declared by Service shop/web already"));
    mesh.delete(manifest::Kind::Service, "shop", "web");
    assert_eq!(mesh.world.workloads().count(), 1);
}

#[test]
fn a_service_entry_gets_no_address_of_a_service() {
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: thief, namespace: aaa}\nspec:\n  hosts: [thief.example]\n  addresses: [10.96.0.7, 240.0.0.1, '::ffff:10.96.0.7/128']\n  ports: [{number: 80, name: tcp}]\n  resolution: STATIC\n  endpoints: [{address: 192.0.2.1}]\n---\n";
    let catalog =
        |ip: &str| service("shop", "catalog", &format!("{{clusterIP: {ip}, ports: [{{port: 80}}]}}"));
    let thief = |mesh: &Mesh| {
        let service = mesh.world.services().find(|service| &*service.hostname == "thief.example").unwrap();
        service.addresses.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let all = ["/10.96.0.7", "/240.0.0.1"];
    for first_the_service in [true, false] {
        let mut mesh =
            Mesh::of(if first_the_service { catalog("10.96.0.7") } else { entry.to_owned() }.as_str());
        mesh.apply(&if first_the_service { entry.to_owned() } else { catalog("10.96.0.7") });
        assert_eq!(thief(&mesh), all[1..]);
        let told = &mesh.world.notes()[0];
        assert_eq!(told.object.to_string(), "ServiceEntry aaa/thief");
        assert_eq!(
            told.message,
            "the address 10.96.0.7 of the host thief.example is left out: it is that of Service shop/catalog"
        );
        mesh.apply(&catalog("10.96.0.8"));
        assert_eq!((thief(&mesh), mesh.world.notes()), (all.map(str::to_owned).to_vec(), vec![]));
        mesh.apply(&catalog("10.96.0.7"));
        assert_eq!(thief(&mesh), all[1..]);
        mesh.delete(manifest::Kind::Service, "shop", "catalog");
        assert_eq!(thief(&mesh), all);
    }
}

#[test]
fn workloads_name_the_policies_that_select_them() {
    let mut mesh = Mesh::of(
        &[
            pod("shop", "web-0", "10.0.0.1", "app: web"),
            pod("shop", "db-0", "10.0.0.2", "app: db"),
            policy("shop", "sel", "{selector: {matchLabels: {app: web}}, rules: [{}]}"),
            policy("istio-system", "root", "{selector: {matchLabels: {app: web}}, action: DENY, rules: [{to: [{operation: {ports: ['1']}}]}]}"),
            policy("shop", "all", "{rules: [{}]}"),
            policy("shop", "way", "{targetRefs: [{kind: Service, group: '', name: web}], rules: [{}]}"),
        ]
        .concat(),
    );
    assert_eq!(mesh.policies_of("web-0"), ["istio-system/root", "shop/sel"]);
    assert_eq!(mesh.policies_of("db-0"), [] as [&str; 0]);
    assert_eq!(mesh.world.policies().count(), 4, "three and the static one");
    assert!(mesh.world.notes().iter().any(|note| note.message.contains("waypoint")));
    let delta = mesh.apply(&policy("shop", "sel", "{selector: {matchLabels: {app: db}}, rules: [{}]}"));
    assert_eq!(delta.translated, 3);
    assert_eq!(mesh.policies_of("db-0"), ["shop/sel"]);
    assert_eq!(mesh.policies_of("web-0"), ["istio-system/root"]);
}

#[test]
fn strictness_reaches_all_that_it_is_about() {
    let mut mesh = Mesh::of(
        &[
            pod("shop", "web-0", "10.0.0.1", "app: web"),
            pod("shop", "db-0", "10.0.0.2", "app: db"),
            pod("dev", "web-0", "10.0.0.3", ""),
        ]
        .concat(),
    );
    const STATIC: &str = "istio-system/istio_converted_static_strict";
    mesh.apply(&peer("istio-system", "default", "{mtls: {mode: STRICT}}"));
    for name in ["shop/web-0", "shop/db-0", "dev/web-0"] {
        assert_eq!(mesh.policies_of(name), [STATIC]);
    }
    mesh.apply(&peer("dev", "default", "{mtls: {mode: PERMISSIVE}}"));
    assert_eq!(mesh.policies_of("dev/web-0"), [] as [&str; 0]);
    mesh.apply(&peer(
        "shop",
        "db",
        "{selector: {matchLabels: {app: db}}, portLevelMtls: {8080: {mode: DISABLE}}}",
    ));
    assert_eq!(mesh.policies_of("shop/db-0"), ["shop/converted_peer_authentication_db"]);
    // The namespace's word goes into the policy of the port.
    mesh.delete(manifest::Kind::PeerAuthentication, "istio-system", "default");
    assert_eq!(mesh.policies_of("shop/db-0"), [] as [&str; 0]);
    assert_eq!(mesh.policies_of("shop/web-0"), [] as [&str; 0]);
    assert_eq!(mesh.world.policies().count(), 1);
}

#[test]
fn strictness_reaches_policies_of_namespaces_without_workloads() {
    let mut mesh = Mesh::of(&peer(
        "shop",
        "db",
        "{selector: {matchLabels: {app: db}}, portLevelMtls: {8080: {mode: DISABLE}}}",
    ));
    assert_eq!(mesh.world.policies().count(), 1);
    mesh.apply(&peer("istio-system", "default", "{mtls: {mode: STRICT}}"));
    assert_eq!(mesh.world.policies().count(), 2, "the port is an exception now");
}

#[test]
fn strictness_is_taken_back_from_namespaces_that_came_later() {
    let mut mesh = Mesh::of(&peer("istio-system", "default", "{mtls: {mode: STRICT}}"));
    mesh.apply(&pod("shop", "web-0", "10.0.0.1", ""));
    assert_eq!(mesh.policies_of("web-0").len(), 1);
    mesh.delete(manifest::Kind::PeerAuthentication, "istio-system", "default");
    assert_eq!(mesh.policies_of("web-0").len(), 0);
}

#[test]
fn a_deny_about_requests_alone_denies_all_and_is_told() {
    let mesh =
        Mesh::of(&policy("shop", "d", "{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}"));
    let denying = mesh.world.policies().find(|p| &*p.key.name == "d").unwrap();
    assert_eq!(denying.rules, [model::policy::Rule::default()]);
    assert!(mesh.last.notes[0].message.contains("denies all"));
}

#[test]
fn a_change_costs_what_depends_on_it() {
    let pods: String = (0..500)
        .map(|n| {
            pod(
                "shop",
                &format!("p{n}"),
                &format!("10.0.{}.{}", n / 250, n % 250 + 1),
                &format!("app: a{}", n % 50),
            )
        })
        .collect();
    let services: String = (0..50)
        .map(|n| {
            service("shop", &format!("s{n}"), &format!("{{selector: {{app: a{n}}}, ports: [{{port: 80}}]}}"))
        })
        .collect();
    let mut mesh = Mesh::of(&[pods, services].concat());
    assert_eq!(mesh.apply(&pod("shop", "p7", "10.9.0.7", "app: a7")).translated, 1);
    assert_eq!(
        mesh.apply(&service("shop", "s3", "{selector: {app: a3}, ports: [{port: 81}]}")).translated,
        11
    );
    assert_eq!(
        mesh.apply(&policy("shop", "x", "{selector: {matchLabels: {app: a9}}, rules: [{}]}")).translated,
        11
    );
    assert_eq!(mesh.apply(&policy("shop", "ns", "{rules: [{}]}")).translated, 1);
    assert_eq!(
        mesh.apply("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: a, namespace: shop}\n").translated,
        0
    );
    assert_eq!(
        mesh.apply(&namespace("shop", "team: x")).translated,
        500,
        "a new namespace may be of the mesh"
    );
    assert_eq!(mesh.apply(&namespace("shop", "team: y")).translated, 0);
    // Nothing differs, so nothing is told.
    let delta = mesh.apply(&pod("shop", "p7", "10.9.0.7", "app: a7"));
    assert_eq!((delta.translated, delta.set.len()), (0, 0));
}

/// A step of a random history: an object comes, changes or goes.
#[derive(Clone, Debug)]
enum Step {
    Put(String),
    Delete(manifest::Kind, &'static str, String),
    /// What gathered so far is pushed.
    Push,
}

fn any_step() -> impl Strategy<Value = Step> {
    use manifest::Kind;
    let ns = || prop::sample::select(vec!["a", "b", "istio-system"]);
    let app = || {
        prop::sample::select(vec![
            "app: x",
            "app: y",
            "app: x, tier: t",
            "",
            "app: x, istio.io/use-waypoint: g0",
            "app: y, gateway.networking.k8s.io/gateway-name: g1",
            "app: x, topology.istio.io/network: n",
        ])
    };
    let n = || 0..3u8;
    let selector = || prop::sample::select(vec!["{app: x}", "{app: y}", "{app: x, tier: t}"]);
    prop_oneof![
        6 => (ns(), n(), 1..6u8, app(), n(), prop::sample::select(vec!["Running", "Failed"])).prop_map(|(ns, name, ip, labels, node, phase)| {
            Step::Put(pod_on(&format!("n{node}"), ns, &format!("p{name}"), &format!("10.0.0.{ip}"), labels, "").replace("Running", phase))
        }),
        2 => (ns(), prop::sample::select(vec!["", AMBIENT, "topology.istio.io/network: n", "istio.io/use-waypoint: g0", "istio.io/use-waypoint: g1, istio.io/use-waypoint-namespace: a, istio.io/use-waypoint-canary: g0", "istio.io/ingress-use-waypoint: 'true'"])).prop_map(|(ns, labels)| Step::Put(namespace(ns, labels))),
        2 => (n(), prop::sample::select(vec!["r1", "r2"])).prop_map(|(node, region)| {
            Step::Put(format!("apiVersion: v1\nkind: Node\nmetadata: {{name: n{node}, labels: {{topology.kubernetes.io/region: {region}}}}}\n"))
        }),
        4 => (ns(), n(), prop::option::of(selector()), prop::sample::select(vec!["80", "http"])).prop_map(|(ns, name, selector, target)| {
            let selector = selector.map(|s| format!("selector: {s}, ")).unwrap_or_default();
            let labels = if target == "80" { "" } else { ", labels: {istio.io/use-waypoint: g1, istio.io/use-waypoint-canary: g0}, annotations: {istio.io/use-waypoint-canary-weight: '10'}" };
            Step::Put(service(ns, &format!("s{name}"), &format!("{{{selector}clusterIP: 10.96.0.{name}, ports: [{{name: http, port: 80, targetPort: {target}}}]}}")).replacen(&format!("namespace: {ns}"), &format!("namespace: {ns}{labels}"), 1))
        }),
        3 => (ns(), n(), n(), n()).prop_map(|(ns, name, service, pod)| {
            Step::Put(format!("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: e{name}, namespace: {ns}, labels: {{kubernetes.io/service-name: s{service}}}}}\naddressType: IPv4\nports: [{{name: http, port: 90}}]\nendpoints: [{{addresses: [10.0.0.1], targetRef: {{kind: Pod, name: p{pod}}}}}, {{addresses: [192.0.2.{name}]}}]\n"))
        }),
        3 => (ns(), n(), n(), prop::option::of(selector()), prop::sample::select(vec!["240.0.0", "10.96.0"]), n()).prop_map(|(ns, name, host, selector, block, ip)| {
            let endpoints = selector.map_or("endpoints: [{address: 192.0.2.1, labels: {app: x}}]".to_owned(), |s| format!("workloadSelector: {{labels: {s}}}"));
            let spec = match ip {
                0 => "resolution: DNS".to_owned(),
                1 => format!("resolution: STATIC, {endpoints}"),
                _ => format!("addresses: [240.1.0.{name}, {block}.{ip}, 192.0.2.0/24], resolution: STATIC, {endpoints}"),
            };
            Step::Put(format!("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: se{name}, namespace: {ns}}}\nspec: {{hosts: [h{host}.example.com, s{host}.a.svc.cluster.local], ports: [{{number: 80, name: http}}], {spec}}}\n"))
        }),
        2 => (ns(), n(), app()).prop_map(|(ns, name, labels)| {
            Step::Put(format!("apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: w{name}, namespace: {ns}, labels: {{{labels}}}}}\nspec: {{address: 192.0.2.3, ports: {{http: 7}}}}\n"))
        }),
        3 => (ns(), n(), 0..6usize).prop_map(|(ns, name, what)| {
            let more = ["", ", labels: {istio.io/waypoint-for: all}", ", annotations: {ambient.istio.io/waypoint-inbound-binding: PROXY}", ", labels: {topology.istio.io/network: n}", ", labels: {topology.istio.io/network: n}", ", labels: {istio.io/waypoint-for: none}"][what];
            let class = if what == 4 { "istio-remote" } else { "istio-waypoint" };
            let from = if what == 1 { "All" } else { "Same" };
            Step::Put(gateway(&format!("name: g{name}, namespace: {ns}{more}"), class, from, &format!("{{value: 192.0.2.{name}}}")))
        }),
        3 => (ns(), n(), prop::option::of(selector())).prop_map(|(ns, name, selector)| {
            let selector = selector.map(|s| format!("selector: {{matchLabels: {s}}}, ")).unwrap_or_default();
            Step::Put(policy(ns, &format!("ap{name}"), &format!("{{{selector}rules: [{{}}]}}")))
        }),
        4 => (ns(), n(), prop::option::of(selector()), prop::sample::select(vec!["STRICT", "PERMISSIVE", "UNSET"]), any::<bool>()).prop_map(|(ns, name, selector, mode, port)| {
            let port = if port && selector.is_some() { ", portLevelMtls: {8080: {mode: STRICT}, 90: {mode: PERMISSIVE}}" } else { "" };
            let selector = selector.map(|s| format!("selector: {{matchLabels: {s}}}, ")).unwrap_or_default();
            Step::Put(peer(ns, &format!("pa{name}"), &format!("{{{selector}mtls: {{mode: {mode}}}{port}}}")))
        }),
        1 => prop::sample::select(vec!["trustDomain: one.example", "rootNamespace: a", ""]).prop_map(|mesh| {
            Step::Put(format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata: {{mesh: '{mesh}'}}\n"))
        }),
        8 => (prop::sample::select(Kind::ALL.to_vec()), ns(), n()).prop_map(|(kind, ns, n)| {
            let (ns, name) = match kind {
                Kind::Namespace => ("", ns.to_owned()),
                Kind::Node => ("", format!("n{n}")),
                Kind::ConfigMap => ("istio-system", "istio".to_owned()),
                Kind::Pod => (ns, format!("p{n}")),
                Kind::Service => (ns, format!("s{n}")),
                Kind::EndpointSlice => (ns, format!("e{n}")),
                Kind::ServiceEntry => (ns, format!("se{n}")),
                Kind::WorkloadEntry => (ns, format!("w{n}")),
                Kind::Gateway => (ns, format!("g{n}")),
                Kind::AuthorizationPolicy => (ns, format!("ap{n}")),
                Kind::PeerAuthentication => (ns, format!("pa{n}")),
                Kind::Deployment | Kind::ServiceAccount => (ns, format!("x{n}")),
            };
            Step::Delete(kind, ns, name)
        }),
        6 => Just(Step::Push),
    ]
}

fn by_key(world: &World) -> BTreeMap<ResourceKey, Resource> {
    world.resources().map(|resource| (resource.key(), resource.clone())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn keeping_up_equals_starting_anew(steps in prop::collection::vec(any_step(), 1..60)) {
        let (mut store, mut world) = (Store::new(Settings::default()), World::default());
        let mut pending = ChangeSet::default();
        // What a proxy that only hears of the differences ends up with.
        let mut told: BTreeMap<ResourceKey, Resource> = BTreeMap::new();
        let mut standing: BTreeMap<ObjectKey, Arc<Object>> = BTreeMap::new();
        for step in steps.into_iter().chain([Step::Push]) {
            match step {
                Step::Put(text) => {
                    let objects = objects(&text);
                    standing.extend(objects.iter().map(|o| (o.key(), o.clone())));
                    pending.merge(store.apply(&objects, []));
                }
                Step::Delete(kind, namespace, name) => {
                    let key = ObjectKey::new(kind, namespace, name);
                    standing.remove(&key);
                    pending.merge(store.apply([], [&key]));
                }
                Step::Push => {
                    let delta = world.translate(&store, std::mem::take(&mut pending));
                    delta.removed.iter().for_each(|key| drop(told.remove(key)));
                    told.extend(delta.set.into_iter().map(|resource| (resource.key(), resource)));
                    let (mut fresh, mut anew) = (Store::new(Settings::default()), World::default());
                    let changes = fresh.apply(standing.values(), []);
                    anew.translate(&fresh, changes);
                    prop_assert_eq!(&by_key(&world), &by_key(&anew));
                    prop_assert_eq!(&told, &by_key(&anew));
                    prop_assert_eq!(world.notes(), anew.notes());
                }
            }
        }
    }
}
