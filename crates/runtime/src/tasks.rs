//! Every task has an owner, a signal to end by, and a deadline to end within.
//!
//! A program ends in two steps. At the *drain* signal it takes no new work and finishes what it has; when that is done,
//! or the grace is over, comes the *stop* signal, at which every task must end at once. What is left then is named.
//!
//! A program whose successor serves already *hands over*: it drains, too, and has no deadline for it until it is signalled.
//!
//! Work (a listener, a connection) heeds the drain. What work leans on (the stream to the control plane, certificates,
//! the admin port) is spawned on [`Tasks::background`]: the drain does not wait for it, and it heeds the stop alone.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;

use crate::Readiness;

/// The owner of a program's tasks. Cloning is cheap and gives another handle on the same owner.
#[derive(Clone, Debug)]
pub struct Tasks {
    /// Where this handle's tasks are counted: one of the two below.
    tracker: TaskTracker,
    work: TaskTracker,
    background: TaskTracker,
    handover: CancellationToken,
    drain: CancellationToken,
    stop: CancellationToken,
    running: Arc<Mutex<BTreeMap<&'static str, usize>>>,
    failed: Arc<Mutex<Option<&'static str>>>,
}

impl Default for Tasks {
    fn default() -> Self {
        let work = TaskTracker::new();
        Self {
            tracker: work.clone(),
            work,
            background: TaskTracker::new(),
            handover: CancellationToken::new(),
            drain: CancellationToken::new(),
            stop: CancellationToken::new(),
            running: Arc::default(),
            failed: Arc::default(),
        }
    }
}

/// How long a program takes to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grace {
    /// How long work in progress may take after the drain signal.
    pub drain: Duration,
    /// How long tasks may take to end after the stop signal.
    pub stop: Duration,
}

impl Default for Grace {
    /// 5 s to drain, 2 s to stop.
    fn default() -> Self {
        Self { drain: Duration::from_secs(5), stop: Duration::from_secs(2) }
    }
}

