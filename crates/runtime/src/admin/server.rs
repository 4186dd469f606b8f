//! A small HTTP server: few connections, short requests, nothing that a slow client can hold on to.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::Request;
use axum::middleware::map_request;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use telemetry::metrics::{PageEnd, PageMetrics};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::Tasks;
use crate::crowd::Crowd;

/// How many connections a port serves at a time. Where there is one more, one gives way ([`Crowd`]).
const CONNECTIONS: usize = 64;
/// How long a client may take to send its request's head, and to think between two requests.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a request's head may be. A longer one is answered with 431.
const HEAD: usize = 64 << 10;
/// How long one connection may live.
const LONGEST: Duration = Duration::from_secs(300);
/// The pause after an `accept` that failed for want of file descriptors: trying at once would spin.
const BREATH: Duration = Duration::from_millis(100);

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller(pub(super) SocketAddr);

/// The port could not be had.
#[derive(Debug, Error)]
#[error("cannot listen on {address}")]
pub struct BindError {
    /// Which address.
    pub address: SocketAddr,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Listens, before anything runs. `[::]` means both families, or IPv4 alone where the kernel has no IPv6.
///
/// # Errors
/// If the address is taken or not this machine's.
pub fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    let listener = TcpListener::bind(address).or_else(|error| {
        let v6_lacks = matches!(error.raw_os_error(), Some(AFNOSUPPORT | ADDRNOTAVAIL));
        if v6_lacks && address.ip() == Ipv6Addr::UNSPECIFIED {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port()))
        } else {
            Err(error)
        }
    });
    let prepared = listener.and_then(|l| l.set_nonblocking(true).map(|()| l));
    prepared.map_err(|source| BindError { address, source })
}

/// Listens beside another process of the same program, or waits to.
///
/// The port of a program that can hand over to another process: the two share it for a moment. While one listens, its
/// successor must not, which would get some of its callers; so that one has the port, and begins with [`Port::listen`].
///
/// # Errors
/// If the address is this machine's no more than for [`bind`], or taken by a program of another kind.
pub fn bind_beside(address: SocketAddr) -> Result<Port, BindError> {
    match bind(address) {
        Ok(listener) => {
            // From now on another process of this user may have the port, too.
            let shared = SockRef::from(&listener).set_reuse_port(true);
            shared.map_err(|source| BindError { address, source })?;
            Ok(Port::Listens(listener))
        }
        Err(taken) if taken.source.kind() == io::ErrorKind::AddrInUse => {
            Ok(Port::Waits(beside(address).map_err(|_| taken)?))
        }
        Err(error) => Err(error),
    }
}

