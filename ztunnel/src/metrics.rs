//! What the proxy counts.

use std::io;
use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use telemetry::access::{Direction, Transfer};
use telemetry::metrics::{
    DnsMetrics, Registry, TcpMetrics, WorkloadManagerMetrics, XdsClientMetrics, register_build,
};

use crate::connections::Ending;
use crate::floods::Floods;
use crate::quota::{Lack, Resource};
use crate::relay::BrokenOff;
use crate::review;

/// All families of the proxy. Cloning is cheap and shares the counts.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Connections and bytes by who talks to whom.
    pub tcp: TcpMetrics,
    /// Pods.
    pub pods: WorkloadManagerMetrics,
    /// The stream to the control plane.
    pub xds: XdsClientMetrics,
    /// What pods ask resolvers.
    pub dns: DnsMetrics,
    accept_errors: Family<ByCause, Counter>,
    dry_run_denials: Counter,
    live_ended: Family<ByReason, Counter>,
    reviewed: Counter,
    unbound: Family<ByDirection, Counter>,
    malformed_requests: Counter,
    tunnel_connections_taken: Counter,
    tunnel_connections_lost: Counter,
    /// Tunnel connections that were flooded.
    pub(crate) floods: Floods,
    quota_refusals: Family<ByReason, Counter>,
    quota_used: Family<ByResource, Gauge>,
    quota_bound: Family<ByResource, Gauge>,
    memory: Gauge,
    relay_timeouts: Family<ByReason, Counter>,
}

/// By a word of a small set.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResource {
    resource: &'static str,
}

/// Why nothing could be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Cause {
    Descriptors,
    Memory,
    Other,
}

