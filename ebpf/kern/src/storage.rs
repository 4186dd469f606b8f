//! Socket storages, which aya-ebpf has for one kind of program and one set of flags alone.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::{bindings::bpf_sock, helpers::generated::bpf_sk_storage_get};

const BPF_MAP_TYPE_SK_STORAGE: usize = 24;

/// Without this flag the kernel takes no socket storage.
pub(crate) const NO_PREALLOC: usize = 1;
/// Accepted sockets take over the entry of their listener.
pub(crate) const CLONE: usize = 1 << 9;

/// A storage of one `u32` a socket. The pointers are never followed: the loader reads the map's definition from their
/// types.
#[repr(C)]
pub(crate) struct SocketStorage<const FLAGS: usize> {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE],
    key: *const i32,
    value: *const u32,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: nothing of it is read or written but by the loader.
unsafe impl<const FLAGS: usize> Sync for SocketStorage<FLAGS> {}

impl<const FLAGS: usize> SocketStorage<FLAGS> {
    pub(crate) const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// A socket's entry, which is made where `flags` say so; null where there is none.
    #[inline(always)]
    pub(crate) fn get(&self, socket: *mut bpf_sock, flags: u64) -> *mut c_void {
        // SAFETY: `socket` is the context's and not null, which the verifier checks; no initial value is passed.
        unsafe {
            bpf_sk_storage_get(ptr::from_ref(self).cast_mut().cast(), socket.cast(), ptr::null_mut(), flags)
        }
    }

    /// Whether a socket has an entry.
    #[inline(always)]
    pub(crate) fn holds(&self, socket: *mut bpf_sock) -> bool {
        !self.get(socket, 0).is_null()
    }
}
