//! The agent's side of one connection, without its socket.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::desired::{Desired, Entry};
use super::turns::{Role, Turns};
use crate::{
    Add, Attached, DecodeError, Exemption, Hello, PodState, PodUid, Request, Stage, Turn, decode_hello,
    decode_response, encode_request,
};

/// How long ztunnel may take for its first word.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);
/// How long ztunnel may take to answer. It opens sockets for an answer, it waits for nobody else.
const ACK_PATIENCE: Duration = Duration::from_secs(15);
/// After how long a pod that ztunnel refused is told again; doubled each time.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest that is waited before a refused pod is told again.
const RETRY_LONGEST: Duration = Duration::from_secs(30);

/// One connection to a ztunnel: compares what it should know with what it has acknowledged.
///
/// Feed it packets ([`Session::handle`]), ask it what to send ([`Session::poll_send`]), and call it again at
/// [`Session::deadline`] if nothing happened before.
#[derive(Debug)]
pub struct Session {
    state: State,
    redirection: RedirectionState,
    /// Whether the peer takes word of pods that come to their end.
    takes_states: bool,
    /// Whether the peer answers what pods ask resolvers.
    answers_dns: bool,
    /// Nothing where the peer does not speak of listeners.
    turns: Option<Turns>,
    told: BTreeMap<PodUid, Told>,
    snapshot_sent: bool,
}

#[derive(Debug)]
enum State {
    AwaitHello { until: Instant },
    Idle,
    AwaitAck { sent: Sent, until: Instant },
}

#[derive(Debug, PartialEq, Eq)]
enum RedirectionState {
    /// The peer does not know it.
    NotSpoken,
    ToTell,
    Told,
}

/// What the peer has answered about a pod.
#[derive(Debug)]
struct Told {
    generation: u64,
    /// How far on its way out it is known to be.
    stage: Option<Stage>,
    refused: Option<Refused>,
}

#[derive(Debug)]
struct Refused {
    again_at: Instant,
    pause: Duration,
}

/// A message that was sent and not answered yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    /// How this node redirects.
    Redirection,
    /// Who accepts.
    Listeners(Turn),
    /// A pod, at a generation.
    Add(PodUid, u64),
    /// A pod without its namespace, at a generation.
    Keep(PodUid, u64),
    /// That a pod is gone.
    Del(PodUid),
    /// How far a pod is on its way out.
    State(PodUid, Stage),
    /// That all pods were sent.
    SnapshotSent,
}

/// A message to send, with the descriptors that belong to it.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its descriptors, in order.
    pub fds: Vec<BorrowedFd<'a>>,
}

/// What a packet was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handled {
    /// The peer has introduced itself.
    Hello(Hello),
    /// The peer has answered: done, with these descriptors, or why not.
    Answered(Sent, Result<Vec<Attached>, String>),
}

/// Why a connection cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SessionError {
    /// The peer sent what is no message.
    #[error("the peer does not speak the node protocol")]
    Decode(#[from] DecodeError),
    /// The peer answered what nobody asked.
    #[error("the peer answered without being asked")]
    Unasked,
    /// The peer did not introduce itself.
    #[error("the peer did not say hello within {} s", HELLO_PATIENCE.as_secs())]
    NoHello,
    /// The peer did not answer.
    #[error("the peer did not answer within {} s", ACK_PATIENCE.as_secs())]
    NoAnswer,
}

impl Session {
    /// A connection that has just been made.
    pub fn new(now: Instant) -> Self {
        Self {
            state: State::AwaitHello { until: now + HELLO_PATIENCE },
            redirection: RedirectionState::NotSpoken,
            takes_states: false,
            answers_dns: false,
            turns: None,
            told: BTreeMap::new(),
            snapshot_sent: false,
        }
    }

