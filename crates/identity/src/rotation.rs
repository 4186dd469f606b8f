//! When a certificate is asked for: a state machine without clock, key or network.
//!
//! A certificate is renewed at half of what remained of its life when it came, give or take a tenth, so that a fleet
//! started at once does not renew at once. A failed request is repeated after 0.5 s, then twice as long each time up to
//! 150 s, with jitter. A certificate stays in use while it holds, however many renewals fail.
//!
//! The wall clock may be set at any time. One that is set ahead makes certificates expire early; one that is set back makes
//! those that were signed since then hold only later, and puts off whatever was planned. Either way a new one is asked for.

use std::time::{Duration, SystemTime};

use rand::Rng;

/// The delays of a rotation.
#[derive(Clone, Debug, PartialEq)]
pub struct Pace {
    /// The first delay after a failure, and the shortest of all: 0.5 s.
    pub backoff_min: Duration,
    /// The longest delay after a failure: 150 s.
    pub backoff_max: Duration,
    /// How far from half-life a renewal may fall, as a part of the life that remained: 0.05, which is a tenth of the half.
    pub spread: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { backoff_min: Duration::from_millis(500), backoff_max: Duration::from_secs(150), spread: 0.05 }
    }
}

/// Where an identity stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No certificate that holds: none came yet, or the last has expired or, by a clock that was set back, holds only later.
    Lacking {
        /// When to ask (again).
        ask_at: SystemTime,
        /// Requests that failed since the last success.
        failures: u32,
        /// Whether there was a certificate before.
        expired: bool,
    },
    /// A certificate that holds.
    Holding {
        /// When it begins.
        not_before: SystemTime,
        /// When it ends.
        not_after: SystemTime,
        /// When to ask for the next, or ask again.
        ask_at: SystemTime,
        /// Renewals that failed since it came.
        failures: u32,
    },
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A certificate came.
    Issued {
        /// Its beginning.
        not_before: SystemTime,
        /// Its end.
        not_after: SystemTime,
    },
    /// A request failed.
    Failed,
    /// Time went by.
    Tick,
    /// There is reason to believe that a request would succeed now: the CA was reached again.
    Encouraged,
    /// The certificate that there is would be believed no more, for its root is trusted no more.
    Uprooted,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Ask for a certificate now.
    Ask,
    /// Nothing before then; give a [`Event::Tick`].
    Wait(SystemTime),
}

impl State {
    /// The beginning: a certificate is wanted at once.
    pub fn wanting(now: SystemTime) -> Self {
        Self::Lacking { ask_at: now, failures: 0, expired: false }
    }

    /// The state after an event.
    #[must_use]
    pub fn step(self, event: Event, now: SystemTime, pace: &Pace, rng: &mut impl Rng) -> Self {
        let state = self.lapse(now, pace);
        match (event, state) {
            (Event::Issued { not_before, not_after }, _) if (not_before..not_after).contains(&now) => {
                Self::Holding {
                    not_before,
                    not_after,
                    ask_at: now + pace.until_renewal(not_after, now, rng),
                    failures: 0,
                }
            }
            // A certificate that has expired already, or holds only later, is no better than none.
            (Event::Failed | Event::Issued { .. }, Self::Lacking { failures, expired, .. }) => {
                let failures = failures.saturating_add(1);
                Self::Lacking { ask_at: now + pace.backoff(failures, rng), failures, expired }
            }
            (Event::Failed | Event::Issued { .. }, Self::Holding { not_before, not_after, failures, .. }) => {
                let failures = failures.saturating_add(1);
                Self::Holding { not_before, not_after, ask_at: now + pace.backoff(failures, rng), failures }
            }
            (Event::Encouraged, Self::Lacking { ask_at, failures, expired }) if failures > 0 => {
                Self::Lacking { ask_at: ask_at.min(now + pace.soon(rng)), failures, expired }
            }
            (Event::Encouraged, Self::Holding { not_before, not_after, ask_at, failures })
                if failures > 0 =>
            {
                Self::Holding { not_before, not_after, ask_at: ask_at.min(now + pace.soon(rng)), failures }
            }
            (Event::Uprooted, Self::Holding { not_before, not_after, ask_at, failures }) => {
                Self::Holding { not_before, not_after, ask_at: ask_at.min(now + pace.soon(rng)), failures }
            }
            (Event::Tick | Event::Encouraged | Event::Uprooted, state) => state,
        }
    }

