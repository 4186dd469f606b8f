//! Sequenced-packet Unix sockets: whole messages, each with the file descriptors that belong to it.

use std::fs;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, connect,
    getsockopt, listen, sendmsg, socket, socketpair,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The longest packet that is taken. A longer one is an error, not a part of one.
pub const MAX_PACKET: usize = 16 * 1024;
/// The most descriptors that one packet may carry.
pub const MAX_FDS: usize = 72;

const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

/// A packet as it came.
#[derive(Debug)]
pub struct Packet {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The descriptors that came with it, in order, now ours.
    pub fds: Vec<OwnedFd>,
}

/// A connected socket.
#[derive(Debug)]
pub struct SeqPacket {
    fd: AsyncFd<OwnedFd>,
}

impl SeqPacket {
    /// Connects to a listening socket's path. Fails at once where nobody listens.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, FLAGS, None)?;
        connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        Self::from_fd(fd)
    }

    /// Two sockets connected to each other.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, FLAGS)?;
        Ok((Self::from_fd(a)?, Self::from_fd(b)?))
    }

    /// The process that connected, as this process's PID namespace knows it; 0 where it does not.
    pub fn peer_pid(&self) -> io::Result<i32> {
        Ok(getsockopt(&self.fd.get_ref(), PeerCredentials)?.pid())
    }

    fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { fd: register(fd, Interest::READABLE | Interest::WRITABLE)? })
    }

    /// Sends one packet. Cancel-safe: it is sent whole or not at all.
    pub async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let sent = self.fd.async_io(Interest::WRITABLE, |fd| {
            let rights = [ControlMessage::ScmRights(&raw)];
            let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            Ok(sendmsg::<UnixAddr>(fd.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)?)
        });
        let sent = sent.await?;
        if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// The next packet; nothing once the peer is gone. Cancel-safe.
    ///
    /// A packet longer than [`MAX_PACKET`] or with more than [`MAX_FDS`] descriptors is an error, and what came of it
    /// is closed. An empty packet cannot be told from the end.
    pub async fn recv(&self) -> io::Result<Option<Packet>> {
        self.fd.async_io(Interest::READABLE, |fd| receive(fd.as_raw_fd())).await
    }
}

fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, names the same file, and is closed only by being dropped with the `AsyncFd`.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// One `recvmsg`. By hand, because nix refuses to look at truncated control data and so loses the descriptors in it.
fn receive(fd: i32) -> io::Result<Option<Packet>> {
    /// Room for the descriptors, aligned as `cmsghdr` wants it.
    const CONTROL_WORDS: usize =
        (size_of::<libc::cmsghdr>() + MAX_FDS * size_of::<libc::c_int>()).div_ceil(8);

    let mut bytes = vec![0u8; MAX_PACKET];
    let mut control = [0u64; CONTROL_WORDS];
    let mut slice = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: all-zero bytes are a valid `msghdr`: null pointers and zero lengths.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: the message points to `bytes` and `control` with their true lengths, and both outlive the call.
    let len = unsafe { libc::recvmsg(fd, &raw mut message, libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT) };
    let Ok(len) = usize::try_from(len) else { return Err(io::Error::last_os_error()) };
    let fds = received_fds(&message);
    if message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the packet is too long or has too many descriptors",
        ));
    }
    bytes.truncate(len);
    Ok((len > 0).then_some(Packet { bytes, fds }))
}

