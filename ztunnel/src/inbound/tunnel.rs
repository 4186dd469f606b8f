//! HBONE that comes from the network.

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use hbone::server::{ConnectRequest, Connection};
use hbone::{Authority, Forwarded};
use identity::{End, Proof, TlsFailure};
use model::Service;
use net::{Accepted, Network, Stream};
use telemetry::access::{AccessRecord, Direction};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::admit::speaks_for_others;
use super::entrance::entrance;
use super::{InboundError, admitted, application, describe};
use crate::binding;
use crate::connections::{Ended, Ending, Live};
use crate::mesh::Answer;
use crate::pod::Served;
use crate::quota::{Amount, Excess, Permit};
use crate::relay::{patiently, until_ended};

/// A peer whose connection stands.
struct Peer {
    proof: Arc<Proof>,
    addr: SocketAddr,
    /// The pod's address and port that it connected to.
    came_to: SocketAddr,
}

/// Ends one peer's connection: TLS, HTTP/2, and the tunnels on it.
pub(crate) async fn terminate<N: Network>(
    served: Rc<Served<N>>,
    accepted: Accepted<N::Stream>,
    permit: Result<Permit, Excess>,
) {
    let Accepted { stream, peer: addr, original_dst: came_to } = accepted;
    let _socket = match permit {
        Ok(permit) => permit,
        Err(excess) => {
            stream.reset_on_drop();
            return refused(&served, addr, came_to, &excess.into());
        }
    };
    let under_way = served.handshakes.enter(addr.ip());
    let welcomed = tokio::select! {
        // What is dropped has told nobody anything.
        welcomed = Box::pin(welcome(&served, stream, came_to.ip())) => welcomed,
        () = under_way.displaced() => {
            served.account.refuse(Excess::Handshakes);
            Err(Excess::Handshakes.into())
        }
    };
    drop(under_way);
    let (connection, proof, _memory) = match welcomed {
        Ok(welcomed) => welcomed,
        Err(error) => return refused(&served, addr, came_to, &error),
    };
    tunnels(served, connection, Rc::new(Peer { proof: Arc::new(proof), addr, came_to })).await;
}

/// Runs TLS and the start of HTTP/2, within what the pod may have of memory.
async fn welcome<N: Network>(
    served: &Served<N>,
    stream: N::Stream,
    came_to: IpAddr,
) -> Result<(Connection<TlsStream<N::Stream>>, Proof, Permit), InboundError> {
    let (session, proof) = handshake(served, stream, came_to).await?;
    let settings = &served.proxy.hbone;
    let (window, permit) = served.account.window(settings.connection_window)?;
    let connection = Connection::handshake(session, &settings.within(window)).await;
    Ok((connection.map_err(InboundError::Http2)?, proof, permit))
}

async fn handshake<N: Network>(
    served: &Served<N>,
    stream: N::Stream,
    came_to: IpAddr,
) -> Result<(TlsStream<N::Stream>, Proof), InboundError> {
    let limits = &served.proxy.limits;
    bound(served, came_to).await?;
    let own = served.pod.lease.fetch(limits.identity).await.map_err(InboundError::Identity)?;
    let session = timeout(limits.tls, TlsAcceptor::from(own.server_config()).accept(stream))
        .await
        .map_err(|_| InboundError::TlsTimeout(limits.tls))?
        .map_err(|error| InboundError::Tls(TlsFailure::in_plain_words(error)))?;
    let proof = own.proof(session.get_ref().1, End::Client).ok_or(InboundError::Nobody)?;
    Ok((session, proof.map_err(Ending::Disbelieved)?))
}

/// Sees that the pod is where it is said to be, before its key is used. The control plane may be about to tell of a new
/// address, which is waited for.
async fn bound<N: Network>(served: &Served<N>, came_to: IpAddr) -> Result<(), InboundError> {
    let proxy = &served.proxy;
    let asked = |world: &index::World| match binding::check(world, &served.pod.local, came_to) {
        Ok(()) => Answer::Final(Ok(())),
        Err(unbound) => Answer::Provisional(Err(unbound)),
    };
    let Ok(checked) = proxy.mesh.settle(proxy.limits.mesh, asked).await else {
        // Nothing is known of the mesh: the agent's word holds, and nothing is admitted.
        return Ok(());
    };
    if checked.is_err() {
        proxy.metrics.unbound(Direction::Inbound);
    }
    Ok(checked?)
}