/// Why a program did not end as it should.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StopError {
    /// A task that the program cannot be without ended by itself.
    #[error("the task `{0}` ended, without which the program cannot go on")]
    Failed(&'static str),
    /// Tasks did not heed the stop signal.
    #[error("these tasks did not end in time: {}", .0.join(", "))]
    Stuck(Vec<&'static str>),
}

impl Tasks {
    /// A handle whose tasks the drain does not wait for: they live until the stop.
    pub fn background(&self) -> Self {
        Self { tracker: self.background.clone(), ..self.clone() }
    }

    /// Spawns a task on the current runtime. It may end when it likes; its panic is logged and harms nobody else.
    pub fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(self.own(name, work));
    }

    /// Spawns a task that the program cannot be without: if it ends before the drain, the program ends with an error.
    pub fn spawn_vital(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(self.own_vital(name, work));
    }

    /// Owns a task that the caller spawns, on a runtime of a shard or a local set.
    pub fn own<F: Future<Output = ()>>(
        &self,
        name: &'static str,
        work: F,
    ) -> impl Future<Output = ()> + use<F> {
        let registered = Registered::new(self, name);
        self.tracker.track_future(async move {
            let _registered = registered;
            if guarded(work).await.is_err() {
                tracing::error!(task = name, "task panicked");
            }
        })
    }

    /// Like [`Tasks::own`], for a task that the program cannot be without.
    pub fn own_vital<F: Future<Output = ()>>(
        &self,
        name: &'static str,
        work: F,
    ) -> impl Future<Output = ()> + use<F> {
        let work = self.own(name, work);
        let (drain, failed) = (self.drain.clone(), self.failed.clone());
        async move {
            work.await;
            if !drain.is_cancelled() {
                failed.lock().get_or_insert(name);
                drain.cancel();
            }
        }
    }

    /// Ends at the drain signal: take no new work. Cancel-safe.
    pub fn draining(&self) -> WaitForCancellationFutureOwned {
        self.drain.clone().cancelled_owned()
    }

    /// Ends at the stop signal: end now. Cancel-safe.
    pub fn stopping(&self) -> WaitForCancellationFutureOwned {
        self.stop.clone().cancelled_owned()
    }

    /// The drain signal as a token, for libraries that take one. Cancelling it drains the program.
    pub fn drain_token(&self) -> &CancellationToken {
        &self.drain
    }

    /// The stop signal as a token, for libraries that take one.
    pub fn stop_token(&self) -> &CancellationToken {
        &self.stop
    }

    /// Gives the drain signal, as SIGTERM does.
    pub fn begin_drain(&self) {
        self.drain.cancel();
    }

    /// The signal that another process serves in this one's place, as a token: cancelling it makes the program hand over.
    pub fn handover_token(&self) -> &CancellationToken {
        &self.handover
    }

    /// Ends when another process serves in this one's place. Cancel-safe.
    pub fn handing_over(&self) -> WaitForCancellationFutureOwned {
        self.handover.clone().cancelled_owned()
    }

    /// The names of the tasks that run.
    pub fn running(&self) -> Vec<&'static str> {
        self.running.lock().keys().copied().collect()
    }

    /// Runs the program until SIGTERM, SIGINT, [`Tasks::begin_drain`], the handover or the end of a vital task, and then
    /// ends it.
    ///
    /// After a handover the work may take as long as it likes; the grace begins with a signal. A signal during the grace
    /// cuts it short.
    ///
    /// # Errors
    /// If a vital task ended, or tasks were still there after both graces.
    pub async fn run_until_stopped(&self, readiness: &Readiness, grace: Grace) -> Result<(), StopError> {
        tokio::select! {
            // Both cancel-safe.
            () = signalled(&self.drain, "draining") => {}
            () = self.handover.cancelled() => {}
        }
        let hands_over = self.handover.is_cancelled();
        self.drain.cancel();
        readiness.drain();
        self.work.close();
        self.background.close();
        if hands_over {
            tracing::info!(tasks = ?self.running(), "another process serves: finishing what is there, without a deadline");
            tokio::select! {
                // Cancel-safe: waiting changes nothing.
                () = self.work.wait() => {}
                () = signalled(&self.stop, "the grace begins") => {}
            }
        }
        tokio::select! {
            // Cancel-safe: waiting changes nothing.
            ended = timeout(grace.drain, self.work.wait()) => {
                if ended.is_err() {
                    tracing::info!(tasks = ?self.running(), "the grace for draining is over");
                }
            }
            () = signalled(&self.stop, "stopping at once") => {}
        }
        self.stop.cancel();
        let all_ended = async {
            self.work.wait().await;
            self.background.wait().await;
        };
        let stuck = timeout(grace.stop, all_ended).await.is_err();
        if let Some(name) = *self.failed.lock() {
            return Err(StopError::Failed(name));
        }
        if stuck { Err(StopError::Stuck(self.running())) } else { Ok(()) }
    }
}

/// Waits for a signal of the operating system, or for the token.
async fn signalled(token: &CancellationToken, then: &'static str) {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        // Only a process that cannot open a pipe gets here; it can still be ended from within.
        return token.cancelled().await;
    };
    let name = tokio::select! {
        // Signal::recv and CancellationToken::cancelled are cancel-safe.
        _ = term.recv() => "SIGTERM",
        _ = int.recv() => "SIGINT",
        () = token.cancelled() => "request",
    };
    tracing::info!(cause = name, then, "asked to end");
}

/// Counts a task under its name for as long as it lives, also where it is dropped without having run.
struct Registered {
    running: Arc<Mutex<BTreeMap<&'static str, usize>>>,
    name: &'static str,
}

impl Registered {
    fn new(tasks: &Tasks, name: &'static str) -> Self {
        *tasks.running.lock().entry(name).or_default() += 1;
        Self { running: tasks.running.clone(), name }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut running = self.running.lock();
        if let Some(count) = running.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                running.remove(self.name);
            }
        }
    }
}

/// The work panicked; the panic hook has told where.
#[derive(Debug)]
struct Panicked;

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("panicked")
    }
}

