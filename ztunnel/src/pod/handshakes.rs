//! Handshakes that are under way: so many at once, and the oldest gives way.
//!
//! One that is meant is over in a moment; one that only holds a place lasts until its deadline. So where there are too
//! many, the oldest is most likely one that is not meant, and giving it up keeps the pod reachable in a flood.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use tokio_util::sync::CancellationToken;

/// How many handshakes with a pod are under way on a shard at once.
pub(crate) const HANDSHAKES: usize = 256;

/// The handshakes with a pod on a shard, oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Handshakes(Rc<RefCell<Queue>>);

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    waiting: VecDeque<(u64, CancellationToken)>,
}

/// A handshake's place, given back on drop.
#[derive(Debug)]
pub(crate) struct UnderWay {
    of: Handshakes,
    number: u64,
    displaced: CancellationToken,
}

impl Handshakes {
    /// A place, for which the oldest gives way where there is none.
    pub(crate) fn begin(&self) -> UnderWay {
        let queue = &mut *self.0.borrow_mut();
        if queue.waiting.len() >= HANDSHAKES
            && let Some((_, oldest)) = queue.waiting.pop_front()
        {
            oldest.cancel();
        }
        let (number, displaced) = (queue.next, CancellationToken::new());
        queue.next += 1;
        queue.waiting.push_back((number, displaced.clone()));
        UnderWay { of: self.clone(), number, displaced }
    }
}

impl UnderWay {
    /// Ends when the place is another's.
    pub(crate) async fn displaced(&self) {
        self.displaced.cancelled().await;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let waiting = &mut self.of.0.borrow_mut().waiting;
        if let Ok(place) = waiting.binary_search_by_key(&self.number, |(number, _)| *number) {
            waiting.remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_gives_way_and_those_that_end_leave_room() {
        let handshakes = Handshakes::default();
        let mut held: Vec<_> = (0..HANDSHAKES).map(|_| handshakes.begin()).collect();
        drop(held.remove(1));
        let another = handshakes.begin();
        assert!(held.iter().all(|h| !h.displaced.is_cancelled()), "there was room");
        let _last = handshakes.begin();
        assert!(held[0].displaced.is_cancelled());
        assert!(held[1..].iter().all(|h| !h.displaced.is_cancelled()) && !another.displaced.is_cancelled());
        assert_eq!(handshakes.0.borrow().waiting.len(), HANDSHAKES);
    }
}
