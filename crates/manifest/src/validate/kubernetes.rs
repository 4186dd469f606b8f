//! Kubernetes' own kinds, as far as the mesh or the lab rely on them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, PodSpec, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{FieldPath, Findings, check_port, names};
use crate::distribution::{TRAFFIC_DISTRIBUTION, TrafficDistribution};
use crate::kinds::{MeshConfig, MeshSettings};
use crate::object::Object;
use crate::problem::Problem;

const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

pub(super) fn config_map(map: &ConfigMap, findings: &mut Findings) {
    if map.metadata.name.as_deref() != Some(MeshConfig::CONFIG_MAP) {
        return;
    }
    let Some(text) = map.data.as_ref().and_then(|data| data.get(MeshConfig::KEY)) else { return };
    let path = FieldPath::from("data").field(MeshConfig::KEY);
    let config = match mesh_config(text) {
        Ok(config) => config,
        Err(problems) => {
            for problem in problems {
                let finding = findings.error(&path, problem.message);
                finding.within = Some(crate::Position { line: problem.line, column: problem.column });
                finding.remedy = problem.remedy;
            }
            return;
        }
    };
    if let Some(domain) = &config.trust_domain
        && let Err(error) = model::TrustDomain::new(domain)
    {
        findings.error(&path, format!("trustDomain: {error}"));
    }
    for alias in &config.trust_domain_aliases {
        if let Err(error) = model::TrustDomain::new(alias) {
            findings.error(&path, format!("trustDomainAliases: {error}"));
        }
    }
    if let Some(namespace) = &config.root_namespace
        && !names::is_label(namespace)
    {
        findings.error(&path, format!("rootNamespace: `{namespace}` is no namespace's name"));
    }
}

/// The mesh's settings that a ConfigMap holds and that have no effect yet.
pub(crate) fn unused_mesh_settings(map: &ConfigMap) -> Vec<&'static str> {
    if map.metadata.name.as_deref() != Some(MeshConfig::CONFIG_MAP) {
        return Vec::new();
    }
    let text = map.data.as_ref().and_then(|data| data.get(MeshConfig::KEY));
    text.and_then(|text| mesh_config(text).ok()).map(|config| config.not_used()).unwrap_or_default()
}

fn mesh_config(text: &str) -> Result<MeshConfig, Vec<Problem>> {
    let file = "".into();
    let mut nodes = crate::yaml::read(&file, text, 0).map_err(|problem| vec![problem])?;
    match nodes.len() {
        0 => Ok(MeshConfig::default()),
        1 => crate::de::from_node(&file, &nodes.remove(0)),
        _ => Err(vec![Problem::error(&file, nodes[1].at, "the mesh's settings are a single document")]),
    }
}

/// The mesh's settings of a ConfigMap; the defaults where it holds none or none that can be read.
pub fn mesh_settings(map: &ConfigMap, defaults: &MeshSettings) -> MeshSettings {
    let text = map.data.as_ref().and_then(|data| data.get(MeshConfig::KEY));
    let config = text.and_then(|text| mesh_config(text).ok());
    config.map_or_else(|| defaults.clone(), |config| MeshSettings::of(&config, defaults))
}

pub(super) fn deployment(deployment: &Deployment, findings: &mut Findings) {
    let path = FieldPath::from("spec");
    let Some(spec) = &deployment.spec else {
        findings.error(&FieldPath::default(), "the Deployment has no `spec`");
        return;
    };
    if spec.replicas.is_some_and(|replicas| replicas < 0) {
        findings.error(&path.field("replicas"), "there cannot be fewer than none");
    }
    strategy(spec, &path.field("strategy"), findings);
    let empty = BTreeMap::new();
    let wanted = spec.selector.match_labels.as_ref().unwrap_or(&empty);
    let at = path.field("selector");
    if wanted.is_empty() && spec.selector.match_expressions.as_ref().is_none_or(Vec::is_empty) {
        findings.error(&at, "the selector is empty");
    }
    names::labels(wanted, &at.field("matchLabels"), findings);
    let labels = spec.template.metadata.as_ref().and_then(|m| m.labels.as_ref());
    if !crate::kinds::selects(wanted, labels) {
        findings.error(&at, "the selector does not match the labels of `spec.template`");
    }
    names::labels(labels.unwrap_or(&empty), &FieldPath::from("spec.template.metadata.labels"), findings);
    match &spec.template.spec {
        Some(pod) => pod_spec(pod, &FieldPath::from("spec.template.spec"), findings),
        None => {
            findings.error(&path.field("template"), "the template has no `spec`");
        }
    }
}

