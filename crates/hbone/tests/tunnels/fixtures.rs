//! A pool and the servers it reaches, in one thread.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use hbone::client::{ConnectRequest, Connector, Holder, Key, Pool, Reached};
use hbone::{Settings, TransportError, server};
use model::{IdentitySet, SpiffeId, Uid};
use tokio::io::{DuplexStream, duplex};
use tokio::sync::{Notify, mpsc};
use tokio::task::spawn_local;
use tokio::time::Instant;

pub(crate) type Connection = server::Connection<DuplexStream>;

pub(crate) fn id(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

pub(crate) fn key(host: u8) -> Key {
    Key {
        source: id("client"),
        destinations: IdentitySet::one(id("server")),
        address: SocketAddr::from((Ipv4Addr::new(10, 0, 0, host), 15008)),
        source_ip: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)),
        holder: Holder { uid: Uid::new(format!("server-{host}")), tenancy: 1 },
    }
}

pub(crate) fn request() -> ConnectRequest {
    ConnectRequest::to("10.0.0.2:8080".parse().unwrap())
}

/// Hands the far end of each pipe that the pool opens to whoever plays the peer.
#[derive(Clone)]
pub(crate) struct Pipes {
    peers: mpsc::UnboundedSender<DuplexStream>,
    pub(crate) opened: Rc<Cell<usize>>,
    /// For how long connections take streams.
    pub(crate) life: Rc<Cell<Option<Duration>>>,
    /// The peers up to this number are accepted no more.
    pub(crate) refused: Rc<Cell<usize>>,
    /// What happens to the next attempts, before they succeed.
    pub(crate) fate: Rc<RefCell<VecDeque<Fate>>>,
    /// Why those were lost that have been.
    pub(crate) lost: Rc<RefCell<Vec<TransportError>>>,
}

#[derive(Clone)]
pub(crate) enum Fate {
    Fail(io::ErrorKind),
    Wait(Rc<Notify>),
    Never,
}

impl Connector for Pipes {
    type Io = DuplexStream;
    /// Its number.
    type Peer = usize;
    type Error = io::Error;

    async fn connect(&self, _: &Key) -> io::Result<Reached<DuplexStream, usize>> {
        self.opened.set(self.opened.get() + 1);
        let fate = self.fate.borrow_mut().pop_front();
        match fate {
            Some(Fate::Fail(kind)) => return Err(kind.into()),
            Some(Fate::Wait(gate)) => gate.notified().await,
            Some(Fate::Never) => std::future::pending().await,
            None => {}
        }
        let (near, far) = duplex(256 << 10);
        self.peers.send(far).map_err(|_| io::ErrorKind::ConnectionRefused)?;
        let until = self.life.get().map(|life| Instant::now() + life);
        Ok(Reached { until, ..Reached::new(near, self.opened.get()) })
    }

    fn holds(&self, peer: &usize) -> bool {
        *peer > self.refused.get()
    }

    fn lost(&self, _: &Key, why: &TransportError) {
        self.lost.borrow_mut().push(why.clone());
    }
}

/// A pool, its connector, and the pipes' far ends in the order of their opening.
pub(crate) struct Bench {
    pub(crate) pool: Pool<Pipes>,
    pub(crate) pipes: Pipes,
    pub(crate) peers: mpsc::UnboundedReceiver<DuplexStream>,
}

pub(crate) fn bench(settings: Settings) -> Bench {
    let (peers, far) = mpsc::unbounded_channel();
    let pipes = Pipes {
        peers,
        opened: Rc::default(),
        life: Rc::default(),
        refused: Rc::default(),
        fate: Rc::default(),
        lost: Rc::default(),
    };
    Bench { pool: Pool::new(pipes.clone(), settings), pipes, peers: far }
}

impl Bench {
    /// A bench whose peers accept every tunnel and send back what they get.
    pub(crate) fn echoing(settings: Settings) -> Self {
        let mut bench = bench(settings);
        let (_, closed) = mpsc::unbounded_channel();
        let mut peers = std::mem::replace(&mut bench.peers, closed);
        spawn_local(async move {
            while let Some(io) = peers.recv().await {
                spawn_local(async move { echo(handshake(io).await).await });
            }
        });
        bench
    }

    /// The next connection, as its peer has it.
    pub(crate) async fn peer(&mut self) -> Connection {
        handshake(self.peers.recv().await.unwrap()).await
    }

    pub(crate) fn opened(&self) -> usize {
        self.pipes.opened.get()
    }
}

pub(crate) async fn handshake(io: DuplexStream) -> Connection {
    Connection::handshake(io, &Settings::default()).await.unwrap()
}

/// Serves a connection until its end.
pub(crate) async fn echo(mut connection: Connection) {
    while let Ok(Some(request)) = connection.accept().await {
        let mut tunnel = request.accept(None).unwrap();
        spawn_local(async move {
            let (mut read, mut write) = tokio::io::split(&mut tunnel);
            if tokio::io::copy(&mut read, &mut write).await.is_ok() {
                let _ = tokio::io::AsyncWriteExt::shutdown(&mut write).await;
            }
        });
    }
}

/// Serves a connection by a function, a task each request; returns when the connection ends.
pub(crate) async fn serve<F: Future<Output = ()> + 'static>(
    mut connection: Connection,
    each: impl Fn(server::ConnectRequest) -> F,
) -> Result<(), TransportError> {
    while let Some(request) = connection.accept().await? {
        spawn_local(each(request));
    }
    Ok(())
}

/// Waits for `work` while the connection moves its bytes and takes no new request.
pub(crate) async fn meanwhile<T>(connection: &mut Connection, work: impl Future<Output = T>) -> T {
    tokio::select! {
        biased;
        done = work => done,
        next = connection.accept() => panic!("unexpected: {next:?}"),
    }
}

/// Lets every task run that has something to do, without letting time pass.
pub(crate) async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

pub(crate) const MINUTE: Duration = Duration::from_secs(60);