/// A connection that never carried a tunnel leaves a record too.
fn refused<N: Network>(served: &Served<N>, addr: SocketAddr, came_to: SocketAddr, error: &InboundError) {
    let mut record = AccessRecord::start(Direction::Inbound, addr, came_to);
    record.facts.destination = served.party(came_to);
    describe(served, &mut record, addr, None, None);
    record.fail(error.response_flags(), error);
}

/// Serves a connection's tunnels until it ends. When the pod leaves or the proxy drains, the peer is asked to open no more;
/// and so it is when the pod is about to end, for the peer to look again for where to go. A connection that is made even
/// so carries what it was made for.
async fn tunnels<N: Network>(
    served: Rc<Served<N>>,
    mut connection: Connection<TlsStream<N::Stream>>,
    peer: Rc<Peer>,
) {
    served.proxy.metrics.tunnel_connection_taken();
    let mut closed = pin!(served.until_closed());
    let mut trust = served.pod.lease.bundle().changes();
    // What has changed since the handshake counts too.
    trust.mark_changed();
    let (limits, left) = (&served.proxy.limits, peer.proof.time_left());
    let mut retires = pin!(sleep(limits.tunnel_life(left)));
    let mut outlives = pin!(sleep(limits.stream_life(left)));
    let mut is_over = false;
    let (mut is_open, mut is_used) = (true, false);
    loop {
        tokio::select! {
            // All cancel-safe.
            request = connection.accept() => {
                served.proxy.metrics.malformed(connection.take_malformed());
                match request {
                    Ok(Some(request)) => {
                        is_used = true;
                        served.spawn(carry(served.clone(), request, peer.clone()));
                        // The clock may have been set ahead.
                        if is_open && peer.proof.time_left().is_zero() {
                            is_open = false;
                            connection.drain();
                        }
                    }
                    Ok(None) => return,
                    Err(error) => {
                        served.proxy.metrics.tunnel_connection_lost();
                        let floods = &served.proxy.metrics.floods;
                        let who = format_args!("{} at {}", peer.proof.id(), peer.addr.ip());
                        floods.notice(&error, Direction::Inbound, &served.pod.local.name, &who);
                        tracing::debug!(peer = %peer.addr, error = &error as &dyn std::error::Error, "tunnel connection lost");
                        return;
                    }
                }
            }
            () = &mut closed, if is_open => {
                is_open = false;
                connection.drain();
            }
            () = served.pod.ending.cancelled(), if is_open && is_used => {
                is_open = false;
                connection.drain();
            }
            () = &mut retires, if is_open => {
                is_open = false;
                connection.drain();
            }
            () = &mut outlives => {
                // The second time, after those have had time to end.
                if is_over {
                    return;
                }
                is_over = true;
                outlives.as_mut().reset(Instant::now() + limits.linger);
                served.end_resting_on(&peer.proof, &Ending::Outlived);
            }
            // Those on it are ended by who reviews them.
            Ok(()) = trust.changed(), if is_open => {
                if let Err(why) = peer.proof.holds() {
                    tracing::info!(peer = %peer.addr, id = %peer.proof.id(), %why, "a tunnel connection takes no more");
                    is_open = false;
                    connection.drain();
                }
            }
            () = served.scope.stop.cancelled() => return,
        }
    }
}

