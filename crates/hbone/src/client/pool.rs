//! The pool's shell: it opens what the core asks for and hands out tunnels.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::task::Poll;

use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::connection::{Connection, Opener};
use super::core::{Checkout, ConnectionId, Core, Reap};
use super::{ConnectRequest, Connector, Key, OpenError, Opened, Shared};
use crate::headers;
use crate::keepalive::Inquiry;
use crate::witness::Notes;
use crate::{Settings, TransportError, Tunnel};

/// How often a stream looks for a place before it gives up: each further look means that a connection came to stand and
/// took fewer streams than had waited for it, or was about to leave.
const LOOKS: usize = 8;

/// Connections to peers, shared by the streams of one source workload on one thread. A clone is another handle.
///
/// [`Self::open`] must run where `spawn_local` works. Dropping the last handle lets the open tunnels run on and then
/// closes their connections; [`Self::abort`] ends them.
pub struct Pool<C: Connector> {
    inner: Rc<Inner<C>>,
}

/// What a pool holds, for metrics and dumps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolCounts {
    /// Connections that stand or are being opened.
    pub connections: usize,
    /// Streams on them, those still waiting included.
    pub streams: usize,
}

struct Inner<C: Connector> {
    connector: Rc<C>,
    settings: Settings,
    books: Rc<RefCell<Core<Key>>>,
    live: RefCell<HashMap<ConnectionId, Live<C>>>,
    tasks: TaskTracker,
    spawn: Box<dyn Fn(Work)>,
    stop: CancellationToken,
}

/// A connection's task.
type Work = Pin<Box<dyn Future<Output = ()>>>;

/// A connection as the pool knows it.
enum Live<C: Connector> {
    Opening(watch::Receiver<Outcome<C>>),
    Open(Opener<C::Peer>),
}

/// Nothing while the connection is being opened. A sender that went away without an outcome was stopped.
type Outcome<C> = Option<Result<Opener<<C as Connector>::Peer>, Failure<<C as Connector>::Error>>>;

enum Failure<E> {
    Connect(Shared<E>),
    ConnectTimeout,
    Handshake(TransportError),
}

/// A place on a connection, given back on drop.
pub(crate) struct Slot {
    books: Rc<RefCell<Core<Key>>>,
    id: ConnectionId,
    taken_back: bool,
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !self.taken_back {
            self.books.borrow_mut().release(self.id, Instant::now());
        }
    }
}

/// A place on a standing connection.
struct Place<Peer> {
    slot: Slot,
    opener: Opener<Peer>,
    /// Whether the connection stood before the stream came.
    reused: bool,
}

impl<C: Connector> Pool<C> {
    /// An empty pool.
    pub fn new(connector: C, settings: Settings) -> Self {
        Self::spawning(connector, settings, |work| drop(tokio::task::spawn_local(work)))
    }

    /// An empty pool, whose connections are driven by what `spawn` makes of their tasks.
    pub fn spawning(connector: C, settings: Settings, spawn: impl Fn(Work) + 'static) -> Self {
        let books = Core::new(settings.streams_per_connection, settings.idle_release);
        Self {
            inner: Rc::new(Inner {
                connector: Rc::new(connector),
                settings,
                books: Rc::new(RefCell::new(books)),
                live: RefCell::default(),
                tasks: TaskTracker::new(),
                spawn: Box::new(spawn),
                stop: CancellationToken::new(),
            }),
        }
    }

    /// Opens a tunnel, on a connection that stands if one has room.
    ///
    /// Streams that find none wait for the same new connection, which goes on being opened if they give up. A stream that
    /// the peer did not take up (it is leaving, or refuses more streams), or whose connection turns out to be dead, is
    /// tried once more on another connection. Cancel-safe: dropping the future gives the stream up.
    pub async fn open(
        &self,
        key: &Key,
        request: &ConnectRequest,
    ) -> Result<Opened<C::Peer>, OpenError<C::Error>> {
        let place = self.place(key, request.alternatives).await?;
        let (id, reused) = (place.slot.id, place.reused);
        let Lost { error, notes } = match self.send(place, request).await {
            Err(Attempt::Lost(lost)) => lost,
            Err(Attempt::Silent) => {
                self.inner.forget(id);
                if request.alternatives {
                    return Err(OpenError::Silent);
                }
                debug!(address = %key.address, "the peer is silent, trying another connection");
                return self.again(key, request).await;
            }
            other => return other.map_err(Attempt::finish),
        };
        let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
        if refused {
            self.inner.books.borrow_mut().refused(id);
            self.inner.forget_useless(id);
        } else if !error.is_reset() {
            // The connection is leaving or gone, or no stream can be opened on it any more.
            self.inner.forget(id);
        }
        let unprocessed = refused || (error.is_go_away() && error.is_remote());
        let stale = reused && !error.is_reset();
        if !(unprocessed || stale) {
            return Err(OpenError::Lost(notes.resolve(error)));
        }
        debug!(reason = %error, "stream not taken up, trying another connection");
        self.again(key, request).await
    }

