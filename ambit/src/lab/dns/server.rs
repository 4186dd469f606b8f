//! The resolver's sockets.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::Message;
use net::Netns;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use super::Zone;

const MAX_TCP: usize = 128;
const TCP_PATIENCE: Duration = Duration::from_secs(10);

/// Where names are asked for.
#[derive(Debug)]
pub(crate) struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Sockets {
    /// Opens the sockets in a namespace. Must be called within a tokio runtime.
    pub(crate) fn open(netns: &Netns, at: SocketAddr) -> io::Result<Self> {
        let open = || {
            let udp = std::net::UdpSocket::bind(at)?;
            let tcp = std::net::TcpListener::bind(at)?;
            io::Result::Ok((udp, tcp))
        };
        let (udp, tcp) = netns.run(open).map_err(io::Error::other)??;
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok(Self { udp: UdpSocket::from_std(udp)?, tcp: TcpListener::from_std(tcp)? })
    }
}

/// Answers for ever, always from the newest zone.
pub(crate) async fn serve(sockets: Sockets, zone: watch::Receiver<Arc<Zone>>) {
    // Neither ends; dropping both is the end.
    tokio::join!(serve_udp(sockets.udp, zone.clone()), serve_tcp(sockets.tcp, zone));
}

async fn serve_udp(socket: UdpSocket, zone: watch::Receiver<Arc<Zone>>) {
    let mut buffer = vec![0; 4096];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        let answer = zone.borrow().answer(&buffer[..length]);
        let bytes = answer.and_then(|answer| fitting(&answer, &buffer[..length]));
        if let Some(bytes) = bytes {
            // Who does not take the answer asks again.
            let _ = socket.send_to(&bytes, from).await;
        }
    }
}

/// The answer's bytes, cut to what the asker takes in one packet.
fn fitting(answer: &Message, query: &[u8]) -> Option<Vec<u8>> {
    let limit = Message::from_vec(query).map_or(512, |query| query.max_payload().min(1232));
    let bytes = answer.to_vec().ok()?;
    if bytes.len() <= usize::from(limit) { Some(bytes) } else { answer.truncate().to_vec().ok() }
}

async fn serve_tcp(listener: TcpListener, zone: watch::Receiver<Arc<Zone>>) {
    let slots = Arc::new(Semaphore::new(MAX_TCP));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely; that passes.
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let zone = zone.clone();
        // Each ends within the patience, and there are so many at most.
        tokio::spawn(async move {
            let _slot = slot;
            let _ = timeout(TCP_PATIENCE, converse(stream, &zone)).await;
        });
    }
}

async fn converse(mut stream: TcpStream, zone: &watch::Receiver<Arc<Zone>>) -> io::Result<()> {
    loop {
        let length = stream.read_u16().await?;
        let mut query = vec![0; length.into()];
        stream.read_exact(&mut query).await?;
        let answer = zone.borrow().answer(&query).and_then(|answer| answer.to_vec().ok());
        let Some(answer) = answer else { return Ok(()) };
        let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
        stream.write_all(&[&length.to_be_bytes()[..], &answer].concat()).await?;
    }
}
