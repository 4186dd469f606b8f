//! The door: who comes is a stranger until he has proved who he is, and strangers have few places and little time.
//!
//! A connection enters before its TLS handshake, and has a place in the [`Crowd`] until a call on it carries a good token.
//! One that has none in time is ended, whatever it is doing: a handshake, the start of HTTP/2, headers that trickle, or
//! calls without a token. One that floods is ended at any time.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hbone::frames::{End, Meter, Rate};
use parking_lot::Mutex;
use runtime::{Crowd, Place};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{Observer, TurnedAway};

/// Frames that carry nothing, and calls: many times what gRPC sends, pings that measure the path included.
const EMPTY_FRAMES: Rate = Rate { burst: 10_000, per_second: 2_000 };

/// What strangers may have.
#[derive(Clone, Copy, Debug)]
pub struct Strangers {
    /// How many may be there at once: 1024. Where there is one more, the oldest of who has the most gives way.
    pub most: usize,
    /// How long one may take from his connection to his first call with a good token: 20 s.
    pub patience: Duration,
}

impl Default for Strangers {
    fn default() -> Self {
        Self { most: 1024, patience: Duration::from_secs(20) }
    }
}

/// Lets connections in. Cheap to clone.
#[derive(Clone)]
pub(super) struct Door {
    crowd: Crowd,
    patience: Duration,
    observer: Arc<dyn Observer>,
}

/// A connection's standing, which the services find in their calls' extensions. Clones are of the same.
#[derive(Clone)]
pub(super) struct Standing(Arc<Stands>);

struct Stands {
    /// A stranger's.
    place: Mutex<Option<Place>>,
    proved: CancellationToken,
}

/// Ends when a stranger is to go, and why; with nothing when he has proved who he is.
type Watch = Pin<Box<dyn Future<Output = Option<TurnedAway>> + Send>>;

impl Door {
    pub(super) fn new(strangers: Strangers, observer: Arc<dyn Observer>) -> Self {
        Self { crowd: Crowd::of(strangers.most), patience: strangers.patience, observer }
    }

    /// Somebody comes.
    pub(super) fn enter(&self, from: SocketAddr) -> Entered {
        let place = self.crowd.enter(from.ip());
        let (displaced, until) = (place.displaced_owned(), Instant::now() + self.patience);
        let proved = CancellationToken::new();
        let watch = watch(displaced, until, proved.clone());
        let standing = Standing(Arc::new(Stands { place: Mutex::new(Some(place)), proved }));
        Entered { standing, watch: Box::pin(watch), observer: self.observer.clone() }
    }
}

async fn watch(
    displaced: impl Future<Output = ()>,
    until: Instant,
    proved: CancellationToken,
) -> Option<TurnedAway> {
    // All only wait.
    tokio::select! {
        biased;
        () = proved.cancelled() => None,
        () = displaced => Some(TurnedAway::Displaced),
        () = sleep_until(until) => Some(TurnedAway::Late),
    }
}

impl Standing {
    /// Who speaks here has proved who he is.
    pub(super) fn prove(&self) {
        self.0.proved.cancel();
        self.0.place.lock().take();
    }
}

/// A stranger whose connection is not ready yet.
pub(super) struct Entered {
    standing: Standing,
    watch: Watch,
    observer: Arc<dyn Observer>,
}

impl Entered {
    /// Does what must be done before HTTP/2 begins, as long as the stranger may stay.
    pub(super) async fn prepare<Io, E>(
        mut self,
        ready: impl Future<Output = Result<Io, E>>,
    ) -> Result<Guarded<Io>, TurnedAway> {
        let prepared = tokio::select! {
            // What is dropped is the connection itself.
            prepared = ready => prepared.map_err(|_| TurnedAway::Tls),
            why = &mut self.watch => Err(why.unwrap_or(TurnedAway::Late)),
        };
        let Self { standing, watch, observer } = self;
        match prepared {
            Ok(io) => Ok(Guarded::new(io, standing, watch, observer)),
            Err(why) => {
                observer.turned_away(why);
                Err(why)
            }
        }
    }
}

/// A connection that ends when who speaks there is to go.
pub(super) struct Guarded<Io> {
    io: Io,
    standing: Standing,
    watch: Option<Watch>,
    meter: Meter,
    gone: Option<TurnedAway>,
    observer: Arc<dyn Observer>,
}

impl<Io> Guarded<Io> {
    fn new(io: Io, standing: Standing, watch: Watch, observer: Arc<dyn Observer>) -> Self {
        let meter = Meter::new(End::Server, EMPTY_FRAMES, EMPTY_FRAMES, Instant::now());
        Self { io, standing, watch: Some(watch), meter, gone: None, observer }
    }

    pub(super) fn standing(&self) -> Standing {
        self.standing.clone()
    }

    /// Fails once who speaks there is to go, and wakes when that happens.
    fn poll_stay(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Some(watch) = &mut self.watch
            && let Poll::Ready(over) = watch.as_mut().poll(cx)
        {
            self.watch = None;
            if let Some(why) = over {
                self.turn_away(why);
            }
        }
        match self.gone {
            Some(why) => Err(io::Error::other(why)),
            None => Ok(()),
        }
    }

