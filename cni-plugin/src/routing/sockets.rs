//! A pod's TCP connections, by the kernel's socket diagnostics (`sock_diag(7)`): listing and ending them.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use net::{Netns, NetnsError};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use thiserror::Error;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x001;
const NLM_F_ACK: u16 = 0x004;
const NLM_F_DUMP: u16 = 0x300;
const IPPROTO_TCP: u8 = 6;
const INET_DIAG_MARK: u16 = 15;
const INET_DIAG_SK_BPF_STORAGES: u16 = 20;
const INET_DIAG_REQ_SK_BPF_STORAGES: u16 = 2;
const SK_DIAG_BPF_STORAGE_REQ_MAP_FD: u16 = 1;
/// The bits of an attribute's type that say which it is.
const NLA_TYPE: u16 = 0x3fff;

const HEADER: usize = 16;
/// `struct inet_diag_req_v2`, behind the header.
const REQUEST: usize = 56;
/// `struct inet_diag_msg`, which attributes follow.
const MESSAGE: usize = 72;
/// `struct inet_diag_sockid`, and where it lies in a message.
const ID: usize = 48;
const ID_AT: usize = 4;

/// States in which packets may still be sent: all but TIME_WAIT (6), CLOSE (7) and LISTEN (10), which carry no
/// connection, one bit each.
const STATES: u32 = 0b1_1111_1111_1110 & !(1 << 6) & !(1 << 7) & !(1 << 10);

/// How many TCP connections in a namespace carry the mark: those between the pod's application and ztunnel.
///
/// # Errors
///
/// See [`SocketsError`].
pub fn marked_connections(netns: &Netns, mark: u32, mask: u32) -> Result<usize, SocketsError> {
    let mut count = 0;
    each(netns, None, |connection| count += usize::from(connection.mark & mask == mark))?;
    Ok(count)
}

/// How many TCP connections in a namespace have one of these ports at this end.
///
/// # Errors
///
/// See [`SocketsError`].
pub fn connections_at(netns: &Netns, ports: &[u16]) -> Result<usize, SocketsError> {
    let mut count = 0;
    each(netns, None, |connection| count += usize::from(ports.contains(&connection.local.port())))?;
    Ok(count)
}

/// A TCP socket of a pod that is no listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Whether anything can still be sent or received by it; while its handshake lasts at its server, not yet.
    pub is_live: bool,
    /// This end; an IPv4 address also where the socket is IPv6.
    pub local: SocketAddr,
    /// The other end, likewise.
    pub peer: SocketAddr,
    /// Its mark.
    pub mark: u32,
    /// Whether it has an entry in the storage that was asked about.
    pub has_storage: bool,
    family: u8,
    id: [u8; ID],
}

impl Connection {
    /// The cookie by which the kernel knows the socket. It is not used again.
    pub fn cookie(&self) -> u64 {
        let [.., a, b, c, d, e, f, g, h] = self.id;
        u64::from_ne_bytes([a, b, c, d, e, f, g, h])
    }

    fn read(message: &[u8]) -> Result<Self, SocketsError> {
        let (fixed, attributes) = message.split_first_chunk::<MESSAGE>().ok_or(SocketsError::Truncated)?;
        let [family, state, ..] = *fixed;
        let id: [u8; ID] = fixed[ID_AT..].first_chunk().copied().ok_or(SocketsError::Truncated)?;
        let inode = u32_at(fixed, MESSAGE - 4)?;
        let (mut mark, mut has_storage) = (0, false);
        for attribute in attributes_of(attributes) {
            match attribute? {
                (INET_DIAG_MARK, value) => mark = u32_at(value, 0)?,
                (INET_DIAG_SK_BPF_STORAGES, value) => has_storage = !value.is_empty(),
                _ => {}
            }
        }
        let (local, peer) = (end(family, &id, 0, 4), end(family, &id, 2, 20));
        Ok(Self { is_live: is_live(state, inode), local, peer, mark, has_storage, family, id })
    }
}

/// ESTABLISHED, SYN_SENT, FIN_WAIT1 and CLOSE_WAIT; and FIN_WAIT2 while somebody still has the socket.
fn is_live(state: u8, inode: u32) -> bool {
    matches!(state, 1 | 2 | 4 | 8) || (state == 5 && inode != 0)
}

/// One end of a connection: where its port and its address lie in `struct inet_diag_sockid`.
fn end(family: u8, id: &[u8; ID], port_at: usize, address_at: usize) -> SocketAddr {
    let port = id[port_at..].first_chunk().map_or(0, |port| u16::from_be_bytes(*port));
    let address: [u8; 16] = id[address_at..].first_chunk().copied().unwrap_or_default();
    let ip = if i32::from(family) == AddressFamily::Inet as i32 {
        let [a, b, c, d, ..] = address;
        Ipv4Addr::new(a, b, c, d).into()
    } else {
        Ipv6Addr::from(address).to_canonical()
    };
    SocketAddr::new(ip, port)
}

