//! Network namespaces: opening them, telling them apart, and working inside one.

use std::cell::{Cell, OnceCell};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};
use thiserror::Error;

/// `SO_NETNS_COOKIE`, Linux 5.14; not in every C library's headers.
const SO_NETNS_COOKIE: libc::c_int = 71;
/// `NS_GET_NSTYPE` of `linux/nsfs.h`.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// A network namespace, kept alive by an open descriptor. Cloning shares the descriptor.
///
/// Two values are equal if they are the same namespace, however each was opened.
#[derive(Clone, Debug)]
pub struct Netns {
    fd: Arc<OwnedFd>,
    device: u64,
    inode: u64,
}

impl PartialEq for Netns {
    fn eq(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

impl Eq for Netns {}

impl Netns {
    /// Opens the namespace that a path stands for: `/proc/<pid>/ns/net`, or a file on which one is mounted.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NetnsError> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|source| NetnsError::Open { path: path.to_owned(), source })?;
        Self::from_fd(file.into())
    }

    /// Takes a descriptor that somebody else opened, after checking that it is a network namespace's.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, NetnsError> {
        // SAFETY: the descriptor is open, and NS_GET_NSTYPE takes no argument and writes to no memory.
        let kind = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) };
        if kind != libc::CLONE_NEWNET {
            return Err(NetnsError::NotANetns);
        }
        let file = File::from(fd);
        let meta = file.metadata().map_err(NetnsError::Stat)?;
        Ok(Self { fd: Arc::new(file.into()), device: meta.dev(), inode: meta.ino() })
    }

    /// The namespace of the calling thread.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// The inode by which the kernel and its tools name the namespace. It is used again once the namespace is gone.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// The cookie by which BPF programs know the namespace. It is not used again until the machine restarts.
    pub fn cookie(&self) -> Result<u64, NetnsError> {
        self.run(own_cookie)?.map_err(NetnsError::Cookie)
    }

    /// Runs a closure with the calling thread inside the namespace, and brings the thread back, also from a panic.
    ///
    /// What the closure opens (sockets) stays in the namespace. Threads that it starts stay there too: start none.
    /// Calls may be nested. A thread that changes its namespace by other means must have done so before its first
    /// call, because it is brought back to where it was then.
    ///
    /// If the way back fails the process is aborted: a thread lost in a pod's namespace would give that pod the
    /// traffic of others.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> Result<T, NetnsError> {
        let home = home()?;
        setns(self.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|e| NetnsError::Enter(e.into()))?;
        let _back = WayBack { to: INSIDE.replace(Some(self.fd.as_raw_fd())), home };
        Ok(work())
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

thread_local! {
    /// Where the thread was before it first entered another namespace.
    static HOME: OnceCell<OwnedFd> = const { OnceCell::new() };
    /// The namespace entered last and not left yet.
    static INSIDE: Cell<Option<RawFd>> = const { Cell::new(None) };
}

fn home() -> Result<RawFd, NetnsError> {
    HOME.with(|home| match home.get() {
        Some(fd) => Ok(fd.as_raw_fd()),
        None => {
            let path = Path::new("/proc/thread-self/ns/net");
            let file =
                File::open(path).map_err(|source| NetnsError::Open { path: path.to_owned(), source })?;
            Ok(home.get_or_init(|| file.into()).as_raw_fd())
        }
    })
}

struct WayBack {
    to: Option<RawFd>,
    home: RawFd,
}

impl Drop for WayBack {
    fn drop(&mut self) {
        INSIDE.set(self.to);
        // SAFETY: either the thread's home, which is never closed while the thread runs, or the namespace of an outer
        // `run`, whose borrow of its `Netns` lasts longer than this one.
        let to = unsafe { BorrowedFd::borrow_raw(self.to.unwrap_or(self.home)) };
        if let Err(error) = setns(to, CloneFlags::CLONE_NEWNET) {
            tracing::error!(%error, "a thread cannot return from a network namespace: aborting, it must not serve others");
            std::process::abort();
        }
    }
}

