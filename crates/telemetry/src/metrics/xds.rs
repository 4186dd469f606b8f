//! What an xDS client tells about its stream.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::Registry;

/// How a stream to the control plane ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Termination {
    /// No connection came about.
    ConnectionError,
    /// The server ended the stream with an error.
    Error,
    /// The server asked us to come again.
    Reconnect,
    /// The server ended the stream without an error.
    Complete,
}

impl EncodeLabelValue for Termination {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let text = match self {
            Self::ConnectionError => "ConnectionError",
            Self::Error => "Error",
            Self::Reconnect => "Reconnect",
            Self::Complete => "Complete",
        };
        text.encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: Termination,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByUrl {
    url: String,
}

/// The `istio_xds_*` families of a client. Cloning is cheap and shares the counts.
#[derive(Clone, Debug, Default)]
pub struct XdsClientMetrics {
    terminations: Family<ByReason, Counter>,
    messages: Family<ByUrl, Counter>,
    bytes: Family<ByUrl, Counter>,
    rejects: Family<ByUrl, Counter>,
    connected: Gauge,
}

impl XdsClientMetrics {
    /// Registers the families.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("istio_xds");
        registry.register(
            "connection_terminations",
            "Streams to the control plane that ended",
            metrics.terminations.clone(),
        );
        registry.register("message", "Responses received, by type", metrics.messages.clone());
        registry.register("message_bytes", "Bytes of responses received, by type", metrics.bytes.clone());
        registry.register("rejects", "Resources refused, by type", metrics.rejects.clone());
        registry.register(
            "connected",
            "1 while a stream to the control plane stands",
            metrics.connected.clone(),
        );
        metrics
    }

    /// A stream stands.
    pub fn connected(&self) {
        self.connected.set(1);
    }

    /// A stream ended, or none came about.
    pub fn terminated(&self, reason: Termination) {
        self.connected.set(0);
        self.terminations.get_or_create(&ByReason { reason }).inc();
    }

    /// A response of a type (its URL) and a size came in.
    pub fn received(&self, type_url: &str, bytes: u64) {
        let url = ByUrl { url: type_url.to_owned() };
        self.messages.get_or_create(&url).inc();
        self.bytes.get_or_create(&url).inc_by(bytes);
    }

    /// Resources of a type were refused.
    pub fn rejected(&self, type_url: &str, resources: u64) {
        self.rejects.get_or_create(&ByUrl { url: type_url.to_owned() }).inc_by(resources);
    }
}
