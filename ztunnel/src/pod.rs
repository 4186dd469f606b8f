//! The pods of this node, and serving them.

pub mod accept;
mod lane;
pub mod listeners;
pub mod registry;
mod returned;
mod served;

use identity::Lease;
use tokio_util::sync::CancellationToken;
use zds::PodUid;

pub use returned::Returned;
pub use served::{Scope, Served, serve};

use crate::local::LocalPod;

/// A pod of this node, whose network is `N`. Shared by the shards.
#[derive(Debug)]
pub struct Pod<N> {
    /// What the node protocol knows it by.
    pub uid: PodUid,
    /// Who it is.
    pub local: LocalPod,
    /// Its network.
    pub network: N,
    /// Whether what it asks resolvers is answered here.
    pub dns: bool,
    /// The right to its certificate.
    pub lease: Lease,
    /// Cancelled when the pod is not to be served any more, or the proxy drains. Connections that stand go on.
    pub leave: CancellationToken,
    /// Cancelled when the pod is about to end. It goes on serving until it leaves, and those that have others to go to
    /// are sent there.
    pub ending: CancellationToken,
    /// Cancelled when the pod has come back after it left: it is served anew, and what lingered of it is to go.
    pub back: CancellationToken,
    /// What of its own came back to it.
    pub returned: Returned,
}
