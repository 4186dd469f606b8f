//! The listening sockets of a pod.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use ebpf_loader::{ListenerMap, slot};
use net::{Bind, PodListener, PodNetwork};
use thiserror::Error;
use zds::{Kept, ListenerKind, MOST_MEMBERS};

use crate::ports;

/// What one shard accepts on for a pod. Of each kind several, where an earlier proxy had more shards.
#[derive(Debug)]
pub struct Listeners<L> {
    /// What the pod sends, captured: at least one for each address family.
    pub outbound: Vec<L>,
    /// Plaintext from the network, captured.
    pub plaintext: Vec<L>,
    /// HBONE.
    pub hbone: Vec<L>,
}

/// Sockets that no runtime knows yet.
pub type Opened = Listeners<TcpListener>;

/// Why a pod's listeners do not stand.
#[derive(Debug, Error)]
pub enum ListenError {
    /// A socket cannot be opened.
    #[error("cannot listen on {addr} in the pod")]
    Bind {
        /// Where.
        addr: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The pod's map does not take a listener.
    #[error("cannot put the {which} listener into the pod's map")]
    Map {
        /// Which.
        which: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Opens a pod's listeners for so many shards, but for the kinds that an earlier proxy has left: those are used as they
/// are. A socket beside them would change nothing for those who wait in their queues.
///
/// Where the pod has no IPv6, it is served without.
pub fn open(network: &PodNetwork, shards: usize, ipv6: bool, left: Kept) -> Result<Kept, ListenError> {
    let mut listeners = left;
    for kind in [
        ListenerKind::OutboundV4,
        ListenerKind::OutboundV6,
        ListenerKind::InboundPlaintext,
        ListenerKind::InboundHbone,
    ] {
        if listeners.of_kind(kind).len() > 0 {
            continue;
        }
        for _ in 0..shards.min(MOST_MEMBERS) {
            if let Some(listener) = listen(network, ipv6, kind)? {
                listeners.push(kind, listener.into());
            }
        }
    }
    Ok(listeners)
}

/// Nothing where it is for IPv6 and there is none.
fn listen(network: &PodNetwork, ipv6: bool, kind: ListenerKind) -> Result<Option<TcpListener>, ListenError> {
    let hbone =
        Bind { transparent: false, ..Bind::captured((Ipv6Addr::UNSPECIFIED, ports::INBOUND_HBONE).into()) };
    match kind {
        ListenerKind::OutboundV4 => {
            bind(network, Bind::captured((Ipv4Addr::LOCALHOST, ports::OUTBOUND).into())).map(Some)
        }
        ListenerKind::OutboundV6 if !ipv6 => Ok(None),
        ListenerKind::OutboundV6 => {
            let captured = Bind::captured((Ipv6Addr::LOCALHOST, ports::OUTBOUND).into());
            match bind(network, Bind { v6_only: true, ..captured }) {
                Err(ListenError::Bind { source, .. }) if is_without_v6(&source) => Ok(None),
                other => other.map(Some),
            }
        }
        ListenerKind::InboundPlaintext => {
            dual(network, ipv6, Bind::captured((Ipv6Addr::UNSPECIFIED, ports::INBOUND_PLAINTEXT).into()))
                .map(Some)
        }
        ListenerKind::InboundHbone => dual(network, ipv6, hbone).map(Some),
    }
}

/// A listener for both families, or for IPv4 alone where there is no IPv6.
fn dual(network: &PodNetwork, ipv6: bool, on_v6: Bind) -> Result<TcpListener, ListenError> {
    let on_v4 = Bind { addr: (Ipv4Addr::UNSPECIFIED, on_v6.addr.port()).into(), ..on_v6 };
    if !ipv6 {
        return bind(network, on_v4);
    }
    match bind(network, on_v6) {
        Err(ListenError::Bind { source, .. }) if is_without_v6(&source) => bind(network, on_v4),
        other => other,
    }
}

fn bind(network: &PodNetwork, bind: Bind) -> Result<TcpListener, ListenError> {
    network.bind(&bind).map_err(|source| ListenError::Bind { addr: bind.addr, source })
}

/// The kernel has no IPv6, or the namespace has it disabled.
pub(crate) fn is_without_v6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EPROTONOSUPPORT))
}

/// Tells the redirection of a pod's listeners. Any of a kind will do: connections are spread over all of them.
pub fn publish(listeners: &Kept, map: &ListenerMap) -> Result<(), ListenError> {
    for (which, slot, kind) in [
        ("outbound IPv4", slot::OUTBOUND_V4, ListenerKind::OutboundV4),
        ("outbound IPv6", slot::OUTBOUND_V6, ListenerKind::OutboundV6),
        ("inbound", slot::INBOUND, ListenerKind::InboundPlaintext),
    ] {
        if let Some(listener) = listeners.of_kind(kind).next() {
            map.set(slot, &listener).map_err(|source| ListenError::Map { which, source })?;
        }
    }
    Ok(())
}

/// One shard's part of a pod's listeners, by descriptors of its own. Each listener is some shard's.
pub fn part(listeners: &Kept, shard: usize, shards: usize) -> io::Result<Opened> {
    let of_kind = |kind| -> io::Result<Vec<TcpListener>> {
        let all = listeners.of_kind(kind);
        let count = all.len();
        let is_its = |number: usize| number % shards == shard || (count > 0 && number == shard % count);
        let its = all.enumerate().filter(|(number, _)| is_its(*number));
        its.map(|(_, fd)| Ok(fd.try_clone_to_owned()?.into())).collect()
    };
    let mut outbound = of_kind(ListenerKind::OutboundV4)?;
    outbound.extend(of_kind(ListenerKind::OutboundV6)?);
    let (plaintext, hbone) = (of_kind(ListenerKind::InboundPlaintext)?, of_kind(ListenerKind::InboundHbone)?);
    Ok(Listeners { outbound, plaintext, hbone })
}

impl Opened {
    /// Takes the sockets into the runtime of the caller.
    pub fn adopt(self) -> io::Result<Listeners<PodListener>> {
        let adopt = |listeners: Vec<TcpListener>| -> io::Result<Vec<PodListener>> {
            listeners.into_iter().map(PodListener::adopt).collect()
        };
        Ok(Listeners {
            outbound: adopt(self.outbound)?,
            plaintext: adopt(self.plaintext)?,
            hbone: adopt(self.hbone)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The ports of each shard's HBONE listeners, where so many were left.
    fn parts(left: usize, shards: usize) -> Vec<Vec<u16>> {
        let mut kept = Kept::default();
        for _ in 0..left {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            kept.push(ListenerKind::InboundHbone, listener.into());
        }
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        (0..shards)
            .map(|shard| part(&kept, shard, shards).unwrap().hbone.iter().map(port).collect())
            .collect()
    }

    #[test]
    fn every_listener_is_some_shards_and_every_shard_has_one() {
        for (left, shards) in [(1, 1), (2, 2), (2, 5), (5, 2), (16, 3), (1, 4)] {
            let parts = parts(left, shards);
            assert!(parts.iter().all(|part| !part.is_empty()), "{left} over {shards}: {parts:?}");
            let all: BTreeSet<u16> = parts.iter().flatten().copied().collect();
            assert_eq!(all.len(), left, "{left} over {shards}: {parts:?}");
            if shards <= left {
                assert_eq!(parts.iter().flatten().count(), left, "none is two shards': {parts:?}");
            }
        }
        assert!(parts(0, 2).iter().all(Vec::is_empty));
    }
}
