//! What the agent wants, what ztunnel has said, and who is connected.

use std::collections::BTreeMap;

use thiserror::Error;
use tokio::sync::oneshot;

use super::session::{Sent, Session};
use super::{Desired, Redirection, Role, Workload};
use crate::{Hello, Kept, PodUid};

/// What the server knows.
#[derive(Debug)]
pub(super) struct State {
    pub(super) desired: Desired,
    pub(super) standing: BTreeMap<PodUid, Standing>,
    /// Who waits for a pod, and from which generation on the answer is theirs.
    pub(super) added: BTreeMap<PodUid, Vec<(u64, Waiter<AddError>)>>,
    pub(super) removed: BTreeMap<PodUid, Vec<Waiter<RemoveError>>>,
    /// Connected and introduced, by order of arrival.
    sessions: BTreeMap<u64, Connected>,
    last_session: u64,
}

/// A ztunnel that is connected.
#[derive(Debug)]
struct Connected {
    hello: Hello,
    pid: Option<i32>,
    duty: Duty,
}

/// How far a connected ztunnel has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Duty {
    /// It has not served yet.
    Waits,
    /// It serves, or did before another took over.
    Serves,
    /// It was told that another has taken over, and will be gone.
    HandsOver,
}

/// A connected ztunnel, as it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its process; nothing where this PID namespace does not know it.
    pub pid: Option<i32>,
    /// What it is among the others.
    pub role: Role,
}

pub(super) type Waiter<E> = oneshot::Sender<Result<(), E>>;

/// What ztunnel has said about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing yet.
    Pending,
    /// It serves it.
    Served,
    /// It serves it, but has not named the capability `REDIRECTION_FDS`: it publishes no listeners, so nothing can be
    /// steered to them. Only from a server that was given a [`Redirection`].
    Unsteerable,
    /// It cannot serve it, for this reason.
    Refused(String),
}

/// Why ztunnel does not serve a pod.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AddError {
    /// It said why. It will be asked again.
    #[error("ztunnel refused the pod: {0}")]
    Refused(String),
    /// See [`Standing::Unsteerable`].
    #[error("ztunnel publishes no listeners to which the pod's connections could be steered")]
    Unsteerable,
    /// The pod was removed before ztunnel answered.
    #[error("the pod was removed before ztunnel answered")]
    Removed,
}

/// Why it is not certain that ztunnel serves a pod no more.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RemoveError {
    /// None is connected; one that comes will be told.
    #[error("no ztunnel is connected")]
    NotConnected,
    /// It said why.
    #[error("ztunnel could not let the pod go: {0}")]
    Refused(String),
}

impl State {
    pub(super) fn new(redirection: Option<Redirection>) -> Self {
        Self {
            desired: Desired::new(redirection),
            standing: BTreeMap::new(),
            added: BTreeMap::new(),
            removed: BTreeMap::new(),
            sessions: BTreeMap::new(),
            last_session: 0,
        }
    }

    /// The ztunnel that serves: the last that does.
    fn current(&self) -> Option<(u64, &Connected)> {
        let serving = self.sessions.iter().rev().find(|(_, connected)| connected.duty == Duty::Serves);
        serving.map(|(number, connected)| (*number, connected))
    }

    /// What the one that serves can do.
    pub(super) fn served_by(&self) -> Option<Hello> {
        self.current().map(|(_, connected)| connected.hello)
    }

    pub(super) fn is_current(&self, number: u64) -> bool {
        self.current().is_some_and(|(current, _)| current == number)
    }

    pub(super) fn is_connected(&self) -> bool {
        !self.sessions.is_empty()
    }

    pub(super) fn peers(&self) -> Vec<Peer> {
        let peer =
            |(number, connected): (&u64, &Connected)| Peer { pid: connected.pid, role: self.role(*number) };
        self.sessions.iter().map(peer).collect()
    }

    pub(super) fn role(&self, number: u64) -> Role {
        let duty = self.sessions.get(&number).map_or(Duty::HandsOver, |connected| connected.duty);
        match (duty, self.current()) {
            (Duty::HandsOver, _) => Role::HandsOver,
            (Duty::Serves, Some((current, _))) if current == number => Role::Serves,
            // One that was not given this one's listeners has not taken over from it.
            (Duty::Serves, Some((_, by))) if by.hello.listener_fds => Role::HandsOver,
            (Duty::Serves, _) => Role::Sleeps,
            (Duty::Waits, _) => Role::StandsBy { is_next: self.is_next(number) },
        }
    }

    /// Whether a ztunnel that waits is to take over as soon as it can: not while the one that serves may still hand over
    /// listeners, for without them the next would open others beside them.
    fn is_next(&self, number: u64) -> bool {
        let is_last = self.sessions.keys().next_back() == Some(&number);
        is_last && self.standing.values().all(|standing| *standing != Standing::Pending)
    }

    /// Takes in a ztunnel, and gives it a number.
    pub(super) fn arrived(&mut self, hello: Hello, pid: Option<i32>) -> u64 {
        let is_taken = self.served_by().is_some_and(|by| by.listener_fds);
        let duty = if hello.listener_fds && is_taken { Duty::Waits } else { Duty::Serves };
        if !hello.listener_fds {
            // It opens listeners of its own: beside them, those would take connections that nobody accepts.
            self.desired.keep_none();
        }
        self.last_session += 1;
        self.sessions.insert(self.last_session, Connected { hello, pid, duty });
        self.last_session
    }

