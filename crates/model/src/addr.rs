//! Addresses, each within the network it is meaningful in.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use crate::NamespacedHostname;

/// A network's name; the empty one is the mesh's only network where there is just one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct NetworkId(Arc<str>);

impl NetworkId {
    /// Keeps a name as it is.
    pub fn new(name: impl AsRef<str>) -> Self {
        Self(name.as_ref().into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An IP address in a network. The same address in two networks is two different places.
///
/// A v4-mapped v6 address is kept as v4, so that one place has one key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct NetworkAddr {
    /// The network in which the address holds.
    pub network: NetworkId,
    /// The address, canonical.
    pub ip: IpAddr,
}

impl NetworkAddr {
    /// An address in a network.
    pub fn new(network: NetworkId, ip: IpAddr) -> Self {
        Self { network, ip: ip.to_canonical() }
    }
}

/// Written as the workload API's alias, `network/IP`.
impl fmt::Display for NetworkAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.ip)
    }
}

/// A block of addresses in a network, by its first address and the length of its prefix.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct NetworkBlock {
    /// The network in which the addresses hold.
    pub network: NetworkId,
    /// The block. What its addresses do not share is zero.
    pub block: IpNet,
}

impl NetworkBlock {
    /// A block in a network, of any of its addresses and its length.
    pub fn new(network: NetworkId, block: IpNet) -> Self {
        Self { network, block: block.trunc() }
    }

    /// The block of this length that an address is in; nothing where addresses of its family are shorter.
    pub fn around(addr: &NetworkAddr, length: u8) -> Option<Self> {
        Some(Self::new(addr.network.clone(), IpNet::new(addr.ip, length).ok()?))
    }
}

/// Where a waypoint or a network gateway is reached, and on which port it takes HBONE.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct GatewayAddress {
    /// By name or by address.
    pub destination: GatewayDestination,
    /// The port that takes HBONE with mutual TLS, 15008 where the wire has none.
    pub hbone_port: u16,
}

/// The two ways in which the workload API names a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum GatewayDestination {
    /// A service of the mesh.
    Hostname(NamespacedHostname),
    /// An address: a workload's or a service's.
    Address(NetworkAddr),
}
