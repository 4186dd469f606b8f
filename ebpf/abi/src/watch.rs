//! Which connections of a meshed pod are counted because they got past the mesh.

use crate::{NsConfig, reaches_out_v6};

/// What the watch knows of a pod's network namespace. It has the pod's configuration of its own: that a namespace is
/// missing where connections are captured is one of the things that it is to notice.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched {
    /// The mark of captured connections, and the pod's addresses.
    pub config: NsConfig,
    /// From when on connections that come in are counted, in nanoseconds of the monotonic clock: a handshake that had
    /// begun before capture may end after it.
    pub accepted_since: u64,
}

/// How many connections of a pod were established past the mesh since it was enrolled.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bypassed {
    /// Those that the pod opened.
    pub opened: u64,
    /// Those that others opened to the pod.
    pub accepted: u64,
}

impl Bypassed {
    /// All of them.
    pub const fn total(&self) -> u64 {
        self.opened.saturating_add(self.accepted)
    }
}

/// Whether a socket with this mark and this peer got past the mesh, unless it is ztunnel's own. The peer's address is
/// IPv6, or IPv4 mapped into it.
#[inline(always)]
pub const fn evades(config: &NsConfig, mark: u32, peer: [u32; 4]) -> bool {
    !is_marked(config, mark) && reaches_out_v6(&config.own, peer)
}

/// Whether a mark says that its socket or packet is captured.
#[inline(always)]
pub const fn is_marked(config: &NsConfig, mark: u32) -> bool {
    mark & config.mask == config.mark
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::{DEFAULT_MARK, DEFAULT_MASK, OwnAddresses, mapped, words_v4, words_v6};

    const CONFIG: NsConfig = NsConfig {
        mark: DEFAULT_MARK,
        mask: DEFAULT_MASK,
        own: OwnAddresses::new(
            Some(Ipv4Addr::new(10, 1, 2, 3)),
            Some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3)),
        ),
    };

    fn v4(mark: u32, peer: &str) -> bool {
        evades(&CONFIG, mark, mapped(words_v4(peer.parse().unwrap())))
    }

    fn v6(mark: u32, peer: &str) -> bool {
        evades(&CONFIG, mark, words_v6(peer.parse().unwrap()))
    }

    #[test]
    fn unmarked_connections_with_others_got_past_the_mesh() {
        assert!(v4(0, "10.1.2.4") && v6(0, "fd00::4") && v6(0, "::ffff:10.1.2.4"));
        assert!(v4(0x0200_0000, "10.1.2.4"), "another mark in our bits is not ours");
    }

    #[test]
    fn marked_connections_did_not() {
        for mark in [DEFAULT_MARK, DEFAULT_MARK | 0x539] {
            assert!(!v4(mark, "10.1.2.4") && !v6(mark, "fd00::4") && !v6(mark, "::ffff:10.1.2.4"));
        }
    }

    #[test]
    fn connections_within_the_pod_are_its_own_business() {
        assert!(!v4(0, "127.0.0.1") && !v4(0, "10.1.2.3"));
        assert!(!v6(0, "::1") && !v6(0, "fd00::3") && !v6(0, "::ffff:10.1.2.3"));
    }

    #[test]
    fn layouts_have_no_padding() {
        assert_eq!(size_of::<Watched>(), size_of::<NsConfig>() + 8);
        assert_eq!(size_of::<Bypassed>(), 16);
    }
}
