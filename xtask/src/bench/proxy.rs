//! What the two proxies spend: CPU time and memory, from /proc.

use std::fs;
use std::ops::Sub;
use std::time::Duration;

use anyhow::Context as _;

/// The client's and the server's node proxies, by process.
#[derive(Debug)]
pub(super) struct Proxies {
    source: i32,
    destination: i32,
}

/// A figure for each of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Both<T> {
    pub(super) source: T,
    pub(super) destination: T,
}

impl Sub for Both<Duration> {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            source: self.source.saturating_sub(before.source),
            destination: self.destination.saturating_sub(before.destination),
        }
    }
}

impl Proxies {
    pub(super) fn new(source: i32, destination: i32) -> Self {
        Self { source, destination }
    }

    /// CPU time used so far, user's and kernel's.
    pub(super) fn cpu(&self) -> anyhow::Result<Both<Duration>> {
        self.both(|pid| {
            let path = format!("/proc/{pid}/stat");
            let stat = fs::read_to_string(&path).with_context(|| path.clone())?;
            cpu_time(&stat, ticks_per_second()).with_context(|| path)
        })
    }

    /// Resident memory, in bytes.
    pub(super) fn memory(&self) -> anyhow::Result<Both<u64>> {
        self.both(|pid| {
            let path = format!("/proc/{pid}/status");
            let status = fs::read_to_string(&path).with_context(|| path.clone())?;
            resident(&status).with_context(|| path)
        })
    }

    fn both<T>(&self, read: impl Fn(i32) -> anyhow::Result<T>) -> anyhow::Result<Both<T>> {
        Ok(Both { source: read(self.source)?, destination: read(self.destination)? })
    }
}

fn ticks_per_second() -> u64 {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
    ticks.ok().flatten().and_then(|t| t.try_into().ok()).unwrap_or(100)
}

/// Fields 14 and 15 of proc_pid_stat(5); the second field, a name in parentheses, may contain anything.
fn cpu_time(stat: &str, ticks_per_second: u64) -> Option<Duration> {
    let after_name = stat.rsplit_once(") ")?.1;
    let mut fields = after_name.split(' ').skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(Duration::from_millis((user + system) * 1000 / ticks_per_second))
}

fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_the_users_and_the_kernels() {
        let stat = "12 (a b) c) S 1 12 12 0 -1 4194560 100 0 0 0 150 50 7 7 20 0 3 0 100 0 0";
        assert_eq!(cpu_time(stat, 100), Some(Duration::from_secs(2)));
    }

    #[test]
    fn memory_is_what_is_resident() {
        assert_eq!(resident("VmPeak:\t 9 kB\nVmRSS:\t    5120 kB\n"), Some(5 << 20));
        assert_eq!(resident("State: Z (zombie)\n"), None);
    }
}
