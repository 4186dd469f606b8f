//! Fabric, nodes, pods: which namespace is joined to which, and how they route.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use net::{Netns, NetnsError};
use thiserror::Error;

use super::netns;
use super::sysctl;
use super::wire::{Route, Wire};
use crate::lab::address::{self, Families, NodePlan, Pair};

const BRIDGE: &str = "fabric";
/// A node's interface towards the other nodes.
pub(crate) const UPLINK: &str = "uplink";
/// A pod's interface.
const POD: &str = "eth0";

/// Why the network is not as it should be.
#[derive(Debug, Error)]
pub(crate) enum NetworkError {
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error("cannot talk to the kernel about links: {0}")]
    Netlink(#[source] io::Error),
    #[error("cannot {what} `{name}`: {source}")]
    Link {
        what: &'static str,
        name: String,
        #[source]
        source: rtnetlink::Error,
    },
    #[error("there is no link `{0}`")]
    NoLink(String),
    #[error("no such route: {0}")]
    Route(String),
    #[error("cannot make a router of a namespace: {0}")]
    Forwarding(#[source] io::Error),
    #[error("cannot mount the namespace on {}: {source}", path.display())]
    Publish {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What joins the nodes, and where the control plane runs.
#[derive(Clone, Debug)]
pub(crate) struct Fabric {
    pub(crate) netns: Netns,
    pub(crate) path: PathBuf,
    pub(crate) has_v6: bool,
}

/// A node.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) plan: NodePlan,
    pub(crate) netns: Netns,
    pub(crate) path: PathBuf,
    pub(crate) has_v6: bool,
}

/// A pod's place in the network.
#[derive(Clone, Debug)]
pub(crate) struct PodLink {
    pub(crate) path: PathBuf,
    /// The node's end of the link.
    host_end: String,
}

impl Fabric {
    pub(crate) async fn create(path: PathBuf) -> Result<Self, NetworkError> {
        let netns = netns::create(&path).await?;
        let has_v6 = netns.run(sysctl::has_v6)?;
        let wire = Wire::of(&netns)?;
        wire.bridge(BRIDGE).await?;
        let control = Pair { v4: address::CONTROL, v6: address::CONTROL6 };
        for ip in control.addresses(has_v6) {
            wire.address(BRIDGE, ip, link_prefix(ip)).await?;
        }
        wire.address("lo", address::RESOLVER.into(), 32).await?;
        if has_v6 {
            wire.address("lo", address::RESOLVER6.into(), 128).await?;
        }
        Ok(Self { netns, path, has_v6 })
    }

    /// Makes a node and joins it to those that are there.
    pub(crate) async fn join(
        &self,
        plan: NodePlan,
        path: PathBuf,
        others: &[Node],
    ) -> Result<Node, NetworkError> {
        let netns = netns::create(&path).await?;
        netns.run(sysctl::forward)?.map_err(NetworkError::Forwarding)?;
        let (here, there) = (Wire::of(&self.netns)?, Wire::of(&netns)?);
        here.veth(&plan.name, &netns, UPLINK).await?;
        here.join(&plan.name, BRIDGE).await?;
        for ip in plan.uplink().addresses(self.has_v6) {
            there.address(UPLINK, ip, link_prefix(ip)).await?;
        }
        there.up(UPLINK).await?;
        let control = Pair { v4: address::CONTROL, v6: address::CONTROL6 };
        let resolver = (IpAddr::V4(address::RESOLVER), 32);
        there.route(Route { to: resolver, via: Some(control.v4.into()), dev: UPLINK }).await?;
        if self.has_v6 {
            let resolver = (IpAddr::V6(address::RESOLVER6), 128);
            there.route(Route { to: resolver, via: Some(control.v6.into()), dev: UPLINK }).await?;
        }
        let node = Node { plan, netns, path, has_v6: self.has_v6 };
        routes_to(&here, BRIDGE, &node).await?;
        for other in others {
            routes_to(&there, UPLINK, other).await?;
            routes_to(&Wire::of(&other.netns)?, UPLINK, &node).await?;
        }
        Ok(node)
    }
}

/// Sends what is for a node's pods to the node.
async fn routes_to(wire: &Wire, dev: &str, node: &Node) -> Result<(), NetworkError> {
    let (pods, pods6, uplink) = (node.plan.pods(), node.plan.pods6(), node.plan.uplink());
    let to = (IpAddr::V4(pods.addr()), pods.prefix_len());
    wire.route(Route { to, via: Some(uplink.v4.into()), dev }).await?;
    if node.has_v6 {
        let to = (IpAddr::V6(pods6.addr()), pods6.prefix_len());
        wire.route(Route { to, via: Some(uplink.v6.into()), dev }).await?;
    }
    Ok(())
}

impl Node {
    /// Makes the namespace of a pod and joins it to the node; where that fails, nothing of it stays.
    pub(crate) async fn pod(
        &self,
        host: u8,
        families: Families,
        path: PathBuf,
    ) -> Result<PodLink, NetworkError> {
        let link = PodLink { path, host_end: format!("pod{host}") };
        match self.join(host, families, &link).await {
            Ok(()) => Ok(link),
            Err(error) => {
                // What was not made yet cannot be removed.
                let _ = self.remove(&link).await;
                Err(error)
            }
        }
    }

    async fn join(&self, host: u8, families: Families, link: &PodLink) -> Result<(), NetworkError> {
        let netns = netns::create(&link.path).await?;
        let (here, there) = (Wire::of(&self.netns)?, Wire::of(&netns)?);
        here.veth(&link.host_end, &netns, POD).await?;
        here.up(&link.host_end).await?;
        there.up(POD).await?;
        let pairs = self.plan.pod(host).of(families).into_iter();
        for (pod, gateway) in pairs.zip(self.plan.gateway().of(families)) {
            let whole = if pod.is_ipv4() { 32 } else { 128 };
            here.address(&link.host_end, gateway, whole).await?;
            here.route(Route { to: (pod, whole), via: None, dev: &link.host_end }).await?;
            there.address(POD, pod, whole).await?;
            there.route(Route { to: (gateway, whole), via: None, dev: POD }).await?;
            there.route(Route { to: (unspecified(pod), 0), via: Some(gateway), dev: POD }).await?;
        }
        Ok(())
    }

    /// Takes a pod's link away, and its namespace's path. What still runs in the pod is alone then.
    pub(crate) async fn remove(&self, pod: &PodLink) -> Result<(), NetworkError> {
        let deleted = match Wire::of(&self.netns) {
            Ok(wire) => wire.delete(&pod.host_end).await,
            Err(error) => Err(error),
        };
        let failed = |source| NetworkError::Publish { path: pod.path.clone(), source };
        netns::unpublish(&pod.path).map_err(failed).and(deleted)
    }
}

/// The beginning of the range of all addresses, of a family.
fn unspecified(of: IpAddr) -> IpAddr {
    if of.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

fn link_prefix(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { address::LINK.0 } else { address::LINK.1 }
}
