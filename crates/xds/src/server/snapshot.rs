//! All that is served, at one moment.

use std::borrow::Cow;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Entry;
use super::shards::Shards;
use crate::TypeUrl;

/// How many steps back a session may be before it has to compare states instead of reading what changed.
const LOG: usize = 64;

/// All that is served, at one moment. Immutable; a later state shares with it all that did not change.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Unique in this process, so that a state is never taken for one of another history.
    state: u64,
    revision: u64,
    tables: [Table; TypeUrl::COUNT],
    log: VecDeque<Arc<Step>>,
}

/// One difference between a state and the next.
#[derive(Debug)]
pub enum Change {
    /// The resource is new or has a new content.
    Set(Entry),
    /// The resource of that type and name is gone.
    Remove(TypeUrl, Arc<str>),
}

#[derive(Clone, Debug, Default)]
struct Table {
    entries: Shards<Arc<Entry>>,
    /// Alias to the names that it stands for; several where an address is shared.
    aliases: Shards<Names>,
    /// A service's name to the names of the workloads behind it.
    members: Shards<Names>,
}

type Names = Arc<BTreeSet<Arc<str>>>;

/// What one step touched: the names whose content changed, and those that a subscription may newly reach or lose.
#[derive(Debug)]
struct Step {
    from: u64,
    touched: [BTreeSet<Arc<str>>; TypeUrl::COUNT],
}

fn next_state() -> u64 {
    static STATES: AtomicU64 = AtomicU64::new(0);
    STATES.fetch_add(1, Ordering::Relaxed)
}

impl Default for Snapshot {
    fn default() -> Self {
        Self { state: next_state(), revision: 0, tables: Default::default(), log: VecDeque::new() }
    }
}

impl Snapshot {
    /// The next state. `revision` is the source's own count and must not fall; it is what [`Status`](super::Status)
    /// reports back as acknowledged. A change that sets what is there already is none.
    pub fn apply(&self, revision: u64, changes: impl IntoIterator<Item = Change>) -> Self {
        let mut tables = self.tables.clone();
        let mut touched: [BTreeSet<Arc<str>>; TypeUrl::COUNT] = Default::default();
        for change in changes {
            match change {
                Change::Set(entry) => {
                    let at = entry.type_url.index();
                    tables[at].set(entry, &mut touched[at]);
                }
                Change::Remove(type_url, name) => {
                    let at = type_url.index();
                    tables[at].remove(&name, &mut touched[at]);
                }
            }
        }
        let mut log = self.log.clone();
        if log.len() == LOG {
            log.pop_front();
        }
        log.push_back(Arc::new(Step { from: self.state, touched }));
        Self { state: next_state(), revision: revision.max(self.revision), tables, log }
    }

    /// The revision of the source that this state has fully taken in.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The resource of a name.
    pub fn get(&self, type_url: TypeUrl, name: &str) -> Option<&Arc<Entry>> {
        self.tables[type_url.index()].entries.get(name)
    }

    /// All resources of a type, in no order.
    pub fn entries(&self, type_url: TypeUrl) -> impl Iterator<Item = &Arc<Entry>> {
        self.tables[type_url.index()].entries.iter().map(|(_, entry)| entry)
    }

    /// How many resources of a type there are.
    pub fn len(&self, type_url: TypeUrl) -> usize {
        self.tables[type_url.index()].entries.len()
    }

    /// Whether there are no resources at all.
    pub fn is_empty(&self) -> bool {
        TypeUrl::ALL.into_iter().all(|t| self.len(t) == 0)
    }

    /// The resources that a subscribed name stands for: the one that has it as its name, those that have it as an
    /// alias, and with a service the workloads behind it.
    pub fn resolve(&self, type_url: TypeUrl, name: &str) -> Vec<&Arc<Entry>> {
        let table = &self.tables[type_url.index()];
        let mut names: BTreeSet<&str> = BTreeSet::from([name]);
        names.extend(table.aliases.get(name).into_iter().flat_map(|n| n.iter()).map(|n| &**n));
        let behind: Vec<&Arc<str>> =
            names.iter().filter_map(|n| table.members.get(n)).flat_map(|m| m.iter()).collect();
        names.extend(behind.into_iter().map(|n| &**n));
        names.into_iter().filter_map(|n| table.entries.get(n)).collect()
    }

