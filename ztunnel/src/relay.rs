//! Relaying a connection that stands.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use net::{Meter, RelayError, Stream, relay};
use runtime::Span;
use telemetry::metrics::ResponseFlags;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::connections::{Ended, Ending};
use crate::quota::Account;

/// Why a connection that stood ended otherwise than by both ends' will.
#[derive(Debug, Error)]
pub enum BrokenOff {
    /// One end failed.
    #[error(transparent)]
    Failed(#[from] RelayError),
    /// The proxy ends, and its grace is over.
    #[error("the proxy ends")]
    Stopped,
    /// It is not to be any more.
    #[error(transparent)]
    Ended(Ending),
    /// Nothing passed for long.
    #[error("nothing passed for {0}")]
    Idle(Span),
    /// One half was closed, and nothing passed on the other for long.
    #[error("one half is closed, and nothing passed on the other for {0}")]
    HalfClosed(Span),
}

impl BrokenOff {
    /// How metrics tell it.
    pub fn response_flags(&self) -> ResponseFlags {
        match self {
            Self::Failed(_) | Self::Stopped | Self::Idle(_) | Self::HalfClosed(_) => ResponseFlags::None,
            Self::Ended(why) => why.response_flags(),
        }
    }
}

/// How long a connection may stand without a byte; zero is for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// While both halves are open: 24 h.
    pub idle: Duration,
    /// Once one half is closed: 15 min.
    pub half_closed: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { idle: Duration::from_secs(24 * 3600), half_closed: Duration::from_secs(15 * 60) }
    }
}

/// Runs a relay until it ends or has to. A relay that is dropped has told its meter of every byte that it passed.
pub(crate) async fn until_ended(
    relay: impl Future<Output = Result<(), BrokenOff>>,
    ended: &mut Ended,
    stop: &CancellationToken,
) -> Result<(), BrokenOff> {
    tokio::select! {
        // What is not to be says so, also where its ends break in the same moment.
        biased;
        why = ended.wait() => Err(BrokenOff::Ended(why)),
        result = relay => result,
        () = stop.cancelled() => Err(BrokenOff::Stopped),
    }
}

/// Relays until both directions have ended. If that fails, `client` will be dropped with a reset, so that nobody takes
/// the end for an orderly one; doing the same to `server` is the caller's part.
pub(crate) async fn joined<C: Stream, S: AsyncRead + AsyncWrite + Unpin>(
    client: &mut C,
    server: &mut S,
    meter: Watched<impl Meter>,
    ended: &mut Ended,
    stop: &CancellationToken,
) -> Result<(), BrokenOff> {
    let result = until_ended(patiently(client, server, meter), ended, stop).await;
    if result.is_err() {
        client.reset_on_drop();
    }
    result
}

/// Relays until both directions have ended, one end fails, or patience does.
pub(crate) async fn patiently<C, S>(
    client: &mut C,
    server: &mut S,
    meter: Watched<impl Meter>,
) -> Result<(), BrokenOff>
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    tokio::select! {
        ended = relay(client, server, &meter) => ended.map_err(BrokenOff::from),
        over = meter.until_over() => Err(over),
    }
}

/// A meter that sees whether anything passes, and answers for what waits in buffers.
pub(crate) struct Watched<M> {
    meter: M,
    account: Arc<Account>,
    patience: Patience,
    /// Changes with each byte that passes.
    passed: Cell<u64>,
    half_closed: Cell<bool>,
    held: Cell<u64>,
}

/// What was seen of a connection, and since when it has been so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    passed: u64,
    half_closed: bool,
    since: Instant,
}

impl Seen {
    /// What is seen now; it has been so for longer where nothing changed.
    fn now(self, passed: u64, half_closed: bool, now: Instant) -> Self {
        let same = (self.passed, self.half_closed) == (passed, half_closed);
        Self { passed, half_closed, since: if same { self.since } else { now } }
    }

    fn over(&self, patience: Patience, now: Instant) -> Option<BrokenOff> {
        let limit = if self.half_closed { patience.half_closed } else { patience.idle };
        if limit.is_zero() || now - self.since < limit {
            return None;
        }
        let span = Span(limit);
        Some(if self.half_closed { BrokenOff::HalfClosed(span) } else { BrokenOff::Idle(span) })
    }
}

impl<M: Meter> Watched<M> {
    pub(crate) fn new(meter: M, account: Arc<Account>, patience: Patience) -> Self {
        let (passed, half_closed, held) = Default::default();
        Self { meter, account, patience, passed, half_closed, held }
    }

    /// Ends when nothing has passed for so long that the connection is to be given up. It looks a few times in that span,
    /// which costs a connection in use nothing, and may give up a quarter of it late.
    async fn until_over(&self) -> BrokenOff {
        let Patience { idle, half_closed } = self.patience;
        let Some(shortest) = [idle, half_closed].into_iter().filter(|limit| !limit.is_zero()).min() else {
            return std::future::pending().await;
        };
        let mut seen = Seen { passed: 0, half_closed: false, since: Instant::now() };
        loop {
            sleep((shortest / 4).max(Duration::from_millis(1))).await;
            let now = Instant::now();
            seen = seen.now(self.passed.get(), self.half_closed.get(), now);
            if let Some(over) = seen.over(self.patience, now) {
                return over;
            }
        }
    }

