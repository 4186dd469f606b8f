//! Accepting connections, and not being able to.

use std::io;
use std::time::Duration;

use net::{Accepted, Listener};
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};

use crate::metrics::Metrics;

/// How many connections of a pod are accepted before others get their turn.
const TURN: u32 = 16;

const PAUSE_FIRST: Duration = Duration::from_millis(10);
const PAUSE_LONGEST: Duration = Duration::from_secs(1);

/// How long nothing more must come before a listener is closed.
const QUIET: Duration = Duration::from_millis(5);
/// How long closing may take, whatever still comes.
const CLOSING: Duration = Duration::from_millis(100);

/// Gives each connection to `take`, until `over`, and then those that had been queued by then: closing the listener would
/// reset them.
///
/// Where nothing can be accepted (no descriptors, no memory) it pauses, longer each time: the connections wait in the
/// kernel's queue meanwhile.
pub(crate) async fn accept<L: Listener>(
    listener: &L,
    metrics: &Metrics,
    take: impl Fn(Accepted<L::Stream>),
    over: impl Future<Output = ()>,
) {
    tokio::select! {
        // Accepting is cancel-safe; a pause may be cut short.
        () = accept_all(listener, metrics, &take) => {}
        () = over => {}
    }
    let queued = async {
        while let Ok(Ok(accepted)) = timeout(QUIET, listener.accept()).await {
            take(accepted);
        }
    };
    // Whoever comes faster than that is reset, and has to come again.
    let _ = timeout(CLOSING, queued).await;
}

async fn accept_all<L: Listener>(listener: &L, metrics: &Metrics, take: &impl Fn(Accepted<L::Stream>)) {
    let mut pause = PAUSE_FIRST;
    let mut in_a_row = 0;
    loop {
        match listener.accept().await {
            Ok(accepted) => {
                pause = PAUSE_FIRST;
                take(accepted);
                in_a_row += 1;
                if in_a_row >= TURN {
                    in_a_row = 0;
                    yield_now().await;
                }
            }
            Err(error) if is_the_connections_own(&error) => {
                tracing::debug!(%error, "a connection ended before it was accepted");
            }
            Err(error) => {
                metrics.accept_failed(&error);
                if pause == PAUSE_FIRST {
                    tracing::warn!(%error, "cannot accept connections: they wait until that is over");
                }
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE_LONGEST);
            }
        }
    }
}

/// Errors that `accept(2)` passes on from the connection that it would have returned.
fn is_the_connections_own(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::ECONNRESET
                | libc::ENETDOWN
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::EOPNOTSUPP
                | libc::ENETUNREACH
                | libc::ENOTCONN
                | libc::EPERM
        )
    )
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use parking_lot::Mutex;
    use telemetry::metrics::{Exposition, Registry};
    use tokio::io::DuplexStream;

    use super::*;

    struct Pipe(DuplexStream);

    impl tokio::io::AsyncRead for Pipe {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
            buf: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            std::pin::Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    impl tokio::io::AsyncWrite for Pipe {
        fn poll_write(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
            buf: &[u8],
        ) -> std::task::Poll<io::Result<usize>> {
            std::pin::Pin::new(&mut self.0).poll_write(cx, buf)
        }

        fn poll_flush(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            std::pin::Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            std::pin::Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    impl net::Stream for Pipe {
        fn reset_on_drop(&self) {}
    }

    /// Fails with each error in turn, then gives one connection, then nothing more.
    struct Failing(Mutex<Vec<i32>>);

    impl Listener for Failing {
        type Stream = Pipe;

        async fn accept(&self) -> io::Result<Accepted<Pipe>> {
            let next = self.0.lock().pop();
            match next {
                Some(0) => {
                    let addr = ([127, 0, 0, 1], 1).into();
                    Ok(Accepted { stream: Pipe(tokio::io::duplex(1).0), peer: addr, original_dst: addr })
                }
                Some(errno) => Err(io::Error::from_raw_os_error(errno)),
                None => std::future::pending().await,
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_queued_is_still_taken() {
        let listener = Failing(Mutex::new(vec![0, 0, 0]));
        let taken = Cell::new(0);
        accept(&listener, &Metrics::default(), |_| taken.set(taken.get() + 1), std::future::ready(())).await;
        assert_eq!(taken.get(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn want_of_descriptors_is_counted_and_waited_out() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let listener = Failing(Mutex::new(vec![0, libc::EMFILE, libc::ECONNABORTED, libc::EMFILE]));
        let taken = Rc::new(Cell::new(0));
        let started = tokio::time::Instant::now();
        let done = async {
            while taken.get() == 0 {
                yield_now().await;
                tokio::time::advance(Duration::from_millis(1)).await;
            }
        };
        accept(&listener, &metrics, |_| taken.set(taken.get() + 1), done).await;
        assert!(started.elapsed() >= Duration::from_millis(30), "10 ms, then 20 ms");
        let text = Exposition::new(registry).render(None).body;
        assert!(text.contains("ambit_accept_errors_total{cause=\"descriptors\"} 2"), "{text}");
    }
}
