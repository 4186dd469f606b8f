//! What a policy can ask about a connection.

use std::net::{IpAddr, SocketAddr};

use model::SpiffeId;

/// The facts of one connection, as the destination knows them.
///
/// Addresses are canonical: a v4-mapped v6 address is compared as v4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    source: Option<Source>,
    source_ip: IpAddr,
    destination: SocketAddr,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    id: SpiffeId,
    /// Written once, since every policy compares it.
    principal: String,
}

impl Connection {
    /// `peer` is the identity that TLS proved, nothing for plaintext; `destination` is the workload's own address and
    /// the port that the application listens on.
    pub fn new(peer: Option<&SpiffeId>, source_ip: IpAddr, destination: SocketAddr) -> Self {
        Self {
            source: peer.map(|id| Source { id: id.clone(), principal: id.principal() }),
            source_ip: source_ip.to_canonical(),
            destination: SocketAddr::new(destination.ip().to_canonical(), destination.port()),
        }
    }

    /// The identity that the source proved.
    pub fn peer(&self) -> Option<&SpiffeId> {
        self.source.as_ref().map(|s| &s.id)
    }

    /// That identity without `spiffe://`.
    pub fn principal(&self) -> Option<&str> {
        self.source.as_ref().map(|s| s.principal.as_str())
    }

    /// The namespace of that identity.
    pub fn namespace(&self) -> Option<&str> {
        self.peer().map(SpiffeId::namespace)
    }

    /// The address that the connection comes from.
    pub fn source_ip(&self) -> IpAddr {
        self.source_ip
    }

    /// The workload's address that the connection is for.
    pub fn destination_ip(&self) -> IpAddr {
        self.destination.ip()
    }

    /// The application's port.
    pub fn destination_port(&self) -> u16 {
        self.destination.port()
    }
}
