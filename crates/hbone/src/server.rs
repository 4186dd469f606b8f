//! The accepting end: a peer's connection, and the CONNECT requests on it.

use std::future::poll_fn;
use std::marker::PhantomData;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::StatusCode;
use model::NetworkId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::frames::{End, Flood};
use crate::headers::{self, Head};
use crate::keepalive::Pinger;
use crate::witness::{Notes, Witness};
use crate::{Authority, Baggage, BaggageHeader, Forwarded, Settings, Traceparent, TransportError, Tunnel};

/// A peer's connection.
///
/// [`Self::accept`] must be called until it gives nothing more: it is what moves the bytes of the connection's tunnels
/// too. Dropping the connection ends its tunnels.
pub struct Connection<Io> {
    http: h2::server::Connection<Witness<Io>, Bytes>,
    notes: Notes,
    pinger: Pinger,
    draining: bool,
    _on_one_thread: PhantomData<Rc<()>>,
    malformed: u64,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Connection<Io> {
    /// Starts HTTP/2 on a connection, waiting at most [`Settings::handshake_timeout`] for the peer's part.
    pub async fn handshake(io: Io, settings: &Settings) -> Result<Self, TransportError> {
        let limit = settings.handshake_timeout;
        let (io, notes) = Witness::new(io, End::Server, settings);
        let handshake = timeout(limit, settings.server().handshake(io));
        let mut http =
            handshake.await.map_err(|_| TransportError::Slow(limit))?.map_err(|e| notes.resolve(e))?;
        let pinger = Pinger::new(settings, http.ping_pong());
        Ok(Self { http, notes, pinger, draining: false, _on_one_thread: PhantomData, malformed: 0 })
    }

    /// The next request; nothing once the connection has ended and all its tunnels with it. Cancel-safe.
    ///
    /// What is no CONNECT to a target is answered with 400, or reset where it is no HTTP/2 request at all, and not
    /// shown.
    pub async fn accept(&mut self) -> Result<Option<ConnectRequest>, TransportError> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// [`Self::accept`] as a poll function.
    pub fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<ConnectRequest>, TransportError>> {
        loop {
            if let Poll::Ready(silent) = self.pinger.poll_silent(cx) {
                return Poll::Ready(Err(silent));
            }
            let accepted = self.http.poll_accept(cx);
            if let Some(flood) = self.notes.flood() {
                return Poll::Ready(Err(self.give_up(flood, cx)));
            }
            let (request, respond) = match accepted {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(Ok(None)),
                Poll::Ready(Some(Err(e))) => return Poll::Ready(Err(self.notes.resolve(e))),
                Poll::Ready(Some(Ok(stream))) => stream,
            };
            self.notes.shown();
            let mut answer = Answer { respond, notes: self.notes.clone() };
            if let Some(head) = headers::read_request(&request) {
                return Poll::Ready(Ok(Some(ConnectRequest::new(head, answer, request.into_body()))));
            }
            self.malformed += 1;
            answer.refuse(StatusCode::BAD_REQUEST);
        }
    }

    /// Ends all streams, and tells the peer why (GOAWAY with ENHANCE_YOUR_CALM) if it takes that at once.
    fn give_up(&mut self, flood: Flood, cx: &mut Context<'_>) -> TransportError {
        self.http.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
        let _ = self.http.poll_closed(cx);
        flood.into()
    }

    /// How many requests were answered with 400 and not shown, since this was last asked.
    pub fn take_malformed(&mut self) -> u64 {
        std::mem::take(&mut self.malformed)
    }

    /// Asks the peer to open no more streams here (GOAWAY); the open ones run on, and [`Self::accept`] gives nothing
    /// once the last has ended.
    pub fn drain(&mut self) {
        if !self.draining {
            self.draining = true;
            self.http.graceful_shutdown();
        }
    }
}

impl<Io> std::fmt::Debug for Connection<Io> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("draining", &self.draining).finish_non_exhaustive()
    }
}

/// A peer's wish for a tunnel, to be accepted or refused. Dropping it resets the stream.
pub struct ConnectRequest {
    head: Head,
    answer: Answer,
    body: h2::RecvStream,
    _on_one_thread: PhantomData<Rc<()>>,
}

/// What a request is answered with.
struct Answer {
    respond: h2::server::SendResponse<Bytes>,
    notes: Notes,
}

impl Answer {
    /// Sends the answer's head. It fails where the stream is gone, which is noted.
    fn send(&mut self, response: http::Response<()>, end: bool) -> Result<h2::SendStream<Bytes>, h2::Error> {
        self.respond.send_response(response, end).inspect_err(|_| self.notes.withdrew())
    }

    /// Nobody waits for the answer if the stream is gone.
    fn refuse(&mut self, status: StatusCode) {
        let _ = self.send(headers::write_response(status, None), true);
    }
}

impl ConnectRequest {
    fn new(head: Head, answer: Answer, body: h2::RecvStream) -> Self {
        Self { head, answer, body, _on_one_thread: PhantomData }
    }

    /// Where the tunnel is to end.
    pub fn authority(&self) -> &Authority {
        &self.head.authority
    }

    /// What the peer says about the client's workload; empty where it says nothing.
    pub fn baggage(&self) -> &Baggage {
        &self.head.baggage
    }

    /// Which client the peer says the tunnel is for.
    pub fn forwarded(&self) -> Option<&Forwarded> {
        self.head.forwarded.as_ref()
    }

    /// The network that the peer says the client's address holds in; nothing where it is this one.
    pub fn network(&self) -> Option<&NetworkId> {
        self.head.network.as_ref()
    }

    /// The trace that the tunnel belongs to.
    pub fn traceparent(&self) -> Option<&Traceparent> {
        self.head.traceparent.as_ref()
    }

    /// Whether the peer goes elsewhere if it is refused with 503.
    pub fn has_alternatives(&self) -> bool {
        self.head.alternatives
    }

    /// Waits until the peer no longer wants the tunnel, so that deciding and connecting can stop. Cancel-safe.
    pub async fn withdrawn(&mut self) {
        poll_fn(|cx| self.answer.respond.poll_reset(cx).map(|_| ())).await;
    }

    /// Answers 200: the policy allowed it and the application is connected. `baggage` tells the peer about the
    /// application's workload. Fails where the peer has gone meanwhile.
    pub fn accept(mut self, baggage: Option<&BaggageHeader>) -> Result<Tunnel, TransportError> {
        let send = self.answer.send(headers::write_response(StatusCode::OK, baggage), false)?;
        Ok(Tunnel::new(send, self.body, None))
    }

    /// Answers with the refusal's status and nothing more.
    pub fn refuse(mut self, refusal: Refusal) {
        self.answer.refuse(refusal.status());
    }
}

impl std::fmt::Debug for ConnectRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConnectRequest").field("head", &self.head).finish_non_exhaustive()
    }
}

/// Why a tunnel is refused, in the status codes that peers know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// 400: the request is malformed, or its target is not behind this address.
    BadRequest,
    /// 401: policy denies it.
    Denied,
    /// 503: the application or the workload cannot be reached.
    Unavailable,
}

impl Refusal {
    fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Denied => StatusCode::UNAUTHORIZED,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}