    /// The second and last attempt.
    async fn again(
        &self,
        key: &Key,
        request: &ConnectRequest,
    ) -> Result<Opened<C::Peer>, OpenError<C::Error>> {
        let place = self.place(key, request.alternatives).await?;
        let id = place.slot.id;
        let sent = self.send(place, request).await;
        if matches!(sent, Err(Attempt::Silent)) {
            self.inner.forget(id);
        }
        sent.map_err(Attempt::finish)
    }

    /// What the pool holds.
    pub fn counts(&self) -> PoolCounts {
        let (connections, streams) = self.inner.books.borrow().counts();
        PoolCounts { connections, streams }
    }

    /// Lets go of the connections whose peers would be accepted no more. They close with the last of their streams.
    pub fn sweep(&self) {
        let refused = |(id, live): (&ConnectionId, &Live<C>)| match live {
            Live::Open(opener) if !self.inner.connector.holds(&opener.peer) => Some(*id),
            // Who is being reached is being checked.
            _ => None,
        };
        let refused: Vec<_> = self.inner.live.borrow().iter().filter_map(refused).collect();
        refused.into_iter().for_each(|id| self.inner.forget(id));
    }

    /// Opens nothing more and closes the connections as their tunnels end. Ready when all have ended.
    pub async fn drain(&self) {
        self.inner.tasks.close();
        let live = std::mem::take(&mut *self.inner.live.borrow_mut());
        for id in live.keys() {
            self.inner.books.borrow_mut().drain(*id);
        }
        drop(live);
        self.inner.tasks.wait().await;
    }

    /// Opens nothing more and ends all connections at once, their tunnels with them.
    pub fn abort(&self) {
        self.inner.tasks.close();
        self.inner.stop.cancel();
        self.inner.live.borrow_mut().clear();
    }

    /// A place on a connection that stands, opened for this if need be.
    async fn place(&self, key: &Key, in_a_hurry: bool) -> Result<Place<C::Peer>, OpenError<C::Error>> {
        let inner = &self.inner;
        for _ in 0..LOOKS {
            if inner.tasks.is_closed() {
                return Err(OpenError::Closed);
            }
            let now = Instant::now();
            let checkout = inner.books.borrow_mut().checkout(key, now);
            let (Checkout::Use(id) | Checkout::Join(id) | Checkout::Open(id)) = checkout;
            let mut slot = Slot { books: Rc::clone(&inner.books), id, taken_back: false };
            if let Checkout::Open(id) = checkout {
                inner.start(id, key.clone());
            }
            let reused = matches!(checkout, Checkout::Use(_));
            let opener = if reused { inner.opener(id) } else { Some(inner.stands(id, in_a_hurry).await?) };
            let Some(mut opener) = opener else { continue };
            if !inner.connector.holds(&opener.peer) {
                inner.forget(id);
                debug!("the connection's peer is accepted no more");
                continue;
            }
            // Not a wait: a connection on which a stream cannot be opened now is leaving or gone.
            let ready = poll_fn(|cx| Poll::Ready(opener.send.poll_ready(cx))).await;
            if let Poll::Ready(Err(error)) = ready {
                inner.forget(id);
                if !reused {
                    return Err(OpenError::Lost(opener.notes.resolve(error)));
                }
                debug!(reason = %error, "connection takes no more streams");
                continue;
            }
            let mut books = inner.books.borrow_mut();
            books.limit(id, opener.send.current_max_send_streams());
            if books.admit(id, now) {
                drop(books);
                return Ok(Place { slot, opener, reused });
            }
            drop(books);
            slot.taken_back = true;
            inner.forget_useless(id);
        }
        Err(OpenError::Lost(TransportError::Ended(h2::Reason::REFUSED_STREAM.into())))
    }

