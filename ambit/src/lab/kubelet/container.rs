//! Running a container: starting it, probing it, starting it again, ending it.

use std::io;
use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use jiff::Timestamp;
use net::Netns;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::blueprint::ContainerPlan;
use super::probe::{Pace, Probe, Standpoint, Tally};
use crate::enter::Entry;
use crate::lab::control::{ContainerReport, Phase, PodReport};
use crate::lab::{cgroup, keeper, logs};

/// A container that is to run, and where.
#[derive(Clone, Debug)]
pub(super) struct Container {
    pub(super) plan: ContainerPlan,
    /// Its place among the pod's reports.
    pub(super) index: usize,
    /// How to get into the pod; without a command.
    pub(super) pod: Entry,
    pub(super) cgroup: PathBuf,
    pub(super) log: PathBuf,
    pub(super) node: Netns,
    pub(super) ip: Option<IpAddr>,
    pub(super) grace: Duration,
}

/// How long to wait before a container is started again: it doubles, and is forgotten after a steady run.
#[derive(Clone, Copy, Debug, Default)]
struct CrashDelay {
    crashes: u32,
}

impl CrashDelay {
    const FIRST: Duration = Duration::from_secs(1);
    const CAP: Duration = Duration::from_secs(30);
    const STEADY: Duration = Duration::from_secs(60);

    fn after(&mut self, lived: Duration) -> Duration {
        if lived >= Self::STEADY {
            self.crashes = 0;
        }
        let wait = Self::FIRST.saturating_mul(1 << self.crashes.min(10)).min(Self::CAP);
        self.crashes += 1;
        wait
    }
}

/// What a container whose hook used up the grace has to end.
const AFTER_HOOK: Duration = Duration::from_secs(2);

/// Why a running container came to its end.
enum End {
    ByItself(ExitStatus),
    Unhealthy(String),
    Stopped,
}

impl Container {
    /// Runs until the container has ended for good, or is told to stop. Gives the status with which it ended; nothing where
    /// it was stopped.
    pub(super) async fn run(
        &self,
        reports: &watch::Sender<PodReport>,
        stop: &CancellationToken,
    ) -> Option<i32> {
        let mut delay = CrashDelay::default();
        loop {
            let begun = Instant::now();
            let (code, message) = self.run_once(reports, stop).await?;
            // What it forked ends with it, as in a container.
            let _ = cgroup::kill(&self.cgroup);
            let again = self.plan.restart.again(code);
            self.tell(reports, |report| {
                report.phase = Phase::Ended { code, message: message.clone(), at: Timestamp::now() };
                (report.ready, report.pending) = (false, again);
            });
            if !again {
                return Some(code);
            }
            if code != 0 {
                self.tell(reports, |report| {
                    report.phase = Phase::Waiting("CrashLoopBackOff".to_owned(), message.clone());
                });
            }
            // Cancel-safe, both.
            tokio::select! {
                () = stop.cancelled() => return None,
                () = sleep(delay.after(begun.elapsed())) => {}
            }
            self.tell(reports, |report| report.restarts += 1);
        }
    }

    /// Runs it once. Gives its status and why it ended; nothing where it was stopped.
    async fn run_once(
        &self,
        reports: &watch::Sender<PodReport>,
        stop: &CancellationToken,
    ) -> Option<(i32, String)> {
        let mut child = match self.start() {
            Ok(child) => child,
            Err(error) => return Some((128, format!("cannot be started: {error}"))),
        };
        let has_to_prove = self.plan.readiness.is_some() || self.plan.startup.is_some();
        self.tell(reports, |report| {
            report.phase = Phase::Running(Timestamp::now());
            report.ready = !has_to_prove;
        });
        match self.attend(&mut child, reports, stop).await {
            End::ByItself(status) => Some((code(status), self.why(status))),
            End::Unhealthy(why) => {
                self.end(&mut child).await;
                Some((137, why))
            }
            End::Stopped => {
                // Cancel-safe: nobody needs another answer once it has ended.
                tokio::select! {
                    () = self.end(&mut child) => {}
                    () = self.readiness_to_the_end(reports) => {}
                }
                self.tell(reports, |report| report.ready = false);
                None
            }
        }
    }

    fn start(&self) -> io::Result<Child> {
        let entry = Entry {
            command: self.plan.command.iter().map(Into::into).collect(),
            cgroup: Some(self.cgroup.clone()),
            dir: self.plan.dir.clone(),
            session: true,
            ..self.pod.clone()
        };
        keeper::spawn(&entry, &self.plan.env, &self.log)
    }

    fn tell(&self, reports: &watch::Sender<PodReport>, change: impl FnOnce(&mut ContainerReport)) {
        reports.send_if_modified(|report| {
            let Some(mine) = report.containers.get_mut(self.index) else { return false };
            let before = mine.clone();
            change(mine);
            *mine != before
        });
    }

