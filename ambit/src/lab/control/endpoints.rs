//! The endpoints of services: which pods answer for them, and at which ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use manifest::{Kind, ObjectKey, TrafficDistribution, is_kept_on_node};

use crate::lab::store::{Change, Store, name, namespace};

/// The label that ties a slice to its service.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const US: &str = "ambit-lab";
const ZONE: &str = "topology.kubernetes.io/zone";

/// Brings the slices of services with a selector to what their pods are; others are their author's.
pub(super) fn changes(store: &Store) -> Vec<Change> {
    let mut wanted: BTreeMap<ObjectKey, EndpointSlice> = BTreeMap::new();
    for service in store.services() {
        for slice in slices(service, store) {
            let key = ObjectKey::new(Kind::EndpointSlice, namespace(&slice.metadata), name(&slice.metadata));
            wanted.insert(key, slice);
        }
    }
    let ours = store.slices().filter(|slice| manifest::label(&slice.metadata, MANAGED_BY) == Some(US));
    let mut changes: Vec<Change> = ours
        .map(|slice| ObjectKey::new(Kind::EndpointSlice, namespace(&slice.metadata), name(&slice.metadata)))
        .filter(|key| !wanted.contains_key(key))
        .map(Change::Remove)
        .collect();
    changes.extend(wanted.into_values().map(Change::put));
    changes
}

/// Whether a pod takes traffic.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Names and numbers of a slice's ports.
type PortsKey = Vec<(String, Option<i32>)>;

fn slices(service: &Service, store: &Store) -> Vec<EndpointSlice> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let Some(selector) = spec.selector.as_ref().filter(|selector| !selector.is_empty()) else {
        return Vec::new();
    };
    if spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let here = namespace(&service.metadata);
    let members: Vec<&Pod> = store
        .pods()
        .filter(|pod| namespace(&pod.metadata) == here && !is_over(pod))
        .filter(|pod| manifest::kinds::selects(selector, pod.metadata.labels.as_ref()))
        .collect();
    let unready_too = spec.publish_not_ready_addresses == Some(true);
    let v4_only = vec!["IPv4".to_owned()];
    let mut slices = Vec::new();
    for family in spec.ip_families.as_ref().unwrap_or(&v4_only) {
        // Pods whose named ports have different numbers need slices of their own.
        let mut groups: BTreeMap<PortsKey, (Vec<EndpointPort>, Vec<Endpoint>)> = BTreeMap::new();
        for pod in &members {
            let Some(ip) = address(pod, family == "IPv6") else { continue };
            let ports = ports(spec.ports.as_deref().unwrap_or_default(), pod);
            let key = ports.iter().map(|p| (p.name.clone().unwrap_or_default(), p.port));
            let group = groups.entry(key.collect()).or_insert_with(|| (ports.clone(), Vec::new()));
            group.1.push(endpoint(pod, ip, unready_too, store));
        }
        for (n, (ports, endpoints)) in groups.into_values().enumerate() {
            slices.push(slice(service, family, n, ports, endpoints));
        }
    }
    slices
}

fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn address(pod: &Pod, v6: bool) -> Option<IpAddr> {
    let status = pod.status.as_ref()?;
    let ips = status.pod_ips.iter().flatten().map(|ip| &ip.ip).chain(&status.pod_ip);
    ips.filter_map(|ip| ip.parse().ok()).find(|ip: &IpAddr| ip.is_ipv6() == v6)
}

/// A service's ports as a pod has them; a name that the pod does not know gives none.
fn ports(ports: &[ServicePort], pod: &Pod) -> Vec<EndpointPort> {
    let resolve = |port: &ServicePort| match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(wanted)) => {
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            let mut all = containers.flat_map(|container| container.ports.iter().flatten());
            let same_protocol = |given: &Option<String>| {
                given.as_deref().unwrap_or("TCP") == port.protocol.as_deref().unwrap_or("TCP")
            };
            all.find(|p| p.name.as_deref() == Some(wanted) && same_protocol(&p.protocol))
                .map(|p| p.container_port)
        }
    };
    let resolved = ports.iter().filter_map(|port| Some((port, resolve(port)?)));
    resolved
        .map(|(port, number)| EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(number),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
            app_protocol: port.app_protocol.clone(),
        })
        .collect()
}

