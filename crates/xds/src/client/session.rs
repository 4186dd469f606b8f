//! What a client knows and says, across streams, as a pure state machine.
//!
//! A stream's life: [`Session::connected`] gives the first requests. Each response goes through
//! [`Session::receive`], which reads it; when its updates are in force, [`Session::applied`] gives the
//! acknowledgement. [`Session::closed`] says how long to wait before the next stream. What is known survives: the next
//! stream's first requests name it, and the server answers with the difference.
//!
//! A session asks for everything, or, [on demand](Session::on_demand), for those addresses that it is told to ask for.
//! Policies it always asks for all: nobody could say which ones he needs.

mod interest;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ambit_proto::discovery::bad_request::FieldViolation;
use ambit_proto::discovery::{BadRequest, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Status};
use index::Update;
use prost::Message;
use prost_types::Any;
use rand::Rng;

use self::interest::{Interest, Lookups};
use super::state::{Connection, Refusal, State};
use super::{Backoff, NodeInfo};
use crate::decode::{DecodeError, Decoded, resource};
use crate::{Defaults, ResourceKey, TypeUrl};

/// How many bytes of names and versions a first request carries at most: gRPC servers refuse messages beyond 4 MiB by
/// default, and the request would be repeated for ever.
const RESUME_BYTES: usize = 3 << 20;

/// How many refused resources the text of a refusal names.
const TOLD: usize = 20;

/// How many refused resources the details of a refusal name; with more than that, all of the response counts as refused.
const NAMED: usize = 5_000;

/// How long the server may take for the first answer of each type, and to say that it has heard of what was given up.
const ANSWER: Duration = Duration::from_secs(60);

/// A stream that stood for this long was a good one. A server that answers and dies at once, again and again, is not
/// to be asked again and again at once.
const STEADY: Duration = Duration::from_secs(15);

/// What a client knows and says.
#[derive(Debug)]
pub struct Session {
    node: NodeInfo,
    defaults: Defaults,
    resume_bytes: usize,
    types: [TypeSession; TypeUrl::COUNT],
    /// The addresses that are asked for, where it is not all of them.
    interest: Option<Interest>,
    backoff: Backoff,
    opened: Option<Instant>,
    state: State,
}

#[derive(Debug, Default)]
struct TypeSession {
    known: BTreeMap<Arc<str>, Known>,
    /// What is known but was not named in this stream's first request. What the first answer does not bring is gone.
    unconfirmed: BTreeSet<Arc<str>>,
    answering: Answering,
}

/// How much of the answer to this stream's first request has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Answering {
    #[default]
    Nothing,
    Part,
    All,
}

/// What is in force, in the server's latest state that could be used.
#[derive(Debug)]
struct Known {
    version: Box<str>,
    key: ResourceKey,
    /// By what other names it is asked for; empty where everything is.
    lookups: Lookups,
}

/// A response that was read.
#[derive(Debug)]
pub struct Received {
    /// What to put in force, in this order.
    pub updates: Vec<Update>,
    /// What could not be used.
    pub refused: Vec<DecodeError>,
    /// The names that were asked for and are answered when the updates are in force.
    pub answered: Vec<Arc<str>>,
    /// To give back when the updates are in force.
    pub ticket: Ticket,
}

/// A response that is not acknowledged yet.
#[derive(Debug)]
#[must_use = "the server sends nothing more of the type before the acknowledgement"]
pub struct Ticket {
    type_url: TypeUrl,
    nonce: String,
    error: Option<Status>,
}

impl Ticket {
    /// The response's type.
    pub fn type_url(&self) -> TypeUrl {
        self.type_url
    }
}

impl Session {
    /// Knows nothing yet.
    pub fn new(node: NodeInfo, defaults: Defaults) -> Self {
        Self {
            node,
            defaults,
            resume_bytes: RESUME_BYTES,
            types: Default::default(),
            interest: None,
            backoff: Backoff::default(),
            opened: None,
            state: State::default(),
        }
    }

    /// Another limit for what a first request names of what is known, for tests.
    #[cfg(test)]
    pub(crate) fn with_resume_bytes(mut self, bytes: usize) -> Self {
        self.resume_bytes = bytes;
        self
    }

    /// Asks for no address but those that it will be told to ask for.
    pub fn on_demand(mut self) -> Self {
        self.interest = Some(Interest::default());
        self
    }

    /// Asks for these addresses and no others from the next stream on.
    pub fn ask_for(&mut self, names: BTreeSet<Arc<str>>) {
        if let Some(interest) = &mut self.interest {
            interest.replace(names);
        }
    }

