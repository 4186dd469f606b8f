//! Connections that come to pods of this node.

pub mod admit;
mod application;
pub mod entrance;
mod error;
pub(crate) mod plaintext;
pub(crate) mod tunnel;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use model::{Service, SpiffeId};
use net::Network;
use telemetry::access::{AccessRecord, Party};
use telemetry::metrics::{Connection, Peer, Reporter, Security};

pub use error::InboundError;

use self::admit::{Admission, Denial, Facts, admit};
use crate::connections::Live;
use crate::mesh::Answer;
use crate::pod::Served;

/// Asks whether a connection may reach the application, and waits a moment where the next snapshot may allow it. From now
/// on it is open to review too.
async fn admitted<N: Network>(
    served: &Served<N>,
    live: &Live,
    peer: Option<&SpiffeId>,
    source: IpAddr,
    destination: SocketAddr,
) -> Result<(), InboundError> {
    let proxy = &served.proxy;
    // Before it is judged: see `crate::review`.
    live.open_to_review(peer, source, destination);
    let facts = Facts { peer, source, pod: &served.pod.local, destination };
    let ask = |world: &index::World| match admit(world, &facts) {
        Admission::Deny(denial) if denial.is_provisional() => Answer::Provisional(Admission::Deny(denial)),
        admission => Answer::Final(admission),
    };
    match proxy.mesh.settle(proxy.limits.mesh, ask).await? {
        Admission::Allow { dry_run: None, .. } => Ok(()),
        Admission::Allow { dry_run: Some(judgement), .. } => {
            proxy.metrics.dry_run_denied();
            tracing::info!(
                pod = %served.pod.local.name,
                src.addr = %source,
                src.identity = peer.map(tracing::field::display),
                dst.addr = %destination,
                %judgement,
                "a policy in trial would have ended this connection"
            );
            Ok(())
        }
        Admission::Deny(denial) => {
            if let Denial::Policy { dry_run: Some(judgement), .. } = &denial {
                tracing::info!(
                    pod = %served.pod.local.name,
                    src.addr = %source,
                    dst.addr = %destination,
                    %judgement,
                    "a policy in trial would have admitted this connection"
                );
            }
            Err(denial.into())
        }
    }
}

/// Writes into the record who the two ends are, and chooses what the connection counts on.
fn describe<N: Network>(
    served: &Served<N>,
    record: &mut AccessRecord,
    source: SocketAddr,
    peer: Option<&SpiffeId>,
    service: Option<&Arc<Service>>,
) {
    let world = served.proxy.mesh.load();
    let from = admit::source(&world, &served.pod.local, source.ip(), peer);
    let security = if peer.is_some() { Security::MutualTls } else { Security::Unknown };
    let series = served.proxy.metrics.tcp.series(&Connection {
        reporter: Reporter::Destination,
        source: Peer { workload: from, identity: peer },
        destination: Peer {
            workload: served.pod.local.workload(&world),
            identity: peer.map(|_| &served.pod.local.identity),
        },
        service,
        security,
    });
    record.count_on(series);
    let namespace = from.map(|w| w.namespace.clone()).or_else(|| peer.map(|p| p.namespace().into()));
    record.facts.source = Party {
        addr: Some(source),
        workload: from.map(|w| w.name.clone()),
        namespace,
        identity: peer.cloned(),
    };
    record.facts.service = service.map(|s| s.hostname.clone());
}
