//! What the BPF programs and user space must agree on: map layouts, slot numbers, names, and the decisions that the
//! programs take.
//!
//! The decisions live here and not in the programs so that they are tested as ordinary Rust: a program reads its
//! context, asks this crate, and acts. Everything is `#[inline(always)]`, so that the verifier sees plain compares.
//!
//! IPv4 addresses are `u32`s and IPv6 addresses `[u32; 4]`s whose bytes in memory are in network order, as the
//! kernel hands them to a program.
#![no_std]

mod capture;
mod probe;
mod steer;
mod watch;

use core::net::{Ipv4Addr, Ipv6Addr};

pub use capture::{reaches_out_v4, reaches_out_v6, remark};
pub use probe::{PROBE_LIFETIME_NS, Probe, is_fresh, mapped};
pub use steer::{Arrival, steer_datagram_v4, steer_datagram_v6, steer_v4, steer_v6};
pub use watch::{Bypassed, Watched, evades, is_marked};

/// The packet mark that captured sockets carry, unless configured otherwise.
///
/// Bits 24 to 27 alone: outside kube-proxy's `0x4000` and `0x8000`, Cilium's low half, the proxies' `0x539/0xfff` and
/// `0x111/0xfff`, and the `0xff0000` of VPN clients that run as a pod's sidecar. Calico's `0xffff0000` overlaps, but is
/// compared on the host's side of a veth, where a mark does not arrive.
pub const DEFAULT_MARK: u32 = 0x0a00_0000;

/// The bits in which [`DEFAULT_MARK`] is set and compared.
pub const DEFAULT_MASK: u32 = 0x0f00_0000;

/// How many pods one agent instance can enrol.
pub const MESHED_CAPACITY: usize = 4096;

/// How many addresses these can have: one a family.
pub const PODS_CAPACITY: usize = 2 * MESHED_CAPACITY;

/// How many probes of a node can be in their handshake at a time; of more, the oldest are taken for strangers.
pub const PROBES_CAPACITY: usize = 4096;

/// Slots of a pod's listener map.
pub mod slot {
    /// The transparent listener on 127.0.0.1:15001: what the pod sends over IPv4.
    pub const OUTBOUND_V4: u32 = 0;
    /// The transparent listener on `[::1]`:15001: what the pod sends over IPv6.
    pub const OUTBOUND_V6: u32 = 1;
    /// The transparent dual-stack listener on `[::]`:15006: plaintext that comes from the network.
    pub const INBOUND: u32 = 2;
    /// The transparent datagram socket on 127.0.0.1:15053: what the pod asks resolvers over IPv4.
    pub const DNS_V4: u32 = 3;
    /// The transparent datagram socket on `[::1]`:15053: what the pod asks resolvers over IPv6.
    pub const DNS_V6: u32 = 4;
    /// How many slots the map has; those above [`DNS_V6`] are not used yet.
    pub const COUNT: usize = 8;
}

/// The port on which pods of the mesh accept HBONE. It is left to ztunnel's own listener.
pub const HBONE_PORT: u16 = 15008;

/// The port of resolvers. Datagrams to it come back over loopback where the agent has routed them so.
pub const DNS_PORT: u16 = 53;

/// Names of maps and variables in the objects.
pub mod name {
    /// Hash map from a network namespace's cookie (`u64`) to its [`NsConfig`](crate::NsConfig).
    pub const MESHED: &str = "MESHED";
    /// Socket storage (`u32`): a socket with an entry is ztunnel's, and never captured. Accepted sockets take over the
    /// entry of their listener.
    pub const BYPASS: &str = "BYPASS";
    /// Hash map from a network namespace's cookie (`u64`) to what its watch knows, [`Watched`](crate::Watched).
    pub const WATCHED: &str = "WATCHED";
    /// Hash map from a network namespace's cookie (`u64`) to the count of its connections that are
    /// [`Bypassed`](crate::Bypassed).
    pub const BYPASSED: &str = "BYPASSED";
    /// Hash map from the address of an enrolled pod (mapped into IPv6) to its network namespace's cookie (`u64`).
    pub const PODS: &str = "PODS";
    /// LRU hash map from the [`Probe`](crate::Probe)s whose handshake lasts to when it began (`u64`, nanoseconds).
    pub const PROBES: &str = "PROBES";
    /// Array of one: the cookie (`u64`) of the network namespace from which the kubelet probes.
    pub const KUBELET_NETNS: &str = "KUBELET_NETNS";
    /// Array of one: the [`NsConfig`](crate::NsConfig) whose mark the guard keeps in.
    pub const GUARDED: &str = "GUARDED";
    /// Sockmap of a pod's listeners, see [`slot`](crate::slot).
    pub const LISTENERS: &str = "LISTENERS";
    /// Array of one: the [`Steering`](crate::Steering) of the pod that a `steer` program serves.
    pub const STEERING: &str = "STEERING";
    /// The program on IPv4 connects.
    pub const CONNECT4: &str = "connect4";
    /// The program on IPv6 connects.
    pub const CONNECT6: &str = "connect6";
    /// The socket lookup program of one pod.
    pub const STEER: &str = "steer";
    /// The program that counts the connections that get past the mesh.
    pub const WATCH: &str = "watch";
    /// The program on the kubelet's sockets.
    pub const KUBELET: &str = "kubelet";
    /// The program on the packets that leave a pod.
    pub const GUARD: &str = "guard";
}