fn endpoint(pod: &Pod, ip: IpAddr, unready_too: bool, store: &Store) -> Endpoint {
    let serving = is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let zone = node.as_ref().and_then(|node| {
        let node = store.get(&ObjectKey::new(Kind::Node, "", node))?;
        node.label(ZONE).map(str::to_owned)
    });
    let spec = pod.spec.as_ref();
    Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(unready_too || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: spec.filter(|spec| spec.subdomain.is_some()).and_then(|spec| spec.hostname.clone()),
        node_name: node,
        zone,
        target_ref: Some(ObjectReference {
            kind: Some(Kind::Pod.to_string()),
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    }
}

fn slice(
    service: &Service,
    family: &str,
    number: usize,
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    let of = &service.metadata;
    let suffix = if number == 0 { String::new() } else { format!("-{number}") };
    let labels = [(SERVICE_NAME, name(of)), (MANAGED_BY, US)];
    EndpointSlice {
        address_type: family.to_owned(),
        endpoints,
        ports: Some(ports),
        metadata: ObjectMeta {
            name: Some(format!("{}-{}{suffix}", name(of), family.to_lowercase())),
            namespace: of.namespace.clone(),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            owner_references: Some(vec![OwnerReference {
                api_version: Kind::Service.api_version(),
                kind: Kind::Service.to_string(),
                name: name(of).to_owned(),
                uid: of.uid.clone().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            }]),
            ..ObjectMeta::default()
        },
    }
}

/// A port of a service, and who answers for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Backends {
    pub(crate) protocol: String,
    pub(crate) port: u16,
    pub(crate) name: String,
    /// Those to be used, of one family.
    pub(crate) endpoints: BTreeSet<(IpAddr, u16)>,
}

/// Where clients are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    node: &'a str,
    zone: Option<&'a str>,
}

impl<'a> Place<'a> {
    /// On a node.
    pub(crate) fn of(store: &'a Store, node: &'a str) -> Self {
        let zone = store.get(&ObjectKey::new(Kind::Node, "", node)).and_then(|node| node.label(ZONE));
        Self { node, zone }
    }
}

/// Who answers for a service, by its ports, for clients at a place; `v6` chooses the family. Slices of whatever author
/// count.
pub(crate) fn backends(service: &Service, store: &Store, at: &Place<'_>, v6: bool) -> Vec<Backends> {
    let distribution = distribution(service, store);
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let slices: Vec<&EndpointSlice> = slices_of(service, store)
        .filter(|slice| slice.address_type == if v6 { "IPv6" } else { "IPv4" })
        .collect();
    ports
        .filter_map(|port| {
            let wanted = port.name.clone().unwrap_or_default();
            let mut candidates: Vec<(&Endpoint, u16)> = Vec::new();
            for slice in &slices {
                let mut given = slice.ports.iter().flatten();
                let Some(number) = given
                    .find(|p| p.name.clone().unwrap_or_default() == wanted)
                    .and_then(|p| u16::try_from(p.port?).ok())
                else {
                    continue;
                };
                candidates.extend(slice.endpoints.iter().map(|endpoint| (endpoint, number)));
            }
            let used = used(candidates, is_kept_on_node(service), distribution, at);
            let of = |(endpoint, number): (&Endpoint, u16)| {
                let ips: Vec<IpAddr> = endpoint.addresses.iter().filter_map(|ip| ip.parse().ok()).collect();
                ips.into_iter().map(move |ip| (ip, number))
            };
            let endpoints: BTreeSet<(IpAddr, u16)> = used.into_iter().flat_map(of).collect();
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()).to_lowercase();
            Some(Backends { protocol, port: u16::try_from(port.port).ok()?, name: wanted, endpoints })
        })
        .collect()
}

fn distribution(service: &Service, store: &Store) -> Option<TrafficDistribution> {
    let home = store.get(&ObjectKey::new(Kind::Namespace, "", namespace(&service.metadata)));
    TrafficDistribution::of_service(service, home.map(manifest::Object::metadata))
}

