//! What becomes of connections to a program's own pages.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::Registry;

/// Counts the connections that were ended. Cloning is cheap and shares the counts.
#[derive(Clone, Debug, Default)]
pub struct PageMetrics {
    ended: Family<ByReason, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    port: &'static str,
    reason: &'static str,
}

/// Why a connection to a page was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageEnd {
    /// Others came, and it was the oldest of who had the most.
    Displaced,
    /// No request came in time.
    Late,
    /// It was there for too long.
    Long,
}

impl PageEnd {
    const ALL: [Self; 3] = [Self::Displaced, Self::Late, Self::Long];

    fn as_str(self) -> &'static str {
        match self {
            Self::Displaced => "displaced",
            Self::Late => "late",
            Self::Long => "long",
        }
    }
}

impl PageMetrics {
    /// Registers the family.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "ambit_page_connections_ended",
            "Connections to the program's pages that were ended: displaced by others, late with a request, or too long",
            metrics.ended.clone(),
        );
        metrics
    }

    /// A port is served: it shows from the first scrape on, so that its rise shows.
    pub fn served(&self, port: &'static str) {
        for why in PageEnd::ALL {
            drop(self.ended.get_or_create(&ByReason { port, reason: why.as_str() }));
        }
    }

    /// A connection was ended.
    pub fn ended(&self, port: &'static str, why: PageEnd) {
        self.ended.get_or_create(&ByReason { port, reason: why.as_str() }).inc();
    }

    /// How many were.
    pub fn count(&self, port: &'static str, why: PageEnd) -> u64 {
        self.ended.get_or_create(&ByReason { port, reason: why.as_str() }).get()
    }
}
