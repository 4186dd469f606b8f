//! One pod's connections on one shard.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use identity::{PeerError, Proof};
use model::SpiffeId;
use telemetry::access::Direction;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Ending;

/// Above so many places, a table that is empty again gives back what a burst took.
const KEPT: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Table {
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) direction: Direction,
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) since: Instant,
    /// Gone once the connection was told to end.
    pub(super) end: Option<oneshot::Sender<Ending>>,
    pub(super) proofs: Proofs,
    /// Nothing for what the pod itself opened, and for what has not come as far as to be judged.
    pub(super) reviewed: Option<Box<Reviewed>>,
}

/// What the peers of a connection's tunnels have proved; nothing for what goes by none.
#[derive(Clone, Debug, Default)]
pub(super) struct Proofs {
    /// The peer of the tunnel itself.
    pub(super) tunnel: Option<Arc<Proof>>,
    /// The gateway, where the tunnel is in one to it.
    pub(super) around: Option<Arc<Proof>>,
}

/// What a connection is judged by, and how it stands.
#[derive(Debug)]
pub(crate) struct Reviewed {
    /// The identity that TLS proved.
    pub(crate) peer: Option<SpiffeId>,
    /// The address that it comes from.
    pub(crate) source: IpAddr,
    /// The pod's address and the application's port.
    pub(crate) destination: SocketAddr,
    /// Since when it is denied only for now.
    pub(crate) doubted: Option<Instant>,
}

/// What becomes of a connection that was judged again.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Opinion {
    /// It stays.
    Stays,
    /// It stays for now, and is to be judged again then at the latest.
    Doubted(Instant),
    /// It ends.
    Ends(Ending),
}

/// What a review has come to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Judged {
    /// How many connections were judged.
    pub(crate) seen: u64,
    /// How many were ended.
    pub(crate) ended: u64,
    /// When the first of those in doubt is to be judged again.
    pub(crate) again: Option<Instant>,
}

impl Proofs {
    fn all(&self) -> impl Iterator<Item = &Arc<Proof>> {
        self.tunnel.iter().chain(&self.around)
    }

    /// Whether all are believed.
    pub(super) fn hold(&self) -> Result<(), PeerError> {
        self.all().try_for_each(|proof| proof.holds())
    }
}

impl Table {
    pub(super) fn insert(&mut self, entry: Entry) -> usize {
        match self.free.pop() {
            Some(place) => {
                self.entries[place] = Some(entry);
                place
            }
            None => {
                self.entries.push(Some(entry));
                self.entries.len() - 1
            }
        }
    }

    pub(super) fn remove(&mut self, place: usize) {
        self.entries[place] = None;
        self.free.push(place);
        if self.free.len() == self.entries.len() && self.entries.len() > KEPT {
            *self = Self::default();
        }
    }

    pub(super) fn count(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().flatten()
    }

    pub(super) fn set_reviewed(&mut self, place: usize, reviewed: Reviewed) {
        if let Some(entry) = &mut self.entries[place] {
            entry.reviewed = Some(Box::new(reviewed));
        }
    }

    pub(super) fn set_proofs(&mut self, place: usize, proofs: Proofs) {
        if let Some(entry) = &mut self.entries[place] {
            entry.proofs = proofs;
        }
    }

    pub(super) fn end_all(&mut self, why: &Ending) -> usize {
        let ends = self.entries.iter_mut().flatten().filter_map(|entry| entry.end.take());
        // One that does not hear it any more is ending by itself.
        ends.map(|end| end.send(why.clone())).filter(Result::is_ok).count()
    }

    pub(super) fn end_resting_on(&mut self, proof: &Arc<Proof>, why: &Ending) -> usize {
        let rests = |entry: &&mut Entry| entry.proofs.all().any(|own| Arc::ptr_eq(own, proof));
        let ends = self.entries.iter_mut().flatten().filter(rests).filter_map(|entry| entry.end.take());
        ends.filter_map(|end| end.send(why.clone()).ok()).count()
    }

    pub(super) fn review(
        &mut self,
        from: usize,
        portion: usize,
        judged: &mut Judged,
        mut judge: impl FnMut(Result<(), PeerError>, Option<&mut Reviewed>) -> Opinion,
    ) -> Option<usize> {
        let until = from.saturating_add(portion).min(self.entries.len());
        let live = self.entries.get_mut(from..until)?.iter_mut().flatten().filter(|e| e.end.is_some());
        for entry in live {
            judged.seen += u64::from(entry.reviewed.is_some());
            match judge(entry.proofs.hold(), entry.reviewed.as_deref_mut()) {
                Opinion::Stays => {
                    if let Some(reviewed) = &mut entry.reviewed {
                        reviewed.doubted = None;
                    }
                }
                Opinion::Doubted(until) => {
                    judged.again = Some(judged.again.map_or(until, |again| again.min(until)));
                }
                Opinion::Ends(why) => {
                    judged.ended += 1;
                    // One that does not hear it any more is ending by itself.
                    let _ = entry.end.take().map(|end| end.send(why));
                }
            }
        }
        (until < self.entries.len()).then_some(until)
    }
}
