//! The real network of a pod: sockets in its network namespace.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use socket2::Socket;
use tokio::net::{TcpListener, TcpStream};

use crate::seam::{Accepted, Listener, Network, Stream};
use crate::tcp::{self, Bind, Dial, Source};
use crate::udp::{self, Impostor};
use crate::{Netns, NetnsError};

/// How many ports are tried where all are taken. The chance that all of them are in use is small where half of them are.
const DRAWS: u32 = 32;

/// Exempts a socket from capture, before it connects or listens.
pub type Exempt = Arc<dyn Fn(BorrowedFd<'_>) -> io::Result<()> + Send + Sync>;

/// The network of a pod.
#[derive(Clone)]
pub struct PodNetwork {
    netns: Netns,
    exempt: Option<Exempt>,
}

impl fmt::Debug for PodNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodNetwork").field("netns", &self.netns.inode()).finish_non_exhaustive()
    }
}

impl PodNetwork {
    /// The network of the pod whose namespace this is. `exempt` is applied to each socket before it connects or
    /// listens: accepted ones take it over, so that all sockets of the proxy can be told from the pod's own.
    pub fn new(netns: Netns, exempt: Option<Exempt>) -> Self {
        Self { netns, exempt }
    }

    /// The pod's namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Opens a listening socket that no runtime knows yet; [`PodListener::adopt`] gives it to one.
    pub fn bind(&self, bind: &Bind) -> io::Result<std::net::TcpListener> {
        let prepare = |socket: BorrowedFd<'_>| self.exempt.as_ref().map_or(Ok(()), |exempt| exempt(socket));
        self.netns.run(|| tcp::listen(bind, prepare)).map_err(into_io)?
    }

    /// Opens a socket for captured datagrams that no runtime knows yet and that has no address yet;
    /// [`udp::Datagrams::adopt`] gives it to one, [`udp::bind_once`] an address.
    pub fn capture_datagrams(&self, v6: bool) -> io::Result<UdpSocket> {
        self.netns.run(|| udp::capture(v6)).map_err(into_io)?
    }

    fn socket_for(&self, to: SocketAddr) -> io::Result<Socket> {
        let socket = self.netns.run(|| tcp::socket_for(to)).map_err(into_io)??;
        if let Some(exempt) = &self.exempt {
            exempt(socket.as_fd())?;
        }
        Ok(socket)
    }

    /// See [`tcp::retake`]. Ports are drawn, the first ones of the parity that `bind` gives out.
    async fn connect_from_a_taken_port(&self, dial: &Dial) -> io::Result<TcpStream> {
        let ports = self.netns.run(tcp::local_ports).map_err(into_io)??;
        let mut last = None;
        for draw in 0..DRAWS {
            let port = tcp::draw_port(&ports, draw < DRAWS / 2, &mut rand::rng());
            let socket = self.socket_for(dial.to)?;
            let connected = match tcp::retake(&socket, dial, port) {
                Ok(()) => tcp::connect(socket, dial.to).await,
                Err(error) => Err(error),
            };
            match connected {
                Err(error) if is_taken(&error) => last = Some(error),
                connected => return connected,
            }
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
    }

    /// Opens what answers captured datagrams.
    pub fn impostor(&self) -> io::Result<Impostor> {
        self.netns.run(Impostor::open).map_err(into_io)?
    }

    /// A datagram socket that speaks with one peer and is exempt from capture, by the storage and by this mark.
    ///
    /// Must be called within the runtime that will use it.
    pub fn datagrams_to(&self, to: SocketAddr, mark: u32) -> io::Result<tokio::net::UdpSocket> {
        let before = |socket: &Socket| {
            socket.set_mark(mark)?;
            self.exempt.as_ref().map_or(Ok(()), |exempt| exempt(socket.as_fd()))
        };
        tokio::net::UdpSocket::from_std(self.netns.run(|| udp::connected(to, before)).map_err(into_io)??)
    }
}

/// Whether it says that the port is in use.
fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)
}

impl Network for PodNetwork {
    type Stream = TcpStream;
    type Listener = PodListener;

    async fn listen(&self, bind: &Bind) -> io::Result<PodListener> {
        PodListener::adopt(self.bind(bind)?)
    }

    async fn connect(&self, dial: &Dial) -> io::Result<TcpStream> {
        let socket = self.socket_for(dial.to)?;
        match (tcp::prepare(&socket, dial), dial.source) {
            (Err(error), Source::Foreign(_)) if error.kind() == io::ErrorKind::AddrInUse => {
                self.connect_from_a_taken_port(dial).await
            }
            (prepared, _) => {
                prepared?;
                tcp::connect(socket, dial.to).await
            }
        }
    }

    fn holds(&self, address: IpAddr) -> io::Result<bool> {
        // Sends nothing, and takes a port of its own for a moment.
        match self.netns.run(|| UdpSocket::bind((address, 0))).map_err(into_io)? {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Stream for TcpStream {
    fn reset_on_drop(&self) {
        // It fails only on a socket that is none; then there is nobody to tell.
        let _ = tcp::reset_on_close(self);
    }

    fn mark(&self) -> Option<u32> {
        tcp::mark(self).ok()
    }
}

/// A listening socket in a pod.
#[derive(Debug)]
pub struct PodListener {
    inner: TcpListener,
    port: u16,
}

impl PodListener {
    /// Takes a non-blocking listening socket into the runtime of the caller.
    pub fn adopt(listener: std::net::TcpListener) -> io::Result<Self> {
        let port = listener.local_addr()?.port();
        Ok(Self { inner: TcpListener::from_std(listener)?, port })
    }

    /// The address that it is bound to.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

impl AsFd for PodListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl Listener for PodListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<Accepted<TcpStream>> {
        let (stream, peer) = self.inner.accept().await?;
        let original_dst = tcp::original_dst(&stream, self.port)?;
        Ok(Accepted { stream, peer: tcp::canonical(peer), original_dst })
    }
}

fn into_io(error: NetnsError) -> io::Error {
    match error {
        NetnsError::Open { source, .. } | NetnsError::Enter(source) => source,
        other => io::Error::other(other),
    }
}