fn beside(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// A port of a program that can hand over to another process of its kind.
#[derive(Debug)]
pub enum Port {
    /// Nobody else had it.
    Listens(TcpListener),
    /// Another process listens on it.
    Waits(Socket),
}

impl Port {
    /// Whether another process listens on it.
    pub fn waits(&self) -> bool {
        matches!(self, Self::Waits(_))
    }

    /// Listens, if it does not do so yet.
    ///
    /// # Errors
    /// The kernel's.
    pub fn listen(self) -> io::Result<TcpListener> {
        match self {
            Self::Listens(listener) => Ok(listener),
            Self::Waits(socket) => {
                socket.listen(CONNECTIONS as i32)?;
                Ok(socket.into())
            }
        }
    }
}

/// Linux's numbers, the same on every architecture that we build for.
const AFNOSUPPORT: i32 = 97;
const ADDRNOTAVAIL: i32 = 99;

/// Serves the routes on a listener until the stop signal, on the current runtime. After a handover nobody is taken any
/// more: they are the other process's.
///
/// # Errors
/// If the runtime cannot watch the listener, which must be non-blocking, as [`bind`] makes it.
pub fn serve(
    tasks: &Tasks,
    name: &'static str,
    listener: TcpListener,
    router: Router,
    metrics: &PageMetrics,
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (crowd, metrics) = (Crowd::of(CONNECTIONS), metrics.clone());
    metrics.served(name);
    let (stopping, handing_over, owner) = (tasks.stopping(), tasks.handing_over(), tasks.background());
    let accept = async move {
        loop {
            match listener.accept().await {
                Ok((stream, caller)) => {
                    let (place, metrics) = (crowd.enter(caller.ip()), metrics.clone());
                    let (serving, stopping) = (connection(stream, caller, router.clone()), owner.stopping());
                    owner.spawn(name, async move {
                        let ended = tokio::select! {
                            // All only wait; what is dropped is the connection itself.
                            ended = serving => ended,
                            () = place.displaced() => Some(PageEnd::Displaced),
                            () = stopping => None,
                        };
                        if let Some(why) = ended {
                            tracing::debug!(%caller, ?why, port = name, "ended a connection to a page");
                            metrics.ended(name, why);
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, port = name, "cannot accept");
                    sleep(BREATH).await;
                }
            }
        }
    };
    tasks.background().spawn(name, async move {
        tokio::select! {
            // The loop holds at most one connection that it has not handed on, which the stop ends anyway.
            () = accept => {}
            () = handing_over => {}
            () = stopping => {}
        }
    });
    Ok(())
}

/// Serves one caller; why it was ended, if not by him.
async fn connection(stream: TcpStream, caller: SocketAddr, router: Router) -> Option<PageEnd> {
    // What is asked for sets it: between two requests a client may go without a word.
    let asked = Arc::new(AtomicBool::new(false));
    let asks = asked.clone();
    let router = router.layer(Extension(Caller(caller))).layer(map_request(move |request: Request| {
        asks.store(true, Ordering::Relaxed);
        std::future::ready(request)
    }));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match timeout(LONGEST, serving).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => {
            tracing::debug!(%error, "connection to an admin port ended");
            (error.is_timeout() && !asked.load(Ordering::Relaxed)).then_some(PageEnd::Late)
        }
        Err(_) => Some(PageEnd::Long),
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::{Grace, Readiness};

    fn loopback() -> SocketAddr {
        (Ipv4Addr::LOCALHOST, 0).into()
    }

    #[tokio::test]
    async fn a_page_is_served_until_the_stop() {
        let (tasks, readiness) = (Tasks::default(), Readiness::default());
        let listener = bind(loopback()).unwrap();
        let address = listener.local_addr().unwrap();
        let page = Router::new().route("/", get(|| async { "here" }));
        serve(&tasks, "admin", listener, page, &PageMetrics::default()).unwrap();
        let mut idle = TcpStream::connect(address).await.unwrap();
        idle.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut first = [0; 12];
        idle.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        tasks.begin_drain();
        let grace = Grace { drain: Duration::ZERO, ..Grace::default() };
        assert_eq!(
            tasks.run_until_stopped(&readiness, grace).await,
            Ok(()),
            "an idle connection holds up nothing"
        );
    }

    #[tokio::test]
    async fn a_successor_listens_when_it_is_its_turn_and_not_before() {
        let (old, new) = (Tasks::default(), Tasks::default());
        let page = |body: &'static str| Router::new().route("/", get(move || async move { body }));
        let first = bind_beside(loopback()).unwrap();
        assert!(!first.waits());
        let first = first.listen().unwrap();
        let address = first.local_addr().unwrap();
        serve(&old, "admin", first, page("old"), &PageMetrics::default()).unwrap();
        let second = bind_beside(address).unwrap();
        assert!(second.waits());
        let asked = || async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer[answer.len() - 3..].to_owned()
        };
        for _ in 0..20 {
            assert_eq!(asked().await, "old");
        }
        serve(&new, "admin", second.listen().unwrap(), page("new"), &PageMetrics::default()).unwrap();
        old.handover_token().cancel();
        tokio::task::yield_now().await;
        for _ in 0..20 {
            assert_eq!(asked().await, "new");
        }
    }

    #[test]
    fn a_port_of_another_program_is_not_waited_for() {
        let taken = bind(loopback()).unwrap();
        let address = taken.local_addr().unwrap();
        assert_eq!(bind_beside(address).unwrap_err().to_string(), format!("cannot listen on {address}"));
    }

    #[test]
    fn a_taken_address_is_named() {
        let taken = bind(loopback()).unwrap();
        let address = taken.local_addr().unwrap();
        assert_eq!(bind(address).unwrap_err().to_string(), format!("cannot listen on {address}"));
    }

    /// A page that is served, and what counts its callers.
    fn page() -> (Tasks, SocketAddr, PageMetrics) {
        let (tasks, metrics) = (Tasks::default(), PageMetrics::default());
        let listener = bind(loopback()).unwrap();
        let address = listener.local_addr().unwrap();
        let page = Router::new().route("/", get(|| async { "here" }));
        serve(&tasks, "admin", listener, page, &metrics).unwrap();
        (tasks, address, metrics)
    }

    /// All that comes until the end, which must come.
    async fn heard(stream: &mut TcpStream) -> String {
        let mut heard = Vec::new();
        // A reset is an end, too.
        let _ = stream.read_to_end(&mut heard).await;
        String::from_utf8_lossy(&heard).into_owned()
    }

    const ASK: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

    #[tokio::test]
    async fn callers_that_only_hold_places_keep_nobody_out() {
        let (_tasks, address, metrics) = page();
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS + 10 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut meant = TcpStream::connect(address).await.unwrap();
        meant.write_all(ASK).await.unwrap();
        assert!(heard(&mut meant).await.ends_with("here"));
        for oldest in &mut silent[..11] {
            assert_eq!(heard(oldest).await, "");
        }
        assert_eq!(metrics.count("admin", PageEnd::Displaced), 11);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_trickles_is_given_up_and_counted() {
        let (_tasks, address, metrics) = page();
        let mut slow = TcpStream::connect(address).await.unwrap();
        let begun = tokio::time::Instant::now();
        let (mut read, mut write) = slow.split();
        let trickle = async {
            for byte in b"GET / HTTP/1.1\r\nhost: a-very-long-name-of-a-host" {
                write.write_all(&[*byte]).await.unwrap();
                sleep(Duration::from_secs(1)).await;
            }
        };
        let ended = async { read.read(&mut [0; 100]).await };
        tokio::select! {
            () = trickle => panic!("it may go on for ever"),
            ended = ended => assert!(!matches!(ended, Ok(1..)), "{ended:?}"),
        }
        assert!(begun.elapsed() <= PATIENCE + Duration::from_secs(2), "{:?}", begun.elapsed());
        assert_eq!(metrics.count("admin", PageEnd::Late), 1);
    }

    #[tokio::test]
    async fn a_head_that_is_too_long_is_refused() {
        let (_tasks, address, _) = page();
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: ").await.unwrap();
        // The rest may not go out any more.
        let _ = stream.write_all(&vec![b'a'; 2 * HEAD]).await;
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 431");
    }
}
