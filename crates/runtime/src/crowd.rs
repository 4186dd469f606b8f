//! So many strangers at a door at once, and where there is one more, one gives way.
//!
//! Who means what he came for is done in a moment; who only holds a place holds it until a deadline. So it is the oldest
//! that gives way. And as one caller alone should not be able to push out all others, it is the oldest of who has the
//! most places, those that come and those that are there.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// The places at one door. Cloning is cheap and gives another handle.
#[derive(Clone, Debug)]
pub struct Crowd(Arc<Mutex<Book>>);

#[derive(Debug)]
struct Book {
    most: usize,
    next: u64,
    /// The oldest first.
    places: BTreeMap<u64, (IpAddr, CancellationToken)>,
    held: HashMap<IpAddr, usize>,
}

/// A stranger's place, given back on drop.
#[derive(Debug)]
pub struct Place {
    of: Crowd,
    number: u64,
    displaced: CancellationToken,
}

impl Crowd {
    /// So many places.
    pub fn of(most: usize) -> Self {
        Self(Arc::new(Mutex::new(Book { most, next: 0, places: BTreeMap::new(), held: HashMap::new() })))
    }

    /// A place for a caller, for which another gives way where there is none.
    pub fn enter(&self, caller: IpAddr) -> Place {
        let displaced = CancellationToken::new();
        let number = self.0.lock().enter(caller.to_canonical(), displaced.clone());
        Place { of: self.clone(), number, displaced }
    }

    /// How many are there.
    pub fn count(&self) -> usize {
        self.0.lock().places.len()
    }
}

impl Place {
    /// Ends when the place is another's. Cancel-safe.
    pub async fn displaced(&self) {
        self.displaced.cancelled().await;
    }

    /// The same, for who does not have the place itself.
    pub fn displaced_owned(&self) -> impl Future<Output = ()> + Send + use<> {
        self.displaced.clone().cancelled_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.0.lock().leave(self.number);
    }
}

impl Book {
    fn enter(&mut self, caller: IpAddr, displaced: CancellationToken) -> u64 {
        let number = self.next;
        self.next += 1;
        self.places.insert(number, (caller, displaced));
        *self.held.entry(caller).or_default() += 1;
        if self.places.len() > self.most
            && let Some(victim) = self.victim()
            && let Some((_, displaced)) = self.leave(victim)
        {
            displaced.cancel();
        }
        number
    }

    fn leave(&mut self, number: u64) -> Option<(IpAddr, CancellationToken)> {
        let left = self.places.remove(&number)?;
        if let Some(held) = self.held.get_mut(&left.0) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&left.0);
            }
        }
        Some(left)
    }

    /// The oldest place of who has the most; of several who have as many, of who has the oldest.
    fn victim(&self) -> Option<u64> {
        let most = self.held.values().copied().max()?;
        let holds_most = |caller: &IpAddr| self.held.get(caller) == Some(&most);
        self.places.iter().find(|(_, (caller, _))| holds_most(caller)).map(|(number, _)| *number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    fn gone(places: &[Place]) -> Vec<usize> {
        let all = places.iter().enumerate();
        all.filter(|(_, place)| place.displaced.is_cancelled()).map(|(n, _)| n).collect()
    }

    #[test]
    fn the_oldest_gives_way_and_those_that_end_leave_room() {
        let crowd = Crowd::of(3);
        let mut held: Vec<_> = (1..=3).map(|n| crowd.enter(caller(n))).collect();
        drop(held.remove(1));
        held.push(crowd.enter(caller(4)));
        assert_eq!(gone(&held), [0; 0], "there was room");
        held.push(crowd.enter(caller(5)));
        assert_eq!((gone(&held), crowd.count()), (vec![0], 3));
    }

    #[test]
    fn one_caller_pushes_out_himself_and_nobody_else() {
        let crowd = Crowd::of(10);
        let others: Vec<_> = (1..=4).map(|n| crowd.enter(caller(n))).collect();
        let flood: Vec<_> = (0..1_000).map(|_| crowd.enter(caller(9))).collect();
        assert_eq!(gone(&others), [0; 0]);
        assert_eq!(gone(&flood), (0..994).collect::<Vec<_>>());
        let late = crowd.enter(caller(5));
        assert!(!late.displaced.is_cancelled(), "and whoever comes later finds a place");
        drop((others, flood, late));
        assert!(crowd.count() == 0 && crowd.0.lock().held.is_empty(), "nothing is kept");
    }

    #[test]
    fn one_address_is_one_caller_however_it_is_written() {
        let crowd = Crowd::of(2);
        let other = crowd.enter(caller(1));
        let _held = ["10.0.0.2", "::ffff:10.0.0.2"].map(|ip| crowd.enter(ip.parse().unwrap()));
        assert!(!other.displaced.is_cancelled());
    }

    #[tokio::test]
    async fn who_gives_way_is_told() {
        let crowd = Crowd::of(1);
        let first = crowd.enter(caller(1));
        let _second = crowd.enter(caller(1));
        first.displaced().await;
    }
}
