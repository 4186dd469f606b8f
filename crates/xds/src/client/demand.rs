//! What a client asks for by name, where it does not ask for everything.
//!
//! A name is a workload's uid, `network/address`, or `namespace/hostname`. Each is answered: by what it stands for, with
//! a service the workloads behind it, or by its removal, where it stands for nothing. From then on the server tells of
//! each change. Names that nobody has used for a while are given up, and with them what no other name stands for.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// So many names at most, those that are held not counted: beyond, those that have not been used for longest give way. A
/// first request has room for them even where each is a long one.
const MOST: usize = 16_384;

/// How long an answer may take before who needs the name asks again.
const ANSWER: Duration = Duration::from_secs(5);

/// How long a name is kept that nobody uses.
const IDLE: Duration = Duration::from_secs(600);

/// The names that a client asks for, shared by those who need them and the stream that asks. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Demand(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    wishes: Mutex<Wishes>,
    changed: Notify,
    answers: watch::Sender<()>,
}

/// The pure part.
#[derive(Debug)]
struct Wishes {
    most: usize,
    wishes: HashMap<Arc<str>, Wish>,
    /// Not used by connections, but needed as long as they are held.
    held: BTreeSet<Arc<str>>,
    /// What the stream has not been told of.
    added: BTreeSet<Arc<str>>,
    dropped: BTreeSet<Arc<str>>,
}

#[derive(Debug)]
struct Wish {
    is_answered: bool,
    asked: Instant,
    used: Instant,
}

/// What has changed about the names that are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// To be asked for from now on, or again.
    pub added: BTreeSet<Arc<str>>,
    /// Not to be asked for any more.
    pub dropped: BTreeSet<Arc<str>>,
}

/// How many names there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DemandCounts {
    /// Names that are asked for.
    pub names: usize,
    /// Those that are asked for whether or not somebody uses them.
    pub held: usize,
    /// Those to which the control plane has not answered yet.
    pub unanswered: usize,
}

impl Default for Demand {
    fn default() -> Self {
        Self(Arc::new(Shared {
            wishes: Mutex::new(Wishes::new(MOST)),
            changed: Notify::new(),
            answers: watch::Sender::new(()),
        }))
    }
}

impl Demand {
    /// Uses names: asks for those that are not asked for yet. Whether all have been answered.
    pub fn use_names(&self, names: impl IntoIterator<Item = Arc<str>>) -> bool {
        let now = Instant::now();
        let mut wishes = self.0.wishes.lock();
        let mut all = true;
        for name in names {
            all &= wishes.use_name(name, now);
        }
        self.tell(wishes.has_changes());
        all
    }

    /// Asks for names for as long as they are among those that were given last.
    pub fn hold(&self, names: BTreeSet<Arc<str>>) {
        let mut wishes = self.0.wishes.lock();
        wishes.hold(names, Instant::now());
        self.tell(wishes.has_changes());
    }

    /// Notifies when names have been answered.
    pub fn answers(&self) -> watch::Receiver<()> {
        self.0.answers.subscribe()
    }

    /// How many names there are.
    pub fn counts(&self) -> DemandCounts {
        self.0.wishes.lock().counts()
    }

    fn tell(&self, has_changes: bool) {
        if has_changes {
            self.0.changed.notify_one();
        }
    }

    /// For the one who holds the stream. Waits for changes, and for the next moment at which unused names are given up. Cancel-safe.
    pub async fn changes(&self) -> Changes {
        loop {
            let changed = self.0.changed.notified();
            let (changes, next) = {
                let mut wishes = self.0.wishes.lock();
                let next = wishes.give_up(Instant::now());
                (wishes.take_changes(), next)
            };
            if changes != Changes::default() {
                return changes;
            }
            match next {
                Some(next) => drop(tokio::time::timeout_at(next, changed).await),
                None => changed.await,
            }
        }
    }

    /// For the one who opens a stream. What is to be asked for now; nothing of it has to be told as a change any more.
    pub fn current(&self) -> BTreeSet<Arc<str>> {
        let mut wishes = self.0.wishes.lock();
        wishes.take_changes();
        wishes.wishes.keys().cloned().collect()
    }

