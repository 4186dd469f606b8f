//! How long to wait before the next attempt.

use std::time::Duration;

use rand::Rng;

/// Waits that double from the first to the longest, each shortened at random by up to half, so that the clients of a
/// server that comes back do not all come at once.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Waits between these two, without the random part.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// The next wait.
    pub fn step(&mut self, rng: &mut impl Rng) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.longest);
        wait.mul_f64(rng.random_range(0.5..=1.0))
    }

    /// Something worked: begin again at the shortest wait.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

/// 10 ms to 15 s.
impl Default for Backoff {
    fn default() -> Self {
        Self::new(Duration::from_millis(10), Duration::from_secs(15))
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    #[test]
    fn waits_grow_to_the_longest_and_begin_again_after_a_success() {
        let mut rng = SmallRng::seed_from_u64(7);
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..20).map(|_| backoff.step(&mut rng)).collect();
        assert!(waits[0] >= Duration::from_millis(5) && waits[0] <= Duration::from_millis(10));
        assert!(waits.iter().all(|w| *w <= Duration::from_secs(15)));
        assert!(waits[19] >= Duration::from_millis(7_500));
        backoff.reset();
        assert!(backoff.step(&mut rng) <= Duration::from_millis(10));
    }
}
