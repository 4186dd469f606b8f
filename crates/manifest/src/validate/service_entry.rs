//! ServiceEntry and WorkloadEntry.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{FieldPath, Findings, check_port, names};
use crate::kinds::{Resolution, ServiceEntrySpec, WorkloadEntrySpec};

const PROTOCOLS: [&str; 9] = ["TCP", "TLS", "HTTP", "HTTPS", "HTTP2", "GRPC", "GRPC-WEB", "MONGO", "UDP"];

pub(super) fn service_entry(spec: &ServiceEntrySpec, findings: &mut Findings) {
    let path = FieldPath::from("spec");
    hosts(spec, &path, findings);
    let ports = ports(spec, &path, findings);
    let resolution = spec.resolution.unwrap_or_default();
    addresses(spec, resolution, &path, findings);
    endpoints(spec, resolution, &path, findings);
    for (n, endpoint) in spec.endpoints.iter().enumerate() {
        let path = path.field("endpoints").index(n);
        let is_named =
            names_are_looked_up(resolution) && names::is_subdomain(&endpoint.address.to_lowercase());
        if !is_named {
            address(endpoint, &path, findings);
        }
        what_it_says(endpoint, &path, Some(&ports), findings);
    }
    for (n, namespace) in spec.export_to.iter().enumerate() {
        if !matches!(namespace.as_str(), "*" | ".") {
            findings
                .error(
                    &path.field("exportTo").index(n),
                    format!("exporting to `{namespace}` is not supported yet"),
                )
                .remedy("`*` for everybody, `.` for the own namespace");
        }
    }
}

fn names_are_looked_up(resolution: Resolution) -> bool {
    matches!(resolution, Resolution::Dns | Resolution::DnsRoundRobin)
}

fn addresses(spec: &ServiceEntrySpec, resolution: Resolution, path: &FieldPath, findings: &mut Findings) {
    for (n, address) in spec.addresses.iter().enumerate() {
        let path = path.field("addresses").index(n);
        match address.parse::<IpAddr>().map(IpNet::from).or_else(|_| address.parse::<IpNet>()) {
            Ok(net) if net.prefix_len() == net.max_prefix_len() => {}
            Ok(_) if !names_are_looked_up(resolution) => {}
            Ok(_) => {
                let why = format!("the block `{address}` with resolution {}", resolution.as_str());
                findings.error(&path, why).remedy("a name that is looked up has single addresses, or none");
            }
            Err(_) => {
                findings.error(&path, format!("{address:?} is no IP address"));
            }
        }
    }
}

/// Whether there are endpoints of the kind that the resolution asks for.
fn endpoints(spec: &ServiceEntrySpec, resolution: Resolution, path: &FieldPath, findings: &mut Findings) {
    let at = || spec.resolution.map_or_else(|| path.clone(), |_| path.field("resolution"));
    let is_without = spec.endpoints.is_empty() && spec.workload_selector.is_none();
    match resolution {
        Resolution::DynamicDns => {
            findings
                .error(&at(), "resolution DYNAMIC_DNS is not supported yet")
                .remedy("use `resolution: DNS` and name each host, or `NONE` for a wildcard");
        }
        Resolution::None if !is_without => {
            findings
                .error(&at(), "with resolution NONE the client's own address is the destination: endpoints have no meaning")
                .remedy("use `resolution: STATIC` for endpoints by address, `DNS` for endpoints by name");
        }
        Resolution::Static if is_without => {
            findings.error(path, "a STATIC ServiceEntry needs `endpoints` or a `workloadSelector`");
        }
        Resolution::Dns | Resolution::DnsRoundRobin => {
            if spec.workload_selector.is_some() {
                findings
                    .error(
                        &path.field("workloadSelector"),
                        "a selector finds addresses, which are not looked up by DNS",
                    )
                    .remedy("use `resolution: STATIC`");
            }
            let wildcards = spec.hosts.iter().enumerate().filter(|(_, host)| host.starts_with('*'));
            for (n, host) in wildcards.filter(|_| is_without) {
                findings
                    .error(&path.field("hosts").index(n), format!("`{host}` cannot be looked up"))
                    .remedy("write `endpoints`, name each host, or use `resolution: NONE`");
            }
            if resolution == Resolution::DnsRoundRobin && spec.endpoints.len() > 1 {
                findings
                    .error(&path.field("endpoints"), "with DNS_ROUND_ROBIN there is one endpoint at most")
                    .remedy("use `resolution: DNS` for several");
            }
        }
        Resolution::None | Resolution::Static => {}
    }
    match (&spec.workload_selector, spec.endpoints.is_empty()) {
        (Some(_), false) => {
            findings.error(&path.field("endpoints"), "either `endpoints` or `workloadSelector`, not both");
        }
        (Some(selector), true) => {
            let at = path.field("workloadSelector").field("labels");
            if selector.labels.is_empty() {
                findings.error(&path.field("workloadSelector"), "the selector is empty");
            }
            names::labels(&selector.labels, &at, findings);
        }
        _ => {}
    }
}

