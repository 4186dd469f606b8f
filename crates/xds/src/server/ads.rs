//! The gRPC service of the delta stream.

use std::sync::Arc;
use std::time::Duration;

use ambit_proto::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use ambit_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::authenticate::caller;
use super::registry::Member;
use super::{
    Authenticator, Everything, Limits, Observer, Peer, ProtocolError, Registry, Session, Snapshot, Visibility,
};
use crate::TypeUrl;

/// The states of the world, as they come. Nothing as long as the source has not been read: an empty world would tell
/// every proxy that comes back that all it knows is gone.
pub type Feed = watch::Receiver<Option<Arc<Snapshot>>>;

/// Clients name all that they have in a first request.
const LONGEST_REQUEST: usize = 64 << 20;
/// How long a stream waits for the first state of the world.
const START: Duration = Duration::from_secs(30);
/// Responses under way: one a type, and the end of the stream.
const RESPONSES: usize = TypeUrl::COUNT + 1;

/// Serves the world to proxies. Cheap to clone.
#[derive(Clone)]
pub struct AdsService {
    feed: Feed,
    authenticator: Arc<dyn Authenticator>,
    visibility: Arc<dyn Visibility>,
    observer: Arc<dyn Observer>,
    limits: Limits,
    registry: Registry,
    streams: TaskTracker,
    cancel: CancellationToken,
}

impl AdsService {
    /// A service that ends its streams when cancelled. Everyone with a good token sees everything.
    pub fn new(
        feed: Feed,
        authenticator: Arc<dyn Authenticator>,
        observer: Arc<dyn Observer>,
        cancel: CancellationToken,
    ) -> Self {
        Self {
            feed,
            authenticator,
            visibility: Arc::new(Everything),
            observer,
            limits: Limits::default(),
            registry: Registry::default(),
            streams: TaskTracker::new(),
            cancel,
        }
    }

    /// With another say in who sees what.
    #[must_use]
    pub fn with_visibility(mut self, visibility: Arc<dyn Visibility>) -> Self {
        self.visibility = visibility;
        self
    }

    /// With other limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Who hears of what happens.
    pub(super) fn observer(&self) -> Arc<dyn Observer> {
        self.observer.clone()
    }

    /// The proxies that are served.
    pub fn registry(&self) -> Registry {
        self.registry.clone()
    }

    /// Returns when all streams have ended, which they do once cancelled.
    pub async fn drained(&self) {
        self.streams.close();
        self.streams.wait().await;
    }

    /// The service for a gRPC server.
    pub(super) fn into_grpc(self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self).max_decoding_message_size(LONGEST_REQUEST)
    }
}

#[async_trait]
impl AggregatedDiscoveryService for AdsService {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        call: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let peer = caller(&*self.authenticator, &call).await.map_err(|status| *status)?;
        let (responses, outgoing) = mpsc::channel(RESPONSES);
        let stream = Stream {
            service: self.clone(),
            feed: self.feed.clone(),
            requests: call.into_inner(),
            responses,
            member: self.registry.join(peer.clone()),
        };
        self.streams.spawn(stream.run(peer));
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

/// One client's stream: moves messages between the session and the wire.
struct Stream {
    service: AdsService,
    feed: Feed,
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    member: Member,
}

impl Stream {
    async fn run(mut self, peer: Peer) {
        self.service.observer.connected(&peer);
        if let Err(status) = self.serve(peer.clone()).await {
            tracing::info!(
                service_account = %peer.service_account,
                code = ?status.code(),
                reason = status.message(),
                "ended a proxy's stream"
            );
            // Full only if the client reads nothing, and then it will not read this either.
            let _ = self.responses.try_send(Err(*status));
        }
        self.service.observer.disconnected(&peer);
    }

    async fn serve(&mut self, peer: Peer) -> Result<(), Box<Status>> {
        let started = timeout(START, self.feed.wait_for(Option::is_some)).await;
        let Ok(Ok(Some(snapshot))) = started.map(|r| r.map(|s| s.clone())) else {
            return Err(Box::new(Status::unavailable("the control plane has not read its source yet")));
        };
        let AdsService { visibility, limits, observer, cancel, .. } = self.service.clone();
        let mut session = Session::new(now(), peer, visibility, limits, snapshot);
        loop {
            while let Some((response, push)) = session.poll_response(now()) {
                observer.pushed(&push);
                if self.responses.send(Ok(response)).await.is_err() {
                    return Ok(());
                }
            }
            self.member.update(session.status());
            let deadline = session.deadline();
            let late = async {
                match deadline {
                    Some(deadline) => sleep_until(Instant::from_std(deadline)).await,
                    None => std::future::pending().await,
                }
            };
            // Each arm leaves what it waits for where it is when another comes first.
            tokio::select! {
                request = self.requests.message() => {
                    let Some(request) = request.map_err(Box::new)? else { return Ok(()) };
                    if let Some(acknowledged) = session.handle_request(now(), request).map_err(refusal)? {
                        observer.acknowledged(&acknowledged);
                        for nack in &acknowledged.refused {
                            tracing::warn!(
                                node = %session.status().node.node,
                                resource = %nack.resource,
                                reason = %nack.message,
                                "a proxy refused a resource"
                            );
                        }
                    }
                }
                changed = self.feed.changed() => {
                    let latest = changed.ok().and_then(|()| self.feed.borrow_and_update().clone());
                    let Some(snapshot) = latest else {
                        return Err(Box::new(Status::unavailable("the control plane has lost its source")));
                    };
                    session.handle_snapshot(now(), snapshot);
                }
                () = late => session.handle_timeout(now()).map_err(refusal)?,
                () = cancel.cancelled() => {
                    return Err(Box::new(Status::unavailable("the control plane is going down")));
                }
                () = self.responses.closed() => return Ok(()),
            }
        }
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

fn refusal(error: ProtocolError) -> Box<Status> {
    let message = error.to_string();
    Box::new(match error {
        ProtocolError::NoNode => Status::invalid_argument(message),
        ProtocolError::TooManyNames { .. } => Status::resource_exhausted(message),
        ProtocolError::Silent(_) => Status::deadline_exceeded(message),
    })
}
