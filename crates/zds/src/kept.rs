//! Listening sockets that outlive the process that made them.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use net::{Netns, NetnsError, netns, tcp};
use thiserror::Error;

use crate::{Attached, ListenerKind};

/// The most sockets that share one of a pod's ports. All of a pod's listeners travel in one message.
pub const MOST_MEMBERS: usize = 16;

/// A pod's listening sockets: of each kind those that share a port. As long as somebody holds them, connections to them
/// queue up in the kernel, whoever accepts or does not. Were one of a group closed, those in its queue would be reset.
///
/// Cloning shares the descriptors.
#[derive(Clone, Debug, Default)]
pub struct Kept(BTreeMap<ListenerKind, Vec<Arc<OwnedFd>>>);

/// Why a descriptor is not kept.
#[derive(Debug, Error)]
pub enum NotKept {
    /// The pod's namespace cannot be asked.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// It is no socket's.
    #[error("what came as a listener is no socket")]
    NoSocket(#[source] io::Error),
    /// It is another kind of socket.
    #[error("what came as a listener does not listen for TCP connections")]
    NotListening,
    /// It is another pod's: connections of one would be taken for the other's.
    #[error("the listener is in another network namespace than the pod")]
    OtherNamespace,
}

impl Kept {
    /// Takes what came with a message.
    pub(crate) fn of_message(attached: impl IntoIterator<Item = (Attached, OwnedFd)>) -> Self {
        let mut kept = Self::default();
        for (kind, fd) in attached {
            if let Attached::Listener(kind) = kind {
                kept.push(kind, fd);
            }
        }
        kept
    }

    /// Adds a listener to those of its kind.
    pub fn push(&mut self, kind: ListenerKind, listener: OwnedFd) {
        self.0.entry(kind).or_default().push(Arc::new(listener));
    }

    /// The listeners of a kind, which share a port.
    pub fn of_kind(&self, kind: ListenerKind) -> impl ExactSizeIterator<Item = BorrowedFd<'_>> {
        self.0.get(&kind).map_or(&[][..], Vec::as_slice).iter().map(|fd| fd.as_fd())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = (Attached, BorrowedFd<'_>)> {
        self.0.iter().flat_map(|(kind, fds)| fds.iter().map(|fd| (Attached::Listener(*kind), fd.as_fd())))
    }

    /// Checks that all are listening sockets of a pod's namespace.
    ///
    /// # Errors
    /// See [`NotKept`].
    pub fn check(&self, pod: &Netns) -> Result<(), NotKept> {
        if self.is_empty() {
            return Ok(());
        }
        let cookie = pod.cookie()?;
        for fd in self.0.values().flatten() {
            if !tcp::is_listening(fd).map_err(NotKept::NoSocket)? {
                return Err(NotKept::NotListening);
            }
            if netns::cookie_of(fd).map_err(NotKept::NoSocket)? != cookie {
                return Err(NotKept::OtherNamespace);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    fn kept(fd: impl Into<OwnedFd>) -> Kept {
        let mut kept = Kept::default();
        kept.push(ListenerKind::InboundHbone, fd.into());
        kept
    }

    #[test]
    fn only_listening_tcp_sockets_are_kept() {
        let here = Netns::current().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connected = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        kept(listener).check(&here).unwrap();
        assert!(matches!(kept(connected).check(&here), Err(NotKept::NotListening)));
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(matches!(kept(datagrams).check(&here), Err(NotKept::NotListening)));
        let file = File::open("/proc/self/comm").unwrap();
        assert!(matches!(kept(file).check(&here), Err(NotKept::NoSocket(_))));
        Kept::default().check(&here).unwrap();
    }

    mod netns {
        use super::*;

        #[test]
        fn another_pods_listener_is_not_kept() {
            let other = net::netns::unnamed().unwrap();
            let bind = net::Bind::plain("127.0.0.1:0".parse().unwrap());
            let listener = other.run(|| tcp::listen(&bind, |_| Ok(()))).unwrap().unwrap();
            let listener = kept(listener);
            listener.check(&other).unwrap();
            let here = Netns::current().unwrap();
            assert!(matches!(listener.check(&here), Err(NotKept::OtherNamespace)));
        }
    }
}
