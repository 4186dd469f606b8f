//! Services.

use ambit_proto::workload as wire;
use model::{
    HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, Scope, Service, Visibility, WeightedWaypoint,
};

use super::Fault;
use super::workload::{Place, gateway, place, ports, required_gateway};

pub(super) fn read(s: wire::Service) -> Result<Service, Fault> {
    for (field, value) in [("namespace", &s.namespace), ("hostname", &s.hostname)] {
        if value.is_empty() {
            return Err(Fault::Missing { field });
        }
    }
    let (mut addresses, mut blocks) = (Vec::new(), Vec::new());
    for address in s.addresses {
        match place("addresses", address)? {
            Place::Address(address) => addresses.push(address),
            Place::Block(block) => blocks.push(block),
        }
    }
    Ok(Service {
        name: s.name.into(),
        namespace: s.namespace.into(),
        hostname: s.hostname.into(),
        addresses,
        blocks,
        ports: ports("ports", s.ports)?,
        subject_alt_names: s.subject_alt_names.into_iter().map(Into::into).collect(),
        waypoint: gateway("waypoint", s.waypoint)?,
        load_balancing: s.load_balancing.map(load_balancing).transpose()?.unwrap_or_default(),
        ip_families: ip_families(s.ip_families),
        canonical: s.canonical,
        ingress_use_waypoint: s.ingress_use_waypoint,
        weighted_waypoints: s.weighted_waypoints.into_iter().map(weighted).collect::<Result<_, _>>()?,
        visibility: visibility(s.visibility),
    })
}

fn weighted(w: wire::WeightedWaypoint) -> Result<WeightedWaypoint, Fault> {
    const FIELD: &str = "weighted_waypoints";
    let destination = w.destination.ok_or(Fault::Missing { field: FIELD })?;
    Ok(WeightedWaypoint { destination: required_gateway(FIELD, destination)?, weight: w.weight })
}

/// Fewer preferences than were written are still preferences, but fewer strict demands are a weaker demand.
fn load_balancing(l: wire::LoadBalancing) -> Result<LoadBalancing, Fault> {
    use wire::load_balancing as lb;
    let mode = match lb::Mode::try_from(l.mode) {
        Ok(lb::Mode::UnspecifiedMode) => LoadBalancingMode::Unspecified,
        Ok(lb::Mode::Strict) => LoadBalancingMode::Strict,
        Ok(lb::Mode::Failover) => LoadBalancingMode::Failover,
        Ok(lb::Mode::Passthrough) => LoadBalancingMode::Passthrough,
        Err(_) => return Err(Fault::Choice { field: "load_balancing.mode", value: l.mode }),
    };
    let mut routing_preference = Vec::with_capacity(l.routing_preference.len().min(8));
    for value in l.routing_preference {
        let scope = match lb::Scope::try_from(value) {
            Ok(lb::Scope::UnspecifiedScope) => continue,
            Ok(lb::Scope::Region) => Scope::Region,
            Ok(lb::Scope::Zone) => Scope::Zone,
            Ok(lb::Scope::Subzone) => Scope::Subzone,
            Ok(lb::Scope::Node) => Scope::Node,
            Ok(lb::Scope::Cluster) => Scope::Cluster,
            Ok(lb::Scope::Network) => Scope::Network,
            Err(_) if mode == LoadBalancingMode::Strict => {
                return Err(Fault::Choice { field: "load_balancing.routing_preference", value });
            }
            Err(_) => break,
        };
        routing_preference.push(scope);
    }
    let health_policy = match lb::HealthPolicy::try_from(l.health_policy) {
        Ok(lb::HealthPolicy::OnlyHealthy) | Err(_) => HealthPolicy::OnlyHealthy,
        Ok(lb::HealthPolicy::AllowAll) => HealthPolicy::AllowAll,
    };
    Ok(LoadBalancing { routing_preference, mode, health_policy })
}

fn ip_families(value: i32) -> IpFamilies {
    match wire::IpFamilies::try_from(value) {
        Ok(wire::IpFamilies::Automatic) | Err(_) => IpFamilies::Automatic,
        Ok(wire::IpFamilies::Ipv4Only) => IpFamilies::V4Only,
        Ok(wire::IpFamilies::Ipv6Only) => IpFamilies::V6Only,
        Ok(wire::IpFamilies::Dual) => IpFamilies::Dual,
    }
}

fn visibility(value: i32) -> Visibility {
    match wire::Visibility::try_from(value) {
        Ok(wire::Visibility::Public) => Visibility::Public,
        Ok(wire::Visibility::Namespace) | Err(_) => Visibility::Namespace,
    }
}