fn strategy(spec: &DeploymentSpec, path: &FieldPath, findings: &mut Findings) {
    let Some(strategy) = &spec.strategy else { return };
    const TYPES: [&str; 2] = ["RollingUpdate", "Recreate"];
    let kind = strategy.type_.as_deref().unwrap_or(TYPES[0]);
    if !TYPES.contains(&kind) {
        let finding = findings.error(&path.field("type"), format!("there is no strategy `{kind}`"));
        finding.did_you_mean(kind, TYPES);
    }
    let Some(rolling) = &strategy.rolling_update else { return };
    let path = path.field("rollingUpdate");
    if kind == "Recreate" {
        findings.error(&path, "a deployment that is recreated has no `rollingUpdate`");
    }
    let shares = [("maxSurge", &rolling.max_surge), ("maxUnavailable", &rolling.max_unavailable)];
    for (name, share) in shares {
        let is_one = match share {
            None => true,
            Some(IntOrString::Int(number)) => *number >= 0,
            Some(IntOrString::String(text)) => {
                text.strip_suffix('%').is_some_and(|digits| digits.parse::<u16>().is_ok())
            }
        };
        if !is_one {
            findings.error(&path.field(name), "is neither a number of pods nor a percentage");
        }
    }
    let is_none = |share: &Option<IntOrString>| match share {
        None => false,
        Some(IntOrString::Int(number)) => *number == 0,
        Some(IntOrString::String(text)) => text == "0%",
    };
    if is_none(&rolling.max_surge) && is_none(&rolling.max_unavailable) {
        findings.error(&path, "neither one more nor one fewer: nothing could ever be replaced");
    }
}

pub(super) fn pod(pod: &Pod, findings: &mut Findings) {
    match &pod.spec {
        Some(spec) => pod_spec(spec, &"spec".into(), findings),
        None => {
            findings.error(&FieldPath::default(), "the Pod has no `spec`");
        }
    }
    let Some(status) = &pod.status else { return };
    let path = FieldPath::from("status");
    let ip = |text: &str, path: &FieldPath, findings: &mut Findings| {
        if !text.is_empty() && text.parse::<IpAddr>().is_err() {
            findings.error(path, format!("{text:?} is no IP address"));
        }
    };
    ip(status.pod_ip.as_deref().unwrap_or_default(), &path.field("podIP"), findings);
    for (n, address) in status.pod_ips.iter().flatten().enumerate() {
        ip(&address.ip, &path.field("podIPs").index(n).field("ip"), findings);
    }
}

fn pod_spec(spec: &PodSpec, path: &FieldPath, findings: &mut Findings) {
    if spec.containers.is_empty() {
        findings.error(&path.field("containers"), "a pod needs a container");
    }
    let mut seen = BTreeSet::new();
    for (n, container) in spec.containers.iter().enumerate() {
        let path = path.field("containers").index(n);
        if !names::is_label(&container.name) {
            findings.error(&path.field("name"), format!("{:?} is no container's name", container.name));
        }
        if !seen.insert(&container.name) {
            findings.error(&path.field("name"), format!("`{}` is here twice", container.name));
        }
        for (n, port) in container.ports.iter().flatten().enumerate() {
            let path = path.field("ports").index(n);
            check_port(port.container_port.into(), &path.field("containerPort"), findings);
            protocol(port.protocol.as_deref(), &path.field("protocol"), findings);
        }
    }
}

fn protocol(protocol: Option<&str>, path: &FieldPath, findings: &mut Findings) {
    if let Some(protocol) = protocol
        && !PROTOCOLS.contains(&protocol)
    {
        let finding = findings.error(path, format!("there is no protocol `{protocol}`"));
        finding.did_you_mean(protocol, PROTOCOLS);
    }
}

/// The annotation; the field of a Service is checked with the Service.
pub(super) fn traffic_distribution(object: &Object, findings: &mut Findings) {
    if let Some(word) = object.annotation(TRAFFIC_DISTRIBUTION) {
        let path = FieldPath::from("metadata.annotations").field(TRAFFIC_DISTRIBUTION);
        distribution(word, &path, findings);
    }
}

fn distribution(word: &str, path: &FieldPath, findings: &mut Findings) {
    if TrafficDistribution::parse(word).is_none() {
        let finding = findings.error(path, format!("there is no traffic distribution `{word}`"));
        finding.did_you_mean(word, TrafficDistribution::WORDS);
    }
}

