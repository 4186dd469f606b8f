//! Datagrams that were meant for somebody else: taking them, answering in that one's name, and passing them on.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;

use nix::sys::socket::sockopt::{Ipv4OrigDstAddr, Ipv6OrigDstAddr};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;

use crate::tcp::{canonical, transparent};

const UDP_HEADER: usize = 8;
const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
/// Hops that an answer may take. It takes none.
const HOPS: u8 = 64;

/// Opens a socket in the calling thread's network namespace that takes datagrams for any address, and tells which, once it
/// has an address itself ([`bind_once`]).
///
/// Several may share an address: the kernel spreads flows over them.
pub fn capture(v6: bool) -> io::Result<std::net::UdpSocket> {
    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    socket.set_reuse_port(true)?;
    if v6 {
        socket.set_only_v6(true)?;
        setsockopt(&socket, Ipv6OrigDstAddr, &true)?;
    } else {
        setsockopt(&socket, Ipv4OrigDstAddr, &true)?;
    }
    transparent(&socket, v6, false)?;
    Ok(socket.into())
}

/// Gives a socket an address, unless it has one already. The namespace no longer matters.
pub fn bind_once(socket: &std::net::UdpSocket, at: SocketAddr) -> io::Result<()> {
    match socket.local_addr()?.port() {
        0 => SockRef::from(socket).bind(&at.into()),
        _ => Ok(()),
    }
}

/// Opens a connected socket in the calling thread's network namespace; `before` is applied to it before it connects.
pub(crate) fn connected(
    to: SocketAddr,
    before: impl FnOnce(&Socket) -> io::Result<()>,
) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    before(&socket)?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

/// Captured datagrams.
#[derive(Debug)]
pub struct Datagrams(tokio::net::UdpSocket);

/// A captured datagram, without its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// How many bytes of the buffer it took.
    pub length: usize,
    /// Who sent it.
    pub from: SocketAddr,
    /// Whom it was sent to.
    pub to: SocketAddr,
}

impl Datagrams {
    /// Takes a socket of [`capture`] into the runtime of the caller.
    pub fn adopt(socket: std::net::UdpSocket) -> io::Result<Self> {
        Ok(Self(tokio::net::UdpSocket::from_std(socket)?))
    }

    /// The next datagram. What does not fit into the buffer is cut off. Cancel-safe: none is lost.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<Datagram> {
        self.0.async_io(Interest::READABLE, || receive(&self.0, buffer)).await
    }
}

fn receive(socket: &impl AsRawFd, buffer: &mut [u8]) -> io::Result<Datagram> {
    let mut space = nix::cmsg_space!(libc::sockaddr_in6);
    let mut parts = [IoSliceMut::new(buffer)];
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_DONTWAIT)?;
    let unknown = |what| io::Error::other(format!("a datagram without {what}"));
    let from = message.address.as_ref().and_then(ip_addr).ok_or_else(|| unknown("a sender"))?;
    let to = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::Ipv4OrigDstAddr(to) => {
            let ip = to.sin_addr.s_addr.to_ne_bytes();
            Some(SocketAddr::new(ip.into(), u16::from_be(to.sin_port)))
        }
        ControlMessageOwned::Ipv6OrigDstAddr(to) => {
            let ip = Ipv6Addr::from(to.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, u16::from_be(to.sin6_port), 0, to.sin6_scope_id).into())
        }
        _ => None,
    });
    let to = to.ok_or_else(|| unknown("a destination"))?;
    Ok(Datagram { length: message.bytes, from: canonical(from), to: canonical(to) })
}

fn ip_addr(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddrV4::from(*v4).into());
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddrV6::from(*v6).into()))
}

/// Sends datagrams in the name of others, to addresses of the same host (CAP_NET_RAW).
///
/// An ordinary socket would have to be bound to the other's address and port, which takes a right over low ports, and
/// which an application of the pod that is a resolver itself may have taken.
#[derive(Debug)]
pub struct Impostor {
    v4: Socket,
    v6: Option<Socket>,
}

impl Impostor {
    /// Opens the sockets in the calling thread's network namespace; without IPv6 where there is none.
    pub fn open() -> io::Result<Self> {
        // The protocol of this name sends what it is given, headers and all, and receives nothing.
        let raw =
            |domain| Socket::new(domain, Type::RAW.nonblocking(), Some(Protocol::from(libc::IPPROTO_RAW)));
        Ok(Self { v4: raw(Domain::IPV4)?, v6: raw(Domain::IPV6).ok() })
    }

