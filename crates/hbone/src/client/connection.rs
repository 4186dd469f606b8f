//! One connection's task: it moves the bytes, asks whether the peer is there, and lets go when idle.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until, timeout};

use super::Reached;
use super::core::Reap;
use crate::frames::End;
use crate::keepalive::{Inquiry, Pinger};
use crate::witness::{Notes, Witness};
use crate::{Settings, TransportError};

/// A connection that speaks HTTP/2, not yet driven.
pub(super) struct Connection<Io: AsyncRead + AsyncWrite + Unpin> {
    http: h2::client::Connection<Witness<Io>, Bytes>,
    pinger: Pinger,
    until: Option<Instant>,
    notes: Notes,
    // Dropped after the byte stream.
    _held: Option<Box<dyn Any>>,
}

/// What streams are opened with.
#[derive(Clone)]
pub(super) struct Opener<Peer> {
    pub(super) send: SendRequest<Bytes>,
    pub(super) peer: Peer,
    /// What the connection failed with, if it has, and what its peer sends.
    pub(super) notes: Notes,
    /// Whether the peer is there.
    pub(super) inquiry: Inquiry,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Connection<Io> {
    pub(super) async fn handshake<Peer>(
        reached: Reached<Io, Peer>,
        settings: &Settings,
    ) -> Result<(Self, Opener<Peer>), TransportError> {
        let Reached { io, peer, until, window, held } = reached;
        let settings = &window.map_or_else(|| settings.clone(), |window| settings.within(window));
        let limit = settings.handshake_timeout;
        let (io, notes) = Witness::new(io, End::Client, settings);
        let handshake = timeout(limit, settings.client().handshake(io));
        let (send, mut http) =
            handshake.await.map_err(|_| TransportError::Slow(limit))?.map_err(|e| notes.resolve(e))?;
        let pinger = Pinger::new(settings, http.ping_pong());
        let inquiry = pinger.inquiry();
        Ok((
            Self { http, pinger, until, notes: notes.clone(), _held: held },
            Opener { send, peer, notes, inquiry },
        ))
    }

    /// Runs until the connection has ended, or nobody uses it any more.
    ///
    /// `reap` is asked each time the connection may have been idle for long; having answered `Close` it has dropped the
    /// last handle for new streams, and the connection ends by itself. `retire` is called when it is to take no more
    /// streams, and drops that handle too.
    pub(super) async fn drive(
        mut self,
        first_look: Instant,
        mut reap: impl FnMut(Instant) -> Reap,
        mut retire: impl FnMut(),
    ) -> Result<(), TransportError> {
        let mut idle = pin!(sleep_until(first_look));
        let mut end = pin!(sleep_until(self.until.unwrap_or(first_look)));
        let mut kept = true;
        poll_fn(|cx| {
            if self.until.is_some() && end.as_mut().poll(cx).is_ready() {
                self.until = None;
                retire();
            }
            while kept && idle.as_mut().poll(cx).is_ready() {
                match reap(Instant::now()) {
                    Reap::Close => kept = false,
                    Reap::Ask(at) => idle.as_mut().reset(at),
                }
            }
            if let Poll::Ready(silent) = self.pinger.poll_silent(cx) {
                return Poll::Ready(Err(silent));
            }
            let ended = Pin::new(&mut self.http).poll(cx).map_err(|e| self.notes.resolve(e));
            match self.notes.flood() {
                Some(flood) => Poll::Ready(Err(flood.into())),
                None => ended,
            }
        })
        .await
    }
}
