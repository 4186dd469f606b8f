//! In which order pods are captured and let go. No I/O: [`Roster::next`] says what is to be done, the caller does it
//! and reports by [`Roster::done`].
//!
//! ```text
//! joining:  Prepare (maps, routing, ztunnel is told) .. ztunnel serves the pod .. Capture
//! leaving:  Release (capture ends) .. linger .. Withdraw (ztunnel is told) .. CountConnections until none .. Tidy
//! ```
//!
//! So capture never begins before ztunnel listens, and never lasts longer than ztunnel is told to. A pod may change
//! its mind at any point; what is captured stays captured whatever happens to ztunnel, to this process, or to a step.

mod entry;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ebpf_loader::PodKey;
use zds::agent::Standing;

use crate::membership::Member;
use entry::Entry;

/// For how long ztunnel goes on serving a pod that is not captured any more: peers learn of it from the control plane
/// and until then still send to its HBONE port.
pub const LINGER: Duration = Duration::from_secs(3);

/// Something to be done.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Make the pod's maps and program, put its routing in place, and tell ztunnel of it.
    Prepare(PodKey),
    /// Begin to capture.
    Capture(PodKey),
    /// End capture.
    Release(PodKey),
    /// Tell ztunnel that the pod leaves. It is done when ztunnel has answered ([`Roster::withdrawn`]).
    Withdraw(PodKey),
    /// Count the connections that still need the pod's routing.
    CountConnections(PodKey),
    /// Take the pod's routing and pins away.
    Tidy(PodKey),
}

impl Step {
    /// The pod that it is about.
    pub fn key(&self) -> &PodKey {
        match self {
            Self::Prepare(key)
            | Self::Capture(key)
            | Self::Release(key)
            | Self::Withdraw(key)
            | Self::CountConnections(key)
            | Self::Tidy(key) => key,
        }
    }

    /// What it is called in logs and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Prepare(_) => "prepare",
            Self::Capture(_) => "capture",
            Self::Release(_) => "release",
            Self::Withdraw(_) => "withdraw",
            Self::CountConnections(_) => "count_connections",
            Self::Tidy(_) => "tidy",
        }
    }
}

/// What came of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// [`Step::Prepare`] is done and found the pod captured already.
    AlreadyCaptured,
    /// [`Step::CountConnections`] found this many.
    Connections(usize),
    /// It failed; it is tried again later.
    Failed(String),
}

/// How a pod is to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Its connections are captured.
    Enrolled,
    /// It belongs to the mesh and is not captured yet.
    Pending,
    /// Something went wrong; it is tried again.
    Failed,
    /// It does not belong to the mesh any more, and something of it is still there.
    Leaving,
}

/// A pod as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standings<'a> {
    /// Which pod.
    pub key: &'a PodKey,
    /// Who it is; nothing for one that leaves.
    pub member: Option<&'a Member>,
    /// How it is to be shown.
    pub state: State,
    /// Why it is not simply enrolled.
    pub reason: Option<String>,
}

/// The pods that are captured, are to be, or were.
#[derive(Debug, Default)]
pub struct Roster {
    pods: BTreeMap<PodKey, Entry>,
}

impl Roster {
    /// Takes in a pod that an earlier process has left, captured or not. Until [`Roster::want`] says what is to become
    /// of it, nothing is.
    pub fn adopt(&mut self, key: PodKey, captured: bool) {
        self.pods.entry(key).or_insert_with(|| Entry::adopted(captured));
    }

    /// The keys under which a pod is known.
    pub fn keys_of<'a>(&'a self, uid: &'a str) -> impl Iterator<Item = &'a PodKey> {
        self.pods.keys().filter(move |key| key.uid() == uid)
    }

    /// Says which pods belong to the mesh, all of them, and which of the others are still there at all.
    ///
    /// A network namespace that passes from one pod to another (a static pod's object is made anew with another UID
    /// while its sandbox runs on) is let go of as one whose pod has ended: capture and routing are the namespace's, so
    /// the next pod's can begin only when nothing is left of the former's, and should soon.
    pub fn want(&mut self, members: BTreeMap<PodKey, Member>, is_there: impl Fn(&PodKey) -> bool) {
        self.assign(members, is_there, |_| false);
    }

