//! Holds a stream to the control plane open, for as long as it is told to.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use ambit_proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use ambit_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use index::Update;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

use super::demand::{Changes, Demand};
use super::{NodeInfo, Observer, Session, State};
use crate::causes::with_causes;
use crate::{ConnectError, ControlPlane, Defaults};

/// Control planes that do not cut large answers into parts send the whole world in one message.
const LONGEST_RESPONSE: usize = 256 << 20;
/// Requests under way: the first of each type, and one acknowledgement.
const REQUESTS: usize = 4;
/// How long the server may leave a request unread.
const SEND: Duration = Duration::from_secs(30);

/// Takes updates in.
pub trait Sink: Send {
    /// Puts the updates in force, in order. When it returns, they are; only then are they acknowledged, and nothing
    /// more is read before. Dropped half-way at shutdown only.
    fn apply(&mut self, updates: Vec<Update>) -> impl Future<Output = ()> + Send;
}

/// A closure that puts updates in force without waiting.
impl<F: FnMut(Vec<Update>) + Send> Sink for F {
    async fn apply(&mut self, updates: Vec<Update>) {
        self(updates);
    }
}

/// What a client is told.
#[derive(Clone, Debug)]
pub struct AdsConfig {
    /// Where the control plane is.
    pub control_plane: ControlPlane,
    /// What the proxy says of itself.
    pub node: NodeInfo,
    /// What the mesh fills in.
    pub defaults: Defaults,
    /// The addresses to ask for; nothing to ask for all.
    pub demand: Option<Demand>,
}

/// A client of the control plane's delta stream.
pub struct AdsClient<S> {
    control_plane: ControlPlane,
    session: Session,
    demand: Option<Demand>,
    sink: S,
    observer: Arc<dyn Observer>,
    state: watch::Sender<State>,
}

/// Why a stream ended or never was.
#[derive(Debug, Error)]
pub enum StreamError {
    /// No connection, or nothing to say on it.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server ended the stream with an error.
    #[error("the control plane answered {:?}: {}", .0.code(), .0.message())]
    Refused(Box<Status>),
    /// The server ended the stream without one.
    #[error("the control plane closed the stream")]
    Closed,
    /// The server reads nothing.
    #[error("the control plane left a request unread for {SEND:?}")]
    Unread,
    /// The server says nothing.
    #[error("the control plane left a request unanswered")]
    Unanswered,
}

impl<S: Sink> AdsClient<S> {
    /// A client that is not connected yet.
    pub fn new(config: AdsConfig, sink: S, observer: Arc<dyn Observer>) -> Self {
        let AdsConfig { control_plane, node, defaults, demand } = config;
        let session = Session::new(node, defaults);
        let session = if demand.is_some() { session.on_demand() } else { session };
        let state = watch::Sender::new(session.state().clone());
        Self { control_plane, session, demand, sink, observer, state }
    }

    /// Where the client stands, now and later. Readiness is `state.ready`.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Holds a stream open until cancelled, opening another whenever one ends.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut rng = SmallRng::from_os_rng();
        loop {
            let error = tokio::select! {
                () = cancel.cancelled() => return,
                // Dropping a stream half-way loses nothing: what was applied is known, the rest comes again.
                error = self.stream() => error,
            };
            self.observer.disconnected(&error);
            let reason = with_causes(&error);
            let wait = self.session.closed(Instant::now().into_std(), &reason, &mut rng);
            tracing::warn!(reason, ?wait, "no stream to the control plane; trying again");
            self.publish();
            tokio::select! {
                () = cancel.cancelled() => return,
                () = sleep(wait) => {}
            }
        }
    }

    /// One stream, from its opening to its end.
    async fn stream(&mut self) -> StreamError {
        match self.hold().await {
            Ok(()) => StreamError::Closed,
            Err(error) => error,
        }
    }

    async fn hold(&mut self) -> Result<(), StreamError> {
        let channel = self.control_plane.connect().await?;
        let (requests, outgoing) = mpsc::channel(REQUESTS);
        let mut call = Request::new(ReceiverStream::new(outgoing));
        self.control_plane.authorize(call.metadata_mut()).await?;
        if let Some(demand) = &self.demand {
            self.session.ask_for(demand.current());
            self.forget_unwanted().await;
        }
        for request in self.session.connected(Instant::now().into_std()) {
            send(&requests, request).await?;
        }
        let mut client =
            AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(LONGEST_RESPONSE);
        let refused = |status| StreamError::Refused(Box::new(status));
        // Some servers send their headers only with the first response, so the deadline holds for this wait too.
        let answer = self.in_time(client.delta_aggregated_resources(call)).await?;
        let mut responses = answer.map_err(refused)?.into_inner();
        self.observer.connected();
        self.publish();
        tracing::info!(address = %self.control_plane.address, "stream to the control plane stands");
        loop {
            let demand = self.demand.clone();
            let happened = tokio::select! {
                // All cancel-safe.
                response = self.in_time(responses.message()) => match response?.map_err(refused)? {
                    Some(response) => Happened::Told(response),
                    None => return Ok(()),
                },
                changes = changes(demand.as_ref()) => Happened::Asked(changes),
            };
            let acknowledgement = match happened {
                Happened::Told(response) => self.take(response).await,
                Happened::Asked(Changes { added, dropped }) => {
                    self.session.ask(added, dropped);
                    None
                }
            };
            let next = self.session.next_request(Instant::now().into_std());
            for request in acknowledgement.into_iter().chain(next) {
                send(&requests, request).await?;
            }
        }
    }

    /// Puts in force what a response says. The acknowledgement.
    async fn take(&mut self, response: DeltaDiscoveryResponse) -> Option<DeltaDiscoveryRequest> {
        let now = Instant::now().into_std();
        let bytes = response.resources.iter().map(bytes::Bytes::len).sum();
        let received = self.session.receive(now, response)?;
        self.observer.message(received.ticket.type_url(), bytes);
        for error in &received.refused {
            tracing::warn!(resource = error.resource, reason = %error.fault, "refused a resource");
            self.observer.refused(received.ticket.type_url(), error);
        }
        if !received.updates.is_empty() {
            self.sink.apply(received.updates).await;
        }
        if let Some(demand) = &self.demand {
            demand.answered(&received.answered);
        }
        let request = self.session.applied(Instant::now().into_std(), received.ticket);
        self.publish();
        Some(request)
    }

    async fn forget_unwanted(&mut self) {
        let updates = self.session.forget_unwanted();
        if !updates.is_empty() {
            self.sink.apply(updates).await;
        }
    }

    async fn in_time<T>(&self, work: impl Future<Output = T>) -> Result<T, StreamError> {
        tokio::select! {
            done = work => Ok(done),
            () = until(self.session.deadline()) => Err(StreamError::Unanswered),
        }
    }

    fn publish(&self) {
        self.state.send_replace(self.session.state().clone());
    }
}

enum Happened {
    Told(DeltaDiscoveryResponse),
    Asked(Changes),
}

async fn until(moment: Option<std::time::Instant>) {
    match moment {
        Some(moment) => sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// What is to be asked for otherwise than before. Cancel-safe.
async fn changes(demand: Option<&Demand>) -> Changes {
    match demand {
        Some(demand) => demand.changes().await,
        None => std::future::pending().await,
    }
}

async fn send(
    requests: &mpsc::Sender<DeltaDiscoveryRequest>,
    request: DeltaDiscoveryRequest,
) -> Result<(), StreamError> {
    match timeout(SEND, requests.send(request)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(StreamError::Closed),
        Err(_) => Err(StreamError::Unread),
    }
}