/// All TCP connections of a namespace, and which of them have an entry in the socket storage, if one is given.
///
/// # Errors
///
/// See [`SocketsError`].
pub fn connections(netns: &Netns, storage: Option<BorrowedFd<'_>>) -> Result<Vec<Connection>, SocketsError> {
    let mut all = Vec::new();
    each(netns, storage, |connection| all.push(connection))?;
    Ok(all)
}

/// Ends connections: their applications see them aborted, their peers reset. Those that have ended meanwhile are fine.
///
/// # Errors
///
/// See [`SocketsError`]; [`SocketsError::Refused`] where the kernel is built without `CONFIG_INET_DIAG_DESTROY`.
pub fn destroy<'a>(
    netns: &Netns,
    connections: impl IntoIterator<Item = &'a Connection>,
) -> Result<(), SocketsError> {
    let diagnostics = netns.run(open)?.map_err(SocketsError::Socket)?;
    let mut buffer = vec![0; 4 * 1024];
    for connection in connections {
        let mut bytes = request(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, connection.family, None);
        bytes[HEADER + REQUEST - ID..].copy_from_slice(&connection.id);
        send(diagnostics.as_raw_fd(), &bytes, MsgFlags::empty()).map_err(socket_error)?;
        let received = recv(diagnostics.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(socket_error)?;
        match read(&buffer[..received], |_| {}) {
            Ok(_) => {}
            Err(SocketsError::Refused(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn each(
    netns: &Netns,
    storage: Option<BorrowedFd<'_>>,
    mut take: impl FnMut(Connection),
) -> Result<(), SocketsError> {
    let diagnostics = netns.run(open)?.map_err(SocketsError::Socket)?;
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let bytes = request(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, family as u8, storage);
        send(diagnostics.as_raw_fd(), &bytes, MsgFlags::empty()).map_err(socket_error)?;
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let received =
                recv(diagnostics.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(socket_error)?;
            if read(&buffer[..received], &mut take)? {
                break;
            }
        }
    }
    Ok(())
}

fn socket_error(errno: Errno) -> SocketsError {
    SocketsError::Socket(errno.into())
}

fn open() -> io::Result<OwnedFd> {
    let diagnostics =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    setsockopt(&diagnostics, sockopt::ReceiveTimeout, &TimeVal::new(5, 0))?;
    Ok(diagnostics)
}

/// A request: `struct nlmsghdr`, `struct inet_diag_req_v2`, and which storage's entries are to be shown.
fn request(kind: u16, flags: u16, family: u8, storage: Option<BorrowedFd<'_>>) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, IPPROTO_TCP, 0, 0]);
    bytes.extend(STATES.to_ne_bytes());
    bytes.resize(HEADER + REQUEST, 0);
    if let Some(storage) = storage {
        for (length, kind) in [(12_u16, INET_DIAG_REQ_SK_BPF_STORAGES), (8, SK_DIAG_BPF_STORAGE_REQ_MAP_FD)] {
            bytes.extend(length.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
        }
        bytes.extend(storage.as_raw_fd().to_ne_bytes());
    }
    let length = bytes.len() as u32;
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes
}

/// Reads one datagram of the answer. Says whether it is the last.
fn read(mut bytes: &[u8], mut take: impl FnMut(Connection)) -> Result<bool, SocketsError> {
    let mut is_done = false;
    while !bytes.is_empty() {
        let (length, kind) = (u32_at(bytes, 0)? as usize, u16_at(bytes, 4)?);
        let message = bytes.get(HEADER..length).ok_or(SocketsError::Truncated)?;
        match kind {
            NLMSG_DONE => is_done = true,
            NLMSG_ERROR => {
                let errno = u32_at(message, 0)?.cast_signed().saturating_neg();
                if errno != 0 {
                    return Err(SocketsError::Refused(io::Error::from_raw_os_error(errno)));
                }
            }
            SOCK_DIAG_BY_FAMILY => take(Connection::read(message)?),
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(is_done)
}

/// Attributes, each with its type and its value.
fn attributes_of(mut bytes: &[u8]) -> impl Iterator<Item = Result<(u16, &[u8]), SocketsError>> {
    let mut next = move || -> Result<Option<(u16, &[u8])>, SocketsError> {
        if bytes.len() < 4 {
            return Ok(None);
        }
        let (length, kind) = (usize::from(u16_at(bytes, 0)?), u16_at(bytes, 2)?);
        let value = bytes.get(4..length).ok_or(SocketsError::Truncated)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Ok(Some((kind & NLA_TYPE, value)))
    };
    let mut is_broken = false;
    std::iter::from_fn(move || {
        if is_broken {
            return None;
        }
        let attribute = next().transpose();
        is_broken = matches!(attribute, Some(Err(_)));
        attribute
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, SocketsError> {
    bytes
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .map(|word| u32::from_ne_bytes(*word))
        .ok_or(SocketsError::Truncated)
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, SocketsError> {
    bytes
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .map(|word| u16::from_ne_bytes(*word))
        .ok_or(SocketsError::Truncated)
}

/// Why a pod's connections cannot be counted.
#[derive(Debug, Error)]
pub enum SocketsError {
    /// The namespace cannot be entered.
    #[error("the pod's network namespace cannot be entered")]
    Netns(#[from] NetnsError),
    /// The diagnostics' socket fails.
    #[error("the kernel's socket diagnostics cannot be asked")]
    Socket(#[source] io::Error),
    /// The kernel refuses; ENOENT says that it lacks the module `tcp_diag`.
    #[error("the kernel refuses to list the pod's connections")]
    Refused(#[source] io::Error),
    /// The answer ends too early.
    #[error("the kernel's list of the pod's connections is cut short")]
    Truncated,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes
    }

    /// An established connection with this peer and cookie.
    fn socket_with(family: AddressFamily, peer: &[u8], cookie: u64, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![family as u8, 1, 0, 0];
        body.extend([0; 20]);
        body.extend(peer);
        body.resize(ID_AT + ID - 8, 0);
        body.extend(cookie.to_ne_bytes());
        body.resize(MESSAGE, 0);
        for (kind, value) in attributes {
            body.extend((4 + value.len() as u16).to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        message(SOCK_DIAG_BY_FAMILY, &body)
    }

    fn all(bytes: &[u8]) -> Result<(Vec<Connection>, bool), SocketsError> {
        let mut all = Vec::new();
        let is_done = read(bytes, |connection| all.push(connection))?;
        Ok((all, is_done))
    }

    #[test]
    fn a_connection_is_read_with_its_peer_mark_storage_and_cookie() {
        const NESTED: u16 = 0x8000;
        let mark = 0x0a00_0001_u32.to_ne_bytes();
        let plain =
            socket_with(AddressFamily::Inet, &[10, 0, 0, 9], 7, &[(8, &[7]), (INET_DIAG_MARK, &mark)]);
        let stored = [(INET_DIAG_SK_BPF_STORAGES | NESTED, &[0; 8][..]), (8, &[7])];
        let mapped = Ipv4Addr::new(10, 0, 0, 8).to_ipv6_mapped().octets();
        let ours = socket_with(AddressFamily::Inet6, &mapped, 8, &stored);
        let (read, is_done) = all(&[plain, ours, message(NLMSG_DONE, &[0; 4])].concat()).unwrap();
        assert!(is_done);
        let seen: Vec<_> = read
            .iter()
            .map(|c| (c.peer.ip().to_string(), c.mark, c.has_storage, c.cookie(), c.is_live))
            .collect();
        assert_eq!(
            seen,
            [("10.0.0.9".to_owned(), 0x0a00_0001, false, 7, true), ("10.0.0.8".to_owned(), 0, true, 8, true)]
        );
    }

    #[test]
    fn what_has_been_let_go_is_not_live() {
        const ESTABLISHED: u8 = 1;
        const FIN_WAIT2: u8 = 5;
        const LAST_ACK: u8 = 9;
        const NEW_SYN_RECV: u8 = 12;
        assert!(is_live(ESTABLISHED, 0) && is_live(FIN_WAIT2, 1));
        assert!(!is_live(FIN_WAIT2, 0) && !is_live(LAST_ACK, 1) && !is_live(NEW_SYN_RECV, 0));
    }

    #[test]
    fn a_refusal_is_not_taken_for_an_empty_list() {
        let refused = message(NLMSG_ERROR, &(-(Errno::ENOENT as i32)).to_ne_bytes());
        assert!(matches!(all(&refused), Err(SocketsError::Refused(_))));
        assert!(all(&message(NLMSG_ERROR, &[0; 4])).is_ok(), "an acknowledgement is none");
    }

    proptest! {
        #[test]
        fn no_answer_panics_or_hangs(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = all(&bytes);
            let _ = Connection::read(&bytes);
        }
    }

    mod netns {
        use std::net::{TcpListener, TcpStream};

        use super::*;

        #[test]
        fn connections_are_listed_and_ended() {
            let netns = net::netns::unnamed().unwrap();
            netns.run(net::netns::loopback_up).unwrap().unwrap();
            let (client, server) = netns
                .run(|| {
                    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                    (client, listener.accept().unwrap().0)
                })
                .unwrap();
            let mut found = Vec::new();
            each(&netns, None, |connection| found.push(connection)).unwrap();
            assert_eq!(found.len(), 2);
            assert!(found.iter().all(|c| c.is_live && c.peer.ip().is_loopback() && c.cookie() != 0));
            // Twice: what has ended already is fine.
            for _ in 0..2 {
                destroy(&netns, &found).unwrap();
            }
            for mut end in [client, server] {
                io::Read::read(&mut end, &mut [0]).expect_err("it was aborted");
            }
            assert_eq!(marked_connections(&netns, 0, 0).unwrap(), 0);
        }
    }
}
