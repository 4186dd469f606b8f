//! The L4 families: connections and bytes by who talks to whom.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use model::{Service, SpiffeId, Workload};
use parking_lot::RwLock;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use rustc_hash::FxHashMap;

use super::Registry;
use super::labels::{EndLabels, Flagged, Reporter, ResponseFlags, Security, TcpLabels};

/// One end of a connection that is to be counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peer<'a> {
    /// The workload, if the world knows it.
    pub workload: Option<&'a Arc<Workload>>,
    /// The identity that was proven, if any.
    pub identity: Option<&'a SpiffeId>,
}

/// A connection that is to be counted.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    /// Which proxy counts.
    pub reporter: Reporter,
    /// The client.
    pub source: Peer<'a>,
    /// The server.
    pub destination: Peer<'a>,
    /// The service that the client addressed.
    pub service: Option<&'a Arc<Service>>,
    /// Whether it is under mutual TLS.
    pub security: Security,
}

/// The counters of all connections between two workloads to one service. Hold it for a connection's life.
#[derive(Debug)]
pub struct TcpSeries {
    opened: AtomicU64,
    closed: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    failed: Box<[AtomicU64]>,
}

impl Default for TcpSeries {
    fn default() -> Self {
        Self {
            opened: AtomicU64::default(),
            closed: AtomicU64::default(),
            received: AtomicU64::default(),
            sent: AtomicU64::default(),
            failed: ResponseFlags::ALL.iter().map(|_| AtomicU64::default()).collect(),
        }
    }
}

impl TcpSeries {
    pub(crate) fn opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn closed(&self) {
        self.closed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self, flags: ResponseFlags) {
        self.failed[flags as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Connections opened and closed, bytes received from clients and sent to them.
    pub fn totals(&self) -> (u64, u64, u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (read(&self.opened), read(&self.closed), read(&self.received), read(&self.sent))
    }

    /// Connections that failed in one way.
    pub fn failures(&self, flags: ResponseFlags) -> u64 {
        self.failed[flags as usize].load(Ordering::Relaxed)
    }
}

/// The five L4 families. Cloning is cheap and shares the counts.
///
/// [`TcpMetrics::series`] remembers each pair of workloads by the identity of their snapshots in the world, so that a
/// connection between a known pair costs one look-up and builds no label. What the world has dropped is forgotten after
/// 20 more scrapes, so that pods' coming and going does not grow the exposition for ever.
#[derive(Clone, Debug, Default)]
pub struct TcpMetrics(Arc<RwLock<State>>);

/// For how many scrapes a series is still shown after the last of its workloads is gone.
const SCRAPES_KEPT: u32 = 20;

#[derive(Default)]
struct State {
    known: FxHashMap<Key, Known>,
    series: FxHashMap<TcpLabels, Kept>,
    /// Sweep when `known` has grown to this, so that it stays bounded without scrapes too.
    sweep_at: usize,
}

struct Kept {
    series: Arc<TcpSeries>,
    /// Scrapes since nobody holds it.
    idle: u32,
}

/// Pointers stand for the snapshots they point to: [`Known`] keeps a weak reference, so none is reused while it is a key.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    reporter: Reporter,
    security: Security,
    source: (usize, Option<SpiffeId>),
    destination: (usize, Option<SpiffeId>),
    service: usize,
}

struct Known {
    series: Arc<TcpSeries>,
    workloads: [Option<Weak<Workload>>; 2],
    service: Option<Weak<Service>>,
}

impl Known {
    fn is_current(&self) -> bool {
        self.workloads.iter().flatten().all(|w| w.strong_count() > 0)
            && self.service.as_ref().is_none_or(|s| s.strong_count() > 0)
    }
}

impl TcpMetrics {
    /// Registers `istio_tcp_{connections_opened,connections_closed,received_bytes,sent_bytes,connections_failed}_total`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register_collector(Box::new(metrics.clone()));
        metrics
    }

    /// The counters for a connection.
    pub fn series(&self, connection: &Connection<'_>) -> Arc<TcpSeries> {
        let key = Key::of(connection);
        if let Some(known) = self.0.read().known.get(&key) {
            return known.series.clone();
        }
        let Connection { reporter, source, destination, service, security } = *connection;
        let end = |peer: Peer<'_>| EndLabels::new(peer.workload.map(|w| &**w), peer.identity);
        let labels = TcpLabels::new(reporter, end(source), end(destination), service.map(|s| &**s), security);
        let state = &mut *self.0.write();
        if state.known.len() >= state.sweep_at {
            state.forget_what_is_gone();
        }
        let kept = state.series.entry(labels).or_insert_with(|| Kept { series: Arc::default(), idle: 0 });
        kept.idle = 0;
        let series = kept.series.clone();
        let known = Known {
            series: series.clone(),
            workloads: [source.workload.map(Arc::downgrade), destination.workload.map(Arc::downgrade)],
            service: service.map(Arc::downgrade),
        };
        state.known.insert(key, known);
        series
    }
}

impl Key {
    fn of(connection: &Connection<'_>) -> Self {
        let end =
            |peer: Peer<'_>| (peer.workload.map_or(0, |w| Arc::as_ptr(w) as usize), peer.identity.cloned());
        Self {
            reporter: connection.reporter,
            security: connection.security,
            source: end(connection.source),
            destination: end(connection.destination),
            service: connection.service.map_or(0, |s| Arc::as_ptr(s) as usize),
        }
    }
}

impl State {
    const SWEEP_AT_LEAST: usize = 1024;

    fn forget_what_is_gone(&mut self) {
        self.known.retain(|_, known| known.is_current());
        self.sweep_at = (self.known.len() * 2).max(Self::SWEEP_AT_LEAST);
    }

    /// Once a scrape: ages what nobody holds any more, and drops it when it has been shown often enough.
    fn age(&mut self) {
        self.forget_what_is_gone();
        self.series.retain(|_, kept| {
            kept.idle = if Arc::strong_count(&kept.series) > 1 { 0 } else { kept.idle + 1 };
            kept.idle <= SCRAPES_KEPT
        });
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("known", &self.known.len()).field("series", &self.series.len()).finish()
    }
}

type Read = fn(&TcpSeries) -> &AtomicU64;

const FAMILIES: [(&str, &str, Read); 4] = [
    ("istio_tcp_connections_opened", "Connections that came to stand", |s| &s.opened),
    ("istio_tcp_connections_closed", "Connections that stood and have ended", |s| &s.closed),
    ("istio_tcp_received_bytes", "Bytes received from clients", |s| &s.received),
    ("istio_tcp_sent_bytes", "Bytes sent to clients", |s| &s.sent),
];

impl Collector for TcpMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.0.write().age();
        let state = self.0.read();
        for (name, help, read) in FAMILIES {
            let mut family =
                encoder.encode_descriptor(name, &format!("{help}."), None, MetricType::Counter)?;
            for (labels, kept) in &state.series {
                let value = read(&kept.series).load(Ordering::Relaxed);
                let labels = Flagged(labels, ResponseFlags::None);
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, f64>(&value, None)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "istio_tcp_connections_failed",
            "Connections that did not come to stand, or that the mesh ended.",
            None,
            MetricType::Counter,
        )?;
        for (labels, kept) in &state.series {
            for flags in ResponseFlags::ALL {
                let value = kept.series.failures(*flags);
                if value > 0 {
                    let labels = Flagged(labels, *flags);
                    family.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, f64>(&value, None)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
