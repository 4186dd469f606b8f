//! One client's stream, as a pure state machine.
//!
//! Requests and new states of the world go in by `handle_*`; [`Session::poll_response`] says what to send, and is called
//! until it has nothing. Per type one response is on its way at a time; what changes while it waits for its
//! acknowledgement is merged and goes out as one. Policies go before addresses wherever both wait, so that no workload
//! is known before the policies that select it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ambit_proto::discovery::{ControlPlane, DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use thiserror::Error;

use super::subscription::WILDCARD;
use super::{Entry, Nack, NodeId, Peer, Snapshot, Status, Visibility};
use crate::TypeUrl;

mod stream;

use stream::Stream;

/// What a session allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// About how many bytes a response carries at most; a larger answer comes in parts. Well below the 4 MiB that gRPC
    /// clients take by default. 512 KiB by default.
    pub response_bytes: usize,
    /// How many single names a client may subscribe. 200,000 by default.
    pub names: usize,
    /// How long a client may leave a response unacknowledged, or a stream without any request. 60 s by default.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { response_bytes: 512 << 10, names: 200_000, patience: Duration::from_secs(60) }
    }
}

/// Why a stream cannot go on. The client is at fault.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProtocolError {
    /// The first request does not say who asks.
    #[error("the first request of a stream must carry `node` with an id")]
    NoNode,
    /// More names than [`Limits::names`].
    #[error("more than {limit} names are subscribed")]
    TooManyNames {
        /// The limit.
        limit: usize,
    },
    /// Nothing came for [`Limits::patience`] though something was due.
    #[error("no request or acknowledgement in {0:?}")]
    Silent(Duration),
}

/// A response was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// Its type.
    pub type_url: TypeUrl,
    /// What the client refused of it; the rest is in use.
    pub refused: Vec<Nack>,
    /// The time from sending it to now.
    pub answered_in: Duration,
    /// The time from the oldest change in it to now.
    pub converged_in: Duration,
}

/// One client's stream.
pub struct Session {
    peer: Peer,
    visibility: Arc<dyn Visibility>,
    limits: Limits,
    opened: Instant,
    node: Option<NodeId>,
    seen: Arc<Snapshot>,
    streams: [Stream; TypeUrl::COUNT],
    nonce: u64,
}

impl Session {
    /// A stream that was just opened.
    pub fn new(
        now: Instant,
        peer: Peer,
        visibility: Arc<dyn Visibility>,
        limits: Limits,
        snapshot: Arc<Snapshot>,
    ) -> Self {
        Self {
            peer,
            visibility,
            limits,
            opened: now,
            node: None,
            seen: snapshot,
            streams: TypeUrl::ALL.map(Stream::new),
            nonce: 0,
        }
    }

    /// Takes a request in. The result says what it acknowledged, if anything.
    ///
    /// A request for a type that this server does not have is passed over: the client may be newer.
    pub fn handle_request(
        &mut self,
        now: Instant,
        request: DeltaDiscoveryRequest,
    ) -> Result<Option<Acknowledged>, ProtocolError> {
        if self.node.is_none() {
            let node = request.node.as_ref().filter(|n| !n.id.is_empty()).ok_or(ProtocolError::NoNode)?;
            self.node = Some(NodeId::read(node));
        }
        let Some(type_url) = TypeUrl::parse(&request.type_url) else { return Ok(None) };
        let sees = |entry: &Entry| self.visibility.sees(&self.peer, type_url, entry);
        let stream = &mut self.streams[type_url.index()];
        let acknowledged = if stream.is_open() {
            let acknowledged = stream.acknowledge(now, &request);
            stream.resubscribe(&self.seen, &request, now, sees);
            stream.forget_unwanted(&self.seen);
            acknowledged
        } else {
            stream.open(&self.seen, request, now, sees);
            None
        };
        if stream.names() > self.limits.names {
            return Err(ProtocolError::TooManyNames { limit: self.limits.names });
        }
        Ok(acknowledged)
    }

    /// Takes a new state of the world in.
    pub fn handle_snapshot(&mut self, now: Instant, snapshot: Arc<Snapshot>) {
        for type_url in TypeUrl::ALL {
            let stream = &mut self.streams[type_url.index()];
            if stream.is_open() {
                let sees = |entry: &Entry| self.visibility.sees(&self.peer, type_url, entry);
                stream.advance(&self.seen, &snapshot, now, sees);
            }
        }
        self.seen = snapshot;
    }

    /// The next response to send, if one is due and may be sent.
    pub fn poll_response(&mut self, now: Instant) -> Option<(DeltaDiscoveryResponse, super::Push)> {
        for type_url in TypeUrl::ALL {
            let stream = &mut self.streams[type_url.index()];
            if stream.is_in_flight() {
                // A later type waits for an earlier one's acknowledgement.
                return None;
            }
            if !stream.is_open() || !stream.is_due() {
                continue;
            }
            let sees = |entry: &Entry| self.visibility.sees(&self.peer, type_url, entry);
            let Some(batch) = stream.take(&self.seen, self.limits.response_bytes, sees) else { continue };
            self.nonce += 1;
            let nonce = format!("{:x}", self.nonce);
            let push = super::Push {
                type_url,
                resources: batch.resources.len(),
                removed: batch.removed.len(),
                queued: now.saturating_duration_since(batch.owed.since),
            };
            let response = DeltaDiscoveryResponse {
                system_version_info: self.seen.revision().to_string(),
                resources: batch.resources,
                type_url: type_url.as_str().to_owned(),
                nonce: nonce.clone(),
                removed_resources: batch.removed.iter().map(ToString::to_string).collect(),
                control_plane: Some(ControlPlane { identifier: IDENTIFIER.to_owned() }),
                more_follows: stream.is_due(),
            };
            stream.sent(now, nonce, batch.names, batch.owed);
            return Some((response, push));
        }
        None
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called, if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        let silent = self.node.is_none().then_some(self.opened);
        let waiting = self.streams.iter().filter_map(Stream::in_flight_since);
        waiting.chain(silent).min().map(|since| since + self.limits.patience)
    }

    /// Whether the client has been silent for too long.
    pub fn handle_timeout(&self, now: Instant) -> Result<(), ProtocolError> {
        match self.deadline() {
            Some(deadline) if now >= deadline => Err(ProtocolError::Silent(self.limits.patience)),
            _ => Ok(()),
        }
    }

    /// How far the client has got.
    pub fn status(&self) -> Status {
        let open = |s: &&Stream| s.is_open();
        Status {
            node: self.node.clone().unwrap_or_default(),
            acked_revision: match self.streams.iter().all(|s| s.is_open()) {
                true => self.streams.iter().filter_map(Stream::floor).min().unwrap_or(self.seen.revision()),
                false => 0,
            },
            pending: self.streams.iter().filter(|s| !s.is_settled()).map(|s| s.type_url).collect(),
            nacks: self.streams.iter().filter(open).flat_map(Stream::nacks).collect(),
        }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }
}

/// What the server calls itself.
const IDENTIFIER: &str = concat!("istiod-lite/", env!("CARGO_PKG_VERSION"));

/// Splits off the wildcard: whether it is among the names, and the others.
fn split_wildcard(names: Vec<String>) -> (bool, BTreeSet<String>) {
    let mut names: BTreeSet<String> = names.into_iter().collect();
    let wildcard = names.remove(WILDCARD);
    (wildcard, names)
}

#[cfg(test)]
mod tests;
