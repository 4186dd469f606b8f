//! The few `bpf(2)` commands that are called directly: links and pins by path, and map updates by descriptor.
//!
//! aya parses objects, creates maps and loads programs; its links can neither be updated nor detached at once.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// Where a program is attached (`enum bpf_attach_type`).
#[derive(Clone, Copy, Debug)]
pub(crate) enum AttachType {
    CgroupSockOps = 3,
    CgroupInet4Connect = 10,
    CgroupInet6Connect = 11,
    SkLookup = 36,
    TcxEgress = 47,
}

/// The type of a map (`enum bpf_map_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapType(u32);

impl MapType {
    pub(crate) const SOCKMAP: Self = Self(15);
    pub(crate) const SK_STORAGE: Self = Self(24);
}

/// What the kernel says of a map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapInfo {
    pub(crate) kind: MapType,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
}

/// Runs one command of `bpf(2)`.
///
/// # Safety
///
/// `attr` must be laid out as the command's part of `union bpf_attr`, and its pointers must be valid for it.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of `attr`; what they point to is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Runs a command that gives a descriptor.
///
/// # Safety
///
/// As [`bpf`], and the command must return a new descriptor.
unsafe fn bpf_fd<T>(command: libc::c_int, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { bpf(command, attr)? };
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

#[repr(C)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Opens what is pinned at `path`.
pub(crate) fn object(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: the layout is BPF_OBJ_GET's, and `path` outlives the call.
    unsafe { bpf_fd(BPF_OBJ_GET, &mut attr) }
}

/// Opens what is pinned at `path`; `None` where nothing is.
pub(crate) fn object_if_pinned(path: &Path) -> io::Result<Option<OwnedFd>> {
    match object(path) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Pins an object.
pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, fd: raw(fd), flags: 0 };
    // SAFETY: the layout is BPF_OBJ_PIN's, and `path` outlives the call.
    unsafe { bpf(BPF_OBJ_PIN, &mut attr) }.map(drop)
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

/// Asks the kernel about an object.
///
/// # Safety
///
/// `T` must be the beginning of the kernel's information structure for this kind of object, all plain integers.
unsafe fn info<T: Default>(fd: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::default();
    let mut attr = InfoAttr { fd: raw(fd), len: size_of::<T>() as u32, info: (&raw mut info) as u64 };
    // SAFETY: the layout is BPF_OBJ_GET_INFO_BY_FD's; the kernel writes at most `len` bytes to `info`.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)? };
    Ok(info)
}

/// What the kernel says of a map.
pub(crate) fn map_info(fd: BorrowedFd<'_>) -> io::Result<MapInfo> {
    #[repr(C)]
    #[derive(Default)]
    struct Raw {
        kind: u32,
        id: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        flags: u32,
    }
    // SAFETY: these are the first fields of `struct bpf_map_info`.
    let raw: Raw = unsafe { info(fd)? };
    Ok(MapInfo {
        kind: MapType(raw.kind),
        key_size: raw.key_size,
        value_size: raw.value_size,
        max_entries: raw.max_entries,
    })
}

/// Sets an entry of a map whose key and value are one `u32` each.
pub(crate) fn map_update(fd: BorrowedFd<'_>, key: u32, value: u32) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        fd: u32,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let mut attr = Attr {
        fd: raw(fd),
        pad: 0,
        key: (&raw const key) as u64,
        value: (&raw const value) as u64,
        flags: 0,
    };
    // SAFETY: the layout is BPF_MAP_UPDATE_ELEM's; the handles check at their making that the map's sizes are 4.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// An attachment of a program, by descriptor.
#[derive(Debug)]
pub(crate) struct Link {
    fd: OwnedFd,
}

#[repr(C)]
#[derive(Default)]
struct LinkAttr {
    first: u32,
    second: u32,
    third: u32,
    fourth: u32,
}

impl Link {
    /// Attaches a program to a cgroup or a network namespace.
    pub(crate) fn create(
        program: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        kind: AttachType,
    ) -> io::Result<Self> {
        let mut attr = LinkAttr { first: raw(program), second: raw(target), third: kind as u32, fourth: 0 };
        // SAFETY: the layout is BPF_LINK_CREATE's: program, target, attach type, flags.
        let fd = unsafe { bpf_fd(BPF_LINK_CREATE, &mut attr)? };
        Ok(Self { fd })
    }

    /// Attaches a program to a device of the calling thread's network namespace.
    pub(crate) fn create_at(program: BorrowedFd<'_>, device: u32, kind: AttachType) -> io::Result<Self> {
        #[repr(C, align(8))]
        struct Attr {
            program: u32,
            device: u32,
            kind: u32,
            flags: u32,
            /// Beside which program, and after which changes: any, which puts it behind those that are there.
            relative: u32,
            pad: u32,
            revision: u64,
        }
        let mut attr = Attr {
            program: raw(program),
            device,
            kind: kind as u32,
            flags: 0,
            relative: 0,
            pad: 0,
            revision: 0,
        };
        // SAFETY: the layout is BPF_LINK_CREATE's with the part for devices: program, device, attach type, flags, place.
        let fd = unsafe { bpf_fd(BPF_LINK_CREATE, &mut attr)? };
        Ok(Self { fd })
    }

    /// Opens a pinned attachment; `None` where nothing is pinned.
    pub(crate) fn open(path: &Path) -> io::Result<Option<Self>> {
        Ok(object_if_pinned(path)?.map(|fd| Self { fd }))
    }

    /// Keeps the attachment beyond the process.
    pub(crate) fn pin(&self, path: &Path) -> io::Result<()> {
        pin(self.fd.as_fd(), path)
    }

    /// Puts another program in place of the attached one, at once for every event.
    pub(crate) fn update(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        let mut attr = LinkAttr { first: raw(self.fd.as_fd()), second: raw(program), third: 0, fourth: 0 };
        // SAFETY: the layout is BPF_LINK_UPDATE's: link, new program, flags, old program (ignored without a flag).
        unsafe { bpf(BPF_LINK_UPDATE, &mut attr) }.map(drop)
    }

    /// Ends the attachment before returning; removing the pin alone ends it some time later.
    pub(crate) fn detach(&self) -> io::Result<()> {
        let mut attr = raw(self.fd.as_fd());
        // SAFETY: the layout is BPF_LINK_DETACH's: the link.
        unsafe { bpf(BPF_LINK_DETACH, &mut attr) }.map(drop)
    }

    /// The inode of the network namespace, the identifier of the cgroup, or the index of the device that it is attached
    /// to; `None` once that is gone or the link detached.
    pub(crate) fn target(&self, kind: AttachType) -> io::Result<Option<u64>> {
        #[repr(C, align(8))]
        #[derive(Default)]
        struct Raw {
            kind: u32,
            id: u32,
            program: u32,
            pad: u32,
            /// A cgroup's link has a `u64` here, a network namespace's or a device's a `u32` and then the attach type.
            first: u32,
            second: u32,
        }
        // SAFETY: these are the first fields of `struct bpf_link_info` and the first eight bytes of its union.
        let raw: Raw = unsafe { info(self.fd.as_fd())? };
        let target = match kind {
            AttachType::SkLookup | AttachType::TcxEgress => u64::from(raw.first),
            AttachType::CgroupSockOps | AttachType::CgroupInet4Connect | AttachType::CgroupInet6Connect => {
                let [a, b, c, d] = raw.first.to_ne_bytes();
                let [e, f, g, h] = raw.second.to_ne_bytes();
                u64::from_ne_bytes([a, b, c, d, e, f, g, h])
            }
        };
        Ok((target != 0).then_some(target))
    }
}

/// The monotonic clock, which programs read too.
pub(crate) fn monotonic() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes to `time`, which outlives the call. It fails for unknown clocks alone.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
