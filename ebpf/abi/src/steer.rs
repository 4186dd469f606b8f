//! Which listener takes a connection that arrives in a meshed pod's network namespace.

use crate::{DNS_PORT, HBONE_PORT, Steering, is_loopback_v4, is_loopback_v6, same_v6, slot};

/// What is known of a SYN besides its addresses.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// It came in by `lo`.
    pub by_loopback: bool,
    /// The port that it is for.
    pub port: u16,
}

/// The slot of the listener that takes an IPv4 connection; `None` leaves it to the kernel's own lookup.
#[inline(always)]
pub const fn steer_v4(steering: &Steering, arrival: Arrival, local: u32, remote: u32) -> Option<u32> {
    // Connecting to one's own address shows the device that holds it, not `lo`: compare the ends as well.
    if local == remote {
        return None;
    }
    if !arrival.by_loopback {
        return from_network(steering, arrival.port);
    }
    if is_loopback_v4(local) || steering.own.holds_v4(local) { None } else { Some(slot::OUTBOUND_V4) }
}

/// The slot of the listener that takes an IPv6 connection; `None` leaves it to the kernel's own lookup.
#[inline(always)]
pub const fn steer_v6(
    steering: &Steering,
    arrival: Arrival,
    local: [u32; 4],
    remote: [u32; 4],
) -> Option<u32> {
    if same_v6(local, remote) {
        return None;
    }
    if !arrival.by_loopback {
        return from_network(steering, arrival.port);
    }
    if is_loopback_v6(local) || steering.own.holds_v6(local) { None } else { Some(slot::OUTBOUND_V6) }
}

/// The slot of the socket that takes an IPv4 datagram; `None` leaves it to the kernel's own lookup.
///
/// Only what the agent's rule has looped is for ztunnel: what the pod sends to a resolver that is not itself.
#[inline(always)]
pub const fn steer_datagram_v4(steering: &Steering, arrival: Arrival, local: u32) -> Option<u32> {
    let own = is_loopback_v4(local) || steering.own.holds_v4(local);
    if arrival.by_loopback && arrival.port == DNS_PORT && !own { Some(slot::DNS_V4) } else { None }
}

/// The slot of the socket that takes an IPv6 datagram; `None` leaves it to the kernel's own lookup.
#[inline(always)]
pub const fn steer_datagram_v6(steering: &Steering, arrival: Arrival, local: [u32; 4]) -> Option<u32> {
    let own = is_loopback_v6(local) || steering.own.holds_v6(local);
    if arrival.by_loopback && arrival.port == DNS_PORT && !own { Some(slot::DNS_V6) } else { None }
}

