//! What the control plane tells: pushes, their pace, and certificates.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::{PlainCounter, Registry};

/// What caused a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PushTrigger {
    /// Endpoints changed: pods, slices, workload entries.
    Endpoint,
    /// Any other object changed.
    Config,
    /// A proxy connected, or asked for more.
    Request,
}

impl EncodeLabelValue for PushTrigger {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let text = match self {
            Self::Endpoint => "endpoint",
            Self::Config => "config",
            Self::Request => "proxyrequest",
        };
        text.encode(encoder)
    }
}

/// Why a certificate was not signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CsrFailure {
    /// The caller did not prove who it is, or may not ask for that identity.
    Authentication,
    /// The request could not be read.
    Parse,
    /// It names no identity, or not the one that was asked for.
    Identity,
    /// Signing itself failed.
    Sign,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByType {
    r#type: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByTrigger {
    r#type: PushTrigger,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByVersion {
    version: &'static str,
}

/// The `pilot_*` and `citadel_*` families. Cloning is cheap and shares the counts. Times are in seconds.
#[derive(Clone, Debug)]
pub struct PilotMetrics {
    proxies: Gauge,
    pushes: Family<ByType, PlainCounter>,
    triggers: Family<ByTrigger, PlainCounter>,
    rejects: Family<ByType, PlainCounter>,
    convergence: Histogram,
    queue: Histogram,
    debounce: Histogram,
    rejected_files: Gauge,
    csrs: PlainCounter,
    issued: PlainCounter,
    authentication_failures: PlainCounter,
    parse_failures: PlainCounter,
    identity_failures: PlainCounter,
    sign_failures: PlainCounter,
    root_expiry: Gauge,
    turned_away: Family<ByReason, Counter>,
}

const CONVERGENCE: [f64; 10] = [0.01, 0.05, 0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0];
const QUEUE: [f64; 10] = [0.001, 0.01, 0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0];

impl PilotMetrics {
    /// Registers the families; `version` is the program's own, the label of `pilot_xds`.
    pub fn register(registry: &mut Registry, version: &'static str) -> Self {
        let proxies = Family::<ByVersion, Gauge>::default();
        let m = Self {
            proxies: proxies.get_or_create_owned(&ByVersion { version }),
            pushes: Family::default(),
            triggers: Family::default(),
            rejects: Family::default(),
            convergence: Histogram::new(CONVERGENCE),
            queue: Histogram::new(QUEUE),
            debounce: Histogram::new(QUEUE),
            rejected_files: Gauge::default(),
            csrs: PlainCounter::default(),
            issued: PlainCounter::default(),
            authentication_failures: PlainCounter::default(),
            parse_failures: PlainCounter::default(),
            identity_failures: PlainCounter::default(),
            sign_failures: PlainCounter::default(),
            root_expiry: Gauge::default(),
            turned_away: Family::default(),
        };
        let pilot = registry.sub_registry_with_prefix("pilot");
        pilot.register("xds", "Proxies connected", proxies);
        pilot.register("xds_pushes", "Responses sent, by type", m.pushes.clone());
        pilot.register("push_triggers", "Pushes begun, by what caused them", m.triggers.clone());
        pilot.register("total_xds_rejects", "Responses that a proxy refused, by type", m.rejects.clone());
        pilot.register(
            "proxy_convergence_time",
            "Seconds from a change to its acknowledgement by a proxy",
            m.convergence.clone(),
        );
        pilot.register("proxy_queue_time", "Seconds a push waited for a proxy", m.queue.clone());
        pilot.register("debounce_time", "Seconds from a change to its push", m.debounce.clone());
        let citadel = registry.sub_registry_with_prefix("citadel_server");
        citadel.register("csr_count", "Certificate requests received", m.csrs.clone());
        citadel.register("success_cert_issuance_count", "Certificates signed", m.issued.clone());
        citadel.register(
            "authentication_failure_count",
            "Certificate requests refused for who asked",
            m.authentication_failures.clone(),
        );
        citadel.register(
            "csr_parsing_err_count",
            "Certificate requests not readable",
            m.parse_failures.clone(),
        );
        citadel.register(
            "id_extraction_err_count",
            "Certificate requests without the identity asked for",
            m.identity_failures.clone(),
        );
        citadel.register(
            "csr_sign_err_count",
            "Certificates that could not be signed",
            m.sign_failures.clone(),
        );
        citadel.register(
            "root_cert_expiry_timestamp",
            "When the root certificate expires, in Unix seconds",
            m.root_expiry.clone(),
        );
        registry.register(
            "ambit_source_rejected_files",
            "Files of the source that are not in force because something in them is wrong",
            m.rejected_files.clone(),
        );
        registry.register(
            "ambit_xds_connections_turned_away",
            "Connections to the control plane that were ended: tls failed, late with a token, displaced by others, or a flood",
            m.turned_away.clone(),
        );
        m
    }