    /// For the one who holds the stream. These have been answered, and what they stand for is in force.
    pub fn answered<'a>(&self, names: impl IntoIterator<Item = &'a Arc<str>>) {
        let mut wishes = self.0.wishes.lock();
        let mut any = false;
        for name in names {
            any |= wishes.answered(name);
        }
        drop(wishes);
        if any {
            self.0.answers.send_replace(());
        }
    }
}

impl Wishes {
    fn new(most: usize) -> Self {
        Self {
            most,
            wishes: HashMap::new(),
            held: BTreeSet::new(),
            added: BTreeSet::new(),
            dropped: BTreeSet::new(),
        }
    }

    fn use_name(&mut self, name: Arc<str>, now: Instant) -> bool {
        if let Some(wish) = self.wishes.get_mut(&name) {
            wish.used = now;
            if !wish.is_answered && now.saturating_duration_since(wish.asked) >= ANSWER {
                wish.asked = now;
                self.added.insert(name);
                return false;
            }
            return wish.is_answered;
        }
        if self.wishes.len() >= self.most + self.held.len() {
            self.make_room();
        }
        self.wishes.insert(name.clone(), Wish { is_answered: false, asked: now, used: now });
        // What is to be given up and asked for in one message could be taken either way.
        self.added.insert(name);
        false
    }

    fn hold(&mut self, names: BTreeSet<Arc<str>>, now: Instant) {
        for name in &names {
            self.use_name(name.clone(), now);
        }
        self.held = names;
    }

    /// A quarter of the names goes at once, so that the look for the oldest is rare.
    fn make_room(&mut self) {
        let mut ages: Vec<(Instant, Arc<str>)> = self.unheld().map(|(n, w)| (w.used, n.clone())).collect();
        let quarter = (self.most / 4).clamp(1, ages.len().max(1));
        if quarter < ages.len() {
            ages.select_nth_unstable(quarter);
            ages.truncate(quarter);
        }
        ages.iter().for_each(|(_, name)| self.drop_name(name));
    }

    /// Gives up what has not been used for long. When the next is due.
    fn give_up(&mut self, now: Instant) -> Option<Instant> {
        let old = |w: &Wish| now.saturating_duration_since(w.used) >= IDLE;
        let gone: Vec<Arc<str>> = self.unheld().filter(|(_, w)| old(w)).map(|(n, _)| n.clone()).collect();
        gone.iter().for_each(|name| self.drop_name(name));
        let oldest = self.unheld().map(|(_, w)| w.used).min()?;
        // Together with those that are due soon after.
        Some((oldest + IDLE).max(now + IDLE / 10))
    }

    fn unheld(&self) -> impl Iterator<Item = (&Arc<str>, &Wish)> {
        self.wishes.iter().filter(|(name, _)| !self.held.contains(*name))
    }

    fn drop_name(&mut self, name: &Arc<str>) {
        self.wishes.remove(name);
        // What was never asked for need not be given up; the server may have been told of it before, though.
        self.added.remove(name);
        self.dropped.insert(name.clone());
    }

    fn answered(&mut self, name: &Arc<str>) -> bool {
        // What was given up and is asked for again is answered anew.
        match self.wishes.get_mut(name) {
            Some(wish) if !self.added.contains(name) => !std::mem::replace(&mut wish.is_answered, true),
            _ => false,
        }
    }

    fn has_changes(&self) -> bool {
        !self.added.is_empty() || !self.dropped.is_empty()
    }

    fn take_changes(&mut self) -> Changes {
        let added = std::mem::take(&mut self.added);
        let mut dropped = std::mem::take(&mut self.dropped);
        dropped.retain(|name| !added.contains(name));
        Changes { added, dropped }
    }

