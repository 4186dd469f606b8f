//! Who has which address.
//!
//! | what | IPv4 | IPv6 |
//! |---|---|---|
//! | the link between the nodes | 10.240.0.0/24, the control plane is .1, node *n* is .(10 + *n*) | fd00:10:240::/64, likewise |
//! | pods of node *n* | 10.244.*n*.0/24, the node is .1 | fd00:10:244:*n*::/64, likewise |
//! | services | 10.96.0.0/16, the resolver is 10.96.0.10 | fd00:10:96::/112, the resolver is fd00:10:96::a |
//!
//! A pod has both, or one of them where its annotation [`FAMILIES`] says so.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// The most nodes that a lab may have.
pub(crate) const MAX_NODES: u8 = 200;

/// Where the control plane answers.
pub(crate) const CONTROL: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 1);
pub(crate) const CONTROL6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x240, 0, 0, 0, 0, 1);
/// Prefix lengths of the link between the nodes.
pub(crate) const LINK: (u8, u8) = (24, 64);

/// Where names are resolved.
pub(crate) const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
pub(crate) const RESOLVER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 10);

/// The annotation of a pod that has addresses of one family alone: `IPv4` or `IPv6`.
pub(crate) const FAMILIES: &str = "lab.ambit.dev/ip-families";

pub(crate) const SERVICES: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16);
pub(crate) const SERVICES6: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0), 112);

/// An IPv4 and an IPv6 address of one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Pair {
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

impl Pair {
    /// Both, IPv4 first; only that where the machine has no IPv6.
    pub(crate) fn addresses(self, has_v6: bool) -> Vec<IpAddr> {
        self.of(Families { v4: true, v6: has_v6 })
    }

    /// Those of some families, IPv4 first.
    pub(crate) fn of(self, families: Families) -> Vec<IpAddr> {
        let v4 = families.v4.then_some(IpAddr::V4(self.v4));
        v4.into_iter().chain(families.v6.then_some(IpAddr::V6(self.v6))).collect()
    }
}

/// The families of which something has addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Families {
    pub(crate) v4: bool,
    pub(crate) v6: bool,
}

impl Families {
    /// Those of a pod with this annotation, or without one, on a machine that has IPv6 or has not.
    pub(crate) fn of_pod(annotation: Option<&str>, has_v6: bool) -> Self {
        match annotation {
            Some("IPv4") => Self { v4: true, v6: false },
            Some("IPv6") => Self { v4: false, v6: true },
            _ => Self { v4: true, v6: has_v6 },
        }
    }

    /// What is wrong with an annotation.
    pub(crate) fn objection(annotation: &str) -> Option<String> {
        match annotation {
            "IPv4" | "IPv6" => None,
            other => {
                Some(format!("{FAMILIES}: `{other}` is neither `IPv4` nor `IPv6`; without it a pod has both"))
            }
        }
    }

    /// Who resolves names for one that has these.
    pub(crate) fn resolver(self) -> IpAddr {
        if self.v4 { RESOLVER.into() } else { RESOLVER6.into() }
    }
}

/// A node's name and number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodePlan {
    pub(crate) name: String,
    /// From 1.
    pub(crate) number: u8,
}

/// `node1` to `node<count>`.
pub(crate) fn nodes(count: u8) -> Vec<NodePlan> {
    (1..=count.min(MAX_NODES)).map(|number| NodePlan { name: format!("node{number}"), number }).collect()
}

impl NodePlan {
    /// Its addresses on the link between the nodes.
    pub(crate) fn uplink(&self) -> Pair {
        let host = self.number + 10;
        Pair {
            v4: Ipv4Addr::new(10, 240, 0, host),
            v6: Ipv6Addr::new(0xfd00, 0x10, 0x240, 0, 0, 0, 0, host.into()),
        }
    }

    pub(crate) fn pods(&self) -> Ipv4Net {
        Ipv4Net::new_assert(Ipv4Addr::new(10, 244, self.number, 0), 24)
    }

