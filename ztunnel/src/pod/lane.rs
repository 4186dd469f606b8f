//! Turns: a pod's work on a shard goes in a lane of its own.
//!
//! A shard has one queue of tasks. If each connection were one, a pod with a thousand busy connections would get a
//! thousand turns for each one of a pod with a single connection. So a pod is one task, which runs what of the pod's work
//! is ready until its turn is over, and then lets the other pods go first.

use std::cell::{Cell, RefCell};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::task::coop::has_budget_remaining;
use tokio::time::Instant;

/// How long a turn lasts. What is running when it ends comes to its next wait, so that one turn may take a little longer.
const TURN: Duration = Duration::from_micros(100);
/// How much work is taken up in one turn at most.
const STEPS: u32 = 128;

type Work = Pin<Box<dyn Future<Output = ()>>>;

/// Takes a pod's work. Dropping it ends the lane once all its work has come to its end.
pub(crate) struct Lane(Rc<Inner>);

/// Takes work too, and does not keep the lane open.
#[derive(Clone)]
pub(crate) struct Side(Rc<Inner>);

#[derive(Default)]
struct Inner {
    /// Work that the lane has not seen yet.
    inbox: RefCell<Vec<Work>>,
    waker: RefCell<Option<Waker>>,
    state: Cell<State>,
    turn: Turn,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// Nobody gives it work any more but the work itself.
    Closing,
    Ended,
}

#[derive(Default)]
struct Turn {
    until: Cell<Option<Instant>>,
    left: Cell<u32>,
}

impl Turn {
    fn begin(&self) {
        self.until.set(Some(Instant::now() + TURN));
        self.left.set(STEPS);
    }

    /// Whether another step may be taken in this turn.
    fn step(&self) -> bool {
        let left = self.left.get();
        let goes_on = left > 0
            && has_budget_remaining()
            && self.until.get().is_some_and(|until| Instant::now() < until);
        // Over is over, also for what asks again in this turn.
        self.left.set(if goes_on { left - 1 } else { 0 });
        goes_on
    }
}

impl Lane {
    /// A lane, and what runs its work: a future to be spawned on the thread that the work belongs to.
    pub(crate) fn new() -> (Self, impl Future<Output = ()>) {
        let inner = Rc::new(Inner::default());
        (Self(inner.clone()), run(inner))
    }

    /// Gives it work, which goes on after whatever is given it is dropped.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + 'static) {
        self.0.take(Box::pin(work));
    }

    /// A handle that does not keep the lane open.
    pub(crate) fn side(&self) -> Side {
        Side(self.0.clone())
    }
}

impl Side {
    /// Gives the lane work, or, where it has ended, the thread.
    pub(crate) fn spawn(&self, work: Work) {
        if self.0.state.get() == State::Ended {
            tokio::task::spawn_local(work);
        } else {
            self.0.take(work);
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.0.state.set(State::Closing);
        self.0.wake();
    }
}

impl Inner {
    fn take(&self, work: Work) {
        self.inbox.borrow_mut().push(work);
        self.wake();
    }

    fn wake(&self) {
        // Nobody to be woken while the lane runs: it looks before it waits.
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

async fn run(inner: Rc<Inner>) {
    let mut work = FuturesUnordered::new();
    std::future::poll_fn(|cx| {
        inner.turn.begin();
        loop {
            for future in inner.inbox.take() {
                work.push(Step { inner: inner.clone(), work: future });
            }
            match work.poll_next_unpin(cx) {
                Poll::Ready(Some(())) => {}
                Poll::Ready(None) | Poll::Pending if !inner.inbox.borrow().is_empty() => {}
                Poll::Ready(None) if inner.state.get() == State::Closing => {
                    inner.state.set(State::Ended);
                    return Poll::Ready(());
                }
                Poll::Ready(None) | Poll::Pending => {
                    *inner.waker.borrow_mut() = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
        }
    })
    .await;
}

/// One piece of work, which waits while the turn is another's.
struct Step {
    inner: Rc<Inner>,
    work: Work,
}

impl Future for Step {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if !self.inner.turn.step() {
            // To the end of the pod's own queue. The lane takes two of these for the sign that it is to let others go first.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        // A piece that panics ends alone, as a task of its own would.
        let work = AssertUnwindSafe(|| self.work.as_mut().poll(cx));
        std::panic::catch_unwind(work).unwrap_or_else(|_| {
            tracing::error!("a connection's work panicked and was given up");
            Poll::Ready(())
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;
    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::*;

    fn lane() -> Lane {
        let (lane, run) = Lane::new();
        spawn_local(run);
        lane
    }

    /// A pod whose pieces of work are always ready, as many as asked.
    fn busy(pieces: usize) -> Lane {
        let lane = lane();
        for _ in 0..pieces {
            lane.spawn(async {
                loop {
                    yield_now().await;
                }
            });
        }
        lane
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_with_much_to_do_gets_one_turn_as_any_other() {
        LocalSet::new()
            .run_until(async {
                let steps = Rc::new(Cell::new(0u64));
                let greedy = lane();
                for _ in 0..10_000 {
                    let steps = steps.clone();
                    greedy.spawn(async move {
                        loop {
                            steps.set(steps.get() + 1);
                            let mut first = true;
                            std::future::poll_fn(|cx| {
                                cx.waker().wake_by_ref();
                                if std::mem::take(&mut first) { Poll::Pending } else { Poll::Ready(()) }
                            })
                            .await;
                        }
                    });
                }
                let modest = lane();
                let (done, over) = oneshot::channel();
                modest.spawn(async move {
                    for _ in 0..10 {
                        yield_now().await;
                    }
                    let _ = done.send(());
                });
                over.await.unwrap();
                let turns = steps.get() / u64::from(STEPS);
                assert!(turns <= 40, "ten turns of the one took {turns} of the other");
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn all_work_of_a_lane_gets_on() {
        LocalSet::new()
            .run_until(async {
                let lane = busy(300);
                let done = Rc::new(Cell::new(0));
                for _ in 0..300 {
                    let done = done.clone();
                    lane.spawn(async move {
                        for _ in 0..20 {
                            yield_now().await;
                        }
                        done.set(done.get() + 1);
                    });
                }
                for _ in 0..20_000 {
                    yield_now().await;
                }
                assert_eq!(done.get(), 300);
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn work_goes_on_without_its_lane_and_a_panic_ends_one_piece() {
        LocalSet::new()
            .run_until(async {
                let (lane, run) = Lane::new();
                let running = spawn_local(run);
                let (done, over) = oneshot::channel();
                lane.spawn(async { panic!("on purpose") });
                lane.spawn(async move {
                    yield_now().await;
                    let _ = done.send(());
                });
                let side = lane.side();
                drop(lane);
                over.await.unwrap();
                running.await.unwrap();
                let (done, over) = oneshot::channel();
                side.spawn(Box::pin(async move {
                    let _ = done.send(());
                }));
                over.await.unwrap();
            })
            .await;
    }
}
