//! Counts the TCP connections of meshed pods that get past the mesh. That there are none proves that pods are enrolled.
//!
//! One program an agent instance, at the root of the cgroup tree. It shares nothing with the programs that capture but
//! the storage of ztunnel's own sockets, so that it notices when one of those is missing.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "core has no atomic additions for this target, though the machine has")]

mod ends;
mod object;
mod storage;

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::{
    btf_maps::{HashMap, LruHashMap},
    helpers::generated::bpf_ktime_get_ns,
    macros::{btf_map, sock_ops},
    programs::SockOpsContext,
};
use ebpf_abi::{Bypassed, MESHED_CAPACITY, PROBES_CAPACITY, Probe, Watched, evades};
use ends::{ends, netns_cookie};
use object::field;
use storage::{CLONE, NO_PREALLOC, SocketStorage};

/// A socket is about to send its SYN.
const TCP_CONNECT: u32 = 3;
const ACTIVE_ESTABLISHED: u32 = 4;
const PASSIVE_ESTABLISHED: u32 = 5;

/// Makes an entry where there is none.
const CREATE: u64 = 1;

#[btf_map]
static WATCHED: HashMap<u64, Watched, MESHED_CAPACITY, NO_PREALLOC> = HashMap::new();

#[btf_map]
static BYPASSED: HashMap<u64, Bypassed, MESHED_CAPACITY, NO_PREALLOC> = HashMap::new();

#[btf_map]
static PROBES: LruHashMap<Probe, u64, PROBES_CAPACITY> = LruHashMap::new();

#[btf_map]
static BYPASS: SocketStorage<{ NO_PREALLOC | CLONE }> = SocketStorage::new();

/// Sockets that sent their SYN past the mesh. What counts is how it was then: a connection that was opened before the
/// pod was enrolled, and is established after, is none of these.
#[btf_map]
static EVADING: SocketStorage<NO_PREALLOC> = SocketStorage::new();

/// Runs at the turning points of each TCP socket's life.
#[sock_ops]
fn watch(ctx: SockOpsContext) -> u32 {
    let op = field!((*ctx.ops).op);
    if op != TCP_CONNECT && op != ACTIVE_ESTABLISHED && op != PASSIVE_ESTABLISHED {
        return 1;
    }
    let cookie = netns_cookie(&ctx);
    // SAFETY: the agent replaces entries as a whole, and a removed one stays readable until the program has ended.
    let Some(watched) = (unsafe { WATCHED.get(cookie) }) else { return 1 };
    let socket = field!((*ctx.ops).__bindgen_anon_2.sk);
    if socket.is_null() {
        return 1;
    }
    if op == ACTIVE_ESTABLISHED {
        if EVADING.holds(socket) {
            count(cookie, |bypassed| &raw mut bypassed.opened);
        }
        return 1;
    }
    let Some(((local, local_port), (remote, remote_port))) = ends(&ctx) else { return 1 };
    if !evades(&watched.config, field!((*socket).mark), remote) || BYPASS.holds(socket) {
        return 1;
    }
    if op == TCP_CONNECT {
        // Without memory for the entry it is not counted, nor could much else be done.
        EVADING.get(socket, CREATE);
        return 1;
    }
    // A probe that the pod's program let in has arrived now, so it is forgotten.
    let is_probe = PROBES.remove(Probe::v6(remote, remote_port, local, local_port)).is_ok();
    if !is_probe && is_due(watched) {
        count(cookie, |bypassed| &raw mut bypassed.accepted);
    }
    1
}

#[inline(always)]
fn is_due(watched: &Watched) -> bool {
    // SAFETY: the helper takes nothing and reads the clock.
    unsafe { bpf_ktime_get_ns() >= watched.accepted_since }
}

#[inline(always)]
fn count(cookie: u64, which: impl Fn(&mut Bypassed) -> *mut u64) {
    let Some(bypassed) = BYPASSED.get_ptr_mut(cookie) else { return };
    // SAFETY: a map's value, aligned to 8 bytes, that all change by atomic additions alone.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(which(&mut *bypassed), 1) };
}
