//! The sockets that take a pod's questions.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use ebpf_loader::{ListenerMap, slot};
use net::{Datagrams, Impostor, PodNetwork, udp};

use crate::pod::listeners::{ListenError, is_without_v6};
use crate::ports;

/// The sockets that take a pod's questions: for each family one a shard; none where the pod asks by itself.
///
/// They have no address until they are published: where questions are steered to an address, all who have it get some.
#[derive(Debug, Default)]
pub struct Questions {
    v4: Vec<UdpSocket>,
    v6: Vec<UdpSocket>,
}

/// One shard's part.
#[derive(Debug)]
pub struct Part {
    network: PodNetwork,
    sockets: Vec<UdpSocket>,
}

/// One shard's part, known to its runtime.
#[derive(Debug)]
pub struct Adopted {
    pub(super) sockets: Vec<Datagrams>,
    pub(super) impostor: Impostor,
}

impl Questions {
    /// Opens them for so many shards, in a pod without IPv6 for IPv4 alone.
    ///
    /// # Errors
    /// If a socket cannot be had.
    pub fn open(network: &PodNetwork, shards: usize, ipv6: bool) -> Result<Self, ListenError> {
        let open = |ip: IpAddr| {
            let addr = (ip, ports::DNS).into();
            let open = |_| network.capture_datagrams(ip.is_ipv6());
            let sockets: io::Result<Vec<UdpSocket>> = (0..shards).map(open).collect();
            sockets.map_err(|source| ListenError::Bind { addr, source })
        };
        let v6 = if ipv6 { open(Ipv6Addr::LOCALHOST.into()) } else { Ok(Vec::new()) };
        let v6 = match v6 {
            Err(ListenError::Bind { source, .. }) if is_without_v6(&source) => Vec::new(),
            other => other?,
        };
        Ok(Self { v4: open(Ipv4Addr::LOCALHOST.into())?, v6 })
    }

    /// Has questions come here from now on, by the redirection's map or else by their addresses.
    ///
    /// Who had them before shares them until it ends. In a pod without IPv6 they are those of IPv4 alone. Idempotent.
    ///
    /// # Errors
    /// If the map does not take one, or an address cannot be had.
    pub fn publish(&self, map: Option<&ListenerMap>) -> Result<(), ListenError> {
        let families: [(_, _, IpAddr, _); 2] = [
            ("IPv4 DNS", slot::DNS_V4, Ipv4Addr::LOCALHOST.into(), &self.v4),
            ("IPv6 DNS", slot::DNS_V6, Ipv6Addr::LOCALHOST.into(), &self.v6),
        ];
        for (which, slot, ip, sockets) in families {
            let addr = (ip, ports::DNS).into();
            let bound: io::Result<()> = sockets.iter().try_for_each(|socket| udp::bind_once(socket, addr));
            match bound {
                Err(source) if ip.is_ipv6() && is_without_v6(&source) => continue,
                bound => bound.map_err(|source| ListenError::Bind { addr, source })?,
            }
            // Any member of the group will do: questions are spread over all.
            if let (Some(map), Some(socket)) = (map, sockets.first()) {
                map.set(slot, socket).map_err(|source| ListenError::Map { which, source })?;
            }
        }
        Ok(())
    }

    /// One shard's part, by descriptors of its own; nothing where the pod asks by itself.
    pub(crate) fn part(&self, network: &PodNetwork, shard: usize) -> io::Result<Option<Part>> {
        let its = [self.v4.get(shard), self.v6.get(shard)];
        let sockets: Vec<UdpSocket> =
            its.into_iter().flatten().map(UdpSocket::try_clone).collect::<Result<_, _>>()?;
        Ok((!sockets.is_empty()).then(|| Part { network: network.clone(), sockets }))
    }
}

impl Part {
    /// Takes the sockets into the runtime of the caller.
    pub(crate) fn adopt(self) -> io::Result<Adopted> {
        let sockets = self.sockets.into_iter().map(Datagrams::adopt).collect::<io::Result<_>>()?;
        Ok(Adopted { sockets, impostor: self.network.impostor()? })
    }
}