    /// Notes that a ztunnel accepts on all that it was told.
    pub(super) fn took_over(&mut self, number: u64, session: &Session) {
        let Some(connected) = self.sessions.get_mut(&number) else { return };
        connected.duty = Duty::Serves;
        let (pid, publishes) = (connected.pid, connected.hello.redirection_fds);
        if !self.is_current(number) {
            return;
        }
        tracing::info!(pid, "a ztunnel has taken over");
        self.nothing_said();
        for (uid, generation) in session.served() {
            self.answered(Sent::Add(uid.clone(), generation), Ok(()), publishes);
        }
    }

    /// Notes that a ztunnel was told to hand over.
    pub(super) fn hands_over(&mut self, number: u64) {
        if let Some(connected) = self.sessions.get_mut(&number) {
            connected.duty = Duty::HandsOver;
        }
    }

    /// Takes note that a ztunnel has gone.
    pub(super) fn left(&mut self, number: u64) {
        let was_current = self.is_current(number);
        self.sessions.remove(&number);
        if was_current {
            self.nothing_said();
            let stays = |(_, connected): &(&u64, &mut Connected)| connected.duty != Duty::HandsOver;
            if let Some((_, connected)) = self.sessions.iter_mut().rev().find(stays) {
                connected.duty = Duty::Serves;
            }
            // Whoever serves now says anew what: the pods' listeners are to be its own.
            self.desired.renew();
        }
        if self.sessions.is_empty() {
            let waiting: Vec<PodUid> = self.removed.keys().cloned().collect();
            for uid in waiting {
                self.let_go(&uid, &Err(RemoveError::NotConnected));
            }
        }
    }

    fn nothing_said(&mut self) {
        for standing in self.standing.values_mut() {
            *standing = Standing::Pending;
        }
    }

    pub(super) fn put(&mut self, workload: Workload) -> u64 {
        self.standing.insert(workload.uid.clone(), Standing::Pending);
        self.desired.put(workload)
    }

    pub(super) fn take(&mut self, uid: &PodUid) {
        self.desired.remove(uid);
        self.standing.remove(uid);
        for (_, waiter) in self.added.remove(uid).unwrap_or_default() {
            // A waiter that has gone does not care.
            let _ = waiter.send(Err(AddError::Removed));
        }
    }

    /// Takes in an answer of the current ztunnel, which publishes its listeners or not.
    pub(super) fn answered(&mut self, sent: Sent, answer: Result<(), String>, publishes: bool) {
        match sent {
            Sent::Add(uid, generation) | Sent::Keep(uid, generation) => {
                let steerable = self.desired.redirection().is_none() || publishes;
                let (standing, answer) = match answer {
                    Ok(()) if steerable => (Standing::Served, Ok(())),
                    Ok(()) => (Standing::Unsteerable, Err(AddError::Unsteerable)),
                    Err(reason) => (Standing::Refused(reason.clone()), Err(AddError::Refused(reason))),
                };
                if self.desired.pod(&uid).is_some_and(|entry| entry.generation == generation) {
                    self.standing.insert(uid.clone(), standing);
                }
                let Some(waiters) = self.added.get_mut(&uid) else { return };
                for (_, waiter) in waiters.extract_if(.., |(wanted, _)| *wanted <= generation) {
                    let _ = waiter.send(answer.clone());
                }
                if waiters.is_empty() {
                    self.added.remove(&uid);
                }
            }
            Sent::Del(uid) => self.let_go(&uid, &answer.map_err(RemoveError::Refused)),
            Sent::Redirection | Sent::Listeners(_) | Sent::State(..) | Sent::SnapshotSent => {}
        }
    }

    /// Holds the listeners that ztunnel handed over for a pod, if they are the pod's.
    pub(super) fn keep(&mut self, uid: &PodUid, generation: u64, kept: Kept) {
        let Some(entry) = self.desired.pod(uid).filter(|entry| entry.generation == generation) else {
            return;
        };
        // Without the namespace nobody can tell whose they are.
        let Some(netns) = entry.workload.netns.as_ref().filter(|_| !kept.is_empty()) else { return };
        match kept.check(netns) {
            Ok(()) => self.desired.keep(uid, kept),
            Err(error) => {
                tracing::warn!(%uid, error = &error as &dyn std::error::Error, "a pod's listeners are not kept");
            }
        }
    }

    fn let_go(&mut self, uid: &PodUid, answer: &Result<(), RemoveError>) {
        self.desired.forget_state(uid);
        for waiter in self.removed.remove(uid).unwrap_or_default() {
            let _ = waiter.send(answer.clone());
        }
    }

    /// Answers those who wait for the end of pods that this session's peer does not know anyhow.
    pub(super) fn let_go_unknown(&mut self, session: &Session) {
        let unknown: Vec<PodUid> =
            self.removed.keys().filter(|uid| !session.may_know(uid)).cloned().collect();
        for uid in unknown {
            self.let_go(&uid, &Ok(()));
        }
    }
}
