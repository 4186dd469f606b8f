//! Notes the kubelet's probes as they begin, so that the pods' programs know them when they arrive.
//!
//! One program an agent instance, at the kubelet's own cgroup. Nobody else's sockets pass here, and a packet that another
//! machine forges finds its entry only while the kubelet itself opens that very connection, and cannot complete it:
//! what answers goes to the node.
#![no_std]
#![no_main]

mod ends;
mod object;

use aya_ebpf::{
    btf_maps::{Array, HashMap, LruHashMap},
    helpers::{bpf_sock_ops_cb_flags_set, generated::bpf_ktime_get_ns},
    macros::{btf_map, sock_ops},
    programs::SockOpsContext,
};
use ebpf_abi::{PODS_CAPACITY, PROBES_CAPACITY, Probe};
use ends::{ends, netns_cookie};
use object::field;

/// A socket is about to send its SYN; its own port is chosen.
const TCP_CONNECT: u32 = 3;
/// A socket changes its state, of which the second argument is the new one.
const STATE: u32 = 10;
/// Asks for notice of the states of a socket.
const STATE_FLAG: u32 = 1 << 2;
const TCP_CLOSE: u32 = 7;

const BPF_F_NO_PREALLOC: usize = 1;

#[btf_map]
static PODS: HashMap<[u32; 4], u64, PODS_CAPACITY, BPF_F_NO_PREALLOC> = HashMap::new();

#[btf_map]
static PROBES: LruHashMap<Probe, u64, PROBES_CAPACITY> = LruHashMap::new();

#[btf_map]
static KUBELET_NETNS: Array<u64, 1> = Array::new();

/// Runs at the turning points of the kubelet's TCP sockets.
#[sock_ops]
fn kubelet(ctx: SockOpsContext) -> u32 {
    match field!((*ctx.ops).op) {
        TCP_CONNECT => begin(&ctx),
        STATE if field!((*ctx.ops).__bindgen_anon_1.args[1]) == TCP_CLOSE => {
            if let Some(probe) = probe(&ctx) {
                // It is gone already where it has arrived.
                let _ = PROBES.remove(probe);
            }
        }
        _ => {}
    }
    1
}

/// Notes a connection to a pod of this node that starts on the node itself.
#[inline(always)]
fn begin(ctx: &SockOpsContext) {
    let Some(node) = KUBELET_NETNS.get(0) else { return };
    if netns_cookie(ctx) != *node {
        return;
    }
    let Some(probe) = probe(ctx) else { return };
    if PODS.get_ptr(probe.pod()).is_none() {
        return;
    }
    // SAFETY: the helper takes nothing and reads the clock.
    let now = unsafe { bpf_ktime_get_ns() };
    // A full map makes room; should it not, the probe is a stranger's, and refused where those are.
    let _ = PROBES.insert(probe, now, 0);
    let flags = field!((*ctx.ops).bpf_sock_ops_cb_flags) | STATE_FLAG;
    // SAFETY: the context is the kernel's. It fails on a socket without a state, which this is not.
    unsafe { bpf_sock_ops_cb_flags_set(ctx.ops, flags as i32) };
}

/// The connection, of which this is the node's end.
#[inline(always)]
fn probe(ctx: &SockOpsContext) -> Option<Probe> {
    let ((node, node_port), (pod, pod_port)) = ends(ctx)?;
    Some(Probe::v6(node, node_port, pod, pod_port))
}
