//! The proxies that are connected, or were.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Peer, Status};

/// How many proxies that are gone are remembered.
const REMEMBERED: usize = 1_000;

/// The proxies that are connected, or were until lately and have not come back under the same node id. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry {
    inner: Arc<Mutex<Inner>>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    proxies: BTreeMap<u64, Proxy>,
}

/// A proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Who it proved to be.
    pub peer: Peer,
    /// Whether its stream stands.
    pub connected: bool,
    /// How far it has got, or had when its stream ended.
    pub status: Status,
}

impl Default for Registry {
    fn default() -> Self {
        Self { inner: Arc::default(), changes: watch::Sender::new(0) }
    }
}

impl Registry {
    /// All of them, in the order in which they came.
    pub fn proxies(&self) -> Vec<Proxy> {
        self.inner.lock().proxies.values().cloned().collect()
    }

    /// Changes whenever a proxy comes, goes or gets further.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(super) fn join(&self, peer: Peer) -> Member {
        let mut inner = self.inner.lock();
        let number = inner.next;
        inner.next += 1;
        inner.proxies.insert(number, Proxy { peer, connected: true, status: Status::default() });
        drop(inner);
        self.touch();
        Member { registry: self.clone(), number }
    }

    fn touch(&self) {
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
    }
}

/// A connected proxy's place; dropped, the proxy is gone.
#[derive(Debug)]
pub(super) struct Member {
    registry: Registry,
    number: u64,
}

impl Member {
    pub(super) fn update(&self, status: Status) {
        let mut inner = self.registry.inner.lock();
        let Some(own) = inner.proxies.get_mut(&self.number) else { return };
        if own.status == status {
            return;
        }
        let introduced = own.status.node.id != status.node.id;
        let id = status.node.id.clone();
        own.status = status;
        if introduced {
            inner.proxies.retain(|_, p| p.connected || p.status.node.id != id);
        }
        drop(inner);
        self.registry.touch();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut inner = self.registry.inner.lock();
        let Some(own) = inner.proxies.get_mut(&self.number) else { return };
        own.connected = false;
        let id = own.status.node.id.clone();
        let is_back = |p: &Proxy| p.connected && p.status.node.id == id;
        // A stream that never said who it was, or whose proxy has another by now, leaves nothing to remember.
        if id.is_empty() || inner.proxies.values().any(is_back) {
            inner.proxies.remove(&self.number);
        }
        let gone: Vec<u64> = inner.proxies.iter().filter(|(_, p)| !p.connected).map(|(n, _)| *n).collect();
        if gone.len() > REMEMBERED {
            inner.proxies.remove(&gone[0]);
        }
        drop(inner);
        self.registry.touch();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::NodeId;

    fn peer() -> Peer {
        Peer { namespace: "istio-system".into(), service_account: "ztunnel".into(), node: None }
    }

    fn named(id: &str, acked_revision: u64) -> Status {
        let node = NodeId { id: id.into(), node: "node1".into() };
        Status { node, acked_revision, ..Status::default() }
    }

    #[test]
    fn a_proxy_that_goes_is_remembered_until_it_comes_back() {
        let registry = Registry::default();
        let first = registry.join(peer());
        first.update(named("z1", 3));
        drop(first);
        assert_eq!(registry.proxies().len(), 1);
        assert!(!registry.proxies()[0].connected);
        let second = registry.join(peer());
        assert_eq!(registry.proxies().len(), 2);
        second.update(named("z1", 4));
        let now = registry.proxies();
        assert_eq!(now.len(), 1);
        assert!(now[0].connected && now[0].status.acked_revision == 4);
    }

    #[test]
    fn an_old_stream_that_ends_after_the_new_one_began_leaves_nothing() {
        let registry = Registry::default();
        let (old, new) = (registry.join(peer()), registry.join(peer()));
        old.update(named("z1", 3));
        new.update(named("z1", 4));
        drop(old);
        assert_eq!(registry.proxies().len(), 1);
        assert!(registry.proxies()[0].connected);
    }

    #[test]
    fn a_stream_that_never_said_who_it_was_is_forgotten() {
        let registry = Registry::default();
        drop(registry.join(peer()));
        assert!(registry.proxies().is_empty());
    }
}
