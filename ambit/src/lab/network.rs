//! The machine's side of the network: namespaces, links, addresses, routes.
//!
//! One namespace, the *fabric*, holds a bridge and the control plane; each node is a namespace joined to the bridge by its
//! `uplink`; each pod is one joined to its node by a link of its own. Nodes route, as real ones do, also between two pods of
//! theirs: so all that a pod sends passes its node's service translation. The machine's own namespace is never touched.

pub(crate) mod mounts;
pub(crate) mod netns;
mod sysctl;
mod topology;
mod wire;

pub(crate) use topology::{Fabric, NetworkError, Node, PodLink, UPLINK};
