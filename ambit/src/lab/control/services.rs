//! Virtual IPs of services.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServiceSpec};

use super::Facts;
use crate::lab::address::{RESOLVER, RESOLVER6};
use crate::lab::store::{Change, Store};

/// Gives services without a virtual IP one a family, and fills in what a cluster's defaults would be.
pub(super) fn changes(store: &Store, facts: &mut Facts<'_>) -> Vec<Change> {
    let mut taken: BTreeSet<IpAddr> = store.services().flat_map(addresses).collect();
    taken.extend([IpAddr::from(RESOLVER), RESOLVER6.into()]);
    let mut changes = Vec::new();
    for service in store.services() {
        let Some(spec) = service.spec.as_ref() else { continue };
        let completed = complete(spec, &mut taken, facts);
        if completed != *spec {
            changes.push(Change::put(Service { spec: Some(completed), ..service.clone() }));
        }
    }
    changes
}

/// A service's virtual IPs, those of other ranges too.
pub(crate) fn addresses(service: &Service) -> Vec<IpAddr> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let all = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let parsed: BTreeSet<IpAddr> = all.filter_map(|text| text.parse().ok()).collect();
    parsed.into_iter().collect()
}

fn complete(spec: &ServiceSpec, taken: &mut BTreeSet<IpAddr>, facts: &mut Facts<'_>) -> ServiceSpec {
    let mut spec = spec.clone();
    spec.type_.get_or_insert_with(|| "ClusterIP".to_owned());
    for port in spec.ports.iter_mut().flatten() {
        port.protocol.get_or_insert_with(|| "TCP".to_owned());
    }
    if spec.type_.as_deref() == Some("ExternalName") {
        return spec;
    }
    if spec.cluster_ip.as_deref() == Some("None") {
        let policy = spec.ip_family_policy.clone();
        spec.ip_families.get_or_insert_with(|| families(policy.as_deref(), None, facts.has_v6));
        spec.cluster_ips.get_or_insert_with(|| vec!["None".to_owned()]);
        return spec;
    }
    let first = spec.cluster_ip.as_deref().and_then(|text| text.parse::<IpAddr>().ok());
    let policy = spec.ip_family_policy.clone();
    let wanted =
        spec.ip_families.get_or_insert_with(|| families(policy.as_deref(), first, facts.has_v6)).clone();
    let given: Vec<IpAddr> = {
        let all = spec.cluster_ip.iter().chain(spec.cluster_ips.iter().flatten());
        all.filter_map(|text| text.parse().ok()).collect()
    };
    let mut ips = Vec::new();
    for family in wanted {
        let of_family = |ip: &&IpAddr| ip.is_ipv6() == (family == "IPv6");
        let ip = given.iter().find(of_family).copied().or_else(|| match family.as_str() {
            "IPv6" if facts.has_v6 => facts.vips.v6(taken).map(IpAddr::V6),
            "IPv4" => facts.vips.v4(taken).map(IpAddr::V4),
            _ => None,
        });
        if let Some(ip) = ip {
            taken.insert(ip);
            ips.push(ip.to_string());
        }
    }
    spec.cluster_ip = ips.first().cloned();
    spec.cluster_ips = Some(ips);
    spec
}

/// The families of a service that names none: one, unless it wants both.
fn families(policy: Option<&str>, first: Option<IpAddr>, has_v6: bool) -> Vec<String> {
    let (v4, v6) = ("IPv4".to_owned(), "IPv6".to_owned());
    let both = matches!(policy, Some("PreferDualStack" | "RequireDualStack")) && has_v6;
    match (first, both) {
        (Some(IpAddr::V6(_)), true) => vec![v6, v4],
        (Some(IpAddr::V6(_)), false) => vec![v6],
        (_, true) => vec![v4, v6],
        (_, false) => vec![v4],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::address::{SERVICES, SERVICES6, VipCursor};
    use crate::lab::store::tests::store;

    fn completed(spec: &str) -> ServiceSpec {
        let yaml =
            format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a, namespace: x}}\nspec: {spec}\n");
        let (mut store, mut mint) = store(&yaml);
        let mut vips = VipCursor::default();
        let mut facts = Facts { nodes: &[], has_v6: true, vips: &mut vips };
        for change in changes(&store, &mut facts) {
            store.make(change, &mut mint);
        }
        assert_eq!(changes(&store, &mut facts), [], "it comes to rest");
        store.services().next().unwrap().spec.clone().unwrap()
    }

    #[test]
    fn a_service_gets_a_virtual_ip() {
        let spec = completed("{ports: [{port: 80}]}");
        let ip: std::net::Ipv4Addr = spec.cluster_ip.unwrap().parse().unwrap();
        assert!(SERVICES.contains(&ip));
        assert_eq!(spec.cluster_ips.unwrap(), [ip.to_string()]);
        assert_eq!(spec.ports.unwrap()[0].protocol.as_deref(), Some("TCP"));
    }

    #[test]
    fn a_chosen_ip_and_a_headless_service_stay_as_they_are() {
        assert_eq!(
            completed("{clusterIP: 10.96.0.77, ports: [{port: 80}]}").cluster_ip.unwrap(),
            "10.96.0.77"
        );
        assert_eq!(completed("{clusterIP: None, ports: [{port: 80}]}").cluster_ip.unwrap(), "None");
        assert_eq!(completed("{type: ExternalName, externalName: a.b}").cluster_ip, None);
    }

    #[test]
    fn a_service_may_have_both_families() {
        let spec = completed("{ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]}");
        let ips = spec.cluster_ips.unwrap();
        assert!(SERVICES6.contains(&ips[1].parse::<std::net::Ipv6Addr>().unwrap()), "{ips:?}");
        assert_eq!(spec.ip_families.unwrap(), ["IPv4", "IPv6"]);
    }
}