    fn passes(&self, bytes: u64) {
        self.passed.set(self.passed.get().wrapping_add(bytes));
    }
}

impl<M: Meter> Meter for Watched<M> {
    fn count_received(&self, bytes: u64) {
        self.passes(bytes);
        self.meter.count_received(bytes);
    }

    fn count_sent(&self, bytes: u64) {
        self.passes(bytes);
        self.meter.count_sent(bytes);
    }

    fn half_closed(&self) {
        self.half_closed.set(true);
    }

    fn is_scarce(&self) -> bool {
        self.account.is_scarce()
    }

    fn hold(&self, bytes: usize) {
        self.held.set(self.held.get() + bytes as u64);
        self.account.hold(bytes as u64);
    }

    fn let_go(&self, bytes: usize) {
        self.held.set(self.held.get() - bytes as u64);
        self.account.let_go(bytes as u64);
    }
}

impl<M> Drop for Watched<M> {
    fn drop(&mut self) {
        if self.held.get() > 0 {
            self.account.let_go(self.held.get());
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::task::{LocalSet, spawn_local};
    use zds::PodUid;

    use super::*;
    use crate::quota::{Quotas, Resource};

    const PATIENCE: Patience =
        Patience { idle: Duration::from_secs(3600), half_closed: Duration::from_secs(60) };

    fn on_virtual_time(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        LocalSet::new().block_on(&runtime.unwrap(), test);
    }

    struct Rig {
        client: DuplexStream,
        server: DuplexStream,
        account: Arc<Account>,
        relay: tokio::task::JoinHandle<Result<(), BrokenOff>>,
    }

    fn rig(patience: Patience) -> Rig {
        let (client, mut client_side) = duplex(64);
        let (server, mut server_side) = duplex(64);
        let account = Quotas::default().account(&PodUid::new("a"));
        let meter = Watched::new(net::Traffic::default(), account.clone(), patience);
        let relay = spawn_local(async move { patiently(&mut client_side, &mut server_side, meter).await });
        Rig { client, server, account, relay }
    }

    #[test]
    fn a_connection_that_is_idle_for_long_is_given_up_and_one_in_use_is_not() {
        on_virtual_time(async {
            let Rig { mut client, mut server, relay, .. } = rig(PATIENCE);
            let started = Instant::now();
            for _ in 0..5 {
                sleep(PATIENCE.idle - Duration::from_secs(60)).await;
                client.write_all(b"x").await.unwrap();
                server.read_exact(&mut [0]).await.unwrap();
            }
            assert!(!relay.is_finished());
            let ended = relay.await.unwrap();
            assert!(matches!(ended, Err(BrokenOff::Idle(_))), "{ended:?}");
            let idle = started.elapsed() - 5 * (PATIENCE.idle - Duration::from_secs(60));
            assert!(idle >= PATIENCE.idle && idle <= PATIENCE.idle * 5 / 4, "{idle:?}");
        });
    }

    #[test]
    fn a_half_closed_connection_is_given_up_sooner() {
        on_virtual_time(async {
            let Rig { mut client, mut server, relay, .. } = rig(PATIENCE);
            let started = Instant::now();
            client.shutdown().await.unwrap();
            sleep(PATIENCE.half_closed / 2).await;
            server.write_all(b"still answering").await.unwrap();
            let ended = relay.await.unwrap();
            assert!(matches!(ended, Err(BrokenOff::HalfClosed(_))), "{ended:?}");
            assert!(started.elapsed() >= PATIENCE.half_closed * 3 / 2, "{:?}", started.elapsed());
            assert!(started.elapsed() <= PATIENCE.half_closed * 2);
        });
    }

    #[test]
    fn zero_is_patience_without_end() {
        on_virtual_time(async {
            let never = Patience { idle: Duration::ZERO, half_closed: Duration::ZERO };
            let Rig { mut client, server: _server, relay, .. } = rig(never);
            client.shutdown().await.unwrap();
            sleep(Duration::from_secs(30 * 24 * 3600)).await;
            assert!(!relay.is_finished());
        });
    }

    #[test]
    fn what_waits_for_a_slow_reader_is_on_the_pods_account_until_the_relay_ends() {
        on_virtual_time(async {
            let Rig { mut client, server, account, relay } = rig(PATIENCE);
            let writing = spawn_local(async move {
                let _ = client.write_all(&[7; 500]).await;
                client
            });
            sleep(Duration::from_millis(1)).await;
            assert!(account.used(Resource::Memory) >= 500, "{}", account.used(Resource::Memory));
            relay.abort();
            let _ = relay.await;
            assert_eq!(account.used(Resource::Memory), 0);
            drop((writing.await, server));
        });
    }
}
