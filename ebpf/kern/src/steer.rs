//! Hands the connections that arrive in one pod's network namespace, and what it asks resolvers, to ztunnel's sockets.
//!
//! One program and one listener map a pod: `sk_lookup` may not ask for the namespace's cookie, so the pod's addresses
//! lie in a map of their own.
#![no_std]
#![no_main]

mod object;

use aya_ebpf::{
    btf_maps::{Array, LruHashMap, SockMap},
    helpers::generated::bpf_ktime_get_ns,
    macros::{btf_map, sk_lookup},
    programs::SkLookupContext,
};
use ebpf_abi::{
    Arrival, PROBES_CAPACITY, Probe, Steering, is_fresh, slot, steer_datagram_v4, steer_datagram_v6,
    steer_v4, steer_v6,
};
use object::field;

const PASS: u32 = 1;
const DROP: u32 = 0;

const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// `lo` is the first device of every network namespace.
const LOOPBACK_IFINDEX: u32 = 1;

#[btf_map]
static LISTENERS: SockMap<{ slot::COUNT }> = SockMap::new();

#[btf_map]
static STEERING: Array<Steering, 1> = Array::new();

/// One for all pods of the instance.
#[btf_map]
static PROBES: LruHashMap<Probe, u64, PROBES_CAPACITY> = LruHashMap::new();

/// Runs when a SYN (or a datagram) finds no connected socket.
///
/// What is ztunnel's and finds no listener is dropped: fail closed.
#[sk_lookup]
fn steer(ctx: SkLookupContext) -> u32 {
    let protocol = field!((*ctx.lookup).protocol);
    if protocol != IPPROTO_TCP && protocol != IPPROTO_UDP {
        return PASS;
    }
    let Some(steering) = STEERING.get(0) else { return DROP };
    let arrival = Arrival {
        by_loopback: field!((*ctx.lookup).ingress_ifindex) == LOOPBACK_IFINDEX,
        port: field!((*ctx.lookup).local_port) as u16,
    };
    let (slot, probe) = match field!((*ctx.lookup).family) {
        AF_INET => {
            let local = field!((*ctx.lookup).local_ip4);
            let remote = field!((*ctx.lookup).remote_ip4);
            let slot = if protocol == IPPROTO_UDP {
                steer_datagram_v4(steering, arrival, local)
            } else {
                steer_v4(steering, arrival, local, remote)
            };
            (slot, Probe::v4(remote, remote_port(&ctx), local, arrival.port))
        }
        AF_INET6 => {
            let local = [
                field!((*ctx.lookup).local_ip6[0]),
                field!((*ctx.lookup).local_ip6[1]),
                field!((*ctx.lookup).local_ip6[2]),
                field!((*ctx.lookup).local_ip6[3]),
            ];
            let remote = [
                field!((*ctx.lookup).remote_ip6[0]),
                field!((*ctx.lookup).remote_ip6[1]),
                field!((*ctx.lookup).remote_ip6[2]),
                field!((*ctx.lookup).remote_ip6[3]),
            ];
            let slot = if protocol == IPPROTO_UDP {
                steer_datagram_v6(steering, arrival, local)
            } else {
                steer_v6(steering, arrival, local, remote)
            };
            (slot, Probe::v6(remote, remote_port(&ctx), local, arrival.port))
        }
        _ => return PASS,
    };
    let Some(slot) = slot else { return PASS };
    if slot == slot::INBOUND && is_probe(probe) {
        return PASS;
    }
    match LISTENERS.redirect_sk_lookup(&ctx, slot, 0) {
        Ok(()) => PASS,
        Err(_) => DROP,
    }
}

/// Whether the kubelet is opening this connection right now; then it is the application's.
#[inline(always)]
fn is_probe(probe: Probe) -> bool {
    // SAFETY: the value is one word, which is written as a whole.
    let Some(noted) = (unsafe { PROBES.get(probe) }) else { return false };
    // SAFETY: the helper takes nothing and reads the clock.
    is_fresh(*noted, unsafe { bpf_ktime_get_ns() })
}

#[inline(always)]
fn remote_port(ctx: &SkLookupContext) -> u16 {
    u16::from_be(field!((*ctx.lookup).remote_port))
}