    /// Connections may be turned away for this reason: it shows before any is.
    pub fn may_turn_away(&self, reason: &'static str) {
        drop(self.turned_away.get_or_create(&ByReason { reason }));
    }

    /// A connection was turned away.
    pub fn turned_away(&self, reason: &'static str) {
        self.turned_away.get_or_create(&ByReason { reason }).inc();
    }

    /// How many proxies are connected now.
    pub fn set_proxies(&self, connected: usize) {
        self.proxies.set(i64::try_from(connected).unwrap_or(i64::MAX));
    }

    /// A response of a type was sent to one proxy.
    pub fn pushed(&self, type_url: &str) {
        self.pushes.get_or_create(&ByType { r#type: type_url.to_owned() }).inc();
    }

    /// A push was begun.
    pub fn triggered(&self, trigger: PushTrigger) {
        self.triggers.get_or_create(&ByTrigger { r#type: trigger }).inc();
    }

    /// A proxy refused a response.
    pub fn nacked(&self, type_url: &str) {
        self.rejects.get_or_create(&ByType { r#type: type_url.to_owned() }).inc();
    }

    /// How long a change took until a proxy had acknowledged it.
    pub fn converged(&self, after: Duration) {
        self.convergence.observe(after.as_secs_f64());
    }

    /// How long a push waited until a proxy was ready to take it.
    pub fn queued(&self, waited: Duration) {
        self.queue.observe(waited.as_secs_f64());
    }

    /// How long a change waited for others to join it.
    pub fn debounced(&self, waited: Duration) {
        self.debounce.observe(waited.as_secs_f64());
    }

    /// How many files of the source are not in force.
    pub fn set_rejected_files(&self, files: usize) {
        self.rejected_files.set(i64::try_from(files).unwrap_or(i64::MAX));
    }

    /// A certificate request came in.
    pub fn csr(&self) {
        self.csrs.inc();
    }

    /// A certificate was signed.
    pub fn issued(&self) {
        self.issued.inc();
    }

    /// A certificate request was refused.
    pub fn csr_failed(&self, why: CsrFailure) {
        match why {
            CsrFailure::Authentication => &self.authentication_failures,
            CsrFailure::Parse => &self.parse_failures,
            CsrFailure::Identity => &self.identity_failures,
            CsrFailure::Sign => &self.sign_failures,
        }
        .inc();
    }

    /// When the root certificate expires, in seconds since the Unix epoch.
    pub fn set_root_expiry(&self, unix_seconds: i64) {
        self.root_expiry.set(unix_seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Exposition;
    use super::*;

    #[test]
    fn names_are_those_that_dashboards_read() {
        let mut registry = Registry::default();
        let metrics = PilotMetrics::register(&mut registry, "0.1.0");
        metrics.set_proxies(2);
        metrics.pushed("type.googleapis.com/istio.workload.Address");
        metrics.triggered(PushTrigger::Config);
        metrics.nacked("type.googleapis.com/istio.security.Authorization");
        metrics.converged(Duration::from_millis(30));
        metrics.csr();
        let body = Exposition::new(registry).render(None).body;
        for line in [
            "pilot_xds{version=\"0.1.0\"} 2",
            "pilot_xds_pushes{type=\"type.googleapis.com/istio.workload.Address\"} 1",
            "pilot_push_triggers{type=\"config\"} 1",
            "pilot_total_xds_rejects{type=\"type.googleapis.com/istio.security.Authorization\"} 1",
            "pilot_proxy_convergence_time_bucket{le=\"0.05\"} 1",
            "citadel_server_csr_count 1",
        ] {
            assert!(body.lines().any(|l| l == line), "{line} in\n{body}");
        }
    }
}
