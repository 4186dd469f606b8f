//! What there is to show.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use crate::TypeUrl;

/// Where the client stands.
#[derive(Clone, Debug)]
pub struct State {
    /// The stream.
    pub connection: Connection,
    /// How often a stream has been opened.
    pub streams: u64,
    /// Whether each type has been answered in full and without a refusal at least once. Never falls.
    pub ready: bool,
    /// Each type.
    pub types: BTreeMap<TypeUrl, TypeState>,
}

/// Whether there is a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Connection {
    /// There is one.
    Up {
        /// Since then.
        since: Instant,
    },
    /// There is none; what is known grows old.
    Down {
        /// Since then; nothing if there has never been one.
        since: Option<Instant>,
        /// Why; empty before the first attempt.
        reason: Arc<str>,
    },
}

/// Where one type stands.
#[derive(Clone, Debug, Default)]
pub struct TypeState {
    /// How many resources are known.
    pub resources: usize,
    /// The last response.
    pub last_response: Option<Instant>,
    /// The last acknowledgement without a refusal.
    pub last_ack: Option<Instant>,
    /// How many responses were refused, in part or whole.
    pub refused_responses: u64,
    /// What is refused at present: the server's latest state of it cannot be used, an older one may be in use.
    pub refused: BTreeMap<String, Refusal>,
    /// Whether the type has been answered in full and without a refusal at least once.
    pub complete: bool,
}

/// A refused resource.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Why.
    pub reason: Arc<str>,
    /// When.
    pub at: Instant,
}

impl Default for State {
    fn default() -> Self {
        Self {
            connection: Connection::Down { since: None, reason: "".into() },
            streams: 0,
            ready: false,
            types: TypeUrl::ALL.into_iter().map(|t| (t, TypeState::default())).collect(),
        }
    }
}

/// [`State`] as it is shown: ages in seconds in place of moments.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Whether there is a stream.
    pub connected: bool,
    /// For how long there has been one, or none.
    pub for_seconds: Option<f64>,
    /// Why there is none.
    pub reason: Option<Arc<str>>,
    /// How often a stream has been opened.
    pub streams: u64,
    /// Whether all types have been answered.
    pub ready: bool,
    /// Each type.
    pub types: Vec<TypeReport>,
}

/// [`TypeState`] as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TypeReport {
    /// The type.
    #[serde(rename = "type")]
    pub type_url: TypeUrl,
    /// How many resources are known.
    pub resources: usize,
    /// Seconds since the last response.
    pub last_response_seconds: Option<f64>,
    /// Seconds since the last acknowledgement without a refusal.
    pub last_ack_seconds: Option<f64>,
    /// How many responses were refused, in part or whole.
    pub refused_responses: u64,
    /// What is refused at present, each with the reason.
    pub refused: BTreeMap<String, Arc<str>>,
}

impl State {
    /// The state as it is shown at a moment.
    pub fn report(&self, now: Instant) -> Report {
        let age = |at: Instant| now.saturating_duration_since(at).as_secs_f64();
        let (connected, since, reason) = match &self.connection {
            Connection::Up { since } => (true, Some(*since), None),
            Connection::Down { since, reason } => (false, *since, Some(reason.clone())),
        };
        let types = self.types.iter().map(|(type_url, t)| TypeReport {
            type_url: *type_url,
            resources: t.resources,
            last_response_seconds: t.last_response.map(age),
            last_ack_seconds: t.last_ack.map(age),
            refused_responses: t.refused_responses,
            refused: t.refused.iter().map(|(name, r)| (name.clone(), r.reason.clone())).collect(),
        });
        Report {
            connected,
            for_seconds: since.map(age),
            reason,
            streams: self.streams,
            ready: self.ready,
            types: types.collect(),
        }
    }
}