    async fn send(
        &self,
        place: Place<C::Peer>,
        request: &ConnectRequest,
    ) -> Result<Opened<C::Peer>, Attempt<C::Error>> {
        let Place { slot, opener: Opener { mut send, peer, notes, inquiry }, .. } = place;
        let request = headers::write_request(request).ok_or(Attempt::Failed(OpenError::Authority))?;
        let lost = |error| Attempt::Lost(Lost { error, notes: notes.clone() });
        let (answer, body) = send.send_request(request, false).map_err(lost)?;
        notes.opened();
        // A handle for new streams would keep an idle connection from closing.
        drop(send);
        let answer = self.inner.answer(answer, &inquiry).await?.map_err(lost)?;
        let status = answer.status();
        if !status.is_success() {
            return Err(Attempt::Failed(OpenError::Refused { status: status.as_u16() }));
        }
        let baggage = headers::read_baggage(answer.headers());
        Ok(Opened { tunnel: Tunnel::new(body, answer.into_body(), Some(slot)), peer, baggage })
    }
}

/// What became of one attempt to open a stream.
enum Attempt<E> {
    /// Final.
    Failed(OpenError<E>),
    /// Another connection may do better.
    Lost(Lost),
    /// The peer seems to be gone.
    Silent,
}

/// A stream's end before its answer, and its connection's.
struct Lost {
    error: h2::Error,
    notes: Notes,
}

impl<E> Attempt<E> {
    fn finish(self) -> OpenError<E> {
        match self {
            Self::Failed(e) => e,
            Self::Silent => OpenError::Silent,
            Self::Lost(Lost { error, notes }) => OpenError::Lost(notes.resolve(error)),
        }
    }
}

impl<C: Connector> Inner<C> {
    /// Starts the task of a connection, which outlives whoever asked for it first.
    fn start(self: &Rc<Self>, id: ConnectionId, key: Key) {
        let (outcome, waiting) = watch::channel(None);
        self.live.borrow_mut().insert(id, Live::Opening(waiting));
        let task = run(
            Rc::downgrade(self),
            Rc::clone(&self.connector),
            self.settings.clone(),
            Rc::clone(&self.books),
            id,
            key,
            outcome,
        );
        let stop = self.stop.clone();
        (self.spawn)(Box::pin(self.tasks.track_future(async move {
            if stop.run_until_cancelled(task).await.is_none() {
                debug!("connection aborted");
            }
        })));
    }

    /// Waits until a connection stands or has failed; who is in a hurry, not for long.
    async fn stands(
        &self,
        id: ConnectionId,
        in_a_hurry: bool,
    ) -> Result<Opener<C::Peer>, OpenError<C::Error>> {
        if !in_a_hurry {
            return self.opened(id).await;
        }
        timeout(self.settings.hurry, self.opened(id)).await.unwrap_or(Err(OpenError::NotYet))
    }

    /// The peer's answer to a CONNECT. Where it takes long, the peer may be connecting to something slow; or be gone, which
    /// is asked then.
    async fn answer<A: Future>(&self, answer: A, peer: &Inquiry) -> Result<A::Output, Attempt<C::Error>> {
        let mut answer = pin!(answer);
        let until = Instant::now() + self.settings.answer_timeout;
        while Instant::now() < until {
            let a_while = until.min(Instant::now() + self.settings.hurry);
            if let Ok(answer) = timeout_at(a_while, &mut answer).await {
                return Ok(answer);
            }
            tokio::select! {
                biased;
                answer = &mut answer => return Ok(answer),
                heard = timeout(self.settings.doubt, peer.answered()) => heard.map_err(|_| Attempt::Silent)?,
            }
        }
        Err(Attempt::Failed(OpenError::AnswerTimeout))
    }

    /// Waits until a connection stands or has failed.
    async fn opened(&self, id: ConnectionId) -> Result<Opener<C::Peer>, OpenError<C::Error>> {
        let mut waiting = match self.live.borrow().get(&id) {
            Some(Live::Opening(waiting)) => waiting.clone(),
            Some(Live::Open(opener)) => return Ok(opener.clone()),
            None => return Err(OpenError::Closed),
        };
        let Ok(outcome) = waiting.wait_for(Option::is_some).await else { return Err(OpenError::Closed) };
        match &*outcome {
            Some(Ok(opener)) => Ok(opener.clone()),
            Some(Err(Failure::Connect(e))) => Err(OpenError::Connect(e.clone())),
            Some(Err(Failure::ConnectTimeout)) => Err(OpenError::ConnectTimeout),
            Some(Err(Failure::Handshake(e))) => Err(OpenError::Handshake(e.clone())),
            None => Err(OpenError::Closed),
        }
    }