    /// Asks for further addresses and no more for others, as soon as [`next_request`](Self::next_request) may say so.
    pub fn ask(
        &mut self,
        added: impl IntoIterator<Item = Arc<str>>,
        dropped: impl IntoIterator<Item = Arc<str>>,
    ) {
        if let Some(interest) = &mut self.interest {
            interest.change(added, dropped);
        }
    }

    /// The next request about what is asked for, if there is one to send: to be looked for after each change of that and
    /// each acknowledgement.
    pub fn next_request(&mut self, now: Instant) -> Option<DeltaDiscoveryRequest> {
        self.interest.as_mut()?.next_request(now)
    }

    /// Forgets what no name stands for that is asked for. The updates that say so.
    pub fn forget_unwanted(&mut self) -> Vec<Update> {
        let Some(interest) = &self.interest else { return vec![] };
        let of_type = &mut self.types[TypeUrl::Address.index()];
        let unwanted = interest.unwanted(&of_type.known);
        let updates = unwanted.iter().filter_map(|name| of_type.remove(name)).collect();
        self.state.types.entry(TypeUrl::Address).or_default().resources = of_type.known.len();
        updates
    }

    /// A stream stands. The requests to begin with, in this order.
    pub fn connected(&mut self, now: Instant) -> Vec<DeltaDiscoveryRequest> {
        self.opened = Some(now);
        self.state.connection = Connection::Up { since: now };
        self.state.streams += 1;
        for shown in self.state.types.values_mut() {
            // The server says it again, because what is refused is not among what is known.
            shown.refused.clear();
        }
        TypeUrl::ALL.into_iter().map(|type_url| self.first_request(type_url)).collect()
    }

    fn first_request(&mut self, type_url: TypeUrl) -> DeltaDiscoveryRequest {
        let mut request = match &mut self.interest {
            Some(interest) if type_url == TypeUrl::Address => interest.first_request(),
            _ => DeltaDiscoveryRequest::default(),
        };
        let room = self.resume_bytes.saturating_sub(request.encoded_len());
        request.node = Some(self.node.to_wire());
        type_url.as_str().clone_into(&mut request.type_url);
        request.initial_resource_versions = self.types[type_url.index()].resume(room);
        request
    }

    /// Reads a response. Nothing for one of a type that was never asked for.
    pub fn receive(&mut self, now: Instant, response: DeltaDiscoveryResponse) -> Option<Received> {
        let type_url = TypeUrl::parse(&response.type_url)?;
        let mut updates = Vec::with_capacity(response.resources.len() + response.removed_resources.len());
        let mut refused = Vec::new();
        let of_type = &mut self.types[type_url.index()];
        let shown = self.state.types.entry(type_url).or_default();
        let mut interest = self.interest.as_mut().filter(|_| type_url == TypeUrl::Address);
        for name in response.removed_resources {
            shown.refused.remove(&name);
            if let Some(interest) = &mut interest {
                interest.told_of(&name);
            }
            updates.extend(of_type.remove(&name));
        }
        for bytes in response.resources {
            match resource(type_url, bytes, &self.defaults) {
                Ok(decoded) => {
                    shown.refused.remove(&decoded.name);
                    let lookups = match &mut interest {
                        Some(interest) => interest.told(&decoded),
                        None => Lookups::default(),
                    };
                    of_type.upsert(decoded, lookups, &mut updates);
                }
                Err(error) => {
                    // The server has it, so it is not gone; its last good state stays.
                    of_type.unconfirmed.remove(error.resource.as_str());
                    let refusal = Refusal { reason: error.fault.to_string().into(), at: now };
                    shown.refused.insert(error.resource.clone(), refusal);
                    refused.push(error);
                }
            }
        }
        of_type.answered(response.more_follows, &mut updates);
        shown.last_response = Some(now);
        shown.resources = of_type.known.len();
        shown.refused_responses += u64::from(!refused.is_empty());
        let (answered, has_heard) = match interest {
            Some(interest) if !response.more_follows => interest.answered(),
            _ => (vec![], false),
        };
        if has_heard {
            updates.extend(self.forget_unwanted());
        }
        let error = (!refused.is_empty()).then(|| refusal(&refused));
        Some(Received {
            updates,
            refused,
            answered,
            ticket: Ticket { type_url, nonce: response.nonce, error },
        })
    }

