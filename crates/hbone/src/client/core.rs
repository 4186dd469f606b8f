//! Which connection a new stream takes. Pure: no sockets, no tasks, time passed in.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// A connection's name within its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ConnectionId(u64);

/// Where a new stream goes. Each way, a place on the connection is taken; [`Core::release`] gives it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checkout {
    /// A connection stands.
    Use(ConnectionId),
    /// One is being opened; wait for it.
    Join(ConnectionId),
    /// None has room: open this one and report [`Core::opened`] or [`Core::closed`].
    Open(ConnectionId),
}

/// What becomes of a connection whose idle timer rang.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reap {
    /// It was idle for long enough and is forgotten; close it.
    Close,
    /// Ask again then.
    Ask(Instant),
}

/// The pool's book-keeping.
///
/// Invariants: a key's connections serve only that key; a connection never holds more places than its limit, except
/// between [`Core::opened`] with a lower limit than was hoped for and the [`Core::admit`] of each that joined; for a
/// burst of n streams, no more than n / limit connections (rounded up) are opened.
#[derive(Debug)]
pub(crate) struct Core<K> {
    streams: usize,
    idle: Duration,
    next: u64,
    connections: HashMap<ConnectionId, Entry<K>>,
    /// The connections that new streams may take, oldest first, so that streams gather and spare connections empty.
    usable: HashMap<K, Vec<ConnectionId>>,
}

#[derive(Debug)]
struct Entry<K> {
    key: K,
    open: bool,
    places: usize,
    limit: usize,
    idle_since: Instant,
}

impl<K: Clone + Eq + Hash> Core<K> {
    /// A pool that puts at most `streams` on a connection and lets it go after `idle` without any.
    pub(crate) fn new(streams: usize, idle: Duration) -> Self {
        Self { streams: streams.max(1), idle, next: 0, connections: HashMap::new(), usable: HashMap::new() }
    }

    /// Takes a place for a new stream: on a standing connection, else on one being opened, else on a new one.
    pub(crate) fn checkout(&mut self, key: &K, now: Instant) -> Checkout {
        let ids = self.usable.get(key).map_or(&[][..], Vec::as_slice);
        let with_room = |open: bool| {
            ids.iter()
                .copied()
                .find(|id| self.connections.get(id).is_some_and(|e| e.open == open && e.places < e.limit))
        };
        let found = match with_room(true) {
            Some(id) => Some(Checkout::Use(id)),
            None => with_room(false).map(Checkout::Join),
        };
        if let Some(Checkout::Use(id) | Checkout::Join(id)) = found
            && let Some(entry) = self.connections.get_mut(&id)
        {
            entry.places += 1;
        }
        found.unwrap_or_else(|| {
            let id = ConnectionId(self.next);
            self.next += 1;
            let entry =
                Entry { key: key.clone(), open: false, places: 1, limit: self.streams, idle_since: now };
            self.connections.insert(id, entry);
            self.usable.entry(key.clone()).or_default().push(id);
            Checkout::Open(id)
        })
    }

    /// The connection stands.
    pub(crate) fn opened(&mut self, id: ConnectionId, now: Instant) {
        if let Some(entry) = self.connections.get_mut(&id) {
            entry.open = true;
            entry.idle_since = now;
        }
    }

    /// The peer allows that many streams; more than our own limit changes nothing.
    pub(crate) fn limit(&mut self, id: ConnectionId, streams: usize) {
        if let Some(entry) = self.connections.get_mut(&id) {
            entry.limit = streams.min(self.streams);
        }
    }

    /// Whether no stream will ever be put on it: the peer allows none.
    pub(crate) fn is_useless(&self, id: ConnectionId) -> bool {
        self.connections.get(&id).is_none_or(|entry| entry.limit == 0)
    }

    /// Whether one that holds a place may use it. If the peer allows fewer than had been let in, the place is taken
    /// back and the caller checks out again.
    pub(crate) fn admit(&mut self, id: ConnectionId, now: Instant) -> bool {
        match self.connections.get(&id) {
            Some(entry) if entry.places <= entry.limit => true,
            _ => {
                self.release(id, now);
                false
            }
        }
    }

    /// A stream has ended.
    pub(crate) fn release(&mut self, id: ConnectionId, now: Instant) {
        if let Some(entry) = self.connections.get_mut(&id) {
            entry.places = entry.places.saturating_sub(1);
            entry.idle_since = now;
        }
    }

