//! So many at once, and so many a second.

use std::time::Duration;

use tokio::time::Instant;

/// How many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// At once, after a while without any.
    pub burst: u32,
    /// For as long as it goes on; not 0.
    pub per_second: u32,
}

impl Rate {
    /// How long one takes to be forgotten.
    fn each(&self) -> Duration {
        Duration::from_secs(1) / self.per_second.max(1)
    }
}

/// What has not been forgotten yet, in time.
#[derive(Debug)]
pub(super) struct Debt {
    rate: Rate,
    owed: Duration,
    at: Instant,
}

impl Debt {
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, owed: Duration::ZERO, at: now }
    }

    pub(super) fn is_settled(&mut self, now: Instant) -> bool {
        self.owed = self.owed.saturating_sub(now.saturating_duration_since(self.at));
        self.at = now.max(self.at);
        self.owed.is_zero()
    }

    /// One more; whether it may be.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        self.is_settled(now);
        self.owed = self.owed.saturating_add(self.rate.each());
        self.owed <= self.rate.each().saturating_mul(self.rate.burst)
    }

    /// Forgets so many at once.
    pub(super) fn pay(&mut self, n: u64) {
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        self.owed = self.owed.saturating_sub(self.rate.each().saturating_mul(n));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { burst: 20, per_second: 10 };

    #[test]
    fn a_burst_passes_and_then_so_many_a_second() {
        let start = Instant::now();
        let mut debt = Debt::new(RATE, start);
        assert_eq!((0..30).filter(|_| debt.take(start)).count(), 20);
        let mut debt = Debt::new(RATE, start);
        for tenth in 0..1_000 {
            let now = start + Duration::from_millis(100) * tenth;
            assert!(debt.take(now), "ten a second pass for ever");
        }
        let mut debt = Debt::new(RATE, start);
        let passed = (0..1_000).take_while(|n| debt.take(start + Duration::from_millis(50) * *n)).count();
        assert!((38..=41).contains(&passed), "twenty a second use the burst up: {passed}");
    }

    #[test]
    fn what_is_paid_for_is_forgotten_and_no_more_than_is_owed() {
        let now = Instant::now();
        let mut debt = Debt::new(RATE, now);
        debt.pay(1_000);
        assert_eq!((0..30).filter(|_| debt.take(now)).count(), 20, "nothing is saved up");
        debt.pay(15);
        assert!(debt.take(now) && debt.take(now));
        debt.pay(u64::MAX);
        assert!(debt.is_settled(now));
    }

    #[test]
    fn a_clock_that_stands_or_goes_back_forgives_nothing() {
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        let mut debt = Debt::new(RATE, start);
        assert!(debt.take(later));
        assert_eq!((0..30).filter(|n| debt.take(if n % 2 == 0 { start } else { later })).count(), 19);
    }
}