/// Of a port's endpoints those that clients at a place use, as kube-proxy chooses them: those on the node alone where the
/// service says so; of these the ready ones, the nearest where that is preferred; where none is ready, those that end and
/// still serve (KEP-1669).
fn used<'e>(
    mut all: Vec<(&'e Endpoint, u16)>,
    on_node: bool,
    distribution: Option<TrafficDistribution>,
    at: &Place<'_>,
) -> Vec<(&'e Endpoint, u16)> {
    let same_node = |endpoint: &Endpoint| endpoint.node_name.as_deref() == Some(at.node);
    let same_zone = |endpoint: &Endpoint| at.zone.is_some() && endpoint.zone.as_deref() == at.zone;
    let those =
        |all: &[(&'e Endpoint, u16)], wanted: &dyn Fn(&Endpoint) -> bool| -> Vec<(&'e Endpoint, u16)> {
            all.iter().copied().filter(|(endpoint, _)| wanted(endpoint)).collect()
        };
    if on_node {
        all = those(&all, &same_node);
    }
    let ready = those(&all, &is_ready_endpoint);
    if ready.is_empty() {
        return those(&all, &|endpoint| {
            let conditions = endpoint.conditions.as_ref();
            conditions.is_some_and(|c| c.serving == Some(true) && c.terminating == Some(true))
        });
    }
    let near = match distribution {
        Some(TrafficDistribution::SameNode) => [those(&ready, &same_node), those(&ready, &same_zone)],
        Some(TrafficDistribution::SameZone) => [those(&ready, &same_zone), Vec::new()],
        None => Default::default(),
    };
    near.into_iter().find(|near| !near.is_empty()).unwrap_or(ready)
}

/// A service's slices.
pub(crate) fn slices_of<'a>(
    service: &'a Service,
    store: &'a Store,
) -> impl Iterator<Item = &'a EndpointSlice> {
    store.slices().filter(|slice| {
        namespace(&slice.metadata) == namespace(&service.metadata)
            && manifest::label(&slice.metadata, SERVICE_NAME) == Some(name(&service.metadata))
    })
}

/// A slice's endpoints that take traffic. Nothing said counts as ready, as Kubernetes has it.
pub(crate) fn ready(slice: &EndpointSlice) -> impl Iterator<Item = &Endpoint> {
    slice.endpoints.iter().filter(|endpoint| is_ready_endpoint(endpoint))
}

