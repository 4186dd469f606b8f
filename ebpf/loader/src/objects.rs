//! The built programs. `cargo xtask ebpf` writes them; `objects/MANIFEST` says from what.

/// The connect programs with MESHED and BYPASS.
pub(crate) static CONNECT: &[u8] = aya::include_bytes_aligned!("../objects/connect.o");

/// The socket lookup program with LISTENERS and STEERING, and the shared PROBES.
pub(crate) static STEER: &[u8] = aya::include_bytes_aligned!("../objects/steer.o");

/// The program that counts what gets past the mesh, with WATCHED, BYPASSED and the shared BYPASS and PROBES.
pub(crate) static WATCH: &[u8] = aya::include_bytes_aligned!("../objects/watch.o");

/// The program that keeps marked packets in, with GUARDED.
pub(crate) static GUARD: &[u8] = aya::include_bytes_aligned!("../objects/guard.o");

/// The program on the kubelet's sockets, with KUBELET_NETNS and the shared PODS and PROBES.
pub(crate) static KUBELET: &[u8] = aya::include_bytes_aligned!("../objects/kubelet.o");
