//! What ztunnel tells about names that pods ask for.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use super::Registry;

/// How a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// On a connection.
    Tcp,
}

impl EncodeLabelValue for Transport {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let text = match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        };
        text.encode(encoder)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct By {
    request_protocol: Transport,
}

/// The `istio_dns_*` families of the node proxy. Cloning is cheap and shares the counts.
#[derive(Clone, Debug)]
pub struct DnsMetrics {
    requests: Family<By, Counter>,
    upstream_requests: Family<By, Counter>,
    upstream_failures: Family<By, Counter>,
    upstream_seconds: Histogram,
    dropped: Counter,
}

impl Default for DnsMetrics {
    fn default() -> Self {
        let bounds = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
        Self {
            requests: Family::default(),
            upstream_requests: Family::default(),
            upstream_failures: Family::default(),
            upstream_seconds: Histogram::new(bounds),
            dropped: Counter::default(),
        }
    }
}

impl DnsMetrics {
    /// Registers the families.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "ambit_dns_dropped",
            "Questions that were dropped because their pod had too many under way",
            metrics.dropped.clone(),
        );
        let registry = registry.sub_registry_with_prefix("istio_dns");
        registry.register("requests", "Questions that pods asked", metrics.requests.clone());
        registry.register(
            "upstream_requests",
            "Questions that were relayed to those whom they were for",
            metrics.upstream_requests.clone(),
        );
        registry.register(
            "upstream_failures",
            "Relayed questions that got no answer",
            metrics.upstream_failures.clone(),
        );
        registry.register(
            "upstream_request_duration_seconds",
            "How long answers to relayed questions took",
            metrics.upstream_seconds.clone(),
        );
        metrics
    }

    /// A question came.
    pub fn asked(&self, by: Transport) {
        self.requests.get_or_create(&By { request_protocol: by }).inc();
    }

    /// It is relayed.
    pub fn relayed(&self, by: Transport) {
        self.upstream_requests.get_or_create(&By { request_protocol: by }).inc();
    }

    /// A relayed one got no answer.
    pub fn failed(&self, by: Transport) {
        self.upstream_failures.get_or_create(&By { request_protocol: by }).inc();
    }

    /// A relayed one was answered.
    pub fn answered_after(&self, seconds: f64) {
        self.upstream_seconds.observe(seconds);
    }

    /// One was dropped for want of room.
    pub fn dropped(&self) {
        self.dropped.inc();
    }
}