fn is_ready_endpoint(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().is_none_or(|conditions| conditions.ready != Some(false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::store::tests::store;

    fn pod(name: &str, ip: &str, ready: bool, port: u16) -> String {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: x, labels: {{app: web}}}}\n\
             spec: {{nodeName: node1, containers: [{{name: m, command: [s], ports: [{{name: http, containerPort: {port}}}]}}]}}\n\
             status: {{podIP: {ip}, podIPs: [{{ip: {ip}}}, {{ip: 'fd00::1'}}], conditions: [{{type: Ready, status: \"{}\"}}]}}\n",
            if ready { "True" } else { "False" }
        )
    }

    fn service(spec: &str) -> String {
        format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: x}}\nspec: {spec}\n")
    }

    fn settled(yaml: &str) -> Store {
        let (mut store, mut mint) = store(yaml);
        for change in changes(&store) {
            store.make(change, &mut mint);
        }
        for change in changes(&store) {
            assert!(!store.make(change, &mut mint), "it comes to rest");
        }
        store
    }

    fn backends_of(store: &Store, v6: bool) -> Vec<String> {
        let service = store.services().next().unwrap();
        let all = backends(service, store, &Place::of(store, "node1"), v6);
        all.iter().flat_map(|b| &b.endpoints).map(|(ip, port)| format!("{ip} {port}")).collect()
    }

    const HTTP: &str = "{selector: {app: web}, ports: [{port: 80, targetPort: http}]}";

    #[test]
    fn only_ready_pods_answer() {
        let store = settled(
            &(service(HTTP) + &pod("a", "10.0.0.1", true, 8080) + &pod("b", "10.0.0.2", false, 8080)),
        );
        assert_eq!(backends_of(&store, false), ["10.0.0.1 8080"]);
        let slice = store.slices().next().unwrap();
        assert_eq!(slice.endpoints.len(), 2, "who is not ready is listed as such");
    }

    #[test]
    fn those_that_end_answer_where_nobody_else_is_ready() {
        let ending =
            |yaml: &str| yaml.replacen("{name: ", "{deletionTimestamp: '2026-01-01T00:00:00Z', name: ", 1);
        let (a, b) = (pod("a", "10.0.0.1", true, 8080), pod("b", "10.0.0.2", true, 8080));
        let with = |a: &str, b: &str| backends_of(&settled(&(service(HTTP) + a + b)), false);
        assert_eq!(with(&ending(&a), &b), ["10.0.0.2 8080"]);
        assert_eq!(with(&ending(&a), &ending(&b)), ["10.0.0.1 8080", "10.0.0.2 8080"]);
        let stopped = ending(&pod("a", "10.0.0.1", false, 8080));
        assert_eq!(with(&stopped, &ending(&b)), ["10.0.0.2 8080"]);
        assert_eq!(with(&stopped, ""), [""; 0]);
    }

    #[test]
    fn services_keep_traffic_near_where_they_say_so() {
        let at = |node: &str, pod: String| pod.replace("nodeName: node1", &format!("nodeName: {node}"));
        let nodes = ["node1", "node2", "node3"].map(|name| {
            let zone = if name == "node3" { "far" } else { "near" };
            format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{topology.kubernetes.io/zone: {zone}}}}}\n")
        });
        let used = |says: &str, pods: &[(&str, &str)]| {
            let spec = HTTP.replacen('{', &format!("{{{says}, "), 1);
            let pods =
                pods.iter().enumerate().map(|(n, (node, ip))| at(node, pod(&format!("p{n}"), ip, true, 80)));
            let ips =
                backends_of(&settled(&(nodes.concat() + &service(&spec) + &pods.collect::<String>())), false);
            ips.iter().map(|ip| ip.trim_end_matches(" 80").to_owned()).collect::<Vec<_>>()
        };
        let (here, zone, far) = (("node1", "10.0.0.1"), ("node2", "10.0.0.2"), ("node3", "10.0.0.3"));
        assert_eq!(used("internalTrafficPolicy: Local", &[here, zone]), ["10.0.0.1"]);
        assert_eq!(used("internalTrafficPolicy: Local", &[zone, far]), [""; 0]);
        assert_eq!(used("trafficDistribution: PreferClose", &[here, zone, far]), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(used("trafficDistribution: PreferClose", &[far]), ["10.0.0.3"]);
        assert_eq!(used("trafficDistribution: PreferSameNode", &[here, zone, far]), ["10.0.0.1"]);
        assert_eq!(used("trafficDistribution: PreferSameNode", &[zone, far]), ["10.0.0.2"]);
        assert_eq!(used("sessionAffinity: None", &[here, zone, far]).len(), 3);
    }

    #[test]
    fn named_ports_are_looked_up_in_each_pod() {
        let store =
            settled(&(service(HTTP) + &pod("a", "10.0.0.1", true, 8080) + &pod("b", "10.0.0.2", true, 9090)));
        assert_eq!(backends_of(&store, false), ["10.0.0.1 8080", "10.0.0.2 9090"]);
        assert_eq!(store.slices().count(), 2);
    }

    #[test]
    fn each_family_has_its_slice() {
        let spec = "{selector: {app: web}, ipFamilies: [IPv4, IPv6], ports: [{port: 80}]}";
        let store = settled(&(service(spec) + &pod("a", "10.0.0.1", true, 8080)));
        assert_eq!(backends_of(&store, true), ["fd00::1 80"]);
    }

    #[test]
    fn slices_go_with_their_service_and_those_of_others_stay() {
        let foreign = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                       metadata: {name: mine, namespace: x, labels: {kubernetes.io/service-name: web}}\n\
                       addressType: IPv4\nports: [{port: 9}]\nendpoints: [{addresses: [10.9.9.9]}]\n";
        let without_selector = service("{ports: [{port: 9}]}");
        let store = settled(&(without_selector + foreign));
        assert_eq!(backends_of(&store, false), ["10.9.9.9 9"]);
    }
}
