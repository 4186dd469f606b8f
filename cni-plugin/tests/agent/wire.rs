//! What is on the wire: all that passes the devices of a namespace.

use std::io::{ErrorKind, Read};

use net::Netns;
use socket2::{Domain, Protocol, Socket, Type};

/// All protocols, in network order.
const ETH_P_ALL: u16 = 3_u16.to_be();
const ETHERNET: usize = 14;
const ETHERTYPE: usize = 12;
const IPV6: [u8; 2] = [0x86, 0xdd];
const TCP: u8 = 6;

/// Listens on all devices of a namespace.
pub(crate) struct Wire {
    socket: Socket,
}

impl Wire {
    pub(crate) fn tap(netns: &Netns) -> Self {
        let kind = Type::RAW.nonblocking();
        let socket =
            netns.run(|| Socket::new(Domain::PACKET, kind, Some(Protocol::from(i32::from(ETH_P_ALL)))));
        Self { socket: socket.unwrap().unwrap() }
    }

    /// The frames since the last time.
    pub(crate) fn take(&self) -> Vec<Frame> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match (&self.socket).read(&mut buffer) {
                Ok(length) => frames.push(Frame(buffer[..length].to_vec())),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return frames,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// A frame of Ethernet.
#[derive(Debug)]
pub(crate) struct Frame(Vec<u8>);

impl Frame {
    /// Whether these bytes are in it.
    pub(crate) fn says(&self, what: &[u8]) -> bool {
        self.0.windows(what.len()).any(|window| window == what)
    }

    /// Whether somebody opens a TCP connection by it.
    pub(crate) fn opens(&self) -> bool {
        const SYN_AND_ACK: u8 = 0x12;
        const SYN: u8 = 0x02;
        self.tcp().and_then(|tcp| tcp.get(13)).is_some_and(|flags| flags & SYN_AND_ACK == SYN)
    }

    fn tcp(&self) -> Option<&[u8]> {
        let ip = self.0.get(ETHERNET..)?;
        let (protocol, header) = if self.0[ETHERTYPE..ETHERNET] == IPV6 {
            (*ip.get(6)?, 40)
        } else {
            (*ip.get(9)?, 4 * usize::from(ip[0] & 0xf))
        };
        if protocol == TCP { ip.get(header..) } else { None }
    }
}
