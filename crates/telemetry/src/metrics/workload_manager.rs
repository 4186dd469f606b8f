//! What ztunnel tells about the pods it serves.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use super::Registry;

/// The `workload_manager_*` families of the node proxy. Cloning is cheap and shares the counts.
#[derive(Clone, Debug, Default)]
pub struct WorkloadManagerMetrics {
    /// Pods whose listeners stand.
    pub active_proxies: Gauge,
    /// Pods that were handed over and whose listeners do not stand yet.
    pub pending_proxies: Gauge,
    /// Pods whose listeners came to stand, ever.
    pub started: Counter,
    /// Pods whose listeners were taken down, ever.
    pub stopped: Counter,
}

impl WorkloadManagerMetrics {
    /// Registers the families.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("workload_manager");
        registry.register("active_proxy_count", "Pods that are served", metrics.active_proxies.clone());
        registry.register(
            "pending_proxy_count",
            "Pods that wait to be served",
            metrics.pending_proxies.clone(),
        );
        registry.register("proxies_started", "Pods that came to be served", metrics.started.clone());
        registry.register("proxies_stopped", "Pods that stopped being served", metrics.stopped.clone());
        metrics
    }
}