#[inline(always)]
const fn from_network(steering: &Steering, port: u16) -> Option<u32> {
    if !steering.inbound() || port == HBONE_PORT { None } else { Some(slot::INBOUND) }
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::{OwnAddresses, words_v4, words_v6};

    const OWN: OwnAddresses =
        OwnAddresses::new(Some(Ipv4Addr::new(10, 0, 0, 1)), Some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)));
    const LOOPED: Arrival = Arrival { by_loopback: true, port: 80 };
    const NETWORK: Arrival = Arrival { by_loopback: false, port: 80 };

    fn v4(own: OwnAddresses, arrival: Arrival, local: &str, remote: &str) -> Option<u32> {
        steer_v4(
            &Steering::new(own, true),
            arrival,
            words_v4(local.parse().unwrap()),
            words_v4(remote.parse().unwrap()),
        )
    }

    fn v6(own: OwnAddresses, arrival: Arrival, local: &str, remote: &str) -> Option<u32> {
        steer_v6(
            &Steering::new(own, true),
            arrival,
            words_v6(local.parse().unwrap()),
            words_v6(remote.parse().unwrap()),
        )
    }

    #[test]
    fn what_the_pod_sends_goes_to_the_outbound_listener_of_its_family() {
        assert_eq!(v4(OWN, LOOPED, "10.0.0.9", "10.0.0.1"), Some(slot::OUTBOUND_V4));
        assert_eq!(v6(OWN, LOOPED, "fd00::9", "fd00::1"), Some(slot::OUTBOUND_V6));
    }

    #[test]
    fn what_ztunnel_delivers_goes_to_the_application() {
        assert_eq!(v4(OWN, LOOPED, "10.0.0.1", "10.0.0.9"), None);
        assert_eq!(v6(OWN, LOOPED, "fd00::1", "fd00::9"), None);
    }

    #[test]
    fn loopback_is_left_alone() {
        assert_eq!(v4(OWN, LOOPED, "127.0.0.1", "127.0.0.2"), None);
        assert_eq!(v6(OWN, LOOPED, "::1", "fd00::1"), None);
    }

    #[test]
    fn a_pod_that_calls_itself_is_left_alone_whatever_the_device() {
        for arrival in [LOOPED, NETWORK] {
            assert_eq!(v4(OWN, arrival, "10.0.0.1", "10.0.0.1"), None);
            assert_eq!(v6(OWN, arrival, "fd00::1", "fd00::1"), None);
        }
    }

    #[test]
    fn plaintext_from_the_network_goes_to_the_inbound_listener() {
        assert_eq!(v4(OWN, NETWORK, "10.0.0.1", "10.0.0.9"), Some(slot::INBOUND));
        assert_eq!(v6(OWN, NETWORK, "fd00::1", "fd00::9"), Some(slot::INBOUND));
    }

    #[test]
    fn hbone_from_the_network_goes_to_its_own_listener() {
        let hbone = Arrival { by_loopback: false, port: HBONE_PORT };
        assert_eq!(v4(OWN, hbone, "10.0.0.1", "10.0.0.9"), None);
        assert_eq!(v6(OWN, hbone, "fd00::1", "fd00::9"), None);
    }

    #[test]
    fn hbone_that_the_pod_itself_sends_is_captured() {
        let hbone = Arrival { by_loopback: true, port: HBONE_PORT };
        assert_eq!(v4(OWN, hbone, "10.0.0.9", "10.0.0.1"), Some(slot::OUTBOUND_V4));
    }

    #[test]
    fn a_pod_that_is_let_go_keeps_the_listener_of_what_it_sent() {
        let released = Steering::new(OWN, false);
        let (own, other) = (words_v4(Ipv4Addr::new(10, 0, 0, 1)), words_v4(Ipv4Addr::new(10, 0, 0, 9)));
        assert_eq!(steer_v4(&released, NETWORK, own, other), None);
        assert_eq!(steer_v4(&released, LOOPED, other, own), Some(slot::OUTBOUND_V4));
    }

    #[test]
    fn only_looped_questions_to_other_resolvers_are_taken() {
        let asked = |by_loopback, port, to: &str| {
            let arrival = Arrival { by_loopback, port };
            let steering = Steering::new(OWN, true);
            match to.parse().unwrap() {
                core::net::IpAddr::V4(to) => steer_datagram_v4(&steering, arrival, words_v4(to)),
                core::net::IpAddr::V6(to) => steer_datagram_v6(&steering, arrival, words_v6(to)),
            }
        };
        assert_eq!(asked(true, 53, "10.96.0.10"), Some(slot::DNS_V4));
        assert_eq!(asked(true, 53, "fd00:96::10"), Some(slot::DNS_V6));
        for own in ["127.0.0.53", "10.0.0.1", "::1", "fd00::1"] {
            assert_eq!(asked(true, 53, own), None, "a resolver in the pod itself: {own}");
        }
        for other in ["10.96.0.10", "fd00:96::10"] {
            assert_eq!(asked(true, 5353, other), None);
            assert_eq!(asked(false, 53, other), None, "a question from the network is the application's");
        }
    }

    #[test]
    fn a_missing_family_does_not_let_the_other_through() {
        let only_v6 = OwnAddresses::new(None, OWN.v6());
        let only_v4 = OwnAddresses::new(OWN.v4(), None);
        assert_eq!(v4(only_v6, LOOPED, "0.0.0.0", "10.0.0.1"), Some(slot::OUTBOUND_V4));
        assert_eq!(v6(only_v4, LOOPED, "::", "fd00::1"), Some(slot::OUTBOUND_V6));
    }
}
