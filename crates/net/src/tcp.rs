//! TCP sockets with the options that redirection needs.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

/// After how long an idle connection is probed, and how the probes follow each other. A dead peer is noticed after
/// three minutes, which bounds how long a half-closed connection to one can stay.
const KEEPALIVE: Keepalive =
    Keepalive { idle: Duration::from_secs(60), interval: Duration::from_secs(20), probes: 6 };

struct Keepalive {
    idle: Duration,
    interval: Duration,
    probes: u32,
}

/// How many connections may wait to be accepted, each listener.
pub const BACKLOG: u32 = 4096;

/// A listening socket to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind {
    /// The address and port. `[::]` takes IPv4 as well, unless `v6_only`.
    pub addr: SocketAddr,
    /// Whether a v6 socket refuses IPv4.
    pub v6_only: bool,
    /// Whether it takes connections to addresses that are not the host's (`IP_TRANSPARENT`; CAP_NET_ADMIN or
    /// CAP_NET_RAW).
    pub transparent: bool,
    /// Whether several sockets share the port and the kernel spreads connections over them.
    pub reuse_port: bool,
}

impl Bind {
    /// An ordinary listener.
    pub fn plain(addr: SocketAddr) -> Self {
        Self { addr, v6_only: false, transparent: false, reuse_port: false }
    }

    /// One of a group of transparent listeners.
    pub fn captured(addr: SocketAddr) -> Self {
        Self { addr, v6_only: false, transparent: true, reuse_port: true }
    }
}

/// A connection to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dial {
    /// Where to.
    pub to: SocketAddr,
    /// Whose address it comes from.
    pub source: Source,
    /// The packet mark (`SO_MARK`; CAP_NET_ADMIN), by which replies to a foreign address find back.
    pub mark: Option<u32>,
}

impl Dial {
    /// From the host's own address, unmarked.
    pub fn to(to: SocketAddr) -> Self {
        Self { to, source: Source::Own, mark: None }
    }
}

/// Whose address a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The one that the kernel chooses.
    Own,
    /// One of the host's own, with a port of the kernel's choice.
    Local(IpAddr),
    /// One that is not the host's (`IP_TRANSPARENT`), with a port that is chosen before the connection.
    ///
    /// The owner of that address has connections of its own to the same destination, and the server tells the two
    /// apart by the port alone: one that both use is a SYN that reaches the wrong socket. So it can't be the original
    /// port, and Linux must not choose it at `connect`, as it does for the owner, perhaps from the same table: there
    /// it takes ports of one parity as long as it can, but of the other at `bind`.
    ///
    /// Where all ports are taken, see [`retake`].
    Foreign(IpAddr),
}

/// Opens a listening socket in the calling thread's network namespace, ready for an async runtime.
///
/// Accepted sockets inherit no-delay and keep-alive from it. `prepare` is applied before it listens.
pub fn listen(
    bind: &Bind,
    prepare: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
) -> io::Result<std::net::TcpListener> {
    let socket =
        Socket::new(Domain::for_address(bind.addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if bind.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if bind.addr.is_ipv6() {
        socket.set_only_v6(bind.v6_only)?;
    }
    if bind.transparent {
        transparent(&socket, bind.addr.is_ipv6(), bind.addr.is_ipv6() && !bind.v6_only)?;
    }
    steady(&SockRef::from(&socket))?;
    socket.bind(&bind.addr.into())?;
    prepare(socket.as_fd())?;
    socket.listen(BACKLOG as i32)?;
    Ok(socket.into())
}

/// Makes a socket that can dial an address of this family, in the calling thread's network namespace.
pub fn socket_for(to: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))
}

/// Gives a socket what a connection needs before `connect`. The namespace no longer matters.
pub fn prepare(socket: &Socket, dial: &Dial) -> io::Result<()> {
    prepare_at(socket, dial, 0)
}

fn prepare_at(socket: &Socket, dial: &Dial, port: u16) -> io::Result<()> {
    steady(&SockRef::from(socket))?;
    if let Some(mark) = dial.mark {
        socket.set_mark(mark)?;
    }
    let (Source::Local(from) | Source::Foreign(from)) = dial.source else { return Ok(()) };
    if from.is_ipv4() != dial.to.is_ipv4() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the source address is of another family than the destination",
        ));
    }
    if matches!(dial.source, Source::Foreign(_)) {
        transparent(socket, dial.to.is_ipv6(), false)?;
        // Also when it rests after its connection, its port can then be taken again.
        socket.set_reuse_address(true)?;
    } else {
        port_at_connect(socket.as_fd())?;
    }
    socket.bind(&SocketAddr::new(from, port).into())
}

