//! The addresses that a client asks for by name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use ambit_proto::discovery::DeltaDiscoveryRequest;

use super::Known;
use crate::TypeUrl;
use crate::client::Changes;
use crate::decode::Decoded;

/// The name that stands for everything.
const WILDCARD: &str = "*";

/// What a request to give names up asks for beside: names that can stand for nothing, so that they are answered by their
/// removal. All that comes after that answer was said after the server had heard of the request.
const MARK: &str = "~/given-up-";

#[derive(Debug, Default)]
pub(super) struct Interest {
    wanted: BTreeSet<Arc<str>>,
    /// What is to be said when the server has heard of what was given up before.
    waiting: Changes,
    /// Names were given up, and the server may still count on what they stand for being known here.
    giving_up: Option<GivingUp>,
    marks: u64,
    /// A mark that was answered and is still asked for.
    passed: Option<String>,
    /// Names that the answer under way is to, or has spoken of so far.
    told: BTreeSet<Arc<str>>,
}

#[derive(Debug)]
struct GivingUp {
    mark: String,
    since: Instant,
    is_heard: bool,
}

/// By what other names than its own a resource is asked for.
#[derive(Debug, Default)]
pub(super) struct Lookups {
    aliases: Vec<Arc<str>>,
    groups: Vec<Arc<str>>,
}

impl Interest {
    /// Asks for these from the next stream on, whose server knows of no other.
    pub(super) fn replace(&mut self, names: BTreeSet<Arc<str>>) {
        *self = Self { wanted: names, marks: self.marks, ..Self::default() };
    }

    /// Notes what is to be asked for otherwise.
    pub(super) fn change(
        &mut self,
        added: impl IntoIterator<Item = Arc<str>>,
        dropped: impl IntoIterator<Item = Arc<str>>,
    ) {
        for name in dropped {
            self.waiting.added.remove(&name);
            self.waiting.dropped.insert(name);
        }
        for name in added {
            self.waiting.dropped.remove(&name);
            self.waiting.added.insert(name);
        }
    }

    /// What there is to say. Names are given up first, and nothing is said before the server has heard of that: what it
    /// forgets then could else be taken for what stands behind a name that is asked for in the meantime.
    pub(super) fn next_request(&mut self, now: Instant) -> Option<DeltaDiscoveryRequest> {
        if self.giving_up.is_some() {
            return None;
        }
        let dropped = std::mem::take(&mut self.waiting.dropped);
        let dropped: Vec<String> =
            dropped.iter().filter(|name| self.wanted.remove(*name)).map(ToString::to_string).collect();
        let subscribe = if dropped.is_empty() {
            let added = std::mem::take(&mut self.waiting.added);
            let names = added.iter().map(ToString::to_string).collect();
            self.wanted.extend(added);
            names
        } else {
            self.marks += 1;
            let mark = format!("{MARK}{}", self.marks);
            self.giving_up = Some(GivingUp { mark: mark.clone(), since: now, is_heard: false });
            vec![mark]
        };
        if subscribe.is_empty() {
            return None;
        }
        Some(DeltaDiscoveryRequest {
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: dropped.into_iter().chain(self.passed.take()).collect(),
            ..request()
        })
    }

    /// Since when the server has not answered that it has heard of what was given up.
    pub(super) fn unheard_since(&self) -> Option<Instant> {
        self.giving_up.as_ref().map(|g| g.since)
    }

    /// A request that names nothing asks for everything, so that everything is taken back in the same breath.
    pub(super) fn first_request(&mut self) -> DeltaDiscoveryRequest {
        // What is known under them, and not spoken of in the answer, stands.
        self.told.clone_from(&self.wanted);
        let names = self.wanted.iter().map(ToString::to_string);
        DeltaDiscoveryRequest {
            resource_names_subscribe: names.chain([WILDCARD.to_owned()]).collect(),
            resource_names_unsubscribe: vec![WILDCARD.to_owned()],
            ..request()
        }
    }

    /// The answer says something of a name: where it is no resource's, that it stands for nothing.
    pub(super) fn told_of(&mut self, name: &str) {
        if let Some(giving_up) = &mut self.giving_up {
            giving_up.is_heard |= giving_up.mark == name;
        }
        if let Some(name) = self.wanted.get(name) {
            self.told.insert(name.clone());
        }
    }

    /// The answer brings a resource.
    pub(super) fn told(&mut self, decoded: &Decoded) -> Lookups {
        let lookups = Lookups { aliases: decoded.resource.aliases(), groups: decoded.resource.groups() };
        self.told_of(&decoded.name);
        lookups.aliases.iter().for_each(|alias| self.told_of(alias));
        lookups
    }

    /// The answer is complete: the names that are answered by it, and whether the server has heard of what was given up.
    pub(super) fn answered(&mut self) -> (Vec<Arc<str>>, bool) {
        let heard = self.giving_up.take_if(|g| g.is_heard);
        let has_heard = heard.is_some();
        self.passed = heard.map(|g| g.mark).or(self.passed.take());
        (std::mem::take(&mut self.told).into_iter().collect(), has_heard)
    }

    /// The known names that nothing stands for which is asked for.
    pub(super) fn unwanted(&self, known: &BTreeMap<Arc<str>, Known>) -> Vec<Arc<str>> {
        let asked = |name: &Arc<str>| self.wanted.contains(name);
        let service = |name: &Arc<str>| {
            asked(name) || known.get(name).is_some_and(|k| k.lookups.aliases.iter().any(asked))
        };
        let wanted = |(name, known): &(&Arc<str>, &Known)| {
            asked(name) || known.lookups.aliases.iter().any(asked) || known.lookups.groups.iter().any(service)
        };
        known.iter().filter(|entry| !wanted(entry)).map(|(name, _)| name.clone()).collect()
    }
}

fn request() -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: TypeUrl::Address.as_str().to_owned(),
        ..DeltaDiscoveryRequest::default()
    }
}
