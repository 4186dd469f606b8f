//! The far end of an outbound connection.

use std::net::SocketAddr;
use std::sync::Arc;

use hbone::client::{ConnectRequest, Holder, Key};
use hbone::{Authority, Forwarded, Tunnel};
use model::{IdentitySet, Service, SpiffeId};
use net::{Meter, Network, Stream};
use tokio_util::sync::CancellationToken;

use super::error::OutboundError;
use super::plan::Hbone;
use crate::connections::{Ended, Live};
use crate::pod::Served;
use crate::quota::Permit;
use crate::relay::{BrokenOff, Watched, joined};

/// What a connection is relayed to.
pub(super) enum Upstream<N: Network> {
    Plain(N::Stream, Permit),
    Tunnel(Box<Tunnel>),
}

impl<N: Network> Upstream<N> {
    pub(super) async fn relay(
        self,
        client: &mut impl Stream,
        meter: Watched<impl Meter>,
        over: &mut Ended,
        stop: &CancellationToken,
    ) -> Result<(), BrokenOff> {
        match self {
            Self::Plain(mut server, _socket) => {
                let ended = joined(client, &mut server, meter, over, stop).await;
                if ended.is_err() {
                    server.reset_on_drop();
                }
                ended
            }
            Self::Tunnel(mut tunnel) => {
                let ended = joined(client, &mut *tunnel, meter, over, stop).await;
                if ended.is_err() {
                    tunnel.reset();
                }
                ended
            }
        }
    }
}

/// Opens a tunnel, on a connection of this pod's pool.
pub(super) async fn tunnel<N: Network>(
    served: &Served<N>,
    live: &Live,
    hbone: &Hbone,
    client: SocketAddr,
    service: Option<&Arc<Service>>,
    alternatives: bool,
) -> Result<Upstream<N>, OutboundError> {
    let key = key(served, hbone, client);
    let request = ConnectRequest { alternatives, ..request(served, &hbone.authority, client, service) };
    match served.pool.open(&key, &request).await {
        Ok(opened) => {
            live.rest_on(&opened.peer, None).map_err(BrokenOff::Ended)?;
            Ok(Upstream::Tunnel(Box::new(opened.tunnel)))
        }
        Err(source) => Err(OutboundError::Tunnel { to: hbone.next_hop, source }),
    }
}

/// What the pod's connections to this far end may be shared by.
pub(super) fn key<N: Network>(served: &Served<N>, hbone: &Hbone, client: SocketAddr) -> Key {
    // One that has gone meanwhile has no tenancy, and is reached by no tunnel that was there before.
    let tenancy = served.proxy.mesh.load().tenancy(&hbone.workload.uid).unwrap_or_default();
    Key {
        source: served.pod.local.identity.clone(),
        destinations: hbone.expect_ids.clone(),
        address: hbone.next_hop,
        source_ip: client.ip(),
        holder: Holder { uid: hbone.workload.uid.clone(), tenancy },
    }
}

/// What is said of a client when a tunnel is opened for it.
pub(super) fn request<N: Network>(
    served: &Served<N>,
    authority: &Authority,
    client: SocketAddr,
    service: Option<&Arc<Service>>,
) -> ConnectRequest {
    ConnectRequest {
        baggage: served.baggage(),
        forwarded: Some(Forwarded::new(client, service.map(|s| s.hostname.clone()))),
        ..ConnectRequest::to(authority.clone())
    }
}

/// The identity that the far end proves if the tunnel comes to stand, as far as that is certain.
pub(super) fn only(expect_ids: &IdentitySet) -> Option<SpiffeId> {
    let mut ids = expect_ids.iter();
    match (ids.next(), ids.next()) {
        (Some(only), None) => Some(only.clone()),
        _ => None,
    }
}
