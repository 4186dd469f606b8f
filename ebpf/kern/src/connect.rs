//! Marks the sockets of meshed pods as they connect, so that routing loops them back to ztunnel's listeners.
//!
//! One pair of programs an agent instance, at the root of the cgroup tree. Whose socket it is, the network namespace's
//! cookie tells; an application cannot change it, and a mark that it sets beforehand is overwritten.
#![no_std]
#![no_main]

mod object;
mod storage;

use aya_ebpf::{
    btf_maps::HashMap,
    helpers::{bpf_setsockopt, generated::bpf_get_netns_cookie},
    macros::{btf_map, cgroup_sock_addr},
    programs::SockAddrContext,
};
use ebpf_abi::{MESHED_CAPACITY, NsConfig, reaches_out_v4, reaches_out_v6, remark};
use object::field;
use storage::{CLONE, NO_PREALLOC, SocketStorage};

const ALLOW: i32 = 1;
const DENY: i32 = 0;

const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;
const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;

/// Room for a whole node's pods costs nothing until they come.
#[btf_map]
static MESHED: HashMap<u64, NsConfig, MESHED_CAPACITY, NO_PREALLOC> = HashMap::new();

#[btf_map]
static BYPASS: SocketStorage<{ NO_PREALLOC | CLONE }> = SocketStorage::new();

/// Runs on `connect(2)` to an IPv4 address.
#[cgroup_sock_addr(connect4)]
fn connect4(ctx: SockAddrContext) -> i32 {
    let Some(config) = meshed(&ctx) else { return ALLOW };
    let destination = field!((*ctx.sock_addr).user_ip4);
    settle(&ctx, config, reaches_out_v4(&config.own, destination))
}

/// Runs on `connect(2)` of an IPv6 socket, which may be to an IPv4-mapped address.
#[cgroup_sock_addr(connect6)]
fn connect6(ctx: SockAddrContext) -> i32 {
    let Some(config) = meshed(&ctx) else { return ALLOW };
    let destination = [
        field!((*ctx.sock_addr).user_ip6[0]),
        field!((*ctx.sock_addr).user_ip6[1]),
        field!((*ctx.sock_addr).user_ip6[2]),
        field!((*ctx.sock_addr).user_ip6[3]),
    ];
    settle(&ctx, config, reaches_out_v6(&config.own, destination))
}

/// The configuration of the socket's network namespace; `None` for one outside the mesh.
#[inline(always)]
fn meshed(ctx: &SockAddrContext) -> Option<&'static NsConfig> {
    // SAFETY: the helper only reads the context that the kernel passed.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
    // SAFETY: the agent replaces entries as a whole and never changes one in place, and a removed one stays readable
    // until the program has ended.
    unsafe { MESHED.get(cookie) }
}

/// Gives the socket the mark that it must have. Where that fails, the connect is denied: it must not leak.
#[inline(always)]
fn settle(ctx: &SockAddrContext, config: &NsConfig, captured: bool) -> i32 {
    let protocol = field!((*ctx.sock_addr).protocol);
    if protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP {
        return ALLOW;
    }
    let socket = field!((*ctx.sock_addr).__bindgen_anon_1.sk);
    if socket.is_null() {
        return ALLOW;
    }
    if BYPASS.holds(socket) {
        return ALLOW;
    }
    let Some(mut mark) = remark(config, field!((*socket).mark), captured) else { return ALLOW };
    // SAFETY: `mark` lives on the stack and has the length that is passed.
    let set = unsafe {
        bpf_setsockopt(
            ctx.sock_addr.cast(),
            SOL_SOCKET,
            SO_MARK,
            (&raw mut mark).cast(),
            size_of::<u32>() as i32,
        )
    };
    if set == 0 { ALLOW } else { DENY }
}