    fn counts(&self) -> DemandCounts {
        DemandCounts {
            names: self.wishes.len(),
            held: self.held.len(),
            unanswered: self.wishes.values().filter(|w| !w.is_answered).count(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(n: usize) -> Arc<str> {
        format!("/10.0.0.{n}").into()
    }

    fn set(names: impl IntoIterator<Item = usize>) -> BTreeSet<Arc<str>> {
        names.into_iter().map(name).collect()
    }

    #[test]
    fn a_name_is_asked_for_once_and_answered_once() {
        let (mut wishes, now) = (Wishes::new(10), Instant::now());
        assert!(!wishes.use_name(name(1), now));
        assert!(!wishes.use_name(name(1), now));
        assert!(!wishes.answered(&name(1)), "an answer to what was not asked yet is of another time");
        assert_eq!(wishes.take_changes(), Changes { added: set([1]), dropped: set([]) });
        assert!(wishes.answered(&name(1)));
        assert!(!wishes.answered(&name(1)), "nothing new");
        assert!(!wishes.answered(&name(2)), "nobody asked");
        assert!(wishes.use_name(name(1), now));
        assert_eq!(wishes.take_changes(), Changes::default());
    }

    #[test]
    fn what_is_not_answered_is_asked_for_again_by_who_needs_it() {
        let (mut wishes, start) = (Wishes::new(10), Instant::now());
        wishes.use_name(name(1), start);
        wishes.use_name(name(2), start);
        wishes.take_changes();
        wishes.answered(&name(2));
        for n in [1, 2] {
            wishes.use_name(name(n), start + ANSWER / 2);
        }
        assert!(!wishes.has_changes());
        for n in [1, 2] {
            wishes.use_name(name(n), start + ANSWER);
        }
        assert_eq!(wishes.take_changes().added, set([1]));
    }

    #[test]
    fn what_nobody_uses_is_given_up_and_what_is_held_is_not() {
        let (mut wishes, start) = (Wishes::new(10), Instant::now());
        wishes.hold(set([1]), start);
        wishes.use_name(name(2), start);
        wishes.use_name(name(3), start + IDLE / 2);
        wishes.take_changes();
        assert_eq!(wishes.give_up(start + IDLE), Some(start + IDLE + IDLE / 2));
        assert_eq!(wishes.take_changes(), Changes { added: set([]), dropped: set([2]) });
        wishes.hold(set([]), start);
        wishes.give_up(start + IDLE);
        assert_eq!(wishes.take_changes().dropped, set([1]), "it is held no more");
    }

    #[test]
    fn when_there_are_too_many_the_oldest_give_way_and_none_that_is_held() {
        let (mut wishes, start) = (Wishes::new(8), Instant::now());
        wishes.hold(set([0, 1]), start);
        for n in 2..10 {
            wishes.use_name(name(n), start + Duration::from_secs(n as u64));
        }
        wishes.take_changes();
        wishes.use_name(name(10), start + Duration::from_secs(10));
        assert_eq!(wishes.take_changes(), Changes { added: set([10]), dropped: set([2, 3]) });
        for n in 100..1000 {
            wishes.use_name(name(n), start + Duration::from_secs(n as u64));
            assert!(wishes.wishes.len() <= 10);
        }
        assert!(wishes.wishes.contains_key(&name(0)) && wishes.wishes.contains_key(&name(1)));
    }

    #[test]
    fn what_is_given_up_and_asked_for_again_is_answered_again() {
        let (mut wishes, start) = (Wishes::new(8), Instant::now());
        wishes.use_name(name(1), start);
        wishes.take_changes();
        wishes.answered(&name(1));
        wishes.give_up(start + IDLE);
        assert!(!wishes.use_name(name(1), start + IDLE));
        let both = wishes.take_changes();
        assert_eq!(both, Changes { added: set([1]), dropped: set([]) }, "the server forgets nothing");
        assert!(!wishes.use_name(name(1), start + IDLE));
    }

    #[tokio::test(start_paused = true)]
    async fn changes_come_when_there_are_some() {
        let demand = Demand::default();
        let mut answers = demand.answers();
        assert!(!demand.use_names([name(1), name(2)]));
        assert_eq!(demand.changes().await.added, set([1, 2]));
        demand.answered(&[name(1)]);
        assert!(answers.has_changed().unwrap());
        answers.mark_unchanged();
        assert!(!demand.use_names([name(1), name(2)]));
        demand.answered(&[name(2)]);
        assert!(demand.use_names([name(1), name(2)]));
        // Time passes by itself while nothing else happens.
        assert_eq!(demand.changes().await.dropped, set([1, 2]));
        assert_eq!(demand.counts(), DemandCounts::default());
    }
}