/// The cookie of the calling thread's namespace.
fn own_cookie() -> io::Result<u64> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    cookie_of(&socket)
}

/// The cookie of the namespace in which a socket lives.
///
/// # Errors
/// The descriptor is no socket's.
pub fn cookie_of(socket: impl AsFd) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `cookie`, which is that long.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Creates a namespace that lives as long as the value does; for tests and for whoever keeps no path to it.
///
/// Its loopback interface is down, as in every new namespace.
pub fn unnamed() -> Result<Netns, NetnsError> {
    std::thread::spawn(|| {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET).map_err(|e| NetnsError::Create(e.into()))?;
        Netns::current()
    })
    .join()
    .unwrap_or_else(|_| Err(NetnsError::Create(io::Error::other("the thread that creates it panicked"))))
}

/// Sets the calling thread's loopback interface up. Call it inside [`Netns::run`].
pub fn loopback_up() -> io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    // SAFETY: all-zero bytes are a valid `ifreq`: an empty name and a union of plain integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes over a descriptor that the process inherited or was told the number of.
///
/// Fails where nothing is open under that number. The caller must be its only owner.
pub fn inherited_fd(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD reads no memory; it only tells whether the number is in use.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and that nobody else closes it is what the caller answers for.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Why a network namespace cannot be used.
#[derive(Debug, Error)]
pub enum NetnsError {
    /// Nothing there, or no right to open it.
    #[error("cannot open the network namespace {}", path.display())]
    Open {
        /// What was opened.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The descriptor is something else's.
    #[error("the descriptor is not a network namespace's")]
    NotANetns,
    /// Its inode cannot be read.
    #[error("cannot read the network namespace's inode")]
    Stat(#[source] io::Error),
    /// No right to enter it (CAP_SYS_ADMIN).
    #[error("cannot enter the network namespace")]
    Enter(#[source] io::Error),
    /// The kernel is older than 5.14, or out of descriptors.
    #[error("cannot read the network namespace's cookie")]
    Cookie(#[source] io::Error),
    /// No right to create one (CAP_SYS_ADMIN), or too many of them.
    #[error("cannot create a network namespace")]
    Create(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_no_network_namespace() {
        let file = File::open("/proc/self/status").unwrap();
        assert!(matches!(Netns::from_fd(file.into()), Err(NetnsError::NotANetns)));
        assert!(matches!(Netns::open("/nowhere/at/all"), Err(NetnsError::Open { .. })));
        let mount = File::open("/proc/self/ns/mnt").unwrap();
        assert!(matches!(Netns::from_fd(mount.into()), Err(NetnsError::NotANetns)));
    }

    mod netns {
        use super::*;

        #[test]
        fn a_thread_works_inside_and_comes_back() {
            let here = Netns::current().unwrap();
            let other = unnamed().unwrap();
            assert_ne!(here, other);
            let inside = other.run(|| Netns::current().unwrap()).unwrap();
            assert_eq!(inside, other);
            assert_eq!(Netns::current().unwrap(), here);
        }

        #[test]
        fn nested_visits_end_where_they_began() {
            let (here, a, b) = (Netns::current().unwrap(), unnamed().unwrap(), unnamed().unwrap());
            a.run(|| {
                b.run(|| assert_eq!(Netns::current().unwrap(), b)).unwrap();
                assert_eq!(Netns::current().unwrap(), a);
            })
            .unwrap();
            assert_eq!(Netns::current().unwrap(), here);
        }

        #[test]
        fn a_panic_inside_still_comes_back() {
            let (here, other) = (Netns::current().unwrap(), unnamed().unwrap());
            let result =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| other.run(|| panic!("inside"))));
            assert!(result.is_err());
            assert_eq!(Netns::current().unwrap(), here);
        }

        #[test]
        fn cookies_tell_namespaces_apart() {
            let (a, b) = (unnamed().unwrap(), unnamed().unwrap());
            assert_ne!(a.cookie().unwrap(), b.cookie().unwrap());
            assert_eq!(a.cookie().unwrap(), a.clone().cookie().unwrap());
            assert_ne!(a.inode(), b.inode());
        }
    }
}
