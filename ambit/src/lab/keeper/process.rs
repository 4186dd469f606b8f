//! One part of the mesh: its process, its successors, and those that finish what they have.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Backoff, Pids, how, spawn};
use crate::enter::Entry;
use crate::lab::system::{AGENT_HTTP, Launch};
use crate::lab::{cgroup, http, logs};

/// How long a process waits for what it needs before it is started all the same.
const NEED_PATIENCE: Duration = Duration::from_secs(5);
/// How long a successor may take until it serves.
const TAKEOVER: Duration = Duration::from_secs(30);
/// How long a process that is asked to end may take.
const ENDING: Duration = Duration::from_secs(15);
/// How often it is looked whether a successor serves.
const STEP: Duration = Duration::from_millis(20);
/// How long the agent's page may take.
const PAGE: Duration = Duration::from_secs(2);

/// What somebody wants of a part.
#[derive(Debug)]
pub(super) enum Order {
    /// Another process in place of the one that runs. Who wants it hears what became of it.
    Restart(oneshot::Sender<Result<String, String>>),
    /// The end of all its processes, at once, and none until it is allowed again.
    Halt { halted: oneshot::Sender<()>, resume: oneshot::Receiver<()> },
}

/// A part that is kept running.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) launch: Launch,
    pub(super) pids: Arc<watch::Sender<Pids>>,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
    /// Cancelled when those that have handed over are to end at once.
    pub(super) cut: CancellationToken,
    /// How many processes there were.
    pub(super) launched: u64,
}

/// A process of the part. It is killed when it is dropped.
#[derive(Debug)]
struct Process {
    child: Child,
    pid: u32,
    /// Of its own: its successor may run beside it.
    entry: Entry,
}

