//! One record for each connection, written exactly once.
//!
//! A record is made when a connection arrives, learns about it while it is served, and is written by [`AccessRecord::finish`]
//! or [`AccessRecord::fail`]. One that is dropped before either (a task cancelled, a panic) writes itself as aborted, so
//! that no connection leaves without a trace. The record also keeps the connection's counters, so that log and metrics
//! cannot disagree.

use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use model::SpiffeId;
use tokio::time::Instant;

use crate::metrics::{ResponseFlags, TcpSeries};

/// The target under which access records are logged: `RUST_LOG=info,access=off` silences them alone.
pub const TARGET: &str = "access";

/// Which way a connection passes the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From a workload of this node.
    Outbound,
    /// To a workload of this node.
    Inbound,
}

impl Direction {
    /// The word in the record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// One end of a connection, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Party {
    /// Its address: the client's own; the destination's as the client dialled it, or as the proxy chose it.
    pub addr: Option<SocketAddr>,
    /// The workload's name.
    pub workload: Option<Arc<str>>,
    /// The workload's namespace.
    pub namespace: Option<Arc<str>>,
    /// The identity it proved, or must prove.
    pub identity: Option<SpiffeId>,
}

/// What a record says about a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Which way it passes.
    pub direction: Direction,
    /// The client.
    pub source: Party,
    /// The server.
    pub destination: Party,
    /// The `:authority` of the tunnel where there is one: `dst.addr` is then the tunnel's own far end.
    pub hbone_addr: Option<Arc<str>>,
    /// The host name of the service that the client addressed.
    pub service: Option<Arc<str>>,
}

/// The bytes of one connection, counted as they pass.
///
/// Named by where they come from, because both proxies of a connection count alike: what the client sent is *received*,
/// what goes back to it is *sent*, at the source as at the destination. Only the log turns that round for outbound
/// connections: there `bytes_sent` is what the node's workload sent, as peers write it.
#[derive(Debug, Default)]
pub struct Transfer {
    received: AtomicU64,
    sent: AtomicU64,
    series: Option<Arc<TcpSeries>>,
}

impl Transfer {
    /// Counts bytes that the client sent and the server was given.
    pub fn from_client(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
        if let Some(series) = &self.series {
            series.add_received(bytes);
        }
    }

    /// Counts bytes that the server sent and the client was given.
    pub fn to_client(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
        if let Some(series) = &self.series {
            series.add_sent(bytes);
        }
    }

    /// Bytes that the client sent so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Bytes that the client was sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// The record of one connection. See the [module](self).
#[derive(Debug)]
pub struct AccessRecord {
    /// What is known so far; fill in what is learnt.
    pub facts: Facts,
    started: Instant,
    series: Option<Arc<TcpSeries>>,
    transfer: Option<Arc<Transfer>>,
    written: bool,
}

impl AccessRecord {
    /// Starts the record, and its clock.
    pub fn start(direction: Direction, source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            facts: Facts {
                direction,
                source: Party { addr: Some(source), ..Party::default() },
                destination: Party { addr: Some(destination), ..Party::default() },
                hbone_addr: None,
                service: None,
            },
            started: Instant::now(),
            series: None,
            transfer: None,
            written: false,
        }
    }

    /// Names the series that the connection counts on. Without one, it is logged but not counted.
    pub fn count_on(&mut self, series: Arc<TcpSeries>) {
        self.series = Some(series);
    }

    /// Says that the connection stands, and gives out the counter for its bytes. Call it once.
    pub fn established(&mut self) -> Arc<Transfer> {
        if let Some(series) = &self.series {
            series.opened();
        }
        let transfer = Arc::new(Transfer { series: self.series.clone(), ..Transfer::default() });
        self.transfer = Some(transfer.clone());
        tracing::event!(
            target: TARGET,
            tracing::Level::DEBUG,
            src.addr = self.facts.source.addr.map(display),
            dst.addr = self.facts.destination.addr.map(display),
            direction = self.facts.direction.as_str(),
            "connection opened"
        );
        transfer
    }

    /// Writes the record of a connection that both sides ended.
    pub fn finish(mut self) {
        self.write(None, ResponseFlags::None);
    }

    /// Writes the record of a connection that ended otherwise, with the reason and everything that caused it.
    ///
    /// `flags` is the label of `istio_tcp_connections_failed_total`; a connection that stood and then broke by the
    /// peers' own doing carries [`ResponseFlags::None`] and counts as closed only.
    pub fn fail(mut self, flags: ResponseFlags, error: &(dyn Error + 'static)) {
        self.write(Some(&Chain(error)), flags);
    }

    fn write(&mut self, error: Option<&dyn fmt::Display>, flags: ResponseFlags) {
        if std::mem::replace(&mut self.written, true) {
            return;
        }
        let stood = self.transfer.is_some();
        if let Some(series) = &self.series {
            if stood {
                series.closed();
            }
            if error.is_some() && (flags != ResponseFlags::None || !stood) {
                series.failed(flags);
            }
        }
        let (received, sent) = self.transfer.as_deref().map_or((0, 0), |t| (t.received(), t.sent()));
        // Unlike the counters, peers' logs take the side of the workload that the proxy stands before.
        let (bytes_sent, bytes_recv) = match self.facts.direction {
            Direction::Outbound => (received, sent),
            Direction::Inbound => (sent, received),
        };
        let duration = format_args!("{}ms", self.started.elapsed().as_millis()).to_string();
        let Facts { direction, source, destination, hbone_addr, service } = &self.facts;
        // Levels are part of an event's static description, hence two events of one form.
        macro_rules! record {
            ($level:expr, $message:literal) => {
                tracing::event!(
                    target: TARGET,
                    $level,
                    src.addr = source.addr.map(display),
                    src.workload = source.workload.as_deref(),
                    src.namespace = source.namespace.as_deref(),
                    src.identity = source.identity.as_ref().map(display),
                    dst.addr = destination.addr.map(display),
                    dst.hbone_addr = hbone_addr.as_deref(),
                    dst.service = service.as_deref(),
                    dst.workload = destination.workload.as_deref(),
                    dst.namespace = destination.namespace.as_deref(),
                    dst.identity = destination.identity.as_ref().map(display),
                    direction = direction.as_str(),
                    bytes_sent,
                    bytes_recv,
                    duration,
                    error = error.map(display),
                    $message
                )
            };
        }
        if error.is_none() {
            record!(tracing::Level::INFO, "connection complete");
        } else {
            record!(tracing::Level::WARN, "connection failed");
        }
    }
}

impl Drop for AccessRecord {
    fn drop(&mut self) {
        self.write(Some(&Aborted), ResponseFlags::None);
    }
}

struct Aborted;

impl fmt::Display for Aborted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("aborted")
    }
}

/// An error and its sources on one line, `a: b: c`; a source whose text its parent already ends with is not repeated.
#[derive(Clone, Copy, Debug)]
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            if !said.ends_with(&text) {
                write!(f, ": {text}")?;
                said = text;
            }
            source = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
