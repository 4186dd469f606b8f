//! How a pod's tunnels reach their peers.

use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hbone::TransportError;
use hbone::client::{Connector, Key, Reached};
use identity::{End, FetchError, PeerError, Proof, TlsFailure};
use net::{Dial, Network, Source};
use telemetry::access::Direction;
use thiserror::Error;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Silence;
use crate::binding::{self, Unbound};
use crate::limits::Limits;
use crate::mesh::Mesh;
use crate::metrics::Metrics;
use crate::pod::Pod;
use crate::quota::{Account, Amount, Excess};
use crate::redirection::Redirection;

/// Connects from a pod by TCP and mutual TLS, as the pod.
#[derive(Debug)]
pub struct Via<N> {
    pub(crate) pod: Arc<Pod<N>>,
    pub(crate) redirection: Redirection,
    pub(crate) limits: Limits,
    pub(crate) mesh: Mesh,
    pub(crate) metrics: Metrics,
    pub(crate) silence: Rc<Silence>,
    pub(crate) account: Arc<Account>,
    /// The largest window of a tunnel connection.
    pub(crate) window: u32,
}

/// Why a peer cannot be reached.
#[derive(Debug, Error)]
pub enum DialError {
    /// The pod has as many sockets, or as much memory, as it may.
    #[error(transparent)]
    Quota(Excess),
    /// The pod has no certificate. A connection does not go without.
    #[error("the pod has no certificate")]
    Identity(#[source] FetchError),
    /// The pod is not where it is said to be.
    #[error(transparent)]
    Unbound(#[from] Unbound),
    /// TCP fails.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// Nobody answers.
    #[error("no answer within {0:?}")]
    ConnectTimeout(Duration),
    /// TLS fails: among others where the peer is not who it must be.
    #[error("the TLS handshake fails")]
    Tls(#[source] io::Error),
    /// What the peer has proved is believed no more already.
    #[error(transparent)]
    Disbelieved(#[from] PeerError),
    /// The session has no identity, which the verifier does not let happen.
    #[error("the peer proved no identity")]
    Nobody,
    /// The peer does not finish its handshake.
    #[error("the TLS handshake takes longer than {0:?}")]
    TlsTimeout(Duration),
}

impl<N: Network> Via<N> {
    /// A pod may send from more addresses than the control plane knows; then one of those that it knows must be there too.
    fn bound(&self, source: IpAddr) -> Result<(), Unbound> {
        let checked = binding::check(&self.mesh.load(), &self.pod.local, source);
        let Err(unbound) = checked else { return Ok(()) };
        // An address that cannot be asked about is not the pod's.
        if unbound.addresses.iter().any(|ip| self.pod.network.holds(*ip).unwrap_or(false)) {
            return Ok(());
        }
        self.metrics.unbound(Direction::Outbound);
        Err(unbound)
    }
}

impl<N: Network> Connector for Via<N> {
    type Io = TlsStream<N::Stream>;
    type Peer = Arc<Proof>;
    type Error = DialError;

    async fn connect(&self, key: &Key) -> Result<Reached<Self::Io, Arc<Proof>>, DialError> {
        let limits = &self.limits;
        self.bound(key.source_ip)?;
        let socket = self.account.admit(Amount::SOCKET).map_err(DialError::Quota)?;
        let (window, memory) = self.account.window(self.window).map_err(DialError::Quota)?;
        let identity = self.pod.lease.fetch(limits.identity).await.map_err(DialError::Identity)?;
        let same_family = key.source_ip.is_ipv4() == key.address.is_ipv4();
        let source = if same_family { Source::Local(key.source_ip) } else { Source::Own };
        let dial = Dial { to: key.address, source, mark: self.redirection.mark() };
        let stream = timeout(limits.connect, self.pod.network.connect(&dial))
            .await
            .map_err(|_| DialError::ConnectTimeout(limits.connect))?
            .map_err(DialError::Connect)?;
        let connector = TlsConnector::from(identity.client_config(&key.destinations));
        let io = timeout(limits.tls, connector.connect(identity::unnamed(), stream))
            .await
            .map_err(|_| DialError::TlsTimeout(limits.tls))?
            .map_err(|error| DialError::Tls(TlsFailure::in_plain_words(error)))?;
        let proof = identity.proof(io.get_ref().1, End::Server).ok_or(DialError::Nobody)??;
        // Those who would not wait for it may come again.
        self.silence.forget(key.address);
        let until = Instant::now().checked_add(limits.tunnel_life(proof.time_left()));
        let (window, held) = (Some(window), Some(Box::new([socket, memory]) as _));
        Ok(Reached { io, peer: Arc::new(proof), until, window, held })
    }

    fn holds(&self, peer: &Arc<Proof>) -> bool {
        // The clock may have been set ahead since it was reached.
        peer.holds().is_ok() && !peer.time_left().is_zero()
    }

    fn lost(&self, key: &Key, why: &TransportError) {
        self.metrics.floods.notice(why, Direction::Outbound, &self.pod.local.name, &key.address);
    }
}