    pub(crate) fn pods6(&self) -> Ipv6Net {
        Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x10, 0x244, self.number.into(), 0, 0, 0, 0), 64)
    }

    /// Its own addresses towards its pods, their next hop and where their probes come from.
    pub(crate) fn gateway(&self) -> Pair {
        self.pod(1)
    }

    /// The addresses of the pod that has a host number.
    pub(crate) fn pod(&self, host: u8) -> Pair {
        Pair {
            v4: Ipv4Addr::new(10, 244, self.number, host),
            v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, self.number.into(), 0, 0, 0, host.into()),
        }
    }
}

/// The host numbers of a node's pods. One that was given back is used again as late as possible.
#[derive(Clone, Debug, Default)]
pub(crate) struct HostNumbers {
    taken: BTreeSet<u8>,
    last: u8,
}

impl HostNumbers {
    const FIRST: u8 = 2;
    const LAST: u8 = 254;

    /// The next free number; nothing where all are taken.
    pub(crate) fn take(&mut self) -> Option<u8> {
        let after = (self.last.max(Self::FIRST - 1)).saturating_add(1)..=Self::LAST;
        let number = after.chain(Self::FIRST..=Self::LAST).find(|number| !self.taken.contains(number))?;
        self.taken.insert(number);
        self.last = number;
        Some(number)
    }

    pub(crate) fn give_back(&mut self, number: u8) {
        self.taken.remove(&number);
    }
}

/// The next virtual IPs. One that was given back is not used again until all were.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VipCursor {
    next: u16,
}

impl Default for VipCursor {
    fn default() -> Self {
        Self { next: 0x0100 }
    }
}

impl VipCursor {
    fn step(&mut self) -> u16 {
        let number = self.next;
        // The first 256 stay free for addresses that people choose.
        self.next = self.next.checked_add(1).filter(|n| *n < u16::MAX).unwrap_or(0x0100);
        number
    }

    pub(crate) fn v4(&mut self, taken: &BTreeSet<IpAddr>) -> Option<Ipv4Addr> {
        let [a, b, ..] = SERVICES.addr().octets();
        (0..=u16::MAX)
            .map(|_| self.step().to_be_bytes())
            .map(|[c, d]| Ipv4Addr::new(a, b, c, d))
            .find(|ip| !taken.contains(&IpAddr::V4(*ip)))
    }

    pub(crate) fn v6(&mut self, taken: &BTreeSet<IpAddr>) -> Option<Ipv6Addr> {
        let base = u128::from(SERVICES6.addr());
        (0..=u16::MAX)
            .map(|_| Ipv6Addr::from(base | u128::from(self.step())))
            .find(|ip| !taken.contains(&IpAddr::V6(*ip)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_addresses_follow_from_its_number() {
        let node = nodes(2).remove(1);
        assert_eq!(node.name, "node2");
        assert_eq!(node.uplink().v4.to_string(), "10.240.0.12");
        assert_eq!(node.pod(7).v4.to_string(), "10.244.2.7");
        assert_eq!(node.pod(7).v6.to_string(), "fd00:10:244:2::7");
        assert!(node.pods().contains(&node.gateway().v4) && node.pods6().contains(&node.gateway().v6));
        assert_eq!(nodes(255).len(), 200);
    }

    #[test]
    fn a_pods_address_is_not_the_next_pods() {
        let mut numbers = HostNumbers::default();
        assert_eq!(numbers.take(), Some(2));
        numbers.give_back(2);
        assert_eq!(numbers.take(), Some(3));
        for _ in 0..251 {
            assert!(numbers.take().is_some());
        }
        assert_eq!(numbers.take(), Some(2));
        assert_eq!(numbers.take(), None);
        numbers.give_back(100);
        assert_eq!(numbers.take(), Some(100));
    }

    #[test]
    fn virtual_addresses_are_free_and_within_their_range() {
        let mut cursor = VipCursor::default();
        let first = cursor.v4(&BTreeSet::new()).unwrap();
        assert!(SERVICES.contains(&first) && first != RESOLVER);
        let taken = [IpAddr::V4(Ipv4Addr::new(10, 96, 1, 1))].into();
        assert_eq!(cursor.v4(&taken), Some(Ipv4Addr::new(10, 96, 1, 2)));
        assert!(SERVICES6.contains(&cursor.v6(&taken).unwrap()));
    }
}
