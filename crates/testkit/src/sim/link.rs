//! What lies between two nodes.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::pipe::Pipe;

/// After how long a lost segment is sent again, the first time. Doubles with each further loss.
const RETRANSMIT: Duration = Duration::from_millis(200);
/// How often a segment is lost at most, so that every one arrives at last.
const LOSSES: u32 = 6;

#[derive(Debug)]
pub(super) struct Link {
    state: Mutex<State>,
    opened: Notify,
}

#[derive(Debug)]
struct State {
    rng: StdRng,
    latency: Range<Duration>,
    loss: f64,
    open: bool,
    /// What was under way while the link was closed arrives no sooner.
    not_before: Instant,
    pipes: Vec<Weak<Pipe>>,
    waiting: Vec<Waker>,
}

impl Link {
    /// An open link without loss: 50 to 200 µs between two nodes, next to nothing within one.
    pub(super) fn new(seed: u64, a: &str, b: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        (seed, a, b).hash(&mut hasher);
        let micros = if a == b { 1..5 } else { 50..200 };
        let state = State {
            rng: StdRng::seed_from_u64(hasher.finish()),
            latency: Duration::from_micros(micros.start)..Duration::from_micros(micros.end),
            loss: 0.0,
            open: true,
            not_before: Instant::now(),
            pipes: vec![],
            waiting: vec![],
        };
        Self { state: Mutex::new(state), opened: Notify::new() }
    }

    pub(super) fn tune(&self, latency: Range<Duration>, loss: f64) {
        let mut state = self.state.lock();
        state.latency = latency;
        state.loss = loss;
    }

    pub(super) fn close(&self) {
        self.state.lock().open = false;
    }

    pub(super) fn open(&self) {
        let mut state = self.state.lock();
        if !state.open {
            state.open = true;
            state.not_before = Instant::now() + RETRANSMIT;
        }
        state.waiting.drain(..).for_each(Waker::wake);
        self.opened.notify_waiters();
    }

    pub(super) fn cut(&self) {
        let pipes = std::mem::take(&mut self.state.lock().pipes);
        pipes.iter().filter_map(Weak::upgrade).for_each(|p| p.reset());
    }

    pub(super) fn carry(&self, pipe: &Arc<Pipe>) {
        let mut state = self.state.lock();
        state.pipes.retain(|p| p.strong_count() > 0);
        state.pipes.push(Arc::downgrade(pipe));
    }

    /// How long the next segment is under way.
    pub(super) fn delay(&self) -> Duration {
        let State { rng, latency, loss, .. } = &mut *self.state.lock();
        let mut delay = if latency.is_empty() { latency.start } else { rng.random_range(latency.clone()) };
        let mut again = RETRANSMIT;
        for _ in 0..LOSSES {
            if !rng.random_bool(*loss) {
                break;
            }
            delay += again;
            again *= 2;
        }
        delay
    }

    /// When what should arrive at `due` does; nothing, and a wake-up later, while the link is closed.
    pub(super) fn arrival(&self, due: Instant, waker: &Waker) -> Option<Instant> {
        let mut state = self.state.lock();
        if !state.open {
            state.waiting.push(waker.clone());
            return None;
        }
        Some(due.max(state.not_before))
    }

    /// Waits until the link is open.
    pub(super) async fn until_open(&self) {
        loop {
            let opened = self.opened.notified();
            if self.state.lock().open {
                return;
            }
            opened.await;
        }
    }
}