/// The same with a port of an address of which every port is taken, which [`prepare`] says with
/// [`io::ErrorKind::AddrInUse`].
///
/// A port that is taken for another destination can serve this one too, and so can one that rests after its connection
/// (TIME_WAIT, a minute): its next is told apart by its timestamps (RFC 6191). Otherwise a client could make no more than the
/// 470 connections a second for which 28,000 ports are enough. Where the port that is drawn is in use after all, connecting
/// fails with [`io::ErrorKind::AddrNotAvailable`], and another may be drawn for another socket.
pub fn retake(socket: &Socket, dial: &Dial, port: u16) -> io::Result<()> {
    prepare_at(socket, dial, port)
}

/// The ports that the kernel gives out in the calling thread's network namespace (`net.ipv4.ip_local_port_range`, for IPv6
/// too).
pub fn local_ports() -> io::Result<RangeInclusive<u16>> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
    let mut ends = text.split_whitespace().map(str::parse);
    match (ends.next(), ends.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Ok(first..=last),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, text)),
    }
}

/// A port of this range; `like_binds`: of the parity that Linux gives out at `bind`, which is not the first port's.
pub fn draw_port(ports: &RangeInclusive<u16>, like_binds: bool, rng: &mut impl rand::Rng) -> u16 {
    let drawn = rng.random_range(ports.clone());
    if !like_binds || (drawn ^ ports.start()) & 1 == 1 {
        drawn
    } else if drawn < *ports.end() {
        drawn + 1
    } else {
        // The last port, of the first one's parity: unless it is the only one, one of the other stands before it.
        drawn.saturating_sub(1).max(*ports.start())
    }
}

/// Dials from the calling thread's network namespace; the socket is prepared by [`prepare`].
pub async fn connect(socket: Socket, to: SocketAddr) -> io::Result<tokio::net::TcpStream> {
    tokio::net::TcpSocket::from_std_stream(socket.into()).connect(to).await
}

/// Where a captured connection was going before it was captured.
///
/// With socket-level redirection that is the accepted socket's own address. Where the packet was rewritten instead
/// (its own address is then the capture port), connection tracking still knows. v4-mapped addresses come out as v4.
pub fn original_dst(socket: impl AsFd, capture_port: u16) -> io::Result<SocketAddr> {
    let socket = SockRef::from(&socket);
    let local = ip_addr(&socket.local_addr()?)?;
    if local.port() != capture_port {
        return Ok(local);
    }
    let rewritten = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    match rewritten {
        Ok(addr) => ip_addr(&addr),
        // Nothing was rewritten: somebody really dialled the capture port.
        Err(_) => Ok(local),
    }
}

/// Makes the kernel answer the end of this connection with a reset when the socket is closed.
pub fn reset_on_close(socket: impl AsFd) -> io::Result<()> {
    SockRef::from(&socket).set_linger(Some(Duration::ZERO))
}

/// The packet mark of a socket.
pub fn mark(socket: impl AsFd) -> io::Result<u32> {
    SockRef::from(&socket).mark()
}

/// Whether a socket is a listening TCP socket.
///
/// # Errors
/// The descriptor is no socket's.
pub fn is_listening(socket: impl AsFd) -> io::Result<bool> {
    let socket = SockRef::from(&socket);
    Ok(socket.r#type()? == Type::STREAM
        && socket.protocol()? == Some(Protocol::TCP)
        && socket.is_listener()?)
}

/// An address whose v4-mapped form is unwrapped. The scope of a link-local address is kept: without it, it means nothing.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        v4 @ IpAddr::V4(_) => SocketAddr::new(v4, addr.port()),
        IpAddr::V6(_) => addr,
    }
}

fn ip_addr(addr: &socket2::SockAddr) -> io::Result<SocketAddr> {
    addr.as_socket().map(canonical).ok_or_else(|| io::Error::other("not an IP socket"))
}

fn steady(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE.idle)
        .with_interval(KEEPALIVE.interval)
        .with_retries(KEEPALIVE.probes);
    socket.set_tcp_keepalive(&keepalive)
}

pub(crate) fn transparent(socket: &Socket, v6: bool, both: bool) -> io::Result<()> {
    if v6 {
        socket.set_ip_transparent_v6(true)?;
    }
    if !v6 || both {
        socket.set_ip_transparent_v4(true)?;
    }
    Ok(())
}