    /// The peer refused a stream, whose place was given back since, though it had let us believe in room: put no more on
    /// it than stand there now.
    pub(crate) fn refused(&mut self, id: ConnectionId) {
        if let Some(entry) = self.connections.get_mut(&id) {
            entry.limit = entry.limit.min(entry.places);
        }
    }

    /// Takes no new streams on it; the standing ones run on.
    pub(crate) fn drain(&mut self, id: ConnectionId) {
        if let Some(entry) = self.connections.get(&id)
            && let Some(ids) = self.usable.get_mut(&entry.key)
        {
            ids.retain(|i| *i != id);
            if ids.is_empty() {
                self.usable.remove(&entry.key);
            }
        }
    }

    /// It is gone, or could not be opened.
    pub(crate) fn closed(&mut self, id: ConnectionId) {
        self.drain(id);
        self.connections.remove(&id);
    }

    /// Whether to let it go now.
    pub(crate) fn reap(&mut self, id: ConnectionId, now: Instant) -> Reap {
        let Some(entry) = self.connections.get(&id) else { return Reap::Close };
        if entry.places > 0 || !entry.open {
            return Reap::Ask(now + self.idle);
        }
        let due = entry.idle_since + self.idle;
        if now < due {
            return Reap::Ask(due);
        }
        self.closed(id);
        Reap::Close
    }

    /// The connections that stand or are being opened, and the places taken on them.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.connections.len(), self.connections.values().map(|e| e.places).sum())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const IDLE: Duration = Duration::from_secs(300);

    fn core() -> (Core<u8>, Instant) {
        (Core::new(3, IDLE), Instant::now())
    }

    fn opened(core: &mut Core<u8>, key: u8, now: Instant) -> ConnectionId {
        let Checkout::Open(id) = core.checkout(&key, now) else { panic!("expected to open") };
        core.opened(id, now);
        id
    }

    #[test]
    fn a_burst_opens_one_connection_for_as_many_streams_as_it_takes() {
        let (mut core, now) = core();
        let Checkout::Open(first) = core.checkout(&1, now) else { panic!() };
        assert_eq!(core.checkout(&1, now), Checkout::Join(first));
        assert_eq!(core.checkout(&1, now), Checkout::Join(first));
        let Checkout::Open(second) = core.checkout(&1, now) else { panic!() };
        assert_ne!(first, second);
    }

    #[test]
    fn a_standing_connection_is_preferred_to_one_being_opened() {
        let (mut core, now) = core();
        let first = opened(&mut core, 1, now);
        core.checkout(&1, now);
        core.checkout(&1, now);
        let Checkout::Open(_) = core.checkout(&1, now) else { panic!() };
        core.release(first, now);
        assert_eq!(core.checkout(&1, now), Checkout::Use(first));
    }

    #[test]
    fn keys_never_share_a_connection() {
        let (mut core, now) = core();
        let first = opened(&mut core, 1, now);
        assert!(matches!(core.checkout(&2, now), Checkout::Open(id) if id != first));
    }

    #[test]
    fn a_connection_goes_after_its_idle_time_and_not_before() {
        let (mut core, now) = core();
        let id = opened(&mut core, 1, now);
        assert_eq!(core.reap(id, now + IDLE), Reap::Ask(now + IDLE * 2));
        let end = now + IDLE + Duration::from_secs(5);
        core.release(id, end);
        assert_eq!(core.reap(id, now + IDLE * 2), Reap::Ask(end + IDLE));
        assert_eq!(core.reap(id, end + IDLE), Reap::Close);
        assert_eq!(core.counts(), (0, 0));
        assert!(matches!(core.checkout(&1, now), Checkout::Open(_)));
    }

    #[test]
    fn a_draining_connection_takes_no_more_streams() {
        let (mut core, now) = core();
        let first = opened(&mut core, 1, now);
        core.drain(first);
        assert!(matches!(core.checkout(&1, now), Checkout::Open(id) if id != first));
        core.release(first, now);
        assert_eq!(core.reap(first, now + IDLE), Reap::Close);
    }

    #[test]
    fn those_whom_the_peer_does_not_allow_check_out_again() {
        let (mut core, now) = core();
        let first = opened(&mut core, 1, now);
        assert_eq!(core.checkout(&1, now), Checkout::Use(first));
        core.limit(first, 1);
        assert!(!core.admit(first, now));
        assert!(core.admit(first, now));
        assert!(matches!(core.checkout(&1, now), Checkout::Open(_)));
    }

