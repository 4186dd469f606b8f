//! What the machine gives, and what the process has of it.

use std::time::Duration;

use super::{Machine, Quotas, Resource};
use crate::metrics::Metrics;

/// How often the process's memory is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Once it was too much, it must be so much less until it is not any more.
const EASE: (u64, u64) = (9, 10);

impl Machine {
    /// This machine, for a process that may have so many descriptors. The memory is the container's where it has a limit.
    pub fn here(descriptors: u64) -> Self {
        let whole = read("/proc/meminfo").and_then(|text| kilobytes(&text, "MemTotal:"));
        let container = read("/sys/fs/cgroup/memory.max").and_then(|text| text.trim().parse().ok());
        let memory = whole.into_iter().chain(container).min();
        if memory.is_none() {
            tracing::warn!("cannot tell how much memory there is, and take 1 GiB for it");
        }
        Self { descriptors, memory: memory.unwrap_or(1 << 30) }
    }
}

/// Watches the process's memory for as long as it is polled.
pub async fn watch(quotas: Quotas, metrics: Metrics) {
    let bound = quotas.bound(Resource::Memory).node;
    let mut pressed = false;
    loop {
        quotas.count();
        match read("/proc/self/status").and_then(|text| kilobytes(&text, "VmRSS:")) {
            Some(has) => {
                metrics.memory(has);
                let now = is_pressed(pressed, has, bound);
                if now != pressed {
                    tracing::warn!(has, bound, short = now, "the proxy's memory");
                }
                pressed = now;
                quotas.press(pressed);
            }
            None => {
                tracing::warn!("cannot tell how much memory the proxy has: its bound is not watched");
                return;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn is_pressed(before: bool, has: u64, bound: u64) -> bool {
    if before { has > bound / EASE.1 * EASE.0 } else { has > bound }
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// A line `Name:   123 kB`, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_understood() {
        let text = "MemTotal:       24678912 kB\nMemFree:  12 kB\n";
        assert_eq!(kilobytes(text, "MemTotal:"), Some(24_678_912 << 10));
        assert_eq!(kilobytes(text, "VmRSS:"), None);
        assert!(Machine::here(1).memory > 1 << 20);
    }

    #[test]
    fn it_must_get_better_by_a_tenth_before_it_is_good() {
        assert!(!is_pressed(false, 100, 100));
        assert!(is_pressed(false, 101, 100));
        assert!(is_pressed(true, 95, 100));
        assert!(!is_pressed(true, 90, 100));
    }
}