    /// Takes in a packet.
    ///
    /// # Errors
    /// After one, the connection is to be closed.
    pub fn handle(&mut self, packet: &[u8], now: Instant) -> Result<Handled, SessionError> {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::AwaitHello { .. } => {
                let hello = decode_hello(packet)?;
                if hello.redirection_fds {
                    self.redirection = RedirectionState::ToTell;
                }
                self.takes_states = hello.pod_state;
                self.answers_dns = hello.dns;
                self.turns = hello.listener_fds.then(Turns::default);
                Ok(Handled::Hello(hello))
            }
            State::AwaitAck { sent, .. } => {
                let answer = decode_response(packet)?;
                self.answered(&sent, answer.is_ok(), now);
                Ok(Handled::Answered(sent, answer))
            }
            State::Idle => Err(SessionError::Unasked),
        }
    }

    fn answered(&mut self, sent: &Sent, done: bool, now: Instant) {
        match sent {
            Sent::Redirection => self.redirection = RedirectionState::Told,
            Sent::Listeners(turn) => {
                if let Some(turns) = &mut self.turns {
                    turns.answered(*turn, done, now);
                }
            }
            Sent::SnapshotSent => self.snapshot_sent = true,
            Sent::State(uid, stage) => {
                // Refused or not: one that does not know the pod needs no word of it.
                if let Some(told) = self.told.get_mut(uid) {
                    told.stage = Some(*stage);
                }
            }
            Sent::Del(uid) => {
                // Refused or not: the pod is gone, and there is nothing more to be done about it.
                self.told.remove(uid);
            }
            Sent::Add(uid, generation) | Sent::Keep(uid, generation) => {
                let before = self.told.get(uid).and_then(|t| t.refused.as_ref()).map(|r| r.pause);
                let refused = (!done).then(|| {
                    let pause = before.map_or(RETRY_FIRST, |pause| (pause * 2).min(RETRY_LONGEST));
                    Refused { again_at: now + pause, pause }
                });
                self.told.insert(uid.clone(), Told { generation: *generation, stage: None, refused });
            }
        }
    }

    /// The next message, if the peer waits for one and lacks something. It counts as sent once it is returned.
    pub fn poll_send<'a>(&mut self, desired: &'a Desired, role: Role, now: Instant) -> Option<Outgoing<'a>> {
        if !matches!(self.state, State::Idle) {
            return None;
        }
        let (sent, outgoing) = self.next(desired, role, now)?;
        self.state = State::AwaitAck { sent, until: now + ACK_PATIENCE };
        Some(outgoing)
    }

    fn next<'a>(&self, desired: &'a Desired, role: Role, now: Instant) -> Option<(Sent, Outgoing<'a>)> {
        if self.redirection == RedirectionState::ToTell
            && let Some(r) = desired.redirection()
        {
            let (exempt_mark, fds) = match &r.exempt {
                Exemption::Storage(bypass) => (None, vec![bypass.as_fd()]),
                Exemption::Mark(mark) => (Some(*mark), Vec::new()),
            };
            let bytes = encode_request(&Request::Redirection { mark: r.mark, mask: r.mask, exempt_mark });
            return Some((Sent::Redirection, Outgoing { bytes, fds }));
        }
        if let Some(turn) = self.turns.as_ref().and_then(|turns| turns.due(role)) {
            return Some(say(turn));
        }
        if matches!(role, Role::HandsOver | Role::Sleeps) {
            return None;
        }
        if let Some(state) = self.next_state(desired) {
            let bytes = encode_request(&Request::State(state.clone()));
            return Some((Sent::State(state.uid.clone(), state.stage), Outgoing { bytes, fds: Vec::new() }));
        }
        if let Some(uid) = self.told.keys().find(|uid| desired.pod(uid).is_none()) {
            let bytes = encode_request(&Request::Del(uid.clone()));
            return Some((Sent::Del(uid.clone()), Outgoing { bytes, fds: Vec::new() }));
        }
        if let Some((uid, entry)) = desired.pods().find(|(uid, entry)| self.lacks(uid, entry, role, now)) {
            return Some(self.tell(uid, entry));
        }
        // Of a pod that one that stands by was not told for want of listeners it is to hear before.
        let may_be_all = !matches!(role, Role::StandsBy { is_next: false });
        if desired.is_complete() && !self.snapshot_sent && may_be_all {
            let bytes = encode_request(&Request::SnapshotSent);
            return Some((Sent::SnapshotSent, Outgoing { bytes, fds: Vec::new() }));
        }
        // One that lacks a pod, or cannot serve it, is not to take it over.
        let knows_all = self.snapshot_sent && self.told.values().all(|told| told.refused.is_none());
        let turns = self.turns.as_ref().filter(|_| knows_all)?;
        turns.is_to_take_over(role, now).then(|| say(Turn::TakeOver))
    }

    /// The word of a pod's end that the peer has not heard: it comes before all else, also before the pod is taken away.
    fn next_state<'a>(&self, desired: &'a Desired) -> Option<&'a PodState> {
        if !self.takes_states {
            return None;
        }
        let mut told = self.told.iter().filter(|(_, told)| told.refused.is_none());
        told.find_map(|(uid, told)| desired.state(uid).filter(|state| told.stage != Some(state.stage)))
    }

    fn lacks(&self, uid: &PodUid, entry: &Entry, role: Role, now: Instant) -> bool {
        // Whose listeners the other ztunnel has not handed over cannot be taken over: a second group on the same ports
        // would take connections that nobody accepts.
        if matches!(role, Role::StandsBy { .. }) && entry.kept.is_empty() {
            return false;
        }
        self.told.get(uid).is_none_or(|told| {
            told.generation != entry.generation || told.refused.as_ref().is_some_and(|r| r.again_at <= now)
        })
    }

    fn tell<'a>(&self, uid: &PodUid, entry: &'a Entry) -> (Sent, Outgoing<'a>) {
        let Some(netns) = &entry.workload.netns else {
            let bytes = encode_request(&Request::Keep(uid.clone()));
            return (Sent::Keep(uid.clone(), entry.generation), Outgoing { bytes, fds: Vec::new() });
        };
        let mut fds = vec![netns.as_fd()];
        let mut attached = Vec::new();
        if self.redirection != RedirectionState::NotSpoken
            && let Some(map) = &entry.workload.listener_map
        {
            fds.push(map.as_fd());
            attached.push(Attached::ListenerMap);
        }
        if self.turns.is_some() {
            for (kind, fd) in entry.kept.all() {
                fds.push(fd);
                attached.push(kind);
            }
        }
        let dns = self.answers_dns && entry.workload.dns;
        let add = Add { uid: uid.clone(), info: entry.workload.info.clone(), attached, dns };
        (
            Sent::Add(uid.clone(), entry.generation),
            Outgoing { bytes: encode_request(&Request::Add(add)), fds },
        )
    }

    /// When [`Session::expired`] or, where the peer has a role already, [`Session::poll_send`] is to be called at the
    /// latest: after `now`, at which it was called last.
    pub fn deadline(&self, role: Option<Role>, now: Instant) -> Option<Instant> {
        match (&self.state, role) {
            (State::AwaitHello { until } | State::AwaitAck { until, .. }, _) => Some(*until),
            (State::Idle, None | Some(Role::HandsOver | Role::Sleeps)) => None,
            (State::Idle, Some(role)) => {
                let pods = self.told.values().filter_map(|t| t.refused.as_ref()).map(|r| r.again_at);
                let turn = self.turns.as_ref().and_then(|turns| turns.again_at(role));
                // What was due before and not sent waits for something else than time.
                pods.chain(turn).filter(|at| *at > now).min()
            }
        }
    }

    /// The pods that the peer serves, each at the generation at which it was told.
    pub fn served(&self) -> impl Iterator<Item = (&PodUid, u64)> {
        self.told.iter().filter(|(_, told)| told.refused.is_none()).map(|(uid, told)| (uid, told.generation))
    }

    /// Whether the peer's patience is used up.
    pub fn expired(&self, now: Instant) -> Option<SessionError> {
        match &self.state {
            State::AwaitHello { until } if *until <= now => Some(SessionError::NoHello),
            State::AwaitAck { until, .. } if *until <= now => Some(SessionError::NoAnswer),
            _ => None,
        }
    }

    /// Whether the peer has said who it is.
    pub fn is_introduced(&self) -> bool {
        !matches!(self.state, State::AwaitHello { .. })
    }

    /// Whether the peer may still know a pod.
    pub fn may_know(&self, uid: &PodUid) -> bool {
        self.told.contains_key(uid)
            || matches!(&self.state, State::AwaitAck { sent: Sent::Add(u, _) | Sent::Keep(u, _) | Sent::Del(u), .. } if u == uid)
    }
}

fn say<'a>(turn: Turn) -> (Sent, Outgoing<'a>) {
    let bytes = encode_request(&Request::Listeners(turn));
    (Sent::Listeners(turn), Outgoing { bytes, fds: Vec::new() })
}