    /// The resources that have a name, as their own or as another; not those that only come along with one.
    pub(super) fn named<'a>(
        &'a self,
        type_url: TypeUrl,
        name: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Entry>> {
        let table = &self.tables[type_url.index()];
        let by_alias = table.aliases.get(name).into_iter().flat_map(|names| names.iter());
        std::iter::once(name).chain(by_alias.map(|n| &**n)).filter_map(|n| table.entries.get(n))
    }

    /// The entries of one shard, for walks that stop and go on.
    pub(super) fn shard(&self, type_url: TypeUrl, at: usize) -> impl Iterator<Item = &Arc<Entry>> {
        self.tables[type_url.index()].entries.shard(at).map(|(_, entry)| entry)
    }

    /// The names of a type that may stand for something else than in an older state, or be reached differently.
    pub(super) fn touched_since(&self, older: &Self, type_url: TypeUrl) -> Cow<'_, BTreeSet<Arc<str>>> {
        if self.state == older.state {
            return Cow::Owned(BTreeSet::new());
        }
        let at = type_url.index();
        let first = self.log.iter().rposition(|step| step.from == older.state);
        let steps = first.map(|first| self.log.range(first..));
        match steps {
            // Nearly always: every session hears of every state, and all of them share this one list.
            Some(mut one) if one.len() == 1 => one.next().map(|step| Cow::Borrowed(&step.touched[at])),
            Some(some) => Some(Cow::Owned(some.flat_map(|step| step.touched[at].iter().cloned()).collect())),
            None => None,
        }
        .unwrap_or_else(|| Cow::Owned(self.tables[at].compare(&older.tables[at])))
    }
}

impl Table {
    fn set(&mut self, entry: Entry, touched: &mut BTreeSet<Arc<str>>) {
        let name = entry.name.clone();
        let entry = Arc::new(entry);
        let was = self.entries.get(&name).cloned();
        if was.as_ref().is_some_and(|was| was.version == entry.version) {
            return;
        }
        if was.as_ref().is_none_or(|was| was.aliases != entry.aliases) {
            self.touch_members(&name, touched);
        }
        if let Some(was) = &was {
            self.unlink(was);
        }
        for alias in &entry.aliases {
            Arc::make_mut(self.aliases.entry(alias)).insert(name.clone());
        }
        for group in &entry.groups {
            Arc::make_mut(self.members.entry(group)).insert(name.clone());
        }
        self.entries.insert(name.clone(), entry);
        touched.insert(name);
    }

    fn remove(&mut self, name: &Arc<str>, touched: &mut BTreeSet<Arc<str>>) {
        if let Some(was) = self.entries.remove(name) {
            self.touch_members(name, touched);
            self.unlink(&was);
            touched.insert(name.clone());
        }
    }

    /// A service that changes its addresses changes by which of them the workloads behind it are reached.
    fn touch_members(&self, name: &str, touched: &mut BTreeSet<Arc<str>>) {
        touched.extend(self.members.get(name).into_iter().flat_map(|m| m.iter().cloned()));
    }

    fn unlink(&mut self, entry: &Entry) {
        for (index, keys) in [(&mut self.aliases, &entry.aliases), (&mut self.members, &entry.groups)] {
            for key in keys {
                let names = Arc::make_mut(index.entry(key));
                names.remove(&entry.name);
                if names.is_empty() {
                    index.remove(key);
                }
            }
        }
    }

    fn compare(&self, older: &Self) -> BTreeSet<Arc<str>> {
        let mut touched = BTreeSet::new();
        for at in self.entries.differing(&older.entries) {
            for (name, entry) in self.entries.shard(at) {
                let was = older.entries.get(name);
                if was.is_none_or(|was| was.version != entry.version) {
                    touched.insert(name.clone());
                }
                if was.is_none_or(|was| was.aliases != entry.aliases) {
                    self.touch_members(name, &mut touched);
                }
            }
            for (name, _) in older.entries.shard(at) {
                if self.entries.get(name).is_none() {
                    touched.insert(name.clone());
                    self.touch_members(name, &mut touched);
                    older.touch_members(name, &mut touched);
                }
            }
        }
        touched
    }
}
