//! The set of pods that ztunnel should know.

use std::collections::BTreeMap;

use super::{Redirection, Workload};
use crate::{Kept, PodState, PodUid};

/// What ztunnel should know. Each change of a pod gives it a new generation.
#[derive(Debug, Default)]
pub struct Desired {
    redirection: Option<Redirection>,
    pods: BTreeMap<PodUid, Entry>,
    /// Those that are about to end or have; also of pods that were taken away since, until the peer has heard that.
    states: BTreeMap<PodUid, PodState>,
    last_generation: u64,
    complete: bool,
}

/// A pod at one generation.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) generation: u64,
    pub(crate) workload: Workload,
    /// The listeners of the ztunnel that serves it, held for the next one.
    pub(crate) kept: Kept,
}

impl Desired {
    /// No pods yet, and not known whether there are any.
    pub fn new(redirection: Option<Redirection>) -> Self {
        Self { redirection, ..Self::default() }
    }

    /// Adds a pod, or tells it again. Returns the generation that it has now.
    pub fn put(&mut self, workload: Workload) -> u64 {
        self.last_generation += 1;
        let generation = self.last_generation;
        let before = self.pods.remove(&workload.uid);
        // Those of another namespace are of no use to anybody.
        let kept =
            before.filter(|before| same_namespace(&before.workload, &workload)).map(|before| before.kept);
        let uid = workload.uid.clone();
        self.pods.insert(uid, Entry { generation, workload, kept: kept.unwrap_or_default() });
        generation
    }

    /// Holds a pod's listeners in place of those that were held.
    pub(crate) fn keep(&mut self, uid: &PodUid, kept: Kept) {
        if let Some(entry) = self.pods.get_mut(uid) {
            entry.kept = kept;
        }
    }

    /// Lets go of all listeners.
    pub(crate) fn keep_none(&mut self) {
        for entry in self.pods.values_mut() {
            entry.kept = Kept::default();
        }
    }

    /// Makes every pod be told again.
    pub(crate) fn renew(&mut self) {
        for entry in self.pods.values_mut() {
            self.last_generation += 1;
            entry.generation = self.last_generation;
        }
    }

    /// Takes a pod away; whether it was there.
    pub fn remove(&mut self, uid: &PodUid) -> bool {
        self.pods.remove(uid).is_some()
    }

    /// Says how far a pod is on its way out; whether that is news. Of a pod that is not there nothing is kept.
    pub fn set_state(&mut self, state: PodState) -> bool {
        if !self.pods.contains_key(&state.uid) || self.states.get(&state.uid) == Some(&state) {
            return false;
        }
        self.states.insert(state.uid.clone(), state);
        true
    }

    /// Nobody needs to hear of a pod's end any more.
    pub(crate) fn forget_state(&mut self, uid: &PodUid) {
        if !self.pods.contains_key(uid) {
            self.states.remove(uid);
        }
    }

    pub(crate) fn state(&self, uid: &PodUid) -> Option<&PodState> {
        self.states.get(uid)
    }

    /// Says that every pod there is was put: until then ztunnel is not told that it has them all.
    pub fn set_complete(&mut self) {
        self.complete = true;
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    pub(crate) fn redirection(&self) -> Option<&Redirection> {
        self.redirection.as_ref()
    }

    pub(crate) fn pods(&self) -> impl Iterator<Item = (&PodUid, &Entry)> {
        self.pods.iter()
    }

    pub(crate) fn pod(&self, uid: &PodUid) -> Option<&Entry> {
        self.pods.get(uid)
    }
}

fn same_namespace(before: &Workload, now: &Workload) -> bool {
    match (&before.netns, &now.netns) {
        (Some(before), Some(now)) => before == now,
        _ => true,
    }
}
