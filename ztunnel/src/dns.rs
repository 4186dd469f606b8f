//! What pods ask resolvers.
//!
//! Datagrams to port 53 loop to sockets of ours in the pod ([`sockets`], `datagrams`), connections to it are captured
//! as all others are (`stream`). [`::dns::decide`] says what the mesh answers; all else is relayed byte for byte to whom
//! it was for, and the answer comes back in that one's name. Nobody in the pod sees another address than it sent to.

mod datagrams;
pub mod sockets;
mod stream;

use ::dns::{Verdict, Viewer, decide};
use model::AppProtocol;
use net::Network;

use crate::local::LocalPod;
use crate::mesh::{Answer, NotSynced};
use crate::pod::Served;

pub(crate) use datagrams::serve;
pub(crate) use stream::{Conversation, Pipe};

/// The cluster's domain, the only one there is yet.
const DOMAIN: &str = "cluster.local";

/// The port of resolvers.
const PORT: u16 = 53;

/// Decides on a question, once the mesh is known.
async fn settle<N: Network>(
    served: &Served<N>,
    message: &[u8],
    over_tcp: bool,
) -> Result<Verdict, NotSynced> {
    let LocalPod { identity, network, .. } = &served.pod.local;
    let ask = |world: &index::World| {
        let own = served.pod.local.workload(world);
        let has_v6 = own.is_none_or(|own| own.addresses.iter().any(|ip| ip.is_ipv6()));
        let viewer = Viewer { namespace: identity.namespace(), network, domain: DOMAIN, has_v6 };
        Answer::Final(decide(world, &viewer, message, over_tcp, &mut *served.rng.borrow_mut()))
    };
    served.proxy.mesh.settle(served.proxy.limits.mesh, ask).await
}

/// Whether a captured connection is spoken DNS on: one to the port of resolvers, unless it is that of a service which
/// says that it speaks something else there.
pub(crate) fn is_spoken<N: Network>(served: &Served<N>, destination: std::net::SocketAddr) -> bool {
    if !served.pod.dns || destination.port() != PORT {
        return false;
    }
    let local = &served.pod.local;
    let world = served.proxy.mesh.load();
    let address = model::NetworkAddr::new(local.network.clone(), destination.ip());
    let service = world.service_at(&address, local.identity.namespace());
    let declared = service.and_then(|service| service.port(PORT)).map(|port| port.app_protocol);
    matches!(declared, None | Some(AppProtocol::Unknown | AppProtocol::Tcp))
}
