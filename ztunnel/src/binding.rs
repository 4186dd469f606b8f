//! Whether a pod is where it is said to be, asked before its key is used.
//!
//! The agent says which network namespace a pod has, and with it whose key is used there; the control plane says which
//! addresses the pod has. The two must meet: a namespace that was taken for another pod's would otherwise speak with the
//! other's identity. That one namespace is never two pods', nor the node's own, the [registry](crate::pod::registry) sees to.
//!
//! While the control plane has not told of the pod, the agent's word holds alone: nothing is admitted to the pod then, and
//! what it opens must not wait for the control plane.

use std::net::IpAddr;

use index::World;
use model::NamespacedName;
use thiserror::Error;

use crate::local::LocalPod;

/// An address at which a pod's key is not to be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{address} is none of the addresses of pod {pod}, which are {}: its key is not used there",
    list(addresses)
)]
pub struct Unbound {
    /// The pod.
    pub pod: NamespacedName,
    /// The address in the namespace that the agent names.
    pub address: IpAddr,
    /// The addresses that the control plane names.
    pub addresses: Vec<IpAddr>,
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ")
}

/// Whether an address is one of the pod's, as far as anybody has told its addresses.
///
/// # Errors
/// If they are told and it is none of them.
pub fn check(world: &World, pod: &LocalPod, address: IpAddr) -> Result<(), Unbound> {
    let Some(workload) = pod.workload(world).filter(|w| !w.addresses.is_empty()) else { return Ok(()) };
    let address = address.to_canonical();
    if workload.addresses.iter().any(|ip| ip.to_canonical() == address) {
        return Ok(());
    }
    Err(Unbound { pod: pod.name.clone(), address, addresses: workload.addresses.clone() })
}

#[cfg(test)]
mod tests {
    use index::Update;
    use model::NetworkId;
    use testkit::fixtures::{CLUSTER, identity, ip, pod};

    use super::*;

    fn local() -> LocalPod {
        LocalPod {
            name: NamespacedName::new("shop", "app"),
            identity: identity("shop", "app"),
            node: "node1".into(),
            cluster_id: CLUSTER.into(),
            network: NetworkId::default(),
        }
    }

    fn world(updates: impl IntoIterator<Item = Update>) -> World {
        World::default().apply(updates).0
    }

    #[test]
    fn a_pods_key_is_used_at_its_own_addresses_only() {
        let world = world([pod("shop", "app").ip("10.0.0.1").ip("fd00::1").build().into()]);
        for own in ["10.0.0.1", "::ffff:10.0.0.1", "fd00::1"] {
            assert_eq!(check(&world, &local(), ip(own)), Ok(()), "{own}");
        }
        let refusal = check(&world, &local(), ip("10.0.0.2")).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "10.0.0.2 is none of the addresses of pod shop/app, which are 10.0.0.1, fd00::1: its key is not used there"
        );
    }

    #[test]
    fn the_agents_word_holds_until_the_control_plane_has_told() {
        assert_eq!(check(&World::default(), &local(), ip("10.0.0.2")), Ok(()));
        let other = pod("shop", "app").account("other").ip("10.0.0.1").build();
        assert_eq!(check(&world([other.into()]), &local(), ip("10.0.0.2")), Ok(()), "told of somebody else");
        assert_eq!(check(&world([pod("shop", "app").build().into()]), &local(), ip("10.0.0.2")), Ok(()));
    }
}