    fn why(&self, status: ExitStatus) -> String {
        let how = keeper::how(status);
        match logs::last_words(&self.log).filter(|_| !status.success()) {
            Some(words) => format!("{how}: {words}"),
            None => how,
        }
    }

    /// Waits for a running container's end, probing it.
    async fn attend(
        &self,
        child: &mut Child,
        reports: &watch::Sender<PodReport>,
        stop: &CancellationToken,
    ) -> End {
        // Waiting and probing are cancel-safe: another wait finds the same end, a probe is asked again.
        tokio::select! {
            biased;
            status = child.wait() => match status {
                Ok(status) => End::ByItself(status),
                Err(error) => End::Unhealthy(format!("cannot be waited for: {error}")),
            },
            () = stop.cancelled() => End::Stopped,
            why = self.probe(reports) => End::Unhealthy(why.to_owned()),
        }
    }

    /// Probes for ever, or until the container has to be ended.
    async fn probe(&self, reports: &watch::Sender<PodReport>) -> &'static str {
        if let Some(probe) = &self.plan.startup
            && !self.first_verdict(probe).await
        {
            return "its startup probe failed";
        }
        let readiness = async {
            match &self.plan.readiness {
                None => self.tell(reports, |report| report.ready = true),
                Some(probe) => {
                    self.each_verdict(probe, |ready| {
                        self.tell(reports, |report| report.ready = ready);
                        false
                    })
                    .await;
                }
            }
            std::future::pending::<()>().await;
        };
        let liveness = async {
            match &self.plan.liveness {
                None => std::future::pending().await,
                Some(probe) => self.each_verdict(probe, |alive| !alive).await,
            }
        };
        // Cancel-safe, both; the first never ends.
        tokio::select! {
            () = readiness => "its readiness probe ended",
            () = liveness => "its liveness probe failed",
        }
    }

    /// One that was ready stays so while it ends, for as long as its probe says so: it may be needed until others are
    /// ready. Never ends.
    async fn readiness_to_the_end(&self, reports: &watch::Sender<PodReport>) {
        let was_ready = reports.borrow().containers.get(self.index).is_some_and(|report| report.ready);
        if let Some(probe) = self.plan.readiness.as_ref().filter(|_| was_ready) {
            let tell = |ready| {
                self.tell(reports, |report| report.ready = ready);
                false
            };
            self.verdicts(probe, Pace::STEADY, tell).await;
        }
        std::future::pending().await
    }

    async fn first_verdict(&self, probe: &Probe) -> bool {
        let mut verdict = false;
        let take = |is| {
            verdict = is;
            true
        };
        self.each_verdict(probe, take).await;
        verdict
    }

    /// Asks again and again, and passes on each verdict until told that it is enough.
    async fn each_verdict(&self, probe: &Probe, enough: impl FnMut(bool) -> bool + Send) {
        sleep(probe.initial_delay).await;
        self.verdicts(probe, Pace::default(), enough).await;
    }

    fn standpoint(&self) -> Standpoint<'_> {
        Standpoint { node: &self.node, ip: self.ip, pod: &self.pod, env: &self.plan.env }
    }

    async fn verdicts(&self, probe: &Probe, mut pace: Pace, mut enough: impl FnMut(bool) -> bool + Send) {
        let mut tally = Tally::of(probe);
        loop {
            let success = probe.succeeds(&self.standpoint()).await;
            let (wait, counts) = pace.after(success, probe);
            if counts
                && let Some(verdict) = tally.count(success)
                && enough(verdict)
            {
                return;
            }
            sleep(wait).await;
        }
    }

    /// Ends the container as a kubelet does: its hook runs first, then it is asked to end, then it is ended. All of it
    /// has the pod's grace, and what its hook leaves of that is never less than [`AFTER_HOOK`].
    async fn end(&self, child: &mut Child) {
        let mut until = Instant::now() + self.grace;
        if let Some(hook) = &self.plan.pre_stop {
            let at = self.standpoint();
            // Cancel-safe: another wait finds the same end, and a hook's command is killed when it is dropped.
            tokio::select! {
                _ = child.wait() => return,
                () = hook.run(&at, self.grace) => {}
            }
            until = until.max(Instant::now() + AFTER_HOOK);
        }
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // It has not been waited for, so the number is still its own.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if timeout_at(until, child.wait()).await.is_err() {
            let _ = cgroup::kill(&self.cgroup);
            let _ = child.wait().await;
        }
    }
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crashing_container_waits_longer_each_time() {
        let mut delay = CrashDelay::default();
        let waits: Vec<u64> = (0..7).map(|_| delay.after(Duration::ZERO).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(delay.after(CrashDelay::STEADY), CrashDelay::FIRST);
    }
}