/// Carries one tunnel to the application, from the CONNECT to its record.
async fn carry<N: Network>(served: Rc<Served<N>>, mut request: ConnectRequest, peer: Rc<Peer>) {
    let client = client(&served, &peer, &request);
    let (live, mut over) = served.live(Direction::Inbound, client, peer.came_to);
    let mut record = AccessRecord::start(Direction::Inbound, client, peer.came_to);
    record.facts.destination = served.party(peer.came_to);
    record.facts.hbone_addr = Some(request.authority().to_string().into());
    let service = service(&served, request.forwarded());
    describe(&served, &mut record, client, Some(peer.proof.id()), service.as_ref());
    let authority = request.authority().clone();
    let goes_elsewhere = served.pod.ending.is_cancelled() && request.has_alternatives();
    let permit = match goes_elsewhere {
        true => Err(InboundError::Ending),
        false => served.account.admit(Amount::STREAM).map_err(InboundError::from),
    };
    let opened = match permit {
        Ok(permit) => {
            let opening = Box::pin(open(&served, &live, &peer, authority, client, service.as_ref()));
            let opened = tokio::select! {
                // What is dropped is only under way: no application was told anything.
                opened = opening => opened,
                () = request.withdrawn() => Err(InboundError::Withdrawn),
                why = over.wait() => Err(why.into()),
            };
            opened.map(|application| (application, permit))
        }
        Err(error) => Err(error),
    };
    let ended = match opened {
        Ok((application, _permit)) => relay(&served, request, application, &mut record, &mut over).await,
        Err(error) => {
            request.refuse(error.refusal());
            Err(error)
        }
    };
    match ended {
        Ok(()) => record.finish(),
        Err(error) => record.fail(error.response_flags(), &error),
    }
}

async fn open<N: Network>(
    served: &Served<N>,
    live: &Live,
    peer: &Peer,
    authority: Authority,
    client: SocketAddr,
    service: Option<&Arc<Service>>,
) -> Result<N::Stream, InboundError> {
    let (proxy, pod) = (&served.proxy, &served.pod.local);
    live.rest_on(&peer.proof, None)?;
    let ask = |world: &index::World| {
        let found = entrance(world, pod, &authority, peer.came_to.ip());
        // Of a pod that is not known yet nobody can say whether a proxy stands in it.
        if pod.workload(world).is_some() { Answer::Final(found) } else { Answer::Provisional(found) }
    };
    let mut entrance = proxy.mesh.settle(proxy.limits.mesh, ask).await??;
    if let (Some(told), Some(service)) = (&mut entrance.told, service) {
        told.service.get_or_insert_with(|| service.hostname.clone());
    }
    admitted(served, live, Some(peer.proof.id()), peer.addr.ip(), entrance.asked).await?;
    application::enter(served, &entrance, client, peer.proof.id()).await
}

async fn relay<N: Network>(
    served: &Served<N>,
    request: ConnectRequest,
    mut application: N::Stream,
    record: &mut AccessRecord,
    over: &mut Ended,
) -> Result<(), InboundError> {
    let baggage = served.baggage();
    let mut tunnel = request.accept(baggage.as_ref()).map_err(InboundError::Unanswered)?;
    let meter = served.meter(record);
    let relaying = patiently(&mut tunnel, &mut application, meter);
    let ended = until_ended(relaying, over, &served.scope.stop).await;
    if ended.is_err() {
        application.reset_on_drop();
        tunnel.reset();
    }
    ended.map_err(|broken| served.broken_off(broken).into())
}

/// Whom the application sees: the peer's own address, or that of the client behind it where the peer may speak for others.
fn client<N: Network>(served: &Served<N>, peer: &Peer, request: &ConnectRequest) -> SocketAddr {
    match request.forwarded() {
        // Here the address may be another's.
        Some(_) if request.network().is_some_and(|network| *network != served.pod.local.network) => peer.addr,
        Some(f)
            if is_a_hosts(f.client)
                && speaks_for_others(&served.proxy.mesh.load(), &served.pod.local, peer.proof.id()) =>
        {
            SocketAddr::new(f.client, f.port.unwrap_or(0))
        }
        // Its port is the client's even so, for the record.
        Some(f) if f.client == peer.addr.ip() => {
            SocketAddr::new(f.client, f.port.unwrap_or(peer.addr.port()))
        }
        _ => peer.addr,
    }
}

/// Whether an address can be a client's elsewhere. Applications trust what comes from loopback.
fn is_a_hosts(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || broadcast)
}

/// The service that the client says it addressed, if the pod is an endpoint of it.
fn service<N: Network>(served: &Served<N>, forwarded: Option<&Forwarded>) -> Option<Arc<Service>> {
    let host = forwarded?.host.as_ref()?;
    let world = served.proxy.mesh.load();
    let workload = served.pod.local.workload(&world)?;
    let key = workload.services.keys().find(|key| key.hostname == *host)?;
    world.service(key).cloned()
}