/// The addresses of a pod: at most one a family, as Kubernetes gives them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnAddresses {
    flags: u32,
    v4: u32,
    v6: [u32; 4],
}

const HAS_V4: u32 = 1;
const HAS_V6: u32 = 2;

impl OwnAddresses {
    /// The addresses as the programs compare them.
    pub const fn new(v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) -> Self {
        let mut own = Self { flags: 0, v4: 0, v6: [0; 4] };
        if let Some(v4) = v4 {
            own.flags |= HAS_V4;
            own.v4 = words_v4(v4);
        }
        if let Some(v6) = v6 {
            own.flags |= HAS_V6;
            own.v6 = words_v6(v6);
        }
        own
    }

    /// The IPv4 address, if there is one.
    pub fn v4(&self) -> Option<Ipv4Addr> {
        (self.flags & HAS_V4 != 0).then(|| Ipv4Addr::from(self.v4.to_ne_bytes()))
    }

    /// The IPv6 address, if there is one.
    pub fn v6(&self) -> Option<Ipv6Addr> {
        let words = self.v6.map(u32::to_ne_bytes);
        let mut bytes = [0; 16];
        for (to, from) in bytes.iter_mut().zip(words.iter().flatten()) {
            *to = *from;
        }
        (self.flags & HAS_V6 != 0).then(|| Ipv6Addr::from(bytes))
    }

    /// Whether `address` is the pod's. An address that the pod does not have matches nothing.
    #[inline(always)]
    pub const fn holds_v4(&self, address: u32) -> bool {
        self.flags & HAS_V4 != 0 && self.v4 == address
    }

    /// Whether `address` is the pod's. An address that the pod does not have matches nothing.
    #[inline(always)]
    pub const fn holds_v6(&self, address: [u32; 4]) -> bool {
        self.flags & HAS_V6 != 0 && same_v6(self.v6, address)
    }
}

/// What the connect programs know of a pod's network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NsConfig {
    /// The mark that captured sockets get.
    pub mark: u32,
    /// The bits of a socket's mark that are ours; the others are left as the application set them.
    pub mask: u32,
    /// The pod's addresses; connections to them are the pod's own business.
    pub own: OwnAddresses,
}

/// What a pod's socket lookup program knows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steering {
    /// The pod's addresses.
    pub own: OwnAddresses,
    inbound: u32,
}

impl Steering {
    /// Whether connections from the network are captured is told apart from the rest: marked connections of the pod
    /// loop back also when no new ones are marked any more, and still need their listener then.
    pub const fn new(own: OwnAddresses, inbound: bool) -> Self {
        Self { own, inbound: inbound as u32 }
    }

    /// Whether connections from the network are captured.
    #[inline(always)]
    pub const fn inbound(&self) -> bool {
        self.inbound != 0
    }
}

/// An IPv4 address as a program sees it.
pub const fn words_v4(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

/// An IPv6 address as a program sees it.
pub const fn words_v6(address: Ipv6Addr) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address.octets();
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}

/// Compared word by word: array equality becomes a `bcmp` call, which BPF does not have.
#[inline(always)]
const fn same_v6(a: [u32; 4], b: [u32; 4]) -> bool {
    a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3]
}

#[inline(always)]
const fn is_loopback_v4(address: u32) -> bool {
    address.to_ne_bytes()[0] == 127
}

#[inline(always)]
const fn is_loopback_v6(address: [u32; 4]) -> bool {
    same_v6(address, [0, 0, 0, 1_u32.to_be()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_layout() {
        let v4 = Ipv4Addr::new(10, 1, 2, 3);
        let v6 = Ipv6Addr::new(0xfd00, 1, 2, 3, 4, 5, 6, 7);
        let both = OwnAddresses::new(Some(v4), Some(v6));
        assert_eq!((both.v4(), both.v6()), (Some(v4), Some(v6)));
        let none = OwnAddresses::new(None, None);
        assert_eq!((none.v4(), none.v6()), (None, None));
    }

    #[test]
    fn an_unset_address_matches_nothing() {
        let none = OwnAddresses::new(None, None);
        assert!(!none.holds_v4(0));
        assert!(!none.holds_v6([0; 4]));
    }

    #[test]
    fn words_keep_network_order_in_memory() {
        assert_eq!(words_v4(Ipv4Addr::new(10, 1, 2, 3)).to_ne_bytes(), [10, 1, 2, 3]);
        let words = words_v6(Ipv6Addr::new(0x0102, 0x0304, 0, 0, 0, 0, 0, 1));
        assert_eq!(words[0].to_ne_bytes(), [1, 2, 3, 4]);
        assert_eq!(words[3].to_ne_bytes(), [0, 0, 0, 1]);
    }

    #[test]
    fn layouts_have_no_padding() {
        assert_eq!(size_of::<OwnAddresses>(), 24);
        assert_eq!(size_of::<NsConfig>(), 32);
        assert_eq!(size_of::<Steering>(), 28);
    }
}
