//! Wall-clock time as a fact that is passed in.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

/// Tells the wall-clock time. Certificates are judged by it, so that tests may judge them at any time.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Now.
    fn now(&self) -> SystemTime;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// A wall clock that goes with tokio's: it stands still and jumps where tokio's time is paused and advanced. Besides it can
/// be set, as machines' clocks are. Clones are the same clock.
#[derive(Clone, Debug)]
pub struct TokioClock {
    origin: SystemTime,
    start: tokio::time::Instant,
    /// By how many seconds it was set ahead, or back.
    set_by: Arc<AtomicI64>,
}

impl TokioClock {
    /// A clock that shows `origin` now.
    pub fn starting_at(origin: SystemTime) -> Self {
        Self { origin, start: tokio::time::Instant::now(), set_by: Arc::default() }
    }

    /// Sets it ahead by so many seconds, or back.
    pub fn set_by(&self, seconds: i64) {
        self.set_by.fetch_add(seconds, Ordering::Relaxed);
    }
}

impl Clock for TokioClock {
    fn now(&self) -> SystemTime {
        let set_by = self.set_by.load(Ordering::Relaxed);
        let by = Duration::from_secs(set_by.unsigned_abs());
        let unset = self.origin + self.start.elapsed();
        if set_by < 0 { unset - by } else { unset + by }
    }
}

/// The same clock for the TLS library.
#[derive(Debug)]
pub(crate) struct TlsTime(pub(crate) Arc<dyn Clock>);

impl TimeProvider for TlsTime {
    fn current_time(&self) -> Option<UnixTime> {
        unix(self.0.now())
    }
}

/// Nothing before 1970.
pub(crate) fn unix(time: SystemTime) -> Option<UnixTime> {
    time.duration_since(SystemTime::UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
}
