//! One pod of the roster.

use std::time::{Duration, Instant};

use ebpf_loader::PodKey;
use zds::agent::Standing;

use super::{LINGER, Outcome, State, Step};
use crate::membership::Member;

const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(30);
const COUNT_FIRST: Duration = Duration::from_millis(200);
const COUNT_LONGEST: Duration = Duration::from_secs(5);

/// Of a ztunnel to which nothing can be steered.
const UNSTEERABLE: &str = "this ztunnel cannot take eBPF redirection: its hello names no REDIRECTION_FDS, so it publishes \
                           no listeners; run Ambit's ztunnel";

/// What has been done for a pod, and what is to become of it.
#[derive(Debug)]
pub(super) struct Entry {
    aim: Aim,
    stage: Stage,
    captured: bool,
    standing: Standing,
    trouble: Option<Trouble>,
}

#[derive(Debug)]
enum Aim {
    /// Found at the start, and not known yet what is to become of it.
    Unknown,
    Join(Member),
    Leave {
        /// The pod itself has ended: nobody's connections need to be spared.
        gone: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// This process has done nothing for it.
    Untouched,
    /// Its maps, program and routing are there, and ztunnel knows of it.
    Prepared,
    /// Capture has ended; ztunnel goes on serving it until then.
    Lingering { until: Instant },
    /// ztunnel has been told that it leaves and has not answered.
    Withdrawing,
    /// ztunnel does not know it any more. Its connections are counted at this time, and then after this pause.
    Draining { count_at: Option<Instant>, pause: Duration },
    /// Nothing needs what is left of it.
    Drained,
}

#[derive(Debug)]
struct Trouble {
    reason: String,
    again_at: Instant,
    pause: Duration,
}

/// A step without the pod that it is about.
type StepOf = fn(PodKey) -> Step;

/// Whether there is anything left of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Stays,
    Gone,
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            aim: Aim::Unknown,
            stage: Stage::Untouched,
            captured: false,
            standing: Standing::Pending,
            trouble: None,
        }
    }
}

impl Entry {
    pub(super) fn adopted(captured: bool) -> Self {
        Self { captured, ..Self::default() }
    }

    pub(super) fn join(&mut self, member: Member) {
        match &self.aim {
            Aim::Join(known) if *known == member => return,
            // Its addresses or its name are others now: they are told anew.
            Aim::Join(_) => self.stage = Stage::Untouched,
            Aim::Leave { .. } | Aim::Unknown => {
                self.stage = Stage::Untouched;
                self.standing = Standing::Pending;
            }
        }
        self.aim = Aim::Join(member);
        self.trouble = None;
    }

    pub(super) fn leave(&mut self, gone: bool) {
        if !matches!(self.aim, Aim::Leave { .. }) {
            self.trouble = None;
        }
        self.aim = Aim::Leave { gone };
        if gone && matches!(self.stage, Stage::Draining { .. }) {
            self.stage = Stage::Drained;
        }
    }

    pub(super) fn heard(&mut self, standing: Standing) {
        if self.stage == Stage::Prepared {
            self.standing = standing;
        }
    }

    pub(super) fn withdrawn(&mut self) {
        if self.stage == Stage::Withdrawing {
            self.stage = self.draining();
        }
    }

    fn draining(&self) -> Stage {
        match self.aim {
            Aim::Leave { gone: true } => Stage::Drained,
            _ => Stage::Draining { count_at: None, pause: COUNT_FIRST },
        }
    }

    /// The next step, and from when on it is due.
    fn due(&self) -> Option<(StepOf, Option<Instant>)> {
        let (step, at): (StepOf, _) = match (&self.aim, self.stage) {
            (Aim::Unknown, _) | (Aim::Leave { .. }, Stage::Withdrawing) => return None,
            (Aim::Join(_), Stage::Prepared) => {
                if self.captured || self.standing != Standing::Served {
                    return None;
                }
                (Step::Capture, None)
            }
            (Aim::Join(_), _) => (Step::Prepare, None),
            (Aim::Leave { .. }, Stage::Untouched | Stage::Prepared) => (Step::Release, None),
            (Aim::Leave { gone: true }, Stage::Lingering { .. }) => (Step::Withdraw, None),
            (Aim::Leave { .. }, Stage::Lingering { until }) => (Step::Withdraw, Some(until)),
            (Aim::Leave { .. }, Stage::Draining { count_at, .. }) => (Step::CountConnections, count_at),
            (Aim::Leave { .. }, Stage::Drained) => (Step::Tidy, None),
        };
        let again_at = self.trouble.as_ref().map(|trouble| trouble.again_at);
        Some((step, at.max(again_at)))
    }