    /// Says the same while not all objects are known: a pod that an earlier process has left, and of which nobody has
    /// spoken yet, may be a member. It stays as it is, unless a member has its network namespace.
    pub fn want_so_far(&mut self, members: BTreeMap<PodKey, Member>, is_there: impl Fn(&PodKey) -> bool) {
        self.assign(members, is_there, Entry::is_unknown);
    }

    fn assign(
        &mut self,
        members: BTreeMap<PodKey, Member>,
        is_there: impl Fn(&PodKey) -> bool,
        may_be_member: impl Fn(&Entry) -> bool,
    ) {
        let taken_over: BTreeSet<u64> = members.keys().map(PodKey::cookie).collect();
        for (key, entry) in &mut self.pods {
            let is_taken_over = taken_over.contains(&key.cookie());
            if !members.contains_key(key) && (is_taken_over || !may_be_member(entry)) {
                entry.leave(!is_there(key) || is_taken_over);
            }
        }
        for (key, member) in members {
            self.pods.entry(key).or_default().join(member);
        }
    }

    /// Takes in what ztunnel has said of its pods.
    pub fn heard(&mut self, standing: impl Fn(&str) -> Option<Standing>) {
        for (key, entry) in &mut self.pods {
            entry.heard(standing(key.uid()).unwrap_or(Standing::Pending));
        }
    }

    /// ztunnel has let a pod go, or there is none to tell.
    pub fn withdrawn(&mut self, key: &PodKey) {
        if let Some(entry) = self.pods.get_mut(key) {
            entry.withdrawn();
        }
    }

    /// The next thing to do, if anything is due.
    pub fn next(&self, now: Instant) -> Option<Step> {
        self.free().find_map(|(key, entry)| entry.next(key, now))
    }

    /// The pods for which anything can be done: those that leave, and those whose network namespace nobody who leaves
    /// still has.
    fn free(&self) -> impl Iterator<Item = (&PodKey, &Entry)> {
        self.pods.iter().filter(|(key, entry)| {
            // Keys are ordered by namespace first.
            let before = self.pods.range(..*key).rev();
            let after = self.pods.range(*key..).skip(1);
            let is_same = |(other, _): &(&PodKey, &Entry)| other.cookie() == key.cookie();
            let mut others = before.take_while(is_same).chain(after.take_while(is_same));
            entry.member().is_none() || others.all(|(_, other)| other.member().is_some())
        })
    }

    /// When something will be due that is not due now.
    pub fn deadline(&self) -> Option<Instant> {
        self.free().filter_map(|(_, entry)| entry.deadline()).min()
    }

    /// Reports what came of a step.
    pub fn done(&mut self, step: &Step, outcome: Outcome, now: Instant) {
        let Some(entry) = self.pods.get_mut(step.key()) else { return };
        if entry.done(step, outcome, now) == entry::Fate::Gone {
            self.pods.remove(step.key());
        }
    }

    /// All pods as they stand.
    pub fn standings(&self) -> impl Iterator<Item = Standings<'_>> {
        self.pods.iter().map(|(key, entry)| {
            let (state, reason) = entry.state();
            Standings { key, member: entry.member(), state, reason }
        })
    }

    /// Whether a pod is captured.
    pub fn is_captured(&self, key: &PodKey) -> bool {
        self.pods.get(key).is_some_and(Entry::is_captured)
    }

    /// Who a pod is, while it belongs to the mesh.
    pub fn member(&self, key: &PodKey) -> Option<&Member> {
        self.pods.get(key)?.member()
    }

    /// Whether every pod that belongs to the mesh has been told to ztunnel, or failed.
    pub fn is_told(&self) -> bool {
        self.free().all(|(_, entry)| entry.is_settled())
    }
}

#[cfg(test)]
mod tests;
