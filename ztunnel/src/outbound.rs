//! Connections that pods of this node open.

pub mod endpoint;
mod error;
mod gateway;
mod hop;
mod inside;
pub mod plan;
pub mod reason;
mod silence;
mod via;
mod waypoint;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use model::{Service, SpiffeId, Workload};
use net::{Accepted, Dial, Network, Source, Stream};
use telemetry::access::{AccessRecord, Direction, Party};
use telemetry::metrics::{Connection, Peer, Reporter, Security};
use tokio::time::{Instant, timeout};

pub use error::OutboundError;
pub use inside::InsideError;
pub(crate) use silence::Silence;
pub use via::{DialError, Via};
pub(crate) use waypoint::{Guarded, is_made_of};

use self::endpoint::NoEndpoint;
use self::hop::Upstream;
use self::plan::{Facts, Hop, Plan, Route, plan};
use self::reason::Reason;
use crate::connections::Live;
use crate::dns::{self, Conversation, Pipe};
use crate::mesh::Answer;
use crate::names::Resolved;
use crate::pod::Served;
use crate::quota::{Amount, Excess, Permit};
use crate::relay::BrokenOff;

/// How long a destination in transition is left alone before it is tried again without news of it.
const TRY_AGAIN: Duration = Duration::from_millis(100);

/// Carries one connection from a pod, from its being accepted to its record.
pub(crate) async fn carry<N: Network>(
    served: Rc<Served<N>>,
    accepted: Accepted<N::Stream>,
    permit: Result<Permit, Excess>,
) {
    let Accepted { stream: mut client, peer, original_dst } = accepted;
    let (live, mut over) = served.live(Direction::Outbound, peer, original_dst);
    let mut record = AccessRecord::start(Direction::Outbound, peer, original_dst);
    record.facts.source = served.party(peer);
    let speaks = permit.is_ok() && dns::is_spoken(&served, original_dst);
    let mut conversation = speaks.then(Conversation::default);
    if let Some(conversation) = &mut conversation {
        let more = tokio::select! {
            more = conversation.alone(&served, &mut client) => more.map_err(OutboundError::from),
            why = over.wait() => Err(BrokenOff::Ended(why).into()),
            () = served.scope.stop.cancelled() => Err(BrokenOff::Stopped.into()),
        };
        match more {
            Ok(true) => {}
            Ok(false) => return record.finish(),
            Err(error) => {
                client.reset_on_drop();
                return record.fail(error.response_flags(), &error);
            }
        }
    }
    // Boxed, because it is large and over before the long part begins.
    let opening = Opening { served: &served, live: &live, record: &mut record, peer, original_dst };
    let opened = if let Err(excess) = &permit {
        opening.exceeded(*excess)
    } else {
        let opening = Box::pin(opening.open(client.mark()));
        tokio::select! {
            // What is dropped is only under way: no byte of the application's was sent.
            opened = opening => opened,
            why = over.wait() => Err(BrokenOff::Ended(why).into()),
        }
    };
    let ended = match opened {
        Ok(upstream) => {
            let meter = served.meter(&mut record);
            let stop = &served.scope.stop;
            let relayed = match conversation {
                None => upstream.relay(&mut client, meter, &mut over, stop).await,
                Some(conversation) => {
                    let relay = async |pipe: &mut Pipe| upstream.relay(pipe, meter, &mut over, stop).await;
                    conversation.relayed(&served, &mut client, relay).await
                }
            };
            relayed.map_err(|broken| served.broken_off(broken).into())
        }
        Err(error) => {
            client.reset_on_drop();
            Err(error)
        }
    };
    match ended {
        Ok(()) => record.finish(),
        Err(error) => record.fail(error.response_flags(), &error),
    }
}

fn listed(names: &BTreeSet<Arc<str>>) -> String {
    names.iter().map(|name| &**name).collect::<Vec<_>>().join(", ")
}

/// A connection on its way to a destination.
struct Opening<'a, N: Network> {
    served: &'a Served<N>,
    live: &'a Live,
    record: &'a mut AccessRecord,
    peer: SocketAddr,
    original_dst: SocketAddr,
}