    pub(super) fn next(&self, key: &PodKey, now: Instant) -> Option<Step> {
        let (step, at) = self.due()?;
        at.is_none_or(|at| at <= now).then(|| step(key.clone()))
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.due()?.1
    }

    pub(super) fn done(&mut self, step: &Step, outcome: Outcome, now: Instant) -> Fate {
        if let Outcome::Failed(reason) = outcome {
            let pause =
                self.trouble.as_ref().map_or(RETRY_FIRST, |before| (before.pause * 2).min(RETRY_LONGEST));
            self.trouble = Some(Trouble { reason, again_at: now + pause, pause });
            return Fate::Stays;
        }
        self.trouble = None;
        match step {
            Step::Prepare(_) => {
                self.stage = Stage::Prepared;
                self.standing = Standing::Pending;
                self.captured = outcome == Outcome::AlreadyCaptured;
            }
            Step::Capture(_) => self.captured = true,
            Step::Release(_) => {
                let was_prepared = self.stage == Stage::Prepared;
                self.captured = false;
                // ztunnel knows it only from this process, or drops it once it has heard of all others.
                self.stage =
                    if was_prepared { Stage::Lingering { until: now + LINGER } } else { self.draining() };
            }
            Step::Withdraw(_) => self.stage = Stage::Withdrawing,
            Step::CountConnections(_) => {
                let Stage::Draining { pause, .. } = self.stage else { return Fate::Stays };
                self.stage = match outcome {
                    Outcome::Connections(0) => Stage::Drained,
                    _ => {
                        Stage::Draining { count_at: Some(now + pause), pause: (pause * 2).min(COUNT_LONGEST) }
                    }
                };
            }
            Step::Tidy(_) => return Fate::Gone,
        }
        Fate::Stays
    }

    pub(super) fn member(&self) -> Option<&Member> {
        match &self.aim {
            Aim::Join(member) => Some(member),
            Aim::Unknown | Aim::Leave { .. } => None,
        }
    }

    /// Whether it was found at the start and nobody has said yet what is to become of it.
    pub(super) fn is_unknown(&self) -> bool {
        matches!(self.aim, Aim::Unknown)
    }

    pub(super) fn is_captured(&self) -> bool {
        self.captured
    }

    pub(super) fn is_settled(&self) -> bool {
        !matches!(self.aim, Aim::Join(_)) || self.stage == Stage::Prepared || self.trouble.is_some()
    }

    pub(super) fn state(&self) -> (State, Option<String>) {
        if matches!(self.aim, Aim::Leave { .. }) {
            let reason = self.trouble.as_ref().map(|trouble| trouble.reason.clone());
            return (State::Leaving, reason);
        }
        if let Some(trouble) = &self.trouble {
            let captured = if self.captured { "; it stays captured" } else { "" };
            return (State::Failed, Some(format!("{}{captured}", trouble.reason)));
        }
        if self.is_unknown() && self.captured {
            let reason = "captured by an earlier agent; whether it belongs to the mesh is not known yet";
            return (State::Enrolled, Some(reason.to_owned()));
        }
        match (self.captured, &self.standing) {
            (true, Standing::Served) => (State::Enrolled, None),
            (_, Standing::Refused(reason)) => (State::Failed, Some(format!("ztunnel refused it: {reason}"))),
            (true, Standing::Pending) => {
                let reason = "captured, but ztunnel does not serve it now: its connections are refused";
                (State::Enrolled, Some(reason.to_owned()))
            }
            (true, Standing::Unsteerable) => {
                let reason = format!("captured, but its connections are refused: {UNSTEERABLE}");
                (State::Enrolled, Some(reason))
            }
            (false, Standing::Unsteerable) => (State::Pending, Some(UNSTEERABLE.to_owned())),
            (false, _) => (State::Pending, Some("ztunnel does not serve it yet".to_owned())),
        }
    }
}