impl EncodeLabelValue for Cause {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let text = match self {
            Self::Descriptors => "descriptors",
            Self::Memory => "memory",
            Self::Other => "other",
        };
        text.encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByDirection {
    direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCause {
    cause: Cause,
}

impl Metrics {
    /// Registers all families.
    pub fn register(registry: &mut Registry) -> Self {
        register_build(registry, "ztunnel", env!("CARGO_PKG_VERSION"));
        let metrics = Self {
            tcp: TcpMetrics::register(registry),
            pods: WorkloadManagerMetrics::register(registry),
            xds: XdsClientMetrics::register(registry),
            dns: DnsMetrics::register(registry),
            ..Self::default()
        };
        registry.register(
            "ambit_accept_errors",
            "Times that connections had to wait because none could be accepted, by what was lacking",
            metrics.accept_errors.clone(),
        );
        registry.register(
            "ambit_dry_run_denials",
            "Connections that were admitted and that policies in trial would have denied",
            metrics.dry_run_denials.clone(),
        );
        registry.register(
            "ambit_live_connections_ended",
            "Connections that stood and were ended because what admitted them no longer does, by reason",
            metrics.live_ended.clone(),
        );
        registry.register(
            "ambit_live_connections_reviewed",
            "Times that a live connection was judged again because a change might deny it",
            metrics.reviewed.clone(),
        );
        registry.register(
            "ambit_identity_binding_refusals",
            "Connections for which a pod's key was not used, because they were not at an address of the pod",
            metrics.unbound.clone(),
        );
        registry.register(
            "ambit_malformed_tunnel_requests",
            "Requests of authenticated peers that were no CONNECT to a target, answered with 400",
            metrics.malformed_requests.clone(),
        );
        registry.register(
            "ambit_tunnel_connections_taken",
            "Tunnel connections of authenticated peers that were taken",
            metrics.tunnel_connections_taken.clone(),
        );
        registry.register(
            "ambit_tunnel_connections_lost",
            "Tunnel connections of authenticated peers that ended by an error of transport or protocol",
            metrics.tunnel_connections_lost.clone(),
        );
        metrics.floods.register(registry);
        metrics.register_quotas(registry);
        metrics
    }

    fn register_quotas(&self, registry: &mut Registry) {
        for lack in Lack::ALL {
            // From the first scrape on, so that their rise shows.
            drop(self.quota_refusals.get_or_create(&ByReason { reason: lack.as_str() }));
        }
        registry.register(
            "ambit_quota_refusals",
            "Connections, tunnels and handshakes that were refused because a pod is at its limit, by what was lacking",
            self.quota_refusals.clone(),
        );
        registry.register(
            "ambit_quota_used",
            "What all pods together hold of the proxy",
            self.quota_used.clone(),
        );
        registry.register(
            "ambit_quota_bound",
            "What all pods together may hold of the proxy, where that is bounded",
            self.quota_bound.clone(),
        );
        registry.register("ambit_memory_bytes", "Resident memory of the proxy", self.memory.clone());
        registry.register(
            "ambit_relay_timeouts",
            "Connections that stood and were given up because nothing passed: idle, or half_closed",
            self.relay_timeouts.clone(),
        );
    }

    /// A pod was at its limit.
    pub fn quota_refused(&self, lack: Lack) {
        self.quota_refusals.get_or_create(&ByReason { reason: lack.as_str() }).inc();
    }

    /// So much is held by all pods.
    pub fn quota_used(&self, resource: Resource, n: u64) {
        self.quota_used.get_or_create(&ByResource { resource: resource.as_str() }).set(gauge(n));
    }

    /// So much may be held by all pods; the highest number is none.
    pub fn quota_bound(&self, resource: Resource, n: u64) {
        if n != u64::MAX {
            self.quota_bound.get_or_create(&ByResource { resource: resource.as_str() }).set(gauge(n));
        }
    }

    /// So many bytes of memory has the process.
    pub fn memory(&self, bytes: u64) {
        self.memory.set(gauge(bytes));
    }

    /// A connection that stood was given up, if that is why it ended.
    pub(crate) fn broken_off(&self, why: &BrokenOff) {
        let reason = match why {
            BrokenOff::Idle(_) => "idle",
            BrokenOff::HalfClosed(_) => "half_closed",
            // What ends live connections counts them itself.
            BrokenOff::Failed(_) | BrokenOff::Stopped | BrokenOff::Ended(_) => return,
        };
        self.relay_timeouts.get_or_create(&ByReason { reason }).inc();
    }

    /// So many requests of a peer were no requests for a tunnel.
    pub fn malformed(&self, requests: u64) {
        self.malformed_requests.inc_by(requests);
    }

    /// A peer has proved who it is, and may open tunnels.
    pub(crate) fn tunnel_connection_taken(&self) {
        self.tunnel_connections_taken.inc();
    }

    /// A peer's connection broke, or broke the protocol.
    pub fn tunnel_connection_lost(&self) {
        self.tunnel_connections_lost.inc();
    }

    /// A connection that stood was ended.
    pub(crate) fn live_connection_ended(&self, why: &Ending) {
        self.live_connections_ended(why, 1);
    }

    /// Connections that stood were ended.
    pub(crate) fn live_connections_ended(&self, why: &Ending, count: u64) {
        self.live_ended.get_or_create(&ByReason { reason: review::reason(why) }).inc_by(count);
    }

    /// A pod's key was not used, for the pod is not where it is said to be.
    pub(crate) fn unbound(&self, direction: Direction) {
        self.unbound.get_or_create(&ByDirection { direction: direction.as_str() }).inc();
    }

    /// Live connections were judged again.
    pub(crate) fn reviewed(&self, connections: u64) {
        self.reviewed.inc_by(connections);
    }

    #[cfg(test)]
    pub(crate) fn reviewed_so_far(&self) -> u64 {
        self.reviewed.get()
    }

    /// Nothing could be accepted.
    pub fn accept_failed(&self, error: &io::Error) {
        let cause = match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => Cause::Descriptors,
            Some(libc::ENOBUFS | libc::ENOMEM) => Cause::Memory,
            _ => Cause::Other,
        };
        self.accept_errors.get_or_create(&ByCause { cause }).inc();
    }

    /// A policy in trial would have denied a connection.
    pub fn dry_run_denied(&self) {
        self.dry_run_denials.inc();
    }
}

fn gauge(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Counts a relay's bytes on the connection's record.
pub(crate) struct Counted(pub(crate) Arc<Transfer>);

impl net::Meter for Counted {
    fn count_received(&self, bytes: u64) {
        self.0.from_client(bytes);
    }

    fn count_sent(&self, bytes: u64) {
        self.0.to_client(bytes);
    }
}
