//! Which of several ztunnels accepts, and telling it.

use std::time::{Duration, Instant};

use crate::Turn;

/// After how long a ztunnel that was not ready to take over is asked again; doubled each time.
const AGAIN_FIRST: Duration = Duration::from_millis(20);
/// The longest that is waited before it is asked again.
const AGAIN_LONGEST: Duration = Duration::from_millis(500);

/// What a ztunnel is among those that are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The one whose word counts.
    Serves,
    /// One that came later and is not ready. The last of them is to take over.
    StandsBy {
        /// Whether it is the last, and the one that serves has answered about all pods.
        is_next: bool,
    },
    /// One whose successor serves.
    HandsOver,
    /// One beside which another serves that was not given its listeners. It is left as it is.
    Sleeps,
}

/// What a ztunnel has been told of its turn, and what it is to be told.
#[derive(Debug, Default)]
pub(super) struct Turns {
    told: Option<Turn>,
    not_ready: Option<NotReady>,
}

#[derive(Debug)]
struct NotReady {
    again_at: Instant,
    pause: Duration,
}

impl Turns {
    /// What is to be said before all else.
    pub(super) fn due(&self, role: Role) -> Option<Turn> {
        let wanted = match role {
            Role::Serves => Turn::Serve,
            // One that serves already, by an agent that is gone, goes on until its successor does.
            Role::StandsBy { .. } => return self.told.is_none().then_some(Turn::StandBy),
            Role::HandsOver => Turn::HandOver,
            Role::Sleeps => return None,
        };
        (self.told != Some(wanted)).then_some(wanted)
    }

    /// Whether to ask it, which knows all pods, to take over.
    pub(super) fn is_to_take_over(&self, role: Role, now: Instant) -> bool {
        let may = role == Role::StandsBy { is_next: true } && self.told == Some(Turn::StandBy);
        may && self.not_ready.as_ref().is_none_or(|not_ready| not_ready.again_at <= now)
    }

    /// When it is to be asked again.
    pub(super) fn again_at(&self, role: Role) -> Option<Instant> {
        let not_ready = self.not_ready.as_ref()?;
        (role == Role::StandsBy { is_next: true }).then_some(not_ready.again_at)
    }

    /// Takes in its answer.
    pub(super) fn answered(&mut self, turn: Turn, done: bool, now: Instant) {
        match turn {
            Turn::TakeOver if done => self.told = Some(Turn::Serve),
            Turn::TakeOver => {
                let before = self.not_ready.as_ref().map(|not_ready| not_ready.pause);
                let pause = before.map_or(AGAIN_FIRST, |pause| (pause * 2).min(AGAIN_LONGEST));
                self.not_ready = Some(NotReady { again_at: now + pause, pause });
            }
            // Whatever it says: it was told, and to repeat it would change nothing.
            Turn::Serve | Turn::StandBy | Turn::HandOver => self.told = Some(turn),
        }
    }
}
