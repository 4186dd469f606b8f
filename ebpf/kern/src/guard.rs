//! Keeps marked packets inside the pod.
//!
//! One program an agent instance, on what leaves each device of a meshed pod but `lo`. Marked packets never come here
//! while the pod's routing stands; where it is damaged they would leave in plaintext for where they were going.
#![no_std]
#![no_main]

mod object;

use aya_ebpf::{
    btf_maps::Array,
    macros::{btf_map, classifier},
    programs::TcContext,
};
use ebpf_abi::{NsConfig, is_marked};
use object::field;

/// Leave it to the programs that come after, and to the kernel.
const NEXT: i32 = -1;
const DROP: i32 = 2;

#[btf_map]
static GUARDED: Array<NsConfig, 1> = Array::new();

/// Runs on each packet that leaves by the device.
#[classifier]
fn guard(ctx: TcContext) -> i32 {
    let Some(config) = GUARDED.get(0) else { return NEXT };
    // Before the agent has written it the mark is 0, which is nobody's.
    if config.mark != 0 && is_marked(config, field!((*ctx.skb.skb).mark)) { DROP } else { NEXT }
}
