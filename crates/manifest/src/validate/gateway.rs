//! Gateways, and what objects say of the waypoints before them.

use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::{FieldPath, Findings, check_port, names};
use crate::gateway::{self, NAMESPACE_NAME, WaypointFor};
use crate::kinds::{AllowedRoutes, Gateway, GatewayAddress};
use crate::object::{Object, annotation, label};

pub(super) fn gateway(gateway: &Gateway, findings: &mut Findings) {
    let path = FieldPath::from("spec");
    if gateway.spec.gateway_class_name.is_empty() {
        findings.error(&path, "a Gateway needs a `gatewayClassName`");
    }
    if gateway.spec.listeners.is_empty() {
        findings.error(&path, "a Gateway needs `listeners`");
    }
    for (n, listener) in gateway.spec.listeners.iter().enumerate() {
        let path = path.field("listeners").index(n);
        check_port(listener.port, &path.field("port"), findings);
        if !names::is_subdomain(&listener.name) {
            findings.error(&path.field("name"), format!("{:?} is no listener's name", listener.name));
        }
        if listener.protocol.is_empty() {
            findings.error(&path, "a listener needs a `protocol`");
        }
        if let Some(routes) = &listener.allowed_routes {
            allowed_routes(routes, &path.field("allowedRoutes").field("namespaces"), findings);
        }
    }
    for (n, address) in gateway.spec.addresses.iter().enumerate() {
        check_address(address, &path.field("addresses").index(n), findings);
    }
    said_of_itself(gateway, findings);
}

fn allowed_routes(routes: &AllowedRoutes, path: &FieldPath, findings: &mut Findings) {
    let Some(namespaces) = &routes.namespaces else { return };
    const FROM: [&str; 3] = ["All", "Same", "Selector"];
    let from = namespaces.from.as_deref().unwrap_or("Same");
    if !FROM.contains(&from) {
        let finding = findings.error(&path.field("from"), format!("there is no `{from}`"));
        finding.did_you_mean(from, FROM);
    }
    match &namespaces.selector {
        Some(selector) if from == "Selector" => {
            namespaces_by_name(selector, &path.field("selector"), findings)
        }
        None if from == "Selector" => drop(findings.error(path, "`from: Selector` needs a `selector`")),
        _ => {}
    }
}

/// Namespaces come and go with labels that nobody watches for this; by name they are what they are.
fn namespaces_by_name(selector: &LabelSelector, path: &FieldPath, findings: &mut Findings) {
    let labels = selector.match_labels.iter().flatten().map(|(key, _)| (key, "In"));
    let expressions = selector.match_expressions.iter().flatten();
    let all = labels.chain(expressions.map(|wanted| (&wanted.key, wanted.operator.as_str())));
    let mut all = all.peekable();
    if all.peek().is_none() {
        findings.error(path, "the selector is empty").remedy("`from: All` is for all namespaces");
    }
    for (key, operator) in all {
        if key != NAMESPACE_NAME || operator != "In" {
            findings
                .error(path, format!("selecting namespaces by `{key}` {operator} is not supported yet"))
                .remedy(format!("select by `{NAMESPACE_NAME}`, or write `from: All`"));
        }
    }
}

fn check_address(address: &GatewayAddress, path: &FieldPath, findings: &mut Findings) {
    let at = path.field("value");
    match address.kind.as_deref() {
        None | Some("IPAddress") if address.value.parse::<IpAddr>().is_err() => {
            findings.error(&at, format!("{:?} is no IP address", address.value));
        }
        Some("Hostname") if !names::is_subdomain(&address.value) => {
            findings.error(&at, format!("{:?} is no host name", address.value));
        }
        None | Some("IPAddress" | "Hostname") => {}
        Some(kind) => {
            let finding = findings.error(&path.field("type"), format!("there is no address type `{kind}`"));
            finding.did_you_mean(kind, ["IPAddress", "Hostname"]);
        }
    }
}

fn said_of_itself(gateway: &Gateway, findings: &mut Findings) {
    let metadata = FieldPath::from("metadata");
    if let Some(word) = label(&gateway.metadata, gateway::WAYPOINT_FOR)
        && WaypointFor::parse(word).is_none()
    {
        let at = metadata.field("labels").field(gateway::WAYPOINT_FOR);
        findings.error(&at, format!("`{word}` is no traffic")).did_you_mean(word, WaypointFor::WORDS);
    }
    if let Some(word) = annotation(&gateway.metadata, gateway::INBOUND_BINDING)
        && gateway::inbound_binding(word).is_none()
    {
        let at = metadata.field("annotations").field(gateway::INBOUND_BINDING);
        findings.error(&at, format!("`{word}` is no binding")).remedy("`PROXY/15088`, `PROXY` or `NONE`");
    }
    if let Some(account) = annotation(&gateway.metadata, gateway::SERVICE_ACCOUNT)
        && !names::is_subdomain(account)
    {
        let at = metadata.field("annotations").field(gateway::SERVICE_ACCOUNT);
        findings.error(&at, format!("`{account}` is no service account's name"));
    }
}

/// What an object says of the waypoints before it.
pub(super) fn use_of_waypoints(object: &Object, findings: &mut Findings) {
    let shares = matches!(object, Object::Namespace(_) | Object::Service(_) | Object::ServiceEntry(_));
    let metadata = FieldPath::from("metadata");
    if let Some(canary) = object.label(gateway::CANARY)
        && !shares
    {
        let at = metadata.field("labels").field(gateway::CANARY);
        findings
            .error(&at, format!("only a service's traffic is shared: `{canary}` would take nothing"))
            .remedy("put it on the Service, the ServiceEntry or the namespace");
    }
    let Some(weight) = object.annotation(gateway::CANARY_WEIGHT) else { return };
    let at = metadata.field("annotations").field(gateway::CANARY_WEIGHT);
    if gateway::percentage(weight).is_none() {
        findings.error(&at, format!("{weight:?} is no percentage")).remedy("a whole number from 0 to 100");
    } else if object.label(gateway::CANARY).is_none() {
        findings
            .error(&at, format!("there is no label `{}` beside it", gateway::CANARY))
            .remedy("the annotation says how much of the traffic the waypoint takes that the label names");
    }
}
