//! The two ends of a TCP socket, as a socket-operations program sees them.

use aya_ebpf::{EbpfContext, helpers::generated::bpf_get_netns_cookie, programs::SockOpsContext};
use ebpf_abi::mapped;

use crate::object::field;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// The cookie of the socket's network namespace.
#[inline(always)]
pub(crate) fn netns_cookie(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the helper only reads the context that the kernel passed.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// An address, IPv6 or mapped into it, and a port.
pub(crate) type Place = ([u32; 4], u16);

/// This end and the other one; `None` for another family.
///
/// All fields are read before any is chosen: LLVM makes one read at a chosen place of two reads in two branches, which
/// the verifier refuses.
#[inline(always)]
pub(crate) fn ends(ctx: &SockOpsContext) -> Option<(Place, Place)> {
    let v4 = (mapped(field!((*ctx.ops).local_ip4)), mapped(field!((*ctx.ops).remote_ip4)));
    let v6 = (
        [
            field!((*ctx.ops).local_ip6[0]),
            field!((*ctx.ops).local_ip6[1]),
            field!((*ctx.ops).local_ip6[2]),
            field!((*ctx.ops).local_ip6[3]),
        ],
        [
            field!((*ctx.ops).remote_ip6[0]),
            field!((*ctx.ops).remote_ip6[1]),
            field!((*ctx.ops).remote_ip6[2]),
            field!((*ctx.ops).remote_ip6[3]),
        ],
    );
    let local_port = field!((*ctx.ops).local_port) as u16;
    // This one is in network order.
    let remote_port = u32::from_be(field!((*ctx.ops).remote_port)) as u16;
    let (local, remote) = match field!((*ctx.ops).family) {
        AF_INET => v4,
        AF_INET6 => v6,
        _ => return None,
    };
    Some(((local, local_port), (remote, remote_port)))
}
