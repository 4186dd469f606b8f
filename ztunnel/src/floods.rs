//! Peers that flood their tunnel connections: counted each, told of once in a while.

use std::sync::Arc;
use std::time::Duration;

use hbone::TransportError;
use hbone::frames::{Flood, Kind};
use model::NamespacedName;
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use telemetry::access::Direction;
use telemetry::metrics::Registry;
use tokio::time::Instant;

/// A line about a pod at most this often.
const EVERY: Duration = Duration::from_secs(10);
/// About so many pods is remembered when there was a line.
const PODS: usize = 1_024;

/// Counts floods. Cloning is cheap and shares the counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Floods {
    counts: Family<ByKind, Counter>,
    told: Arc<Mutex<Seldom<NamespacedName>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByKind {
    reason: &'static str,
    direction: &'static str,
}

impl Floods {
    pub(crate) fn register(&self, registry: &mut Registry) {
        for direction in [Direction::Inbound, Direction::Outbound] {
            for kind in Kind::ALL {
                // From the first scrape on, so that their rise shows.
                drop(self.counts.get_or_create(&ByKind::of(kind, direction)));
            }
        }
        registry.register(
            "ambit_tunnel_connections_flooded",
            "Tunnel connections that were ended because the peer sent too much of what carries nothing, by what that was",
            self.counts.clone(),
        );
    }

    /// A pod's tunnel connection was lost. Nothing happens unless that is for a flood.
    pub(crate) fn notice(
        &self,
        why: &TransportError,
        direction: Direction,
        pod: &NamespacedName,
        peer: &dyn std::fmt::Display,
    ) {
        let TransportError::Flood(Flood { kind }) = why else { return };
        self.counts.get_or_create(&ByKind::of(*kind, direction)).inc();
        let Some(untold) = self.told.lock().may(pod, Instant::now()) else { return };
        tracing::warn!(
            %pod, %peer, direction = direction.as_str(), reason = %why, untold,
            "ended a tunnel connection whose peer floods it"
        );
    }
}

impl ByKind {
    fn of(kind: Kind, direction: Direction) -> Self {
        Self { reason: kind.as_str(), direction: direction.as_str() }
    }
}

/// Lets one in a while through for each of a bounded number of subjects: pure.
#[derive(Debug)]
struct Seldom<T> {
    /// When each was let through last, and how many were not since; the longest ago first.
    last: Vec<(T, Instant, u64)>,
}

impl<T> Default for Seldom<T> {
    fn default() -> Self {
        Self { last: Vec::new() }
    }
}

impl<T: Clone + PartialEq> Seldom<T> {
    /// If one may pass, how many did not since the last one.
    fn may(&mut self, of: &T, now: Instant) -> Option<u64> {
        let known = self.last.iter().position(|(subject, ..)| subject == of);
        let untold = match known {
            Some(place) if now < self.last[place].1 + EVERY => {
                self.last[place].2 += 1;
                return None;
            }
            Some(place) => self.last.remove(place).2,
            None => 0,
        };
        if self.last.len() >= PODS {
            self.last.remove(0);
        }
        self.last.push((of.clone(), now, 0));
        Some(untold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_a_while_passes_for_each_and_tells_of_the_others() {
        let (mut seldom, start) = (Seldom::default(), Instant::now());
        assert_eq!(seldom.may(&1, start), Some(0));
        assert_eq!([1, 1, 2].map(|of| seldom.may(&of, start)), [None, None, Some(0)]);
        assert_eq!(seldom.may(&1, start + EVERY), Some(2));
        assert_eq!(seldom.may(&1, start + EVERY), None);
    }

    #[test]
    fn however_many_there_are_so_many_are_remembered() {
        let (mut seldom, start) = (Seldom::default(), Instant::now());
        assert!((0..5_000).all(|of| seldom.may(&of, start).is_some()));
        assert_eq!(seldom.last.len(), PODS);
    }

    #[test]
    fn a_flood_is_counted_by_what_it_is_and_nothing_else_is() {
        let floods = Floods::default();
        let pod = NamespacedName { namespace: "app".into(), name: "server".into() };
        let flood = TransportError::Flood(Flood { kind: Kind::Ping });
        for why in [flood.clone(), TransportError::Silent(EVERY), flood] {
            floods.notice(&why, Direction::Inbound, &pod, &"a peer");
        }
        let count = |kind, direction| floods.counts.get_or_create(&ByKind::of(kind, direction)).get();
        assert_eq!(count(Kind::Ping, Direction::Inbound), 2);
        assert_eq!(count(Kind::Ping, Direction::Outbound), 0);
    }
}