impl<N: Network> Opening<'_, N> {
    /// Plans and dials; and plans anew, for a moment, where the destination takes no tunnel just now: it may be about to
    /// enter the mesh or to leave it, which the control plane and the destination's node tell at slightly different times.
    async fn open(mut self, mark: Option<u32>) -> Result<Upstream<N>, OutboundError> {
        // What was dialled on loopback was not steered here.
        if self.served.proxy.redirection.is_own(mark) && !self.original_dst.ip().is_loopback() {
            self.served.pod.returned.note(self.original_dst);
            return self.follow(Plan::Refuse(Reason::Loop(self.original_dst))).await;
        }
        let began = Instant::now();
        let until = began + self.served.proxy.limits.transition;
        loop {
            let mut news = self.served.proxy.mesh.news();
            let plan = self.plan_with_names().await?;
            let balanced = matches!(&plan, Plan::Forward(Route { service: Some(_), .. }));
            match self.follow(plan).await {
                // It would come back again.
                Err(error) if error.tunnel().is_some_and(|to| self.served.pod.returned.has(to, began)) => {
                    return Err(error);
                }
                Err(error) if error.is_transitional() && Instant::now() < until => {
                    // Either way it is tried again: the limit above ends this.
                    let _ = timeout(TRY_AGAIN, news.changed()).await;
                }
                // A service whose endpoints change is one whose next ones are about to be told.
                Err(error) if balanced && error.another_may_do() && Instant::now() < until => {
                    let told = timeout(self.served.proxy.limits.news, news.changed()).await;
                    if !matches!(told, Ok(Ok(()))) {
                        return Err(error);
                    }
                }
                result => return result,
            }
        }
    }

    fn exceeded(mut self, excess: Excess) -> Result<Upstream<N>, OutboundError> {
        self.toward(None, None, None, Security::Unknown);
        Err(excess.into())
    }

    /// A plan, and all that it needs to know of names.
    async fn plan_with_names(&self) -> Result<Plan, OutboundError> {
        let names = match self.plan(&Resolved::default()).await? {
            Plan::Need(names) => names,
            plan => return Ok(plan),
        };
        let proxy = &self.served.proxy;
        let limit = proxy.limits.names;
        let resolved = match timeout(limit, proxy.names.look_up(names.clone())).await {
            Ok(resolved) => resolved,
            Err(_) => return Err(OutboundError::LookupTimeout { names: listed(&names), limit }),
        };
        match self.plan(&resolved).await? {
            Plan::Refuse(Reason::NoEndpoint { why: NoEndpoint::Unresolved, service, port }) => {
                Err(OutboundError::Lookup { service, port, failures: resolved.failures() })
            }
            plan => Ok(plan),
        }
    }

    async fn plan(&self, names: &Resolved) -> Result<Plan, OutboundError> {
        let served = self.served;
        let facts = Facts {
            pod: &served.pod.local,
            source: self.peer,
            destination: self.original_dst,
            departures: served.proxy.mesh.departures(),
            names,
        };
        let mesh = &served.proxy.mesh;
        let is_told = |world: &index::World| {
            mesh.needs().is_none_or(|n| n.has_outbound(world, facts.pod, facts.destination.ip()))
        };
        let ask = |world: &index::World| match is_told(world) {
            true => Answer::Final(plan(world, &facts, &mut *served.rng.borrow_mut())),
            false => Answer::Untold,
        };
        Ok(mesh.settle(served.proxy.limits.mesh, ask).await?)
    }

    async fn follow(&mut self, plan: Plan) -> Result<Upstream<N>, OutboundError> {
        match plan {
            Plan::Passthrough { service } => {
                self.toward(None, service.as_ref(), None, Security::Unknown);
                self.plain(self.original_dst, self.served.proxy.limits.connect).await
            }
            Plan::Forward(route) => self.first_that_answers(route).await,
            // It is not said once names were looked up.
            Plan::Need(_) => Err(OutboundError::NoHops),
            Plan::Refuse(reason) => {
                self.toward(None, None, None, Security::Unknown);
                Err(reason.into())
            }
        }
    }

    async fn first_that_answers(&mut self, route: Route) -> Result<Upstream<N>, OutboundError> {
        let Route { service, mut hops } = route;
        let mut last = None;
        self.served.silence.put_last(&mut hops, Instant::now());
        // Those that may have refused only because there are others, or were given less time for that. When the others do
        // not answer, they are asked again.
        let mut put_off = Vec::new();
        let mut rest = hops.into_iter();
        while let Some(hop) = rest.next() {
            let alternatives = rest.len() > 0 || !put_off.is_empty();
            match self.take(&hop, service.as_ref(), alternatives).await {
                Err(error) if error.another_may_do() => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "trying another endpoint");
                    if alternatives && (error.is_unavailable() || error.is_silence()) {
                        put_off.push(hop);
                    }
                    last = Some(error);
                }
                result => return result,
            }
        }
        for hop in put_off {
            match self.take(&hop, service.as_ref(), false).await {
                Err(error) if error.another_may_do() => last = Some(error),
                result => return result,
            }
        }
        Err(last.unwrap_or(OutboundError::NoHops))
    }

    async fn take(
        &mut self,
        hop: &Hop,
        service: Option<&Arc<Service>>,
        alternatives: bool,
    ) -> Result<Upstream<N>, OutboundError> {
        let silence = &self.served.silence;
        silence.tried(hop.addr(), Instant::now());
        let taken = self.reach(hop, service, alternatives).await;
        match &taken {
            Ok(_) => silence.forget(hop.addr()),
            Err(error) if error.is_silence() => silence.note(hop.addr(), Instant::now()),
            Err(_) => {}
        }
        taken
    }

    async fn reach(
        &mut self,
        hop: &Hop,
        service: Option<&Arc<Service>>,
        alternatives: bool,
    ) -> Result<Upstream<N>, OutboundError> {
        match hop {
            Hop::Direct { workload, addr } => {
                self.toward(Some(workload), service, None, Security::Unknown);
                self.record.facts.destination.addr = Some(*addr);
                let limits = &self.served.proxy.limits;
                self.plain(*addr, if alternatives { limits.hurry } else { limits.connect }).await
            }
            Hop::Hbone(hbone) => {
                let identity = hop::only(&hbone.expect_ids);
                self.toward(Some(&hbone.workload), service, identity, Security::MutualTls);
                self.record.facts.destination.addr = Some(hbone.next_hop);
                self.record.facts.hbone_addr = Some(hbone.authority.to_string().into());
                hop::tunnel(self.served, self.live, hbone, self.peer, service, alternatives).await
            }
            Hop::Beyond(beyond) => {
                let identity = hop::only(&beyond.expect_ids);
                self.toward(Some(&beyond.workload), service, identity, Security::MutualTls);
                self.record.facts.destination.addr = Some(beyond.gateway.next_hop);
                self.record.facts.hbone_addr = Some(beyond.gateway.authority.to_string().into());
                let opening =
                    inside::tunnel(self.served, self.live, beyond, self.peer, service, alternatives);
                Box::pin(opening).await
            }
        }
    }

    /// A plain TCP connection from the pod, by the address that it would have come from uncaptured.
    async fn plain(&self, to: SocketAddr, limit: Duration) -> Result<Upstream<N>, OutboundError> {
        let dial = Dial { to, source: self.source(to), mark: self.served.proxy.redirection.mark() };
        let socket = self.served.account.admit(Amount::SOCKET)?;
        match timeout(limit, self.served.pod.network.connect(&dial)).await {
            Ok(Ok(stream)) => Ok(Upstream::Plain(stream, socket)),
            Ok(Err(source)) => Err(OutboundError::Connect { to, source }),
            Err(_) => Err(OutboundError::ConnectTimeout { to, limit }),
        }
    }

    /// The address that the application has bound its socket to; else what the kernel chooses. That is not always the
    /// address by which the connection was captured, which is the pod's first: by another device it is that one's, and
    /// towards an address of the pod itself it is the same one, by which the kernel knows that it is not to be captured
    /// again.
    fn source(&self, to: SocketAddr) -> Source {
        let (served, peer) = (self.served, self.peer.ip());
        let world = served.proxy.mesh.load();
        let by_capture = served.pod.local.workload(&world).is_none_or(|w| w.addresses.contains(&peer));
        if by_capture || peer.is_ipv4() != to.is_ipv4() { Source::Own } else { Source::Local(peer) }
    }

    /// Writes into the record where the connection goes, and chooses what it counts on.
    fn toward(
        &mut self,
        workload: Option<&Arc<Workload>>,
        service: Option<&Arc<Service>>,
        identity: Option<SpiffeId>,
        security: Security,
    ) {
        let served = self.served;
        let own = (security == Security::MutualTls).then_some(&served.pod.local.identity);
        let world = served.proxy.mesh.load();
        let series = served.proxy.metrics.tcp.series(&Connection {
            reporter: Reporter::Source,
            source: Peer { workload: served.pod.local.workload(&world), identity: own },
            destination: Peer { workload, identity: identity.as_ref() },
            service,
            security,
        });
        self.record.count_on(series);
        self.record.facts.destination = Party {
            addr: Some(self.original_dst),
            workload: workload.map(|w| w.name.clone()),
            namespace: workload.map(|w| w.namespace.clone()),
            identity,
        };
        self.record.facts.hbone_addr = None;
        self.record.facts.service = service.map(|s| s.hostname.clone());
    }
}
