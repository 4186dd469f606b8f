//! Plaintext that comes from the network.

use std::net::SocketAddr;
use std::rc::Rc;

use net::{Accepted, Network, Stream};
use telemetry::access::{AccessRecord, Direction};

use super::{InboundError, admitted, application, describe};
use crate::connections::Live;
use crate::pod::Served;
use crate::quota::{Excess, Permit};
use crate::relay::joined;

/// Carries one plaintext connection to a pod, from its being accepted to its record.
pub(crate) async fn carry<N: Network>(
    served: Rc<Served<N>>,
    accepted: Accepted<N::Stream>,
    permit: Result<Permit, Excess>,
) {
    let Accepted { stream: mut client, peer, original_dst } = accepted;
    let (live, mut over) = served.live(Direction::Inbound, peer, original_dst);
    let mut record = AccessRecord::start(Direction::Inbound, peer, original_dst);
    record.facts.destination = served.party(original_dst);
    describe(&served, &mut record, peer, None, None);
    let opened = if let Err(excess) = &permit {
        Err((*excess).into())
    } else {
        let opening = Box::pin(open(&served, &live, peer, original_dst));
        tokio::select! {
            // What is dropped is only under way: no application was told anything.
            opened = opening => opened,
            why = over.wait() => Err(why.into()),
        }
    };
    let ended = match opened {
        Ok(mut server) => {
            let meter = served.meter(&mut record);
            let ended = joined(&mut client, &mut server, meter, &mut over, &served.scope.stop).await;
            if ended.is_err() {
                server.reset_on_drop();
            }
            ended.map_err(|broken| served.broken_off(broken).into())
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

async fn open<N: Network>(
    served: &Served<N>,
    live: &Live,
    peer: SocketAddr,
    original_dst: SocketAddr,
) -> Result<N::Stream, InboundError> {
    admitted(served, live, None, peer.ip(), original_dst).await?;
    application::connect(served, original_dst, peer.ip()).await
}
