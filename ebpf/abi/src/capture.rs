//! Which connections of a meshed pod leave it, and what mark their sockets get.

use crate::{NsConfig, OwnAddresses, is_loopback_v4, is_loopback_v6, same_v6};

/// Whether a connect to this IPv4 address leaves the pod, and is therefore captured.
///
/// The unspecified address means the host itself to `connect(2)`.
#[inline(always)]
pub const fn reaches_out_v4(own: &OwnAddresses, destination: u32) -> bool {
    destination != 0 && !is_loopback_v4(destination) && !own.holds_v4(destination)
}

/// Whether a connect to this IPv6 address leaves the pod; IPv4-mapped addresses are judged as IPv4.
#[inline(always)]
pub const fn reaches_out_v6(own: &OwnAddresses, destination: [u32; 4]) -> bool {
    const MAPPED: u32 = 0xffff_u32.to_be();
    if destination[0] == 0 && destination[1] == 0 && destination[2] == MAPPED {
        return reaches_out_v4(own, destination[3]);
    }
    !same_v6(destination, [0; 4]) && !is_loopback_v6(destination) && !own.holds_v6(destination)
}

/// The mark that a socket with mark `current` must have when it connects; `None` if it has it already.
///
/// Captured: our bits become our mark, whatever the application put there. Not captured: our mark is taken off, as a
/// socket that was captured before, or whose owner forged the mark, must not loop through the mesh's routes.
#[inline(always)]
pub const fn remark(config: &NsConfig, current: u32, captured: bool) -> Option<u32> {
    let others = current & !config.mask;
    let ours = current & config.mask == config.mark;
    match (captured, ours) {
        (true, false) => Some(others | config.mark),
        (false, true) => Some(others),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::{DEFAULT_MARK, DEFAULT_MASK, words_v4, words_v6};

    const V4: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 3);
    const V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);

    fn v4(own: OwnAddresses, address: &str) -> bool {
        reaches_out_v4(&own, words_v4(address.parse().unwrap()))
    }

    fn v6(own: OwnAddresses, address: &str) -> bool {
        reaches_out_v6(&own, words_v6(address.parse().unwrap()))
    }

    #[test]
    fn connections_within_the_pod_stay() {
        let own = OwnAddresses::new(Some(V4), Some(V6));
        for address in ["127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3"] {
            assert!(!v4(own, address), "{address}");
        }
        for address in ["::1", "::", "fd00::3", "::ffff:127.0.0.1", "::ffff:0.0.0.0", "::ffff:10.1.2.3"] {
            assert!(!v6(own, address), "{address}");
        }
    }

    #[test]
    fn connections_to_others_leave() {
        let own = OwnAddresses::new(Some(V4), Some(V6));
        for address in ["10.1.2.4", "10.96.0.1", "1.1.1.1", "169.254.169.254", "128.0.0.1"] {
            assert!(v4(own, address), "{address}");
        }
        for address in ["fd00::4", "2001:db8::1", "::2", "fe80::1", "::ffff:10.1.2.4", "::fffe:127.0.0.1"] {
            assert!(v6(own, address), "{address}");
        }
    }

    #[test]
    fn a_pod_without_a_family_leaves_by_every_address_of_it() {
        assert!(v6(OwnAddresses::new(Some(V4), None), "fd00::3"));
        assert!(v4(OwnAddresses::new(None, Some(V6)), "10.1.2.3"));
    }

    const CONFIG: NsConfig =
        NsConfig { mark: DEFAULT_MARK, mask: DEFAULT_MASK, own: OwnAddresses::new(None, None) };

    #[test]
    fn whatever_mark_the_application_set_capture_sets_ours() {
        for forged in [0, 0x539, 0x111, 0x0f00_0000, 0x0200_0000, DEFAULT_MARK ^ DEFAULT_MASK] {
            let marked = remark(&CONFIG, forged, true).unwrap();
            assert_eq!(marked & DEFAULT_MASK, DEFAULT_MARK);
            assert_eq!(marked & !DEFAULT_MASK, forged & !DEFAULT_MASK, "other bits are the application's");
        }
        assert_eq!(remark(&CONFIG, DEFAULT_MARK | 0x539, true), None);
    }

    #[test]
    fn only_our_mark_is_taken_off() {
        assert_eq!(remark(&CONFIG, DEFAULT_MARK | 7, false), Some(7));
        assert_eq!(remark(&CONFIG, 0x0200_0000, false), None);
        assert_eq!(remark(&CONFIG, 0, false), None);
    }
}
