//! Tunnels of a pod that came back to the pod itself.

use std::net::SocketAddr;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The last of a pod's own connections that came back to it, because what it was made to is an address of the pod.
///
/// He who made it sees no more than a connection that was reset, which may also be a peer's proxy that died and will be
/// there again. The one is tried again, the other is not.
#[derive(Debug, Default)]
pub struct Returned(Mutex<Option<(SocketAddr, Instant)>>);

impl Returned {
    /// A connection that was made to `to` has come back. To be said before it is closed.
    pub fn note(&self, to: SocketAddr) {
        *self.0.lock() = Some((to, Instant::now()));
    }

    /// Whether the last one was made to `to`, and came back since.
    pub fn has(&self, to: SocketAddr, since: Instant) -> bool {
        self.0.lock().is_some_and(|(address, when)| address == to && when >= since)
    }
}
