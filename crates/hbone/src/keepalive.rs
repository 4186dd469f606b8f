//! Whether the peer is still there: a PING now and then, and how long to wait for its answer.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{Settings, TransportError};

/// The decision, without clock or connection.
#[derive(Debug)]
struct Keepalive {
    interval: Duration,
    patience: Duration,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing is asked; a PING is due then.
    Quiet(Instant),
    /// A PING is under way; its answer is due by then.
    Asked(Instant),
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Wait(Instant),
    Ping,
    GiveUp,
}

impl Keepalive {
    fn new(settings: &Settings, now: Instant) -> Self {
        let (interval, patience) = (settings.ping_interval, settings.ping_patience);
        Self { interval, patience, phase: Phase::Quiet(now + interval) }
    }

    fn step(&mut self, now: Instant) -> Step {
        match self.phase {
            Phase::Quiet(due) if now >= due => {
                self.phase = Phase::Asked(now + self.patience);
                Step::Ping
            }
            Phase::Asked(due) if now >= due => Step::GiveUp,
            Phase::Quiet(due) | Phase::Asked(due) => Step::Wait(due),
        }
    }

    fn answered(&mut self, now: Instant) {
        self.phase = Phase::Quiet(now + self.interval);
    }

    /// Somebody wants to know now. A PING that is under way tells it as well.
    fn hurry(&mut self, now: Instant) {
        if let Phase::Quiet(due) = &mut self.phase {
            *due = now.min(*due);
        }
    }
}

/// Asks a connection's task whether the peer is there, before the next PING is due. Clones ask the same task.
#[derive(Clone)]
pub(crate) struct Inquiry {
    wanted: Arc<Wanted>,
    answers: watch::Receiver<()>,
}

#[derive(Default)]
struct Wanted {
    is: AtomicBool,
    task: AtomicWaker,
}

impl Inquiry {
    /// Ready when the peer has answered a PING after this was called; never, if it answers none. Cancel-safe.
    pub(crate) async fn answered(&self) {
        let mut answers = self.answers.clone();
        answers.mark_unchanged();
        self.wanted.is.store(true, Ordering::Release);
        self.wanted.task.wake();
        if answers.changed().await.is_err() {
            // The task is over, and what waits for it hears so by itself.
            std::future::pending::<()>().await;
        }
    }
}

/// The shell: asks over a connection that the same task drives.
pub(crate) struct Pinger {
    core: Keepalive,
    pings: Option<h2::PingPong>,
    sleep: Pin<Box<Sleep>>,
    wanted: Arc<Wanted>,
    answers: watch::Sender<()>,
}

impl Pinger {
    pub(crate) fn new(settings: &Settings, pings: Option<h2::PingPong>) -> Self {
        let now = Instant::now();
        let core = Keepalive::new(settings, now);
        Self {
            core,
            pings,
            sleep: Box::pin(sleep_until(now + settings.ping_interval)),
            wanted: Arc::default(),
            answers: watch::Sender::new(()),
        }
    }

    /// For those who use the connection.
    pub(crate) fn inquiry(&self) -> Inquiry {
        Inquiry { wanted: Arc::clone(&self.wanted), answers: self.answers.subscribe() }
    }

    /// Ready only when the peer has been silent for too long. The connection must be polled after this, as a PING may
    /// have been queued on it.
    pub(crate) fn poll_silent(&mut self, cx: &mut Context<'_>) -> Poll<TransportError> {
        let Some(pings) = &mut self.pings else { return Poll::Pending };
        self.wanted.task.register(cx.waker());
        if self.wanted.is.swap(false, Ordering::AcqRel) {
            self.core.hurry(Instant::now());
        }
        loop {
            if matches!(self.core.phase, Phase::Asked(_)) {
                match pings.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => {
                        self.core.answered(Instant::now());
                        self.answers.send_replace(());
                    }
                    // The connection itself is ending and will say why.
                    Poll::Ready(Err(_)) => return Poll::Pending,
                    Poll::Pending => {}
                }
            }
            match self.core.step(Instant::now()) {
                Step::GiveUp => return Poll::Ready(TransportError::Silent(self.core.patience)),
                Step::Ping if pings.send_ping(h2::Ping::opaque()).is_err() => return Poll::Pending,
                Step::Ping => {}
                Step::Wait(until) => {
                    if self.sleep.deadline() != until {
                        self.sleep.as_mut().reset(until);
                    }
                    ready!(self.sleep.as_mut().poll(cx));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answered_ping_starts_the_interval_anew_and_an_unanswered_one_ends_it() {
        let settings = Settings::default();
        let (interval, patience) = (settings.ping_interval, settings.ping_patience);
        let start = Instant::now();
        let mut keepalive = Keepalive::new(&settings, start);
        assert_eq!(keepalive.step(start), Step::Wait(start + interval));

        let asked = start + interval;
        assert_eq!(keepalive.step(asked), Step::Ping);
        assert_eq!(keepalive.step(asked), Step::Wait(asked + patience));
        keepalive.answered(asked + patience / 2);

        keepalive.hurry(asked + patience / 2);
        assert_eq!(keepalive.step(asked + patience / 2), Step::Ping);
        keepalive.hurry(asked + patience / 2);
        assert_eq!(keepalive.step(asked + patience / 2), Step::Wait(asked + patience / 2 + patience));
        keepalive.answered(asked + patience / 2);

        let again = asked + patience / 2 + interval;
        assert_eq!(keepalive.step(again), Step::Ping);
        assert_eq!(keepalive.step(again + patience), Step::GiveUp);
    }
}