    /// The updates of a response are in force. The acknowledgement to send, or the refusal of what could not be used.
    pub fn applied(&mut self, now: Instant, ticket: Ticket) -> DeltaDiscoveryRequest {
        let Ticket { type_url, nonce, error } = ticket;
        let shown = self.state.types.entry(type_url).or_default();
        if error.is_none() {
            shown.last_ack = Some(now);
        }
        shown.complete |=
            self.types[type_url.index()].answering == Answering::All && shown.refused.is_empty();
        self.state.ready |= self.state.types.values().all(|t| t.complete);
        DeltaDiscoveryRequest {
            type_url: type_url.as_str().to_owned(),
            response_nonce: nonce,
            error_detail: error,
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// The stream has ended or could not be opened. How long to wait before the next attempt.
    pub fn closed(&mut self, now: Instant, reason: &str, rng: &mut impl Rng) -> Duration {
        if self.opened.take().is_some_and(|opened| now.saturating_duration_since(opened) >= STEADY) {
            self.backoff.reset();
        }
        let since = match &self.state.connection {
            Connection::Up { .. } => Some(now),
            Connection::Down { since, .. } => *since,
        };
        self.state.connection = Connection::Down { since, reason: reason.into() };
        self.backoff.step(rng)
    }

    /// When the stream is to be given up because the server does not answer.
    pub fn deadline(&self) -> Option<Instant> {
        let waiting = self.types.iter().any(|t| t.answering == Answering::Nothing);
        let first = self.opened.filter(|_| waiting);
        let unheard = self.interest.as_ref().and_then(Interest::unheard_since);
        first.into_iter().chain(unheard).min().map(|since| since + ANSWER)
    }

    /// Where the client stands.
    pub fn state(&self) -> &State {
        &self.state
    }
}

impl TypeSession {
    /// A new stream: what to name in its first request. What is left out for want of room is noted.
    fn resume(&mut self, mut room: usize) -> BTreeMap<String, String> {
        let mut named = BTreeMap::new();
        self.unconfirmed.clear();
        self.answering = Answering::Nothing;
        for (name, known) in &self.known {
            let cost = name.len() + known.version.len() + 12;
            if cost > room {
                self.unconfirmed.insert(name.clone());
                continue;
            }
            room -= cost;
            named.insert(name.to_string(), known.version.to_string());
        }
        named
    }

    fn upsert(&mut self, decoded: Decoded, lookups: Lookups, updates: &mut Vec<Update>) {
        let Decoded { name, version, resource } = decoded;
        self.unconfirmed.remove(name.as_str());
        let key = resource.key();
        let known = Known { version: version.into(), key: key.clone(), lookups };
        let before = self.known.insert(name.into(), known);
        // A name can pass from a workload to a service.
        updates.extend(before.filter(|b| b.key != key).map(|b| b.key.into()));
        updates.push(resource.into());
    }

    fn remove(&mut self, name: &str) -> Option<Update> {
        self.unconfirmed.remove(name);
        self.known.remove(name).map(|known| known.key.into())
    }

    /// Notes that a part of the answer has come, and at its end drops what the server did not confirm.
    fn answered(&mut self, more_follows: bool, updates: &mut Vec<Update>) {
        match (self.answering, more_follows) {
            (Answering::All, _) => {}
            (_, true) => self.answering = Answering::Part,
            (_, false) => {
                self.answering = Answering::All;
                for name in std::mem::take(&mut self.unconfirmed) {
                    updates.extend(self.remove(&name));
                }
            }
        }
    }
}

/// Says what could not be used, for people in the message and for programs in the details.
fn refusal(refused: &[DecodeError]) -> Status {
    let mut message = refused.iter().take(TOLD).map(ToString::to_string).collect::<Vec<_>>().join("; ");
    if refused.len() > TOLD {
        message.push_str(&format!("; and {} more", refused.len() - TOLD));
    }
    let violation =
        |e: &DecodeError| FieldViolation { field: e.resource.clone(), description: e.fault.to_string() };
    let bad = BadRequest { field_violations: refused.iter().take(NAMED).map(violation).collect() };
    let details =
        Any { type_url: "type.googleapis.com/google.rpc.BadRequest".to_owned(), value: bad.encode_to_vec() };
    let all_named = refused.len() <= NAMED && refused.iter().all(|e| !e.resource.is_empty());
    Status { code: INVALID_ARGUMENT, message, details: all_named.then_some(details).into_iter().collect() }
}

/// The gRPC status code.
const INVALID_ARGUMENT: i32 = 3;

#[cfg(test)]
mod tests;