    /// Sends a datagram. It does not wait: where the kernel has no room the datagram is lost, as datagrams may be.
    ///
    /// # Errors
    /// The kernel's; or the addresses are of two families, or there is more than a datagram holds.
    pub fn send(&self, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> io::Result<()> {
        let wrong = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        let packet = packet(from, to, payload).ok_or_else(|| wrong("no packet can be made of that"))?;
        let socket = match to {
            SocketAddr::V4(_) => &self.v4,
            SocketAddr::V6(_) => self.v6.as_ref().ok_or_else(|| wrong("there is no IPv6"))?,
        };
        // The port has no meaning to such a socket, and IPv6 refuses any.
        let mut next = to;
        next.set_port(0);
        socket.send_to(&packet, &next.into()).map(drop)
    }
}

/// An IP packet with a UDP datagram.
fn packet(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(UDP_HEADER + payload.len()).ok()?;
    let mut udp = Vec::with_capacity(length.into());
    udp.extend(from.port().to_be_bytes());
    udp.extend(to.port().to_be_bytes());
    udp.extend(length.to_be_bytes());
    udp.extend([0; 2]);
    udp.extend(payload);
    let (mut packet, pseudo) = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = u16::try_from(V4_HEADER + udp.len()).ok()?.to_be_bytes();
            // Version and header length, service, total; identification, "do not fragment"; the kernel sums up.
            let mut header =
                vec![0x45, 0, total[0], total[1], 0, 0, 0x40, 0, HOPS, libc::IPPROTO_UDP as u8, 0, 0];
            header.extend(from.octets());
            header.extend(to.octets());
            (header, [&from.octets()[..], &to.octets()].concat())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let [high, low] = length.to_be_bytes();
            let mut header = Vec::with_capacity(V6_HEADER + udp.len());
            header.extend([0x60, 0, 0, 0, high, low, libc::IPPROTO_UDP as u8, HOPS]);
            header.extend(from.octets());
            header.extend(to.octets());
            (header, [&from.octets()[..], &to.octets()].concat())
        }
        _ => return None,
    };
    let sum =
        checksum(&[&pseudo, &u32::from(length).to_be_bytes(), &[0, 0, 0, libc::IPPROTO_UDP as u8], &udp]);
    udp[6..UDP_HEADER].copy_from_slice(&sum.to_be_bytes());
    packet.extend(udp);
    Some(packet)
}

/// The Internet checksum (RFC 1071) of a datagram; all parts but the last have an even length. Zero means "none".
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u64 = words.map(|w| u64::from(u16::from_be_bytes([w[0], w.get(1).copied().unwrap_or(0)]))).sum();
    let mut sum = sum;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    match !(sum as u16) {
        0 => 0xffff,
        sum => sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_packet_has_the_sum_that_the_kernel_checks() {
        for (from, to) in [("10.96.0.10:53", "10.0.0.1:4000"), ("[fd00:96::10]:53", "[fd00::1]:4000")] {
            for payload in [&b""[..], b"odd", b"even"] {
                let packet = packet(addr(from), addr(to), payload).unwrap();
                let header = if from.starts_with('[') { V6_HEADER } else { V4_HEADER };
                assert_eq!(packet.len(), header + UDP_HEADER + payload.len());
                let octets = |ip: IpAddr| match ip {
                    IpAddr::V4(ip) => ip.octets().to_vec(),
                    IpAddr::V6(ip) => ip.octets().to_vec(),
                };
                let length = (packet.len() - header) as u32;
                let sum = checksum(&[
                    &octets(addr(from).ip()),
                    &octets(addr(to).ip()),
                    &length.to_be_bytes(),
                    &[0, 0, 0, 17],
                    &packet[header..],
                ]);
                assert_eq!(sum, 0xffff, "a sum over itself is zero, which is written as all ones");
            }
        }
    }

    #[test]
    fn what_no_packet_holds_is_refused() {
        let (v4, v6) = (addr("10.0.0.1:53"), addr("[fd00::1]:53"));
        assert!(packet(v4, v6, b"").is_none());
        assert!(packet(v4, v4, &[0; 65_507]).is_some());
        assert!(packet(v4, v4, &[0; 65_508]).is_none());
        assert!(packet(v6, v6, &[0; 65_528]).is_none());
    }

    #[tokio::test]
    async fn a_captured_datagram_tells_both_its_ends() {
        let socket = match capture(false) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return,
            socket => socket.unwrap(),
        };
        bind_once(&socket, addr("127.0.0.1:0")).unwrap();
        let at = socket.local_addr().unwrap();
        bind_once(&socket, addr("127.0.0.1:9")).unwrap();
        assert_eq!(socket.local_addr().unwrap(), at, "it has one already");
        let datagrams = Datagrams::adopt(socket).unwrap();
        let client = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(b"question", at).await.unwrap();
        let mut buffer = [0; 32];
        let datagram = datagrams.receive(&mut buffer).await.unwrap();
        let from = client.local_addr().unwrap();
        assert_eq!(datagram, Datagram { length: 8, from, to: at });
        // And it is answered in the name of somebody who is not there.
        client.connect("127.0.0.9:53").await.unwrap();
        Impostor::open().unwrap().send(addr("127.0.0.9:53"), from, b"answer").unwrap();
        let length = client.recv(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], b"answer");
    }
}
