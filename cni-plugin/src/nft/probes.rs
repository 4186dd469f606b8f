//! The table of a node, as data: it lets the kubelet's probes be told in pods, where packets carry no mark of the node's.
//!
//! ```text
//! table inet ambit_INSTANCE_node {
//!     chain asking {   type filter hook output priority -150;
//!         tcp flags & (fin|syn|rst|ack) == syn socket cgroupv2 level L KUBELET meta mark set mark & ~MASK | MARK
//!     }
//!     chain probes {   type nat hook postrouting priority 90;
//!         meta mark & MASK == MARK ip daddr POD snat to 169.254.7.127           # for each captured pod and family
//!     }
//!     chain forged {   type filter hook forward priority 0;
//!         ip saddr 169.254.7.127 drop                                            # nobody else is that; and for IPv6
//!     }
//! }
//! ```
//!
//! Connection tracking holds to a probe's own 4-tuple; the node's addresses are as strange to a pod as everybody's.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::expr::{Field, Rule, V4, V6};
use super::rules::{self, FORWARD, OUTPUT, POSTROUTING, PROBES_V4, PROBES_V6, chain, first, named};
use super::wire::{Batch, Kind};

/// Whose connections are probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kubelet {
    /// The id of its cgroup.
    pub cgroup: u64,
    /// How deep that lies.
    pub level: u32,
}

/// What a node's table is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePlan {
    /// Whose connections are probes.
    pub kubelet: Kubelet,
    /// The addresses of captured pods.
    pub pods: BTreeSet<IpAddr>,
    /// The mark of probes between the node's two chains.
    pub mark: u32,
    /// Its bits.
    pub mask: u32,
}

impl NodePlan {
    /// The changes that put the table in place of whatever has its name.
    pub(super) fn install(&self, table: &str) -> Batch {
        let mut batch = rules::remove(table);
        batch.push(Kind::NewTable, named(table));
        let Kubelet { cgroup, level } = self.kubelet;
        let asking = first().with(Field::Cgroup { level }, &cgroup.to_ne_bytes()).mark(self.mark, self.mask);
        chain(&mut batch, table, "asking", b"filter\0", OUTPUT, -150, &[asking]);
        let probes: Vec<Rule> = self.pods.iter().map(|pod| self.probe(*pod)).collect();
        chain(&mut batch, table, "probes", b"nat\0", POSTROUTING, 90, &probes);
        let of = |family| Rule::default().with(Field::Family, family);
        let forged = [
            of(&V4).with(Field::SourceV4, &PROBES_V4.octets()).drop(),
            of(&V6).with(Field::SourceV6, &PROBES_V6.octets()).drop(),
        ];
        chain(&mut batch, table, "forged", b"filter\0", FORWARD, 0, &forged);
        batch
    }

    fn probe(&self, pod: IpAddr) -> Rule {
        let marked = Rule::default().has(Field::Mark, &self.mark.to_ne_bytes(), &self.mask.to_ne_bytes());
        match pod {
            IpAddr::V4(pod) => marked
                .with(Field::Family, &V4)
                .with(Field::DestinationV4, &pod.octets())
                .come_from(V4, &PROBES_V4.octets()),
            IpAddr::V6(pod) => marked
                .with(Field::Family, &V6)
                .with(Field::DestinationV6, &pod.octets())
                .come_from(V6, &PROBES_V6.octets()),
        }
    }
}