/// The descriptors of a message that `recvmsg` has just filled in.
fn received_fds(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the kernel has filled in the message, whose control buffer is still alive.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return only headers that lie whole within the control buffer.
        let found = unsafe { *header };
        if (found.cmsg_level, found.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: a data pointer is an offset within the same buffer.
            let data = unsafe { libc::CMSG_DATA(header) }.cast::<libc::c_int>();
            // SAFETY: CMSG_LEN only computes.
            let overhead = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = (found.cmsg_len as usize).saturating_sub(overhead) / size_of::<libc::c_int>();
            for n in 0..count {
                // SAFETY: the kernel wrote `count` numbers from `data` on; they may be unaligned.
                let number = unsafe { data.add(n).read_unaligned() };
                // SAFETY: the kernel has just opened it for us, and nothing else knows its number.
                fds.push(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
        // SAFETY: `header` is one of this message's.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    fds
}

/// A listening socket; its file is removed when it is dropped.
#[derive(Debug)]
pub struct SeqPacketListener {
    fd: AsyncFd<OwnedFd>,
    path: PathBuf,
}

impl SeqPacketListener {
    /// Listens at a path, which only the owner may use. Missing folders are made. A socket that nobody listens on any
    /// more is replaced; one in use is an error, and so is any other file.
    pub fn bind(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        clear_stale(&path)?;
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, FLAGS, None)?;
        bind(fd.as_raw_fd(), &UnixAddr::new(&path)?)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        listen(&fd, Backlog::new(16)?)?;
        Ok(Self { fd: register(fd, Interest::READABLE)?, path })
    }

    /// The next connection. Cancel-safe.
    pub async fn accept(&self) -> io::Result<SeqPacket> {
        let number = self.fd.async_io(Interest::READABLE, |fd| Ok(accept4(fd.as_raw_fd(), FLAGS)?)).await?;
        // SAFETY: the kernel has just opened it for us, and nothing else knows its number.
        SeqPacket::from_fd(unsafe { OwnedFd::from_raw_fd(number) })
    }
}

impl Drop for SeqPacketListener {
    fn drop(&mut self) {
        // Gone already, or somebody else's by now: then it is not ours to remove, and nothing depends on it.
        let _ = fs::remove_file(&self.path);
    }
}

fn clear_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
        Ok(meta) if !meta.file_type().is_socket() => {
            Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is in the way"))
        }
        Ok(_) => {
            let probe = socket(AddressFamily::Unix, SockType::SeqPacket, FLAGS, None)?;
            match connect(probe.as_raw_fd(), &UnixAddr::new(path)?) {
                Err(nix::errno::Errno::ECONNREFUSED) => fs::remove_file(path),
                _ => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsFd;

    use super::*;

    #[tokio::test]
    async fn packets_keep_their_bounds_and_their_descriptors() {
        let (a, b) = SeqPacket::pair().unwrap();
        let file = File::open("/proc/self/comm").unwrap();
        a.send(b"first", &[file.as_fd()]).await.unwrap();
        a.send(b"second", &[]).await.unwrap();
        let first = b.recv().await.unwrap().unwrap();
        assert_eq!(b.peer_pid().unwrap(), i32::try_from(std::process::id()).unwrap());
        assert_eq!((first.bytes.as_slice(), first.fds.len()), (&b"first"[..], 1));
        let mut text = String::new();
        File::from(first.fds.into_iter().next().unwrap()).read_to_string(&mut text).unwrap();
        assert!(!text.is_empty());
        assert_eq!(b.recv().await.unwrap().unwrap().bytes, b"second");
        drop(a);
        assert!(b.recv().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_packet_too_long_is_an_error() {
        let (a, b) = SeqPacket::pair().unwrap();
        a.send(&vec![1; MAX_PACKET + 1], &[]).await.unwrap();
        assert_eq!(b.recv().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn too_many_descriptors_are_an_error_and_leak_none() {
        let open = || fs::read_dir("/proc/self/fd").unwrap().count();
        let (a, b) = SeqPacket::pair().unwrap();
        let file = File::open("/proc/self/comm").unwrap();
        let before = open();
        a.send(b"many", &[file.as_fd(); MAX_FDS + 4]).await.unwrap();
        assert_eq!(b.recv().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(open(), before);
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/agent.sock");
        let live = SeqPacketListener::bind(&path).unwrap();
        assert_eq!(SeqPacketListener::bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let (client, server) = tokio::join!(async { SeqPacket::connect(&path) }, async {
            live.accept().await.unwrap(); // the probe above
            live.accept().await
        });
        client.unwrap().send(b"hello", &[]).await.unwrap();
        assert_eq!(server.unwrap().recv().await.unwrap().unwrap().bytes, b"hello");

        // A process that died leaves its file behind.
        let stale = folder.path().join("stale.sock");
        drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
        assert!(stale.exists());
        SeqPacketListener::bind(&stale).unwrap();
    }

    #[tokio::test]
    async fn a_file_in_the_way_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        fs::write(&path, "data").unwrap();
        assert_eq!(SeqPacketListener::bind(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "data");
    }
}
