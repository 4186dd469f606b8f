//! Where a service's traffic is kept: `trafficDistribution`, its annotation, and `internalTrafficPolicy`.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::object::annotation;

/// The annotation that says the same as `spec.trafficDistribution`: on a Service, a ServiceEntry, or a namespace for all of
/// them in it.
pub const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

/// Which endpoints a service's traffic should go to (KEP-4444, KEP-3015). If there are none, to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficDistribution {
    /// Those in the client's zone. `PreferClose` is the older word.
    SameZone,
    /// Those on the client's node, then those in its zone.
    SameNode,
}

impl TrafficDistribution {
    /// The words for it.
    pub const WORDS: [&str; 3] = ["PreferSameZone", "PreferSameNode", "PreferClose"];

    /// Reads a word.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "PreferClose" | "PreferSameZone" => Some(Self::SameZone),
            "PreferSameNode" => Some(Self::SameNode),
            _ => None,
        }
    }

    /// What holds for a Service: its own field, else its annotation, else its namespace's.
    pub fn of_service(service: &Service, namespace: Option<&ObjectMeta>) -> Option<Self> {
        let field = service.spec.as_ref().and_then(|spec| spec.traffic_distribution.as_deref());
        match field {
            Some(word) => Self::parse(word),
            None => Self::of_annotations(&service.metadata, namespace),
        }
    }

    /// What holds for an object that has no field for it.
    pub fn of_annotations(object: &ObjectMeta, namespace: Option<&ObjectMeta>) -> Option<Self> {
        let own = annotation(object, TRAFFIC_DISTRIBUTION);
        Self::parse(own.or_else(|| annotation(namespace?, TRAFFIC_DISTRIBUTION))?)
    }
}

/// Whether a Service's clients in the cluster reach the endpoints on their own node only.
pub fn is_kept_on_node(service: &Service) -> bool {
    let policy = service.spec.as_ref().and_then(|spec| spec.internal_traffic_policy.as_deref());
    policy == Some("Local")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(word: Option<&str>) -> ObjectMeta {
        let annotations = word.map(|word| [(TRAFFIC_DISTRIBUTION.to_owned(), word.to_owned())].into());
        ObjectMeta { annotations, ..ObjectMeta::default() }
    }

    #[test]
    fn the_field_stands_above_the_annotation_and_that_above_the_namespaces() {
        let held = |field: Option<&str>, own, namespace| {
            let mut service = Service { metadata: metadata(own), ..Service::default() };
            service.spec.get_or_insert_default().traffic_distribution = field.map(str::to_owned);
            TrafficDistribution::of_service(&service, Some(&metadata(namespace)))
        };
        use TrafficDistribution::{SameNode, SameZone};
        assert_eq!(held(None, None, None), None);
        assert_eq!(held(None, None, Some("PreferSameNode")), Some(SameNode));
        assert_eq!(held(None, Some("PreferClose"), Some("PreferSameNode")), Some(SameZone));
        assert_eq!(held(Some("PreferSameNode"), Some("PreferClose"), None), Some(SameNode));
    }
}