    fn opener(&self, id: ConnectionId) -> Option<Opener<C::Peer>> {
        match self.live.borrow().get(&id) {
            Some(Live::Open(opener)) => Some(opener.clone()),
            _ => None,
        }
    }

    /// Lets go of a connection whose peer allows no stream. Kept, it would be passed over until it is idle for long, and
    /// each stream that comes meanwhile would open others beside it.
    fn forget_useless(&self, id: ConnectionId) {
        let useless = self.books.borrow().is_useless(id);
        if useless {
            self.forget(id);
        }
    }

    /// Opens no more streams on a connection, which closes when its last has ended.
    fn forget(&self, id: ConnectionId) {
        self.books.borrow_mut().drain(id);
        self.live.borrow_mut().remove(&id);
    }
}

/// A connection from its opening to its end. It holds the pool weakly: a pool that is dropped lets its connections end.
async fn run<C: Connector>(
    pool: Weak<Inner<C>>,
    connector: Rc<C>,
    settings: Settings,
    books: Rc<RefCell<Core<Key>>>,
    id: ConnectionId,
    key: Key,
    outcome: watch::Sender<Outcome<C>>,
) {
    let _gone = Gone { pool: Weak::clone(&pool), books: Rc::clone(&books), id };
    let (connection, opener) = match open(&*connector, &settings, &key).await {
        Ok(opened) => opened,
        Err(failure) => {
            // First out of the books, so that who hears of it and asks again does not join it again.
            books.borrow_mut().closed(id);
            outcome.send_replace(Some(Err(failure)));
            return;
        }
    };
    {
        let Some(pool) = pool.upgrade() else { return };
        if pool.tasks.is_closed() {
            return;
        }
        pool.live.borrow_mut().insert(id, Live::Open(opener.clone()));
        books.borrow_mut().opened(id, Instant::now());
        outcome.send_replace(Some(Ok(opener)));
        // Those who wait have what they need; the channel would keep the connection from closing.
        drop(outcome);
    }
    let reap = |now| {
        let reaped = books.borrow_mut().reap(id, now);
        if reaped == Reap::Close
            && let Some(pool) = pool.upgrade()
        {
            pool.live.borrow_mut().remove(&id);
        }
        reaped
    };
    let retire = || {
        if let Some(pool) = pool.upgrade() {
            debug!(address = %key.address, "connection takes no more streams");
            pool.forget(id);
        }
    };
    let ended = connection.drive(Instant::now() + settings.idle_release, reap, retire).await;
    match ended {
        Ok(()) => debug!(address = %key.address, "connection closed"),
        Err(reason) => {
            debug!(address = %key.address, %reason, "connection lost");
            connector.lost(&key, &reason);
        }
    }
}

async fn open<C: Connector>(
    connector: &C,
    settings: &Settings,
    key: &Key,
) -> Result<(Connection<C::Io>, Opener<C::Peer>), Failure<C::Error>> {
    let reached = timeout(settings.connect_timeout, connector.connect(key))
        .await
        .map_err(|_| Failure::ConnectTimeout)?
        .map_err(|e| Failure::Connect(Shared::new(e)))?;
    Connection::handshake(reached, settings).await.map_err(Failure::Handshake)
}

/// Takes a connection out of the pool however its task ended.
struct Gone<C: Connector> {
    pool: Weak<Inner<C>>,
    books: Rc<RefCell<Core<Key>>>,
    id: ConnectionId,
}

impl<C: Connector> Drop for Gone<C> {
    fn drop(&mut self) {
        self.books.borrow_mut().closed(self.id);
        if let Some(pool) = self.pool.upgrade() {
            pool.live.borrow_mut().remove(&self.id);
        }
    }
}

impl<C: Connector> Clone for Pool<C> {
    fn clone(&self) -> Self {
        Self { inner: Rc::clone(&self.inner) }
    }
}

impl<C: Connector> std::fmt::Debug for Pool<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.counts().fmt(f)
    }
}
