//! A pod of this node, as the node agent names it.

use std::sync::Arc;

use index::World;
use model::{NamespacedName, NetworkId, SpiffeId, Workload};

/// A pod of this node. All of it is known when the agent adds the pod, before the control plane has told anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// Its namespace and name.
    pub name: NamespacedName,
    /// The identity that it may prove. Its namespace is the pod's.
    pub identity: SpiffeId,
    /// The node.
    pub node: Arc<str>,
    /// The cluster of the node.
    pub cluster_id: Arc<str>,
    /// The network of the node.
    pub network: NetworkId,
}

impl LocalPod {
    /// What the control plane says of the pod; nothing while it has not said anything.
    ///
    /// Joined by cluster, namespace and name, and by the account: a workload of another account under the same name is
    /// a predecessor or a successor, and its policies are not this pod's. The trust domain may be told under another of
    /// its names than this proxy was started with.
    pub fn workload<'a>(&self, world: &'a World) -> Option<&'a Arc<Workload>> {
        let same = |w: &&Arc<Workload>| {
            w.cluster_id == self.cluster_id && w.identity().is_some_and(|id| id.is_account_of(&self.identity))
        };
        world.workloads_named(&self.name).iter().find(same)
    }
}
