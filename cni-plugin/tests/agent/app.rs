//! Applications that know nothing of a mesh.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use net::Netns;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

/// A server that greets each caller by name and address, and then says back what it is told, line by line.
pub(crate) struct Greeter {
    task: JoinHandle<()>,
}

impl Greeter {
    pub(crate) fn start(netns: &Netns, at: SocketAddr, name: &'static str) -> Self {
        let listener = netns.run(|| {
            let socket = Socket::new(Domain::for_address(at), Type::STREAM.nonblocking(), None).unwrap();
            socket.set_reuse_address(true).unwrap();
            if at.is_ipv6() {
                socket.set_only_v6(true).unwrap();
            }
            socket.bind(&at.into()).unwrap();
            socket.listen(128).unwrap();
            TcpListener::from_std(socket.into()).unwrap()
        });
        let listener = listener.unwrap();
        let task = tokio::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                tokio::spawn(greet(stream, peer, name));
            }
        });
        Self { task }
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn greet(stream: TcpStream, peer: SocketAddr, name: &str) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    stream.write_all(format!("{name} {}\n", peer.ip().to_canonical()).as_bytes()).await?;
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        stream.write_all(line.as_bytes()).await?;
        line.clear();
    }
    Ok(())
}

/// A connection of an application.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) stream: BufReader<TcpStream>,
    /// What the server calls itself.
    pub(crate) server: String,
    /// What the server takes us for.
    pub(crate) caller: IpAddr,
}

impl Call {
    /// Calls with a socket that is prepared before it connects.
    pub(crate) async fn with(
        netns: &Netns,
        to: SocketAddr,
        prepare: impl FnOnce(&Socket),
    ) -> io::Result<Self> {
        let socket = netns.run(|| Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), None));
        let socket = socket.unwrap().unwrap();
        prepare(&socket);
        Self::over(socket, to).await
    }

    /// Calls with a multipath TCP socket.
    pub(crate) async fn by_mptcp(netns: &Netns, to: SocketAddr) -> io::Result<Self> {
        let kind = Type::STREAM.nonblocking();
        let socket = netns.run(|| Socket::new(Domain::for_address(to), kind, Some(Protocol::MPTCP)));
        Self::over(socket.unwrap().unwrap(), to).await
    }

    async fn over(socket: Socket, to: SocketAddr) -> io::Result<Self> {
        let connecting = TcpSocket::from_std_stream(socket.into()).connect(to);
        let stream =
            timeout(PATIENCE, connecting).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let mut stream = BufReader::new(stream);
        let greeting = timeout(PATIENCE, read_line(&mut stream)).await??;
        let (server, caller) = greeting.split_once(' ').ok_or(io::ErrorKind::InvalidData)?;
        let (server, caller) = (server.to_owned(), caller.parse().map_err(|_| io::ErrorKind::InvalidData)?);
        Ok(Self { stream, server, caller })
    }

    pub(crate) async fn to(netns: &Netns, to: SocketAddr) -> io::Result<Self> {
        Self::with(netns, to, |_| {}).await
    }

    /// Says something and waits for it to come back.
    pub(crate) async fn say(&mut self, what: &str) -> io::Result<()> {
        self.stream.write_all(format!("{what}\n").as_bytes()).await?;
        let heard = timeout(PATIENCE, read_line(&mut self.stream)).await??;
        if heard == what { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }
}

async fn read_line(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}