impl Kept {
    /// Starts the process again whenever it ends. Never ends; cancel-safe.
    pub(super) async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let part = self.launch.part.clone();
        if let Some(needs) = &self.launch.needs
            && timeout(NEED_PATIENCE, appears(needs)).await.is_err()
        {
            tracing::warn!(%part, needs = %needs.display(), "what it needs is not there; starting it all the same");
        }
        let mut backoff = Backoff::default();
        loop {
            let begun = Instant::now();
            match self.launch() {
                Ok(process) => {
                    self.serves(&process);
                    let resume = self.accompany(process, &mut orders).await;
                    self.pids.send_modify(|pids| {
                        pids.serving.remove(&part);
                    });
                    if let Some((halted, resume)) = resume {
                        self.cut_off().await;
                        // Whoever halted it may have gone away; then it goes on.
                        let _ = halted.send(());
                        let _ = resume.await;
                        backoff = Backoff::default();
                        continue;
                    }
                }
                Err(error) => tracing::error!(%part, %error, "it cannot be started"),
            }
            sleep(backoff.after(begun.elapsed())).await;
        }
    }

    fn launch(&mut self) -> std::io::Result<Process> {
        self.launched += 1;
        let Launch { part, entry, env, log, trust, .. } = &self.launch;
        let mut entry = entry.clone();
        entry.cgroup = entry.cgroup.map(|group| group.join(self.launched.to_string()));
        let trust = trust.as_ref().map(|names| names.borrow().env());
        let env: Vec<_> = env.iter().cloned().chain(trust.into_iter().flatten()).collect();
        let child = spawn(&entry, &env, log)?;
        // It was not waited for.
        let pid = child.id().unwrap_or_default();
        tracing::info!(%part, pid, "started");
        Ok(Process { child, pid, entry })
    }

    fn serves(&self, process: &Process) {
        self.pids.send_modify(|pids| {
            pids.serving.insert(self.launch.part.clone(), process.pid);
        });
    }

    /// Does what is ordered until the process ends, or the one that took its place. Gives who halted it, if somebody did.
    async fn accompany(
        &mut self,
        mut process: Process,
        orders: &mut mpsc::Receiver<Order>,
    ) -> Option<(oneshot::Sender<()>, oneshot::Receiver<()>)> {
        let part = self.launch.part.clone();
        loop {
            tokio::select! {
                // Both cancel-safe.
                ended = process.child.wait() => {
                    let how = ended.map_or_else(|error| error.to_string(), how);
                    tracing::warn!(%part, pid = process.pid, how, "it ended");
                    tidy(&process.entry);
                    return None;
                }
                Some(order) = orders.recv() => match order {
                    Order::Restart(done) => {
                        let result = if self.launch.hands_over.is_some() {
                            self.replace(&mut process).await
                        } else {
                            self.end_and_start(&mut process).await
                        };
                        // Who asked may have gone away.
                        let _ = done.send(result);
                    }
                    Order::Halt { halted, resume } => {
                        // One that has ended by itself is gone, too.
                        let _ = process.child.kill().await;
                        tidy(&process.entry);
                        return Some((halted, resume));
                    }
                },
            }
        }
    }

    /// Starts a successor beside the process, and lets that finish what it has once the successor serves.
    async fn replace(&mut self, process: &mut Process) -> Result<String, String> {
        let part = self.launch.part.clone();
        let mut successor = self.launch().map_err(|error| format!("{part} cannot be started: {error}"))?;
        let outcome = tokio::select! {
            // All cancel-safe.
            serves = timeout(TAKEOVER, self.takes_over(successor.pid)) => match serves {
                Ok(()) => Ok(()),
                Err(_) => Err(format!("did not take over within {} s", TAKEOVER.as_secs())),
            },
            ended = successor.child.wait() => Err(ended.map_or_else(|error| error.to_string(), how)),
        };
        if let Err(why) = outcome {
            // Whoever it is to replace goes on.
            let _ = successor.child.kill().await;
            tidy(&successor.entry);
            let last = logs::last_words(&self.launch.log).map(|words| format!(": {words}"));
            return Err(format!(
                "{part}: the new process {why}, process {} goes on{}",
                process.pid,
                last.unwrap_or_default()
            ));
        }
        self.serves(&successor);
        let told = format!(
            "{part}: process {} serves; process {} ends with the last of its connections",
            successor.pid, process.pid
        );
        self.see_off(std::mem::replace(process, successor));
        Ok(told)
    }

    /// Asks the process to end, and starts another.
    async fn end_and_start(&mut self, process: &mut Process) -> Result<String, String> {
        let part = self.launch.part.clone();
        let before = process.pid;
        if let Ok(pid) = i32::try_from(process.pid) {
            // One that has ended by itself is waited for all the same.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if timeout(ENDING, process.child.wait()).await.is_err() {
            let _ = process.child.kill().await;
        }
        tidy(&process.entry);
        let next = self.launch().map_err(|error| format!("{part} cannot be started: {error}"))?;
        self.serves(&next);
        let told = format!("{part}: process {} runs in place of {before}", next.pid);
        *process = next;
        Ok(told)
    }

    /// Waits until the agent says that a process serves.
    async fn takes_over(&self, pid: u32) {
        let Some(netns) = &self.launch.hands_over else { return };
        let agent = SocketAddr::from(([127, 0, 0, 1], AGENT_HTTP));
        loop {
            if let Ok((200, body)) = http::get(netns, agent, "/debug/ztunnels", &[], PAGE).await
                && let Ok(peers) = serde_json::from_slice::<Vec<Peer>>(&body)
                && peers.iter().any(|peer| peer.pid == Some(pid) && peer.role == "serves")
            {
                return;
            }
            sleep(STEP).await;
        }
    }

    /// Ends those that have handed over.
    async fn cut_off(&mut self) {
        std::mem::take(&mut self.cut).cancel();
        let part = &self.launch.part;
        let none = |pids: &Pids| !pids.leaving.iter().any(|(of, _)| of == part);
        // The sender lives in `self`.
        let _ = self.pids.subscribe().wait_for(none).await;
    }

    /// Leaves a process to itself until it ends.
    fn see_off(&self, mut process: Process) {
        let (part, pids, stop) = (self.launch.part.clone(), self.pids.clone(), self.stop.clone());
        let cut = self.cut.clone();
        let leaving = (part.clone(), process.pid);
        pids.send_modify(|pids| {
            pids.leaving.insert(leaving.clone());
        });
        self.tasks.spawn(async move {
            tokio::select! {
                // Cancel-safe: the child is killed when it is dropped.
                () = stop.cancelled() => {}
                () = cut.cancelled() => {
                    let _ = process.child.kill().await;
                    tidy(&process.entry);
                }
                ended = process.child.wait() => {
                    let how = ended.map_or_else(|error| error.to_string(), how);
                    tracing::info!(%part, pid = process.pid, how, "it has finished what it had");
                    tidy(&process.entry);
                }
            }
            pids.send_modify(|pids| {
                pids.leaving.remove(&leaving);
            });
        });
    }
}

/// A ztunnel by its agent's word.
#[derive(Debug, Deserialize)]
struct Peer {
    pid: Option<u32>,
    role: String,
}

/// Removes what a process that ended left behind: it must not stand in its successor's way.
fn tidy(entry: &Entry) {
    if let Some(group) = &entry.cgroup {
        // The group of one that never got that far is not there; one that is still full goes with the lab.
        let _ = cgroup::kill(group).and_then(|()| cgroup::remove(group));
    }
}

/// Waits for a file. There are few of them and they come soon, so it just looks again.
async fn appears(path: &Path) {
    while fs::metadata(path).is_err() {
        sleep(Duration::from_millis(20)).await;
    }
}
