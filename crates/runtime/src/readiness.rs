//! Which parts of a program stand.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// Whether the program may be sent work: when every part that was named says so. Cloning is cheap and shares the state.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<watch::Sender<State>>);

#[derive(Debug, Default)]
struct State {
    pending: BTreeMap<&'static str, usize>,
    draining: bool,
}

impl State {
    fn is_ready(&self) -> bool {
        self.pending.is_empty() && !self.draining
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(State::default())))
    }
}

impl Readiness {
    /// Names a part that must stand. It is pending until [`Part::ready`]; two parts may have one name.
    #[must_use = "a part that is dropped before it is ready stays pending for ever"]
    pub fn part(&self, name: &'static str) -> Part {
        self.0.send_modify(|state| *state.pending.entry(name).or_default() += 1);
        Part { of: self.clone(), name, ready: false }
    }

    /// The names of the parts that do not stand yet; `draining` once the program is about to end.
    pub fn pending(&self) -> Vec<&'static str> {
        let state = self.0.borrow();
        let draining = state.draining.then_some("draining");
        state.pending.keys().copied().chain(draining).collect()
    }

    /// Whether all parts stand.
    pub fn is_ready(&self) -> bool {
        self.0.borrow().is_ready()
    }

    /// Waits until all parts stand. Cancel-safe; never ends once draining has begun.
    pub async fn ready(&self) {
        // The sender lives in `self`, so the channel cannot close.
        let _ = self.0.subscribe().wait_for(State::is_ready).await;
    }

    /// Says that the program is about to end: it is not ready any more, for good.
    pub fn drain(&self) {
        self.0.send_modify(|state| state.draining = true);
    }
}

/// A part of a program that must stand before the program is ready.
#[derive(Debug)]
pub struct Part {
    of: Readiness,
    name: &'static str,
    ready: bool,
}

impl Part {
    /// The part stands.
    pub fn ready(&mut self) {
        if !std::mem::replace(&mut self.ready, true) {
            self.of.0.send_modify(|state| {
                if let Some(count) = state.pending.get_mut(self.name) {
                    *count -= 1;
                    if *count == 0 {
                        state.pending.remove(self.name);
                    }
                }
            });
        }
    }

    /// The part does not stand any more.
    pub fn not_ready(&mut self) {
        if std::mem::replace(&mut self.ready, false) {
            self.of.0.send_modify(|state| *state.pending.entry(self.name).or_default() += 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_ready_when_every_part_is() {
        let readiness = Readiness::default();
        let (mut xds, mut first, mut second) =
            (readiness.part("xds"), readiness.part("listener"), readiness.part("listener"));
        assert_eq!(readiness.pending(), ["listener", "xds"]);
        xds.ready();
        first.ready();
        first.ready();
        assert_eq!(readiness.pending(), ["listener"], "one of two listeners still lacks");
        second.ready();
        assert!(readiness.is_ready());
        xds.not_ready();
        assert_eq!(readiness.pending(), ["xds"]);
    }

    #[test]
    fn a_part_that_was_given_up_stays_pending() {
        let readiness = Readiness::default();
        drop(readiness.part("certificates"));
        assert!(!readiness.is_ready());
    }

    #[tokio::test]
    async fn draining_ends_readiness_for_good() {
        let readiness = Readiness::default();
        let mut part = readiness.part("xds");
        part.ready();
        readiness.ready().await;
        readiness.drain();
        assert_eq!(readiness.pending(), ["draining"]);
    }
}
