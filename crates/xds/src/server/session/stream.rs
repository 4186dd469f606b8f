//! One type of one client's stream.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use ambit_proto::discovery::{BadRequest, DeltaDiscoveryRequest, Status};
use bytes::Bytes;
use prost::Message;
use rustc_hash::FxHashSet;

use super::{Acknowledged, split_wildcard};
use crate::TypeUrl;
use crate::server::entry::MESSAGE_OVERHEAD;
use crate::server::resume::{Sweep, differences};
use crate::server::subscription::Subscription;
use crate::server::{Entry, Nack, Snapshot};

/// A client's longer reasons are cut.
const LONGEST_REASON: usize = 1024;

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) type_url: TypeUrl,
    /// Nothing before the first request.
    subscription: Option<Subscription>,
    /// Names to evaluate when the next response is made: each becomes a resource or a removal.
    pending: BTreeSet<Arc<str>>,
    /// Names that were asked for anew: each is answered, those that nothing has by their removal.
    asked: BTreeSet<Arc<str>>,
    sweep: Option<Sweep>,
    answered: bool,
    owed: Option<Owed>,
    in_flight: Option<InFlight>,
    refused: BTreeMap<Arc<str>, Refused>,
}

/// Since when something has been waiting to be sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owed {
    /// The revision up to which the client has everything.
    floor: u64,
    pub(super) since: Instant,
}

#[derive(Debug)]
struct InFlight {
    nonce: String,
    names: Vec<Arc<str>>,
    owed: Owed,
    sent: Instant,
}

#[derive(Debug)]
struct Refused {
    floor: u64,
    message: Arc<str>,
}

/// What one response carries.
pub(super) struct Batch {
    pub(super) resources: Vec<Bytes>,
    pub(super) removed: Vec<Arc<str>>,
    /// All names that it is about.
    pub(super) names: Vec<Arc<str>>,
    pub(super) owed: Owed,
}

