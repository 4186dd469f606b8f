//! When gathered changes are pushed. Pure.

use std::time::{Duration, Instant};

/// The first change after a quiet time is pushed at once. What follows within `after` of a push or of another change is
/// gathered until it has been quiet for `after`, and for `max` at most.
#[derive(Clone, Debug)]
pub struct Debounce {
    after: Duration,
    max: Duration,
    fired: Option<Instant>,
    waiting: Option<Waiting>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    first: Instant,
    last: Instant,
    at_once: bool,
}

impl Debounce {
    /// Nothing gathered. With `after` zero, every change is pushed at once.
    pub fn new(after: Duration, max: Duration) -> Self {
        Self { after, max: max.max(after), fired: None, waiting: None }
    }

    /// Something has changed.
    pub fn changed(&mut self, now: Instant) {
        let quiet = self.fired.is_none_or(|fired| now.saturating_duration_since(fired) >= self.after);
        self.waiting = Some(match self.waiting {
            Some(waiting) => Waiting { last: now, ..waiting },
            None => Waiting { first: now, last: now, at_once: quiet },
        });
    }

    /// When to push; nothing where nothing has changed.
    pub fn due(&self) -> Option<Instant> {
        let Waiting { first, last, at_once } = self.waiting?;
        Some(if at_once { first } else { (last + self.after).min(first + self.max) })
    }

    /// A push was begun. The result is how long its oldest change waited.
    pub fn fired(&mut self, now: Instant) -> Option<Duration> {
        self.fired = Some(now);
        self.waiting.take().map(|waiting| now.saturating_duration_since(waiting.first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(1);

    fn start() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn the_first_change_goes_at_once() {
        let (mut debounce, start) = (Debounce::new(AFTER, MAX), start());
        assert_eq!(debounce.due(), None);
        debounce.changed(start);
        assert_eq!(debounce.due(), Some(start));
        assert_eq!(debounce.fired(start + ms(1)), Some(ms(1)));
        assert_eq!(debounce.due(), None);
        debounce.changed(start + ms(500));
        assert_eq!(debounce.due(), Some(start + ms(500)));
    }

    #[test]
    fn what_follows_closely_is_gathered_until_it_is_quiet() {
        let (mut debounce, start) = (Debounce::new(AFTER, MAX), start());
        debounce.changed(start);
        debounce.fired(start);
        debounce.changed(start + ms(50));
        assert_eq!(debounce.due(), Some(start + ms(150)));
        debounce.changed(start + ms(120));
        assert_eq!(debounce.due(), Some(start + ms(220)));
    }

    #[test]
    fn a_storm_is_pushed_after_a_while_all_the_same() {
        let (mut debounce, start) = (Debounce::new(AFTER, MAX), start());
        debounce.changed(start);
        debounce.fired(start);
        for n in 1..40 {
            debounce.changed(start + ms(n * 50));
        }
        assert_eq!(debounce.due(), Some(start + ms(50) + MAX));
    }
}