/// Runs a future whose panic ends it and nothing else: a vital task must be seen to end also then.
async fn guarded(work: impl Future<Output = ()>) -> Result<(), Panicked> {
    let mut work = Box::pin(work);
    std::future::poll_fn(move |cx: &mut Context<'_>| {
        let work: Pin<&mut _> = work.as_mut();
        match std::panic::catch_unwind(AssertUnwindSafe(|| work.poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(())) => Poll::Ready(Ok(())),
            Err(_) => Poll::Ready(Err(Panicked)),
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short() -> Grace {
        Grace { drain: Duration::from_secs(5), stop: Duration::from_secs(1) }
    }

    #[tokio::test(start_paused = true)]
    async fn work_in_progress_is_finished_before_the_stop() {
        let (tasks, readiness) = (Tasks::default(), Readiness::default());
        let (draining, done) = (tasks.draining(), Arc::new(Mutex::new(false)));
        let finished = done.clone();
        tasks.spawn("connection", async move {
            draining.await;
            tokio::time::sleep(Duration::from_secs(3)).await;
            *finished.lock() = true;
        });
        tasks.begin_drain();
        assert_eq!(tasks.run_until_stopped(&readiness, short()).await, Ok(()));
        assert!(*done.lock());
        assert!(!readiness.is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_only_heeds_the_stop_ends_after_the_grace() {
        let (tasks, readiness) = (Tasks::default(), Readiness::default());
        tasks.spawn("listener", tasks.stopping());
        tasks.begin_drain();
        let begun = tokio::time::Instant::now();
        assert_eq!(tasks.run_until_stopped(&readiness, short()).await, Ok(()));
        assert_eq!(begun.elapsed(), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn who_hands_over_has_no_deadline() {
        let (tasks, readiness) = (Tasks::default(), Readiness::default());
        let (draining, handing_over) = (tasks.draining(), tasks.handing_over());
        tasks.spawn("connection", async move {
            draining.await;
            tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
        });
        tasks.handover_token().cancel();
        let begun = tokio::time::Instant::now();
        assert_eq!(tasks.run_until_stopped(&readiness, short()).await, Ok(()));
        assert_eq!(begun.elapsed(), Duration::from_secs(24 * 3600));
        handing_over.await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_is_no_handover() {
        let (tasks, readiness) = (Tasks::default(), Readiness::default());
        tasks.spawn("connection", async { tokio::time::sleep(Duration::from_secs(24 * 3600)).await });
        tasks.begin_drain();
        assert!(tasks.run_until_stopped(&readiness, short()).await.is_err(), "it does not heed the stop");
        assert!(!tasks.handover_token().is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn the_drain_does_not_wait_for_the_background() {
        let (tasks, readiness) = (Tasks::default(), Readiness::default());
        tasks.background().spawn_vital("xds", tasks.stopping());
        tasks.begin_drain();
        let begun = tokio::time::Instant::now();
        assert_eq!(tasks.run_until_stopped(&readiness, short()).await, Ok(()));
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_heeds_nothing_is_named() {
        let (tasks, readiness) = (Tasks::default(), Readiness::default());
        tasks.spawn("deaf", std::future::pending());
        tasks.begin_drain();
        assert_eq!(tasks.run_until_stopped(&readiness, short()).await, Err(StopError::Stuck(vec!["deaf"])));
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_vital_task_ends_the_program() {
        let (tasks, readiness) = (Tasks::default(), Readiness::default());
        tasks.spawn("harmless", async {});
        tasks.spawn_vital("xds", async { tokio::time::sleep(Duration::from_secs(9)).await });
        assert_eq!(tasks.run_until_stopped(&readiness, short()).await, Err(StopError::Failed("xds")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_vital_task_that_panics_has_ended() {
        let (tasks, readiness) = (Tasks::default(), Readiness::default());
        tasks.spawn_vital("xds", async { panic!("a panic that this test wants") });
        assert_eq!(tasks.run_until_stopped(&readiness, short()).await, Err(StopError::Failed("xds")));
        assert!(tasks.running().is_empty());
    }
}