impl Stream {
    pub(super) fn new(type_url: TypeUrl) -> Self {
        Self {
            type_url,
            subscription: None,
            pending: BTreeSet::new(),
            asked: BTreeSet::new(),
            sweep: None,
            answered: false,
            owed: None,
            in_flight: None,
            refused: BTreeMap::new(),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.subscription.is_some()
    }

    pub(super) fn is_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    pub(super) fn in_flight_since(&self) -> Option<Instant> {
        self.in_flight.as_ref().map(|f| f.sent)
    }

    /// Whether there may be something to send. A type's first request is always answered, if only by an empty response.
    pub(super) fn is_due(&self) -> bool {
        !self.answered || !self.pending.is_empty() || !self.asked.is_empty() || self.sweep.is_some()
    }

    /// Whether the client has everything and has said so.
    pub(super) fn is_settled(&self) -> bool {
        self.is_open() && self.owed.is_none() && self.in_flight.is_none()
    }

    pub(super) fn names(&self) -> usize {
        self.subscription.as_ref().map_or(0, |s| s.names.len())
    }

    /// The revision up to which the client has everything, where that is not the latest.
    pub(super) fn floor(&self) -> Option<u64> {
        let owed = self.owed.iter().map(|o| o.floor);
        let in_flight = self.in_flight.iter().map(|f| f.owed.floor);
        owed.chain(in_flight).chain(self.refused.values().map(|r| r.floor)).min()
    }

    pub(super) fn nacks(&self) -> impl Iterator<Item = Nack> {
        self.refused.iter().map(|(resource, refused)| Nack {
            type_url: self.type_url,
            resource: resource.clone(),
            message: refused.message.clone(),
        })
    }

    /// The first request of the type: what the client wants, and what it has already.
    pub(super) fn open(
        &mut self,
        snapshot: &Snapshot,
        request: DeltaDiscoveryRequest,
        now: Instant,
        sees: impl Fn(&Entry) -> bool,
    ) {
        let asks_for_nothing = request.resource_names_subscribe.is_empty();
        let (star, names) = split_wildcard(request.resource_names_subscribe);
        let (unstar, unsubscribed) = split_wildcard(request.resource_names_unsubscribe);
        let subscription = Subscription {
            wildcard: (star || asks_for_nothing) && !unstar,
            names: names.difference(&unsubscribed).map(|n| Arc::from(n.as_str())).collect(),
        };
        let had = request.initial_resource_versions;
        if subscription.wildcard {
            self.sweep = Some(Sweep::new(had));
        } else {
            self.pending = differences(snapshot, self.type_url, &subscription, had, &sees);
        }
        self.asked = subscription.names.iter().cloned().collect();
        self.subscription = Some(subscription);
        self.owed = Some(Owed { floor: 0, since: now });
    }

    /// A later request's wishes. What is asked for anew is answered anew, also where the client should have it.
    pub(super) fn resubscribe(
        &mut self,
        snapshot: &Snapshot,
        request: &DeltaDiscoveryRequest,
        now: Instant,
        sees: impl Fn(&Entry) -> bool,
    ) {
        let Some(subscription) = &mut self.subscription else { return };
        let subscribe = &request.resource_names_subscribe;
        let unsubscribe = &request.resource_names_unsubscribe;
        if subscribe.is_empty() && unsubscribe.is_empty() {
            return;
        }
        let (star, names) = split_wildcard(subscribe.clone());
        let (unstar, unsubscribed) = split_wildcard(unsubscribe.clone());
        let added: Vec<Arc<str>> = names.difference(&unsubscribed).map(|n| Arc::from(n.as_str())).collect();
        for name in &unsubscribed {
            subscription.names.remove(name.as_str());
            self.asked.remove(name.as_str());
            if subscription.wildcard {
                // The client may have forgotten what it still is to have as one of all.
                self.pending.extend(snapshot.get(self.type_url, name).map(|entry| entry.name.clone()));
            }
        }
        subscription.names.extend(added.iter().cloned());
        if unstar {
            subscription.wildcard = false;
            self.sweep = None;
        } else if star {
            subscription.wildcard = true;
            self.sweep = Some(Sweep::new(Default::default()));
        }
        for name in &added {
            let entries = snapshot.resolve(self.type_url, name);
            self.pending.extend(entries.into_iter().filter(|e| sees(e)).map(|e| e.name.clone()));
        }
        self.asked.extend(added);
        if self.is_due() {
            self.owe(snapshot.revision(), now);
        } else {
            // All that was waiting was for what is not wanted any more.
            self.owed = None;
        }
    }

    /// What a client refused and does not want any more is nothing that it lacks.
    pub(super) fn forget_unwanted(&mut self, snapshot: &Snapshot) {
        let Some(subscription) = &self.subscription else { return };
        self.refused.retain(|name, _| {
            let entry = snapshot.get(self.type_url, name);
            entry.is_none_or(|entry| subscription.wants(snapshot, self.type_url, entry))
        });
    }

    /// A later state of the world.
    pub(super) fn advance(
        &mut self,
        from: &Snapshot,
        to: &Snapshot,
        now: Instant,
        sees: impl Fn(&Entry) -> bool,
    ) {
        let Some(subscription) = &self.subscription else { return };
        let wanted = |snapshot: &Snapshot, entry: Option<&Arc<Entry>>| {
            entry.is_some_and(|e| sees(e) && subscription.wants(snapshot, self.type_url, e))
        };
        let mut changed = Vec::new();
        for name in to.touched_since(from, self.type_url).iter() {
            let (was, is) = (from.get(self.type_url, name), to.get(self.type_url, name));
            let (had, has) = (wanted(from, was), wanted(to, is));
            let same = had && has && was.map(|e| &e.version) == is.map(|e| &e.version);
            let will_be_reached = has && self.sweep.as_ref().is_some_and(|s| s.will_reach(name));
            if (had || has) && !same && !will_be_reached {
                changed.push(name.clone());
            }
        }
        if !changed.is_empty() {
            self.pending.extend(changed);
            self.owe(from.revision(), now);
        }
    }

    fn owe(&mut self, floor: u64, since: Instant) {
        self.owed.get_or_insert(Owed { floor, since });
    }

    /// Takes what the next response is to carry, up to about `budget` bytes. Nothing if it turns out that there is
    /// nothing to say.
    pub(super) fn take(
        &mut self,
        snapshot: &Snapshot,
        budget: usize,
        sees: impl Fn(&Entry) -> bool,
    ) -> Option<Batch> {
        let subscription = self.subscription.as_ref()?;
        let owed = self.owed?;
        let mut batch = Batch { resources: vec![], removed: vec![], names: vec![], owed };
        let mut left = budget;
        loop {
            walk(&mut self.sweep, &mut self.pending, snapshot, self.type_url, &sees);
            let Some(name) = self.pending.first() else { break };
            let entry = snapshot
                .get(self.type_url, name)
                .filter(|e| sees(e) && subscription.wants(snapshot, self.type_url, e));
            let cost = entry.map_or(name.len() + MESSAGE_OVERHEAD, |e| e.cost());
            if cost > left && !batch.names.is_empty() {
                break;
            }
            left = left.saturating_sub(cost);
            // It may become again what the client said it has, before the walk gets to its place.
            if let Some(sweep) = &mut self.sweep {
                sweep.told(name, entry.map(|e| &*e.version));
            }
            match entry {
                Some(entry) => batch.resources.push(entry.wire.clone()),
                None => batch.removed.push(name.clone()),
            }
            batch.names.extend(self.pending.pop_first());
        }
        // When all that they stand for has been told. What vanishes before it is told leaves them without an answer else.
        while self.pending.is_empty()
            && let Some(name) = self.asked.first()
        {
            if snapshot.named(self.type_url, name).any(|e| sees(e)) {
                self.asked.pop_first();
                continue;
            }
            let cost = name.len() + MESSAGE_OVERHEAD;
            if cost > left && !batch.removed.is_empty() {
                break;
            }
            left = left.saturating_sub(cost);
            // Also of a service that is not there, though there are workloads behind it.
            batch.removed.extend(self.asked.pop_first());
        }
        let first = !std::mem::replace(&mut self.answered, true);
        if !self.is_due() {
            self.owed = None;
        }
        (first || !batch.resources.is_empty() || !batch.removed.is_empty()).then_some(batch)
    }

    pub(super) fn sent(&mut self, now: Instant, nonce: String, names: Vec<Arc<str>>, owed: Owed) {
        self.in_flight = Some(InFlight { nonce, names, owed, sent: now });
    }

    /// An acknowledgement, if the request is one of what is on its way. A stale nonce acknowledges nothing.
    pub(super) fn acknowledge(
        &mut self,
        now: Instant,
        request: &DeltaDiscoveryRequest,
    ) -> Option<Acknowledged> {
        let flight = self.in_flight.take_if(|f| f.nonce == request.response_nonce)?;
        let refused = request.error_detail.as_ref().map(|e| refusals(e, &flight.names)).unwrap_or_default();
        let mut nacks = Vec::with_capacity(refused.len());
        for name in flight.names {
            let Some(message) = refused.get(&name) else {
                self.refused.remove(&name);
                continue;
            };
            let floor = self.refused.get(&name).map_or(flight.owed.floor, |r| r.floor);
            self.refused.insert(name.clone(), Refused { floor, message: message.clone() });
            nacks.push(Nack { type_url: self.type_url, resource: name, message: message.clone() });
        }
        Some(Acknowledged {
            type_url: self.type_url,
            refused: nacks,
            answered_in: now.saturating_duration_since(flight.sent),
            converged_in: now.saturating_duration_since(flight.owed.since),
        })
    }
}

/// Walks on to where something is pending, or to the walk's end.
fn walk(
    sweep: &mut Option<Sweep>,
    pending: &mut BTreeSet<Arc<str>>,
    snapshot: &Snapshot,
    type_url: TypeUrl,
    sees: impl Fn(&Entry) -> bool,
) {
    while let Some(under_way) = sweep
        && pending.is_empty()
    {
        if !under_way.step(snapshot, type_url, &sees, pending) {
            *sweep = None;
        }
    }
}

/// Which of the sent names a refusal is about, each with the reason. One that names none is about all.
fn refusals(error: &Status, sent: &[Arc<str>]) -> BTreeMap<Arc<str>, Arc<str>> {
    let among: FxHashSet<&Arc<str>> = sent.iter().collect();
    let mut named = BTreeMap::new();
    for detail in &error.details {
        if !detail.type_url.ends_with("/google.rpc.BadRequest") {
            continue;
        }
        let Ok(bad) = BadRequest::decode(&*detail.value) else { continue };
        for violation in bad.field_violations {
            let name = Arc::from(violation.field);
            if among.contains(&name) {
                named.insert(name, cut(&violation.description));
            }
        }
    }
    if named.is_empty() {
        let message = cut(&error.message);
        named.extend(sent.iter().map(|name| (name.clone(), message.clone())));
    }
    named
}

fn cut(text: &str) -> Arc<str> {
    text.chars().take(LONGEST_REASON).collect::<String>().into()
}
