//! The stages of a chore: each is announced and says how long it took.

use std::time::Duration;

/// Time for people and for measurements; nothing is decided by it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch(std::time::Instant);

impl Stopwatch {
    #[expect(clippy::disallowed_methods, reason = "real time is what is measured")]
    pub(crate) fn start() -> Self {
        Self(std::time::Instant::now())
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Runs a stage and tells its time, whatever came of it.
pub(crate) fn run<T>(name: &str, work: impl FnOnce() -> T) -> T {
    eprintln!("\n== {name}");
    let begun = Stopwatch::start();
    let result = work();
    eprintln!("== {name}: {}", seconds(begun.elapsed()));
    result
}

/// `7.3 s`, or `2 min 5 s`.
pub(crate) fn seconds(time: Duration) -> String {
    let secs = time.as_secs_f64();
    if secs < 100.0 {
        return format!("{secs:.1} s");
    }
    let whole = time.as_secs();
    format!("{} min {} s", whole / 60, whole % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_reads_well_when_short_and_when_long() {
        assert_eq!(seconds(Duration::from_millis(7310)), "7.3 s");
        assert_eq!(seconds(Duration::from_secs(125)), "2 min 5 s");
    }
}
