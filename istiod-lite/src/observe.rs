//! What happens on the streams, as metrics.

use std::sync::atomic::{AtomicUsize, Ordering};

use telemetry::metrics::{CsrFailure, PilotMetrics, PushTrigger};
use xds::server::{Acknowledged, IssueError, Observer, Peer, Push, TurnedAway};

/// Counts.
#[derive(Debug)]
pub struct Counts {
    metrics: PilotMetrics,
    connected: AtomicUsize,
}

impl Counts {
    /// Counts on these families.
    pub fn new(metrics: PilotMetrics) -> Self {
        // From the first scrape on, so that their rise shows.
        TurnedAway::ALL.iter().for_each(|why| metrics.may_turn_away(why.as_str()));
        Self { metrics, connected: AtomicUsize::new(0) }
    }
}

impl Observer for Counts {
    fn connected(&self, _: &Peer) {
        self.metrics.set_proxies(self.connected.fetch_add(1, Ordering::Relaxed) + 1);
        self.metrics.triggered(PushTrigger::Request);
    }

    fn disconnected(&self, _: &Peer) {
        self.metrics.set_proxies(self.connected.fetch_sub(1, Ordering::Relaxed).saturating_sub(1));
    }

    fn pushed(&self, push: &Push) {
        self.metrics.pushed(push.type_url.as_str());
        self.metrics.queued(push.queued);
    }

    fn acknowledged(&self, acknowledged: &Acknowledged) {
        self.metrics.converged(acknowledged.converged_in);
        if !acknowledged.refused.is_empty() {
            self.metrics.nacked(acknowledged.type_url.as_str());
        }
    }

    fn turned_away(&self, why: TurnedAway) {
        self.metrics.turned_away(why.as_str());
    }

    fn issued(&self, _: &Peer, error: Option<&IssueError>) {
        self.metrics.csr();
        match error {
            None => self.metrics.issued(),
            Some(IssueError::BadRequest(_)) => self.metrics.csr_failed(CsrFailure::Parse),
            Some(IssueError::Denied(_)) => self.metrics.csr_failed(CsrFailure::Authentication),
            Some(IssueError::Unavailable(_)) => self.metrics.csr_failed(CsrFailure::Sign),
        }
    }
}