pub(super) fn service(service: &Service, findings: &mut Findings) {
    let Some(spec) = &service.spec else {
        findings.error(&FieldPath::default(), "the Service has no `spec`");
        return;
    };
    let path = FieldPath::from("spec");
    const TYPES: [&str; 4] = ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"];
    let service_type = spec.type_.as_deref().unwrap_or(TYPES[0]);
    if !TYPES.contains(&service_type) {
        let finding = findings.error(&path.field("type"), format!("there is no type `{service_type}`"));
        finding.did_you_mean(service_type, TYPES);
    }
    if let Some(word) = &spec.traffic_distribution {
        distribution(word, &path.field("trafficDistribution"), findings);
    }
    const POLICIES: [&str; 2] = ["Cluster", "Local"];
    if let Some(word) = spec.internal_traffic_policy.as_deref().filter(|word| !POLICIES.contains(word)) {
        let at = path.field("internalTrafficPolicy");
        let finding = findings.error(&at, format!("there is no internal traffic policy `{word}`"));
        finding.did_you_mean(word, POLICIES);
    }
    let headless = spec.cluster_ip.as_deref() == Some("None");
    if service_type == "ExternalName" && spec.external_name.as_deref().unwrap_or_default().is_empty() {
        findings.error(&path, "an ExternalName needs `externalName`");
    }
    names::labels(spec.selector.as_ref().unwrap_or(&BTreeMap::new()), &path.field("selector"), findings);
    let ips = spec.cluster_ips.iter().flatten().enumerate();
    let ips = ips.map(|(n, ip)| (path.field("clusterIPs").index(n), ip));
    for (path, ip) in spec.cluster_ip.iter().map(|ip| (path.field("clusterIP"), ip)).chain(ips) {
        if !ip.is_empty() && ip != "None" && ip.parse::<IpAddr>().is_err() {
            findings.error(&path, format!("{ip:?} is no IP address")).remedy("`None` makes it headless");
        }
    }
    let ports = spec.ports.as_deref().unwrap_or_default();
    let at = path.field("ports");
    if ports.is_empty() && !headless && service_type != "ExternalName" {
        findings.error(&path, "the Service has no `ports`");
    }
    let (mut numbers, mut port_names) = (BTreeSet::new(), BTreeSet::new());
    for (n, port) in ports.iter().enumerate() {
        let path = at.index(n);
        check_port(port.port.into(), &path.field("port"), findings);
        protocol(port.protocol.as_deref(), &path.field("protocol"), findings);
        if !numbers.insert((port.port, port.protocol.as_deref().unwrap_or("TCP"))) {
            findings.error(&path.field("port"), format!("port {} is here twice", port.port));
        }
        match port.name.as_deref().unwrap_or_default() {
            "" if ports.len() > 1 => {
                findings.error(&path, "of several ports each needs a `name`");
            }
            "" => {}
            name if !names::is_label(name) => {
                findings.error(&path.field("name"), format!("`{name}` is no port's name"));
            }
            name => {
                if !port_names.insert(name) {
                    findings.error(&path.field("name"), format!("`{name}` is here twice"));
                }
            }
        }
        match &port.target_port {
            Some(IntOrString::Int(number)) => {
                check_port((*number).into(), &path.field("targetPort"), findings)
            }
            Some(IntOrString::String(name))
                if name.len() > 15
                    || !names::is_label(name)
                    || !name.contains(|c: char| c.is_alphabetic()) =>
            {
                let finding = findings
                    .error(&path.field("targetPort"), format!("{name:?} is no container port's name"));
                if name.parse::<u16>().is_ok() {
                    finding.remedy("take the quotes away");
                }
            }
            _ => {}
        }
    }
}

pub(super) fn endpoint_slice(slice: &EndpointSlice, findings: &mut Findings) {
    const TYPES: [&str; 3] = ["IPv4", "IPv6", "FQDN"];
    let address_type = slice.address_type.as_str();
    let path = FieldPath::default();
    if !TYPES.contains(&address_type) {
        let finding =
            findings.error(&path.field("addressType"), format!("there is no type {address_type:?}"));
        finding.did_you_mean(address_type, TYPES);
    }
    for (n, endpoint) in slice.endpoints.iter().enumerate() {
        for (m, address) in endpoint.addresses.iter().enumerate() {
            let ip = address.parse::<IpAddr>();
            let fits = match address_type {
                "IPv4" => ip.is_ok_and(|ip| ip.is_ipv4()),
                "IPv6" => ip.is_ok_and(|ip| ip.is_ipv6()),
                _ => true,
            };
            if !fits {
                let path = path.field("endpoints").index(n).field("addresses").index(m);
                findings.error(&path, format!("{address:?} is no {address_type} address"));
            }
        }
    }
    for (n, port) in slice.ports.iter().flatten().enumerate() {
        let path = path.field("ports").index(n);
        if let Some(number) = port.port {
            check_port(number.into(), &path.field("port"), findings);
        }
        protocol(port.protocol.as_deref(), &path.field("protocol"), findings);
    }
}