    fn turn_away(&mut self, why: TurnedAway) {
        if self.gone.replace(why).is_none() {
            self.observer.turned_away(why);
        }
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Guarded<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.poll_stay(cx)?;
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        this.meter.read(&buf.filled()[before..], Instant::now());
        if let Some(flood) = this.meter.flood() {
            tracing::debug!(%flood, "a connection to the control plane is flooded");
            this.turn_away(TurnedAway::Flood);
            this.poll_stay(cx)?;
        }
        Poll::Ready(Ok(()))
    }
}

// Who does not read what he is sent is to go in time, too.
impl<Io: AsyncWrite + Unpin> AsyncWrite for Guarded<Io> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.poll_stay(cx)?;
        let written = ready!(Pin::new(&mut this.io).poll_write(cx, buf))?;
        this.meter.wrote(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.poll_stay(cx)?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.poll_stay(cx)?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    #[derive(Default)]
    struct Heard(Mutex<Vec<TurnedAway>>);

    impl Observer for Heard {
        fn turned_away(&self, why: TurnedAway) {
            self.0.lock().push(why);
        }
    }

    fn door(most: usize) -> (Door, Arc<Heard>) {
        let heard = Arc::new(Heard::default());
        (Door::new(Strangers { most, ..Strangers::default() }, heard.clone()), heard)
    }

    async fn come(door: &Door, host: u8) -> (DuplexStream, Guarded<DuplexStream>) {
        let (near, far) = duplex(64 << 10);
        let entered = door.enter(([10, 0, 0, host], 1000).into());
        (near, entered.prepare(async { Ok::<_, Infallible>(far) }).await.unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_stranger_goes_in_time_whatever_he_does() {
        let (door, heard) = door(10);
        let begun = Instant::now();
        let (mut near, mut far) = come(&door, 1).await;
        let trickle = async {
            while near.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let read = async { while far.read_u8().await.is_ok() {} };
        tokio::select! {
            () = trickle => panic!("he is heard out"),
            () = read => assert_eq!(begun.elapsed(), Duration::from_secs(20)),
        }
        assert!(far.write_all(b"x").await.is_err(), "and told nothing more");
        assert_eq!(*heard.0.lock(), [TurnedAway::Late]);

        // Nor does it help not to read.
        let (_near, mut far) = come(&door, 1).await;
        while far.write_all(&[0; 4096]).await.is_ok() {}
        assert_eq!((begun.elapsed(), heard.0.lock().len()), (Duration::from_secs(40), 2));
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_ends_his_handshake_goes_too() {
        let (door, heard) = door(10);
        let entered = door.enter(([10, 0, 0, 1], 1).into());
        let ended = entered.prepare(std::future::pending::<Result<DuplexStream, Infallible>>()).await;
        assert!(matches!(ended.map(drop), Err(TurnedAway::Late)));
        let entered = door.enter(([10, 0, 0, 1], 1).into());
        let ended = entered.prepare(async { Err::<DuplexStream, _>(()) }).await;
        assert!(matches!(ended.map(drop), Err(TurnedAway::Tls)));
        assert_eq!(*heard.0.lock(), [TurnedAway::Late, TurnedAway::Tls]);
        assert_eq!(door.crowd.count(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_proved_who_he_is_stays_and_takes_no_place() {
        let (door, heard) = door(1);
        let (mut near, mut far) = come(&door, 1).await;
        far.standing().prove();
        assert_eq!(door.crowd.count(), 0);
        let _others = [come(&door, 1).await, come(&door, 1).await];
        tokio::time::sleep(Duration::from_secs(60)).await;
        near.write_all(b"x").await.unwrap();
        assert_eq!(far.read_u8().await.unwrap(), b'x');
        far.write_all(b"y").await.unwrap();
        assert_eq!(*heard.0.lock(), [], "those who are gone have not noticed yet");
    }

    #[tokio::test(start_paused = true)]
    async fn one_stranger_too_many_displaces_who_has_the_most() {
        let (door, heard) = door(3);
        let (_near, mut other) = come(&door, 1).await;
        let mut flood = Vec::new();
        for _ in 0..5 {
            flood.push(come(&door, 2).await);
        }
        for (_, far) in &mut flood[..3] {
            assert!(far.read_u8().await.is_err());
        }
        assert_eq!(*heard.0.lock(), [TurnedAway::Displaced; 3]);
        tokio::select! {
            biased;
            ended = other.read_u8() => panic!("{ended:?}"),
            () = std::future::ready(()) => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_ends_a_connection_also_of_who_is_known() {
        let (door, heard) = door(1);
        let (mut near, mut far) = come(&door, 1).await;
        far.standing().prove();
        let flood = async {
            let mut bytes = vec![0; 24];
            (0..10_001).for_each(|_| bytes.extend([0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]));
            let _ = near.write_all(&bytes).await;
        };
        // It is dropped then, so that the flood ends, too.
        let read = async move { while far.read_u8().await.is_ok() {} };
        tokio::join!(flood, read);
        assert_eq!(*heard.0.lock(), [TurnedAway::Flood]);
    }
}