    /// What to do in this state.
    pub fn plan(self, now: SystemTime) -> Plan {
        match self {
            Self::Lacking { ask_at, .. } | Self::Holding { ask_at, .. } if now >= ask_at => Plan::Ask,
            Self::Lacking { ask_at, .. } => Plan::Wait(ask_at),
            Self::Holding { ask_at, not_after, .. } => Plan::Wait(ask_at.min(not_after)),
        }
    }

    /// Requests that failed since the last success.
    pub fn failures(self) -> u32 {
        match self {
            Self::Lacking { failures, .. } | Self::Holding { failures, .. } => failures,
        }
    }

    /// The state that the wall clock has brought about by itself.
    fn lapse(self, now: SystemTime, pace: &Pace) -> Self {
        match self {
            Self::Holding { not_after, ask_at, failures, .. } if now >= not_after => {
                Self::Lacking { ask_at, failures, expired: true }
            }
            // The clock was set back.
            Self::Holding { not_before, failures, .. } if now < not_before => {
                Self::Lacking { ask_at: now, failures, expired: true }
            }
            Self::Lacking { ask_at, failures, expired } => {
                Self::Lacking { ask_at: ask_at.min(now + pace.backoff_max), failures, expired }
            }
            state => state,
        }
    }
}

impl Pace {
    fn until_renewal(&self, not_after: SystemTime, now: SystemTime, rng: &mut impl Rng) -> Duration {
        let left = not_after.duration_since(now).unwrap_or_default();
        let part = 0.5 + self.spread.clamp(0.0, 0.5) * rng.random_range(-1.0..=1.0);
        // Certificates that last no time at all must not become a flood of requests.
        left.mul_f64(part).max(self.backoff_min)
    }

    fn backoff(&self, failures: u32, rng: &mut impl Rng) -> Duration {
        let doubled = self.backoff_min.saturating_mul(1 << failures.saturating_sub(1).min(16));
        let full = doubled.min(self.backoff_max);
        full.mul_f64(rng.random_range(0.5..=1.0)).max(self.backoff_min)
    }

