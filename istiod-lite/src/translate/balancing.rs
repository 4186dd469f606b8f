//! Which of a service's endpoints its clients prefer, or must keep to.

use k8s_openapi::api::core::v1::Service;
use manifest::kinds::{Resolution, ServiceEntry};
use manifest::{TrafficDistribution, is_kept_on_node};
use model::{HealthPolicy, LoadBalancing, LoadBalancingMode, Scope};

use crate::store::Store;

/// As a Service says. That traffic stays on the node stands above any preference.
pub(super) fn of_service(store: &Store, object: &Service) -> LoadBalancing {
    let home = object.metadata.namespace.as_deref().and_then(|namespace| store.namespace(namespace));
    let mut balancing = preferring(TrafficDistribution::of_service(object, home.map(|home| &home.metadata)));
    if is_kept_on_node(object) {
        balancing.mode = LoadBalancingMode::Strict;
        balancing.routing_preference = vec![Scope::Node];
    }
    let unready_too = object.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses);
    if unready_too == Some(true) {
        balancing.health_policy = HealthPolicy::AllowAll;
    }
    balancing
}

/// As a ServiceEntry's annotation says.
pub(super) fn of_entry(store: &Store, object: &ServiceEntry) -> LoadBalancing {
    if object.spec.resolution.unwrap_or_default() == Resolution::None {
        // Clients choose the address themselves.
        return LoadBalancing { mode: LoadBalancingMode::Passthrough, ..LoadBalancing::default() };
    }
    let home = object.metadata.namespace.as_deref().and_then(|namespace| store.namespace(namespace));
    preferring(TrafficDistribution::of_annotations(&object.metadata, home.map(|home| &home.metadata)))
}

fn preferring(distribution: Option<TrafficDistribution>) -> LoadBalancing {
    let same_zone = [Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone];
    let routing_preference = match distribution {
        None => return LoadBalancing::default(),
        Some(TrafficDistribution::SameZone) => same_zone.to_vec(),
        Some(TrafficDistribution::SameNode) => same_zone.into_iter().chain([Scope::Node]).collect(),
    };
    LoadBalancing { routing_preference, mode: LoadBalancingMode::Failover, ..LoadBalancing::default() }
}
