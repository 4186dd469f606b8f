//! A tunnel within a tunnel: mutual TLS and HTTP/2 with an endpoint in another network, carried by a tunnel to the gateway
//! of that network, which sees neither.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hbone::client::{ConnectRequest, Connector, Key, OpenError, Pool, Reached};
use hbone::{Settings, TransportError, Tunnel};
use identity::{End, FetchError, PeerError, Proof, TlsFailure};
use model::Service;
use net::Network;
use telemetry::access::Direction;
use thiserror::Error;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::error::OutboundError;
use super::hop::{Upstream, key, request};
use super::plan::Beyond;
use super::via::{DialError, Via};
use crate::connections::Live;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::pod::{Pod, Served};
use crate::relay::BrokenOff;

/// Reaches an endpoint through the gateway of its network.
struct Inside<N: Network> {
    pool: Pool<Via<N>>,
    gateway: Key,
    request: ConnectRequest,
    pod: Arc<Pod<N>>,
    limits: Limits,
    metrics: Metrics,
}

/// Why an endpoint in another network cannot be reached.
#[derive(Debug, Error)]
pub enum InsideError {
    /// There is no tunnel to the gateway.
    #[error("no tunnel to the gateway of its network")]
    Gateway(#[source] OpenError<DialError>),
    /// The pod has no certificate.
    #[error("the pod has no certificate")]
    Identity(#[source] FetchError),
    /// TLS with the endpoint fails: among others where it is not who it must be.
    #[error("the TLS handshake within the tunnel fails")]
    Tls(#[source] io::Error),
    /// What the endpoint has proved is believed no more already.
    #[error(transparent)]
    Disbelieved(#[from] PeerError),
    /// The session has no identity, which the verifier does not let happen.
    #[error("the endpoint proved no identity")]
    Nobody,
    /// The endpoint does not finish its handshake.
    #[error("the TLS handshake within the tunnel takes longer than {0:?}")]
    TlsTimeout(Duration),
}

/// What an endpoint and the gateway before it have proved.
#[derive(Clone, Debug)]
struct Both {
    endpoint: Arc<Proof>,
    gateway: Arc<Proof>,
}

impl<N: Network> Connector for Inside<N> {
    type Io = TlsStream<Tunnel>;
    type Peer = Both;
    type Error = InsideError;

    async fn connect(&self, key: &Key) -> Result<Reached<Self::Io, Both>, InsideError> {
        let limits = &self.limits;
        let opened = self.pool.open(&self.gateway, &self.request).await.map_err(InsideError::Gateway)?;
        let identity = self.pod.lease.fetch(limits.identity).await.map_err(InsideError::Identity)?;
        let connector = TlsConnector::from(identity.client_config(&key.destinations));
        let io = timeout(limits.tls, connector.connect(identity::unnamed(), opened.tunnel))
            .await
            .map_err(|_| InsideError::TlsTimeout(limits.tls))?
            .map_err(|error| InsideError::Tls(TlsFailure::in_plain_words(error)))?;
        let proof = identity.proof(io.get_ref().1, End::Server).ok_or(InsideError::Nobody)??;
        let until = Instant::now().checked_add(limits.tunnel_life(proof.time_left()));
        let both = Both { endpoint: Arc::new(proof), gateway: opened.peer };
        Ok(Reached { until, ..Reached::new(io, both) })
    }

    fn holds(&self, peer: &Both) -> bool {
        peer.endpoint.holds().is_ok() && peer.gateway.holds().is_ok()
    }

    fn lost(&self, key: &Key, why: &TransportError) {
        self.metrics.floods.notice(why, Direction::Outbound, &self.pod.local.name, &key.address);
    }
}

/// Opens a tunnel within a tunnel. The outer one is on a connection of this pod's pool. The inner one has a connection to
/// itself, because the gateway chooses an endpoint for each.
pub(super) async fn tunnel<N: Network>(
    served: &Served<N>,
    live: &Live,
    beyond: &Beyond,
    client: SocketAddr,
    service: Option<&Arc<Service>>,
    alternatives: bool,
) -> Result<Upstream<N>, OutboundError> {
    let Beyond { gateway, expect_ids, .. } = beyond;
    let proxy = &served.proxy;
    let outer = ConnectRequest { alternatives, ..request(served, &gateway.authority, client, service) };
    let inner = ConnectRequest { network: Some(served.pod.local.network.clone()), ..outer.clone() };
    let inside = Inside {
        pool: served.pool.clone(),
        gateway: key(served, gateway, client),
        request: outer,
        pod: served.pod.clone(),
        limits: proxy.limits.clone(),
        metrics: proxy.metrics.clone(),
    };
    // Each step has a limit of its own, and gives its own reason.
    let steps = proxy.limits.reaching() + proxy.hbone.answer_timeout + proxy.limits.reaching();
    let settings = Settings { connect_timeout: steps, ..proxy.hbone.clone() };
    let key = Key { destinations: expect_ids.clone(), ..inside.gateway.clone() };
    // Once the pool is dropped, its connection goes on until the tunnel on it has ended.
    match Pool::new(inside, settings).open(&key, &inner).await {
        Ok(opened) => {
            live.rest_on(&opened.peer.endpoint, Some(&opened.peer.gateway)).map_err(BrokenOff::Ended)?;
            Ok(Upstream::Tunnel(Box::new(opened.tunnel)))
        }
        Err(source) => Err(OutboundError::Inside { gateway: gateway.next_hop, source }),
    }
}