    /// Within a second, so that a node's identities do not all ask at one instant.
    fn soon(&self, rng: &mut impl Rng) -> Duration {
        Duration::from_secs(1).mul_f64(rng.random_range(0.0..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn rng() -> StdRng {
        StdRng::seed_from_u64(7)
    }

    fn issued(at: SystemTime) -> State {
        let issued = Event::Issued { not_before: at, not_after: at + DAY };
        State::wanting(at).step(issued, at, &Pace::default(), &mut rng())
    }

    #[test]
    fn a_certificate_is_wanted_at_once_and_renewed_around_half_life() {
        assert_eq!(State::wanting(now()).plan(now()), Plan::Ask);
        let Plan::Wait(renewal) = issued(now()).plan(now()) else { panic!("asks at once") };
        let after = renewal.duration_since(now()).unwrap();
        assert!(after >= DAY.mul_f64(0.45) && after <= DAY.mul_f64(0.55), "{after:?}");
    }

    #[test]
    fn failures_are_repeated_ever_more_slowly_up_to_the_bound() {
        let (pace, mut rng) = (Pace::default(), rng());
        let mut state = State::wanting(now());
        let mut at = now();
        for failure in 0..20u32 {
            state = state.step(Event::Failed, at, &pace, &mut rng);
            let Plan::Wait(next) = state.plan(at) else { panic!("asks at once") };
            let delay = next.duration_since(at).unwrap();
            let full = pace.backoff_min.saturating_mul(1 << failure.min(16)).min(pace.backoff_max);
            assert!(delay >= pace.backoff_min && delay >= full / 2 && delay <= full, "{failure}: {delay:?}");
            at = next;
            assert_eq!(state.plan(at), Plan::Ask);
        }
        assert_eq!(state.failures(), 20);
    }

    #[test]
    fn the_old_certificate_is_held_while_renewals_fail_until_it_expires() {
        let (pace, mut rng) = (Pace::default(), rng());
        let mut state = issued(now());
        let mut at = now();
        while at < now() + DAY {
            assert!(matches!(state, State::Holding { .. }));
            at = match state.plan(at) {
                Plan::Ask => {
                    state = state.step(Event::Failed, at, &pace, &mut rng);
                    continue;
                }
                Plan::Wait(until) => until,
            };
            state = state.step(Event::Tick, at, &pace, &mut rng);
        }
        assert!(matches!(state, State::Lacking { expired: true, .. }));
        let renewed = state.step(Event::Issued { not_before: at, not_after: at + DAY }, at, &pace, &mut rng);
        assert!(matches!(renewed, State::Holding { failures: 0, .. }));
    }

    #[test]
    fn a_machine_that_slept_through_the_expiry_asks_at_once() {
        let late = now() + DAY * 3;
        let state = issued(now()).step(Event::Tick, late, &Pace::default(), &mut rng());
        assert!(matches!(state, State::Lacking { expired: true, .. }));
        assert_eq!(state.plan(late), Plan::Ask);
    }

    #[test]
    fn a_clock_that_was_set_back_makes_a_certificate_of_the_future_be_asked_for_anew() {
        let earlier = now() - DAY;
        let state = issued(now()).step(Event::Tick, earlier, &Pace::default(), &mut rng());
        assert!(matches!(state, State::Lacking { expired: true, .. }));
        assert_eq!(state.plan(earlier), Plan::Ask);
    }

    #[test]
    fn a_clock_that_was_set_back_puts_off_no_request() {
        let (pace, mut rng) = (Pace::default(), rng());
        let failed = State::wanting(now()).step(Event::Failed, now(), &pace, &mut rng);
        let earlier = now() - DAY;
        let Plan::Wait(until) = failed.step(Event::Tick, earlier, &pace, &mut rng).plan(earlier) else {
            panic!("it backs off")
        };
        assert!(until <= earlier + pace.backoff_max, "{until:?}");
    }

    #[test]
    fn an_expired_answer_is_a_failure() {
        let event = Event::Issued { not_before: now() - DAY, not_after: now() };
        let state = State::wanting(now()).step(event, now(), &Pace::default(), &mut rng());
        assert_eq!(state.failures(), 1);
    }

    #[test]
    fn encouragement_shortens_a_back_off_and_nothing_else() {
        let (pace, mut rng) = (Pace::default(), rng());
        let mut state = State::wanting(now());
        for _ in 0..12 {
            state = state.step(Event::Failed, now(), &pace, &mut rng);
        }
        let Plan::Wait(at) = state.step(Event::Encouraged, now(), &pace, &mut rng).plan(now()) else {
            panic!()
        };
        assert!(at <= now() + Duration::from_secs(1));
        let held = issued(now());
        assert_eq!(held.step(Event::Encouraged, now(), &pace, &mut rng), held);
    }

    proptest! {
        #[test]
        fn a_certificate_is_never_held_past_its_end_and_requests_never_flood(
            steps in proptest::collection::vec((0u8..4, 0u64..200_000, 0u64..200_000), 1..80), seed: u64,
        ) {
            let (pace, mut rng) = (Pace::default(), StdRng::seed_from_u64(seed));
            let (mut state, mut at) = (State::wanting(now()), now());
            for (kind, pass, life) in steps {
                at += Duration::from_secs(pass);
                let event = match kind {
                    0 => Event::Issued { not_before: at, not_after: at + Duration::from_secs(life) },
                    1 => Event::Failed,
                    2 => Event::Tick,
                    _ => Event::Encouraged,
                };
                state = state.step(event, at, &pace, &mut rng);
                if let State::Holding { not_after, .. } = state { prop_assert!(at < not_after) }
                if let Plan::Wait(until) = state.plan(at) { prop_assert!(until > at) }
                if matches!(event, Event::Failed | Event::Issued { .. }) {
                    prop_assert_ne!(state.plan(at), Plan::Ask, "never twice at one instant");
                }
            }
        }
    }
}