    #[test]
    fn a_refusal_lowers_what_the_connection_is_asked_for() {
        let (mut core, now) = core();
        let first = opened(&mut core, 1, now);
        assert_eq!(core.checkout(&1, now), Checkout::Use(first));
        core.release(first, now);
        core.refused(first);
        assert!(matches!(core.checkout(&1, now), Checkout::Open(_)));
        core.release(first, now);
        assert_eq!(core.checkout(&1, now), Checkout::Use(first));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Checkout(u8),
        Opened(usize),
        Release(usize),
        Limit(usize, usize),
        Refused(usize),
        Drain(usize),
        Closed(usize),
        Pass(u16),
        ReapAll,
    }

    fn op() -> impl Strategy<Value = Op> {
        let n = 0usize..64;
        prop_oneof![
            8 => (0u8..3).prop_map(Op::Checkout),
            4 => n.clone().prop_map(Op::Opened),
            6 => n.clone().prop_map(Op::Release),
            1 => (n.clone(), 0usize..6).prop_map(|(i, l)| Op::Limit(i, l)),
            1 => n.clone().prop_map(Op::Refused),
            1 => n.clone().prop_map(Op::Drain),
            1 => n.prop_map(Op::Closed),
            2 => (0u16..400).prop_map(Op::Pass),
            2 => Just(Op::ReapAll),
        ]
    }

    proptest! {
        #[test]
        fn no_sequence_of_events_breaks_the_books(ops in proptest::collection::vec(op(), 0..200)) {
            let (mut core, mut now) = core();
            // What each holder believes: connection -> (key, places). A holder gives its place back exactly once.
            let mut held: Vec<ConnectionId> = Vec::new();
            let mut keys: BTreeMap<ConnectionId, u8> = BTreeMap::new();
            for op in ops {
                let some = |i: usize, keys: &BTreeMap<ConnectionId, u8>| {
                    (!keys.is_empty()).then(|| *keys.keys().nth(i % keys.len()).unwrap())
                };
                match op {
                    Op::Checkout(key) => {
                        let got = core.checkout(&key, now);
                        let (Checkout::Use(id) | Checkout::Join(id) | Checkout::Open(id)) = got;
                        if let Checkout::Open(id) = got {
                            prop_assert_eq!(keys.insert(id, key), None, "an id is used once");
                        }
                        prop_assert_eq!(keys[&id], key);
                        held.push(id);
                        let entry = &core.connections[&id];
                        prop_assert!(entry.places <= entry.limit.min(3));
                    }
                    Op::Opened(i) => some(i, &keys).into_iter().for_each(|id| core.opened(id, now)),
                    Op::Limit(i, l) => some(i, &keys).into_iter().for_each(|id| core.limit(id, l)),
                    Op::Refused(i) => some(i, &keys).into_iter().for_each(|id| core.refused(id)),
                    Op::Drain(i) => some(i, &keys).into_iter().for_each(|id| core.drain(id)),
                    Op::Closed(i) => some(i, &keys).into_iter().for_each(|id| core.closed(id)),
                    Op::Release(i) => {
                        if !held.is_empty() {
                            core.release(held.swap_remove(i % held.len()), now);
                        }
                    }
                    Op::Pass(s) => now += Duration::from_secs(s.into()),
                    Op::ReapAll => {
                        for id in keys.keys() {
                            let busy = held.contains(id) && core.connections.contains_key(id);
                            let reaped = core.reap(*id, now);
                            prop_assert!(!(busy && reaped == Reap::Close), "a connection in use stays");
                            if let Reap::Ask(at) = reaped { prop_assert!(at > now) }
                        }
                    }
                }
                for (key, ids) in &core.usable {
                    prop_assert!(!ids.is_empty());
                    prop_assert!(ids.iter().all(|id| core.connections[id].key == *key));
                }
                for (id, entry) in &core.connections {
                    prop_assert_eq!(entry.places, held.iter().filter(|h| *h == id).count());
                }
            }
            for id in held {
                core.release(id, now);
            }
            let ids: Vec<_> = core.connections.iter().filter(|(_, e)| e.open).map(|(id, _)| *id).collect();
            for id in ids {
                prop_assert_eq!(core.reap(id, now + IDLE), Reap::Close);
            }
        }

        #[test]
        fn a_burst_never_opens_more_than_it_needs(n in 1usize..50) {
            let (mut core, now) = core();
            let opens = (0..n).filter(|_| matches!(core.checkout(&1, now), Checkout::Open(_))).count();
            prop_assert_eq!(opens, n.div_ceil(3));
        }
    }
}