fn hosts(spec: &ServiceEntrySpec, path: &FieldPath, findings: &mut Findings) {
    if spec.hosts.is_empty() {
        findings.error(path, "a ServiceEntry needs `hosts`");
    }
    for (n, host) in spec.hosts.iter().enumerate() {
        let path = path.field("hosts").index(n);
        let name = host.strip_prefix("*.").unwrap_or(host);
        if host.parse::<IpAddr>().is_ok() {
            findings
                .error(&path, format!("`{host}` is an address, not a host name"))
                .remedy("use `addresses`");
        } else if !names::is_subdomain(&name.to_lowercase()) {
            findings.error(&path, format!("{host:?} is no host name"));
        }
    }
}

/// Checks the ports and gives their names.
fn ports<'s>(spec: &'s ServiceEntrySpec, path: &FieldPath, findings: &mut Findings) -> BTreeSet<&'s str> {
    let (mut numbers, mut port_names) = (BTreeSet::new(), BTreeSet::new());
    if spec.ports.is_empty() {
        findings.error(path, "a ServiceEntry needs `ports`");
    }
    for (n, port) in spec.ports.iter().enumerate() {
        let path = path.field("ports").index(n);
        check_port(port.number.into(), &path.field("number"), findings);
        if let Some(target) = port.target_port {
            check_port(target.into(), &path.field("targetPort"), findings);
        }
        if !numbers.insert(port.number) {
            findings.error(&path.field("number"), format!("port {} is here twice", port.number));
        }
        if !names::is_label(&port.name) {
            findings.error(&path.field("name"), format!("{:?} is no port's name", port.name));
        } else if !port_names.insert(port.name.as_str()) {
            findings.error(&path.field("name"), format!("`{}` is here twice", port.name));
        }
        let protocol = port.protocol.to_uppercase();
        if !protocol.is_empty() && !PROTOCOLS.contains(&protocol.as_str()) {
            let finding =
                findings.error(&path.field("protocol"), format!("there is no protocol `{}`", port.protocol));
            finding.did_you_mean(&protocol, PROTOCOLS);
        }
    }
    port_names
}

/// A WorkloadEntry.
pub(super) fn workload_entry(spec: &WorkloadEntrySpec, path: &FieldPath, findings: &mut Findings) {
    address(spec, path, findings);
    what_it_says(spec, path, None, findings);
}

fn address(spec: &WorkloadEntrySpec, path: &FieldPath, findings: &mut Findings) {
    if spec.address.parse::<IpAddr>().is_ok() {
        return;
    }
    let at = path.field("address");
    if spec.address.is_empty() {
        findings.error(path, "there is no `address`");
    } else if spec.address.starts_with("unix:") {
        findings.error(&at, "Unix sockets are not supported").remedy("use an IP address");
    } else {
        let finding = findings.error(&at, format!("{:?} is no IP address", spec.address));
        finding.remedy("a ServiceEntry with `resolution: DNS` may name hosts as endpoints");
    }
}

/// `port_names` are those of the service, where there is just one.
fn what_it_says(
    spec: &WorkloadEntrySpec,
    path: &FieldPath,
    port_names: Option<&BTreeSet<&str>>,
    findings: &mut Findings,
) {
    for (name, port) in &spec.ports {
        let at = path.field("ports").field(name);
        check_port((*port).into(), &at, findings);
        if let Some(names) = port_names
            && !names.contains(name.as_str())
        {
            let finding = findings.error(&at, format!("the service has no port `{name}`"));
            finding.did_you_mean(name, names.iter().copied());
        }
    }
    names::labels(&spec.labels, &path.field("labels"), findings);
    if spec.locality.split('/').count() > 3 {
        findings
            .error(&path.field("locality"), format!("{:?} has more than three parts", spec.locality))
            .remedy("region/zone/subzone");
    }
}
