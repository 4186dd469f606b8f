//! How a pod's program knows the kubelet's probes: by their two ends.

/// A probe's connection while its handshake lasts: the node's end, which the kubelet's kernel has chosen, and the pod's.
///
/// Addresses are IPv6, or IPv4 mapped into it; ports are numbers, not bytes on the wire.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    node: [u32; 4],
    pod: [u32; 4],
    node_port: u32,
    pod_port: u32,
}

/// For how long a probe whose handshake does not end is let in, in nanoseconds. It is let in for less as a rule: it is
/// forgotten when it is established, and when the kubelet gives up. This is for one whose end nobody saw.
pub const PROBE_LIFETIME_NS: u64 = 60_000_000_000;

impl Probe {
    /// A probe over IPv4.
    #[inline(always)]
    pub const fn v4(node: u32, node_port: u16, pod: u32, pod_port: u16) -> Self {
        Self::v6(mapped(node), node_port, mapped(pod), pod_port)
    }

    /// A probe over IPv6.
    #[inline(always)]
    pub const fn v6(node: [u32; 4], node_port: u16, pod: [u32; 4], pod_port: u16) -> Self {
        Self { node, pod, node_port: node_port as u32, pod_port: pod_port as u32 }
    }

    /// The pod's address.
    #[inline(always)]
    pub const fn pod(&self) -> [u32; 4] {
        self.pod
    }
}

/// Whether a probe that was noted at `noted` may still be let in, both in nanoseconds of the monotonic clock.
#[inline(always)]
pub const fn is_fresh(noted: u64, now: u64) -> bool {
    now.wrapping_sub(noted) < PROBE_LIFETIME_NS
}

/// An IPv4 address as an IPv6 one.
#[inline(always)]
pub const fn mapped(v4: u32) -> [u32; 4] {
    [0, 0, 0xffff_u32.to_be(), v4]
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::{words_v4, words_v6};

    #[test]
    fn a_probe_is_the_same_from_a_socket_of_either_family() {
        let [node, pod] = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 9)];
        let [node6, pod6] = [node, pod].map(|v4| words_v6(v4.to_ipv6_mapped()));
        let v4 = Probe::v4(words_v4(node), 40000, words_v4(pod), 80);
        assert_eq!(v4, Probe::v6(node6, 40000, pod6, 80));
        assert_eq!(v4.pod(), pod6);
    }

    #[test]
    fn every_part_of_it_counts() {
        let v4 = |node: u8, node_port, pod: u8, pod_port| {
            let at = |last| words_v4(Ipv4Addr::new(10, 0, 0, last));
            Probe::v4(at(node), node_port, at(pod), pod_port)
        };
        let one = v4(1, 40000, 9, 80);
        for other in [v4(2, 40000, 9, 80), v4(1, 40001, 9, 80), v4(1, 40000, 8, 80), v4(1, 40000, 9, 81)] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn a_probe_goes_stale() {
        assert!(is_fresh(5, 5) && is_fresh(5, PROBE_LIFETIME_NS));
        assert!(!is_fresh(5, PROBE_LIFETIME_NS + 5));
        assert!(!is_fresh(6, 5), "one of the future is none");
    }

    #[test]
    fn layouts_have_no_padding() {
        assert_eq!(size_of::<Probe>(), 40);
        assert_eq!(mapped(0), words_v6(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0)));
    }
}