/// Leaves the choice of the port to `connect`, which knows the whole 4-tuple and so has all ports for each
/// destination, instead of `bind`, which has them once (`IP_BIND_ADDRESS_NO_PORT`).
fn port_at_connect(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads one int from `on`, which outlives the call. The option is an IP one for v6 sockets too.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn loopback(port: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, port).into()
    }

    #[tokio::test]
    async fn a_connection_may_come_from_a_chosen_address() {
        let listener = listen(&Bind::plain(loopback(0)), |_| Ok(())).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let to = listener.local_addr().unwrap();
        let from: IpAddr = Ipv4Addr::new(127, 0, 0, 77).into();
        let dial = Dial { source: Source::Local(from), ..Dial::to(to) };
        let socket = socket_for(to).unwrap();
        prepare(&socket, &dial).unwrap();
        let (dialled, accepted) = tokio::join!(connect(socket, to), listener.accept());
        let (accepted, peer) = accepted.unwrap();
        assert_eq!(peer.ip(), from);
        assert!(accepted.nodelay().unwrap(), "inherited from the listener");
        assert!(dialled.unwrap().nodelay().unwrap());
    }

    #[tokio::test]
    async fn the_original_destination_is_the_accepted_sockets_address() {
        let listener = listen(&Bind::plain("[::]:0".parse().unwrap()), |_| Ok(())).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let to = loopback(listener.local_addr().unwrap().port());
        let (dialled, accepted) = tokio::join!(tokio::net::TcpStream::connect(to), listener.accept());
        dialled.unwrap();
        let (accepted, _) = accepted.unwrap();
        assert_eq!(original_dst(&accepted, 15001).unwrap(), to, "and v4 where it came as v4-mapped");
        assert_eq!(original_dst(&accepted, to.port()).unwrap(), to, "also without connection tracking");
    }

    #[test]
    fn a_port_that_is_drawn_is_in_range_and_of_the_parity_asked_for() {
        let mut rng = rand::rng();
        for ports in
            [50_000..=50_199, 50_000..=50_200, 50_001..=50_004, 7..=7, 65_534..=65_535, 65_535..=65_535]
        {
            let drawn = |like_binds, rng: &mut _| {
                (0..500)
                    .map(|_| draw_port(&ports, like_binds, rng))
                    .collect::<std::collections::BTreeSet<_>>()
            };
            assert!(drawn(false, &mut rng).iter().all(|port| ports.contains(port)), "{ports:?}");
            let like_binds = drawn(true, &mut rng);
            assert!(like_binds.iter().all(|port| ports.contains(port)), "{ports:?}: {like_binds:?}");
            let alone = ports.len() == 1;
            assert!(
                alone || like_binds.iter().all(|p| (p ^ ports.start()) & 1 == 1),
                "{ports:?}: {like_binds:?}"
            );
        }
    }

    #[test]
    fn a_source_of_another_family_is_refused() {
        let to = loopback(1);
        let dial = Dial { source: Source::Local(Ipv6Addr::LOCALHOST.into()), ..Dial::to(to) };
        let error = prepare(&socket_for(to).unwrap(), &dial).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn two_sockets_share_a_port_where_asked() {
        let first = listen(&Bind { reuse_port: true, ..Bind::plain(loopback(0)) }, |_| Ok(())).unwrap();
        let addr = first.local_addr().unwrap();
        listen(&Bind { reuse_port: true, ..Bind::plain(addr) }, |_| Ok(())).unwrap();
        assert!(listen(&Bind::plain(addr), |_| Ok(())).is_err());
    }

    mod netns {
        use super::*;

        #[test]
        fn a_foreign_source_never_has_a_port_that_its_owner_would_get_from_the_kernel() {
            let listener = std::net::TcpListener::bind(loopback(0)).unwrap();
            let to = listener.local_addr().unwrap();
            let ip: IpAddr = Ipv4Addr::new(192, 0, 2, 77).into();
            for _ in 0..100 {
                let foreign = socket_for(to).unwrap();
                prepare(&foreign, &Dial { source: Source::Foreign(ip), ..Dial::to(to) }).unwrap();
                let theirs = ip_addr(&foreign.local_addr().unwrap()).unwrap();
                assert_eq!(theirs.ip(), ip);
                let own = std::net::TcpStream::connect(to).unwrap().local_addr().unwrap();
                assert_ne!(theirs.port() % 2, own.port() % 2, "{theirs}, {own}");
            }
        }
    }
}
