//! Keeps the mesh's own processes running.

mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::process::{Kept, Order};
use super::system::{Launch, Part};
use super::{cgroup, logs};
use crate::enter::Entry;

/// The processes that run now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pids {
    /// Those that do their part's work.
    pub(crate) serving: BTreeMap<Part, u32>,
    /// Those that finish what they have while another does the work.
    pub(crate) leaving: BTreeSet<(Part, u32)>,
}

/// How long to wait before a process is started again: at once, then longer, but never so long that the process would not be
/// back within a second.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(50);
    const CAP: Duration = Duration::from_millis(800);
    /// Who lived that long did not fail at the start.
    const STEADY: Duration = Duration::from_secs(10);

    /// The wait after a process that lived for `lived`.
    pub(crate) fn after(&mut self, lived: Duration) -> Duration {
        if lived >= Self::STEADY {
            self.failures = 0;
        }
        let wait = Self::FIRST.saturating_mul(1 << self.failures.min(10)).min(Self::CAP);
        self.failures += 1;
        wait
    }
}

/// Starts what an entry says, its output appended to a log.
pub(crate) fn spawn(entry: &Entry, env: &[(String, String)], log: &Path) -> io::Result<Child> {
    if let Some(group) = &entry.cgroup {
        cgroup::create(group)?;
    }
    let log = logs::open(log)?;
    command(entry, env).stdout(log.try_clone()?).stderr(log).spawn()
}

/// Starts what an entry says; its output is nobody's.
pub(crate) fn spawn_silent(entry: &Entry, env: &[(String, String)]) -> io::Result<Child> {
    command(entry, env).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

/// `ambit` itself, which then becomes the entry's command. The child is killed when it is dropped.
fn command(entry: &Entry, env: &[(String, String)]) -> Command {
    // Also where the file was replaced by a newer build.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("ambit")
        .args(entry.arguments())
        .env_clear()
        .envs(env.iter().map(|(key, value)| (key, value)))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// The owner of the processes.
#[derive(Clone, Debug)]
pub(crate) struct Keeper {
    pids: Arc<watch::Sender<Pids>>,
    orders: Arc<Mutex<BTreeMap<Part, mpsc::Sender<Order>>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Keeper {
    pub(crate) fn new(stop: CancellationToken) -> Self {
        let pids = Arc::new(watch::Sender::new(Pids::default()));
        Self { pids, orders: Arc::default(), tasks: TaskTracker::new(), stop }
    }

    pub(crate) fn pids(&self) -> Pids {
        self.pids.borrow().clone()
    }

    /// Starts a process and starts it again whenever it ends.
    pub(crate) fn keep(&self, launch: Launch) {
        let (sender, orders) = mpsc::channel(1);
        self.orders.lock().insert(launch.part.clone(), sender);
        let (pids, stop, tasks) = (self.pids.clone(), self.stop.clone(), self.tasks.clone());
        self.tasks.spawn(async move {
            let cut = CancellationToken::new();
            let kept = Kept { launch, pids, tasks, stop: stop.clone(), cut, launched: 0 };
            // Cancel-safe: the child is killed when it is dropped.
            tokio::select! {
                () = stop.cancelled() => {}
                () = kept.run(orders) => {}
            }
        });
    }

    /// Puts another process in the place of the one that runs, and tells what became of it.
    ///
    /// # Errors
    /// A sentence about why the one that ran goes on, or why none runs.
    pub(crate) async fn restart(&self, part: &Part) -> Result<String, String> {
        let (done, answer) = oneshot::channel();
        self.order(part, Order::Restart(done)).await?;
        answer.await.unwrap_or_else(|_| Err(format!("{part} is not kept any more")))
    }

    /// Puts another process in the place of the one that runs, and waits for nothing.
    pub(crate) fn renew(&self, part: Part) {
        let (keeper, stop) = (self.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            // What is dropped at the stop is the wait alone.
            match stop.run_until_cancelled(keeper.restart(&part)).await {
                Some(Ok(line)) => tracing::info!(%part, "{line}"),
                Some(Err(error)) => tracing::error!(%part, error, "it goes on with what it was told before"),
                None => {}
            }
        });
    }

    /// Kills a part's processes. None is started until what this gives is dropped.
    ///
    /// # Errors
    /// There is no such part.
    pub(crate) async fn halt(&self, part: &Part) -> Result<Halted, String> {
        let (halted, is_halted) = oneshot::channel();
        let (resume, resumed) = oneshot::channel();
        self.order(part, Order::Halt { halted, resume: resumed }).await?;
        is_halted.await.map_err(|_| format!("{part} is not kept any more"))?;
        Ok(Halted { _resume: resume })
    }

    async fn order(&self, part: &Part, order: Order) -> Result<(), String> {
        let orders = self.orders.lock().get(part).cloned();
        let orders = orders.ok_or_else(|| format!("there is no {part}"))?;
        orders.send(order).await.map_err(|_| format!("{part} is not kept any more"))
    }
}

/// A part that may not run.
#[derive(Debug)]
pub(crate) struct Halted {
    /// It is dropped, never used.
    _resume: oneshot::Sender<()>,
}

/// How a process ended, in words.
pub(crate) fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (_, Some(signal)) => match nix::sys::signal::Signal::try_from(signal) {
            Ok(signal) => format!("killed by {signal}"),
            Err(_) => format!("killed by signal {signal}"),
        },
        _ => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_back_within_a_second_however_often_it_fails() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..40).map(|_| backoff.after(Duration::ZERO).as_millis()).collect();
        assert_eq!(waits[..6], [50, 100, 200, 400, 800, 800]);
        assert!(waits.iter().all(|wait| *wait < 1000));
    }

    #[test]
    fn a_process_that_ran_for_a_while_is_started_at_once() {
        let mut backoff = Backoff::default();
        for _ in 0..10 {
            backoff.after(Duration::ZERO);
        }
        assert_eq!(backoff.after(Duration::from_secs(60)), Duration::from_millis(50));
    }
}
