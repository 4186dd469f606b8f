//! Links, addresses and routes of one namespace, over rtnetlink.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use futures_util::TryStreamExt as _;
use net::Netns;
use netlink_packet_route::address::AddressHeaderFlags;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth};
use netlink_packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::task::JoinHandle;

use super::NetworkError;

/// A conversation with the kernel about a namespace.
pub(super) struct Wire {
    handle: Handle,
    conversation: JoinHandle<()>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.conversation.abort();
    }
}

/// Where packets for an address range go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route<'a> {
    /// The range.
    pub(super) to: (IpAddr, u8),
    /// The next hop; directly onto the link where it is none.
    pub(super) via: Option<IpAddr>,
    pub(super) dev: &'a str,
}

impl Wire {
    pub(super) fn of(netns: &Netns) -> Result<Self, NetworkError> {
        let (connection, handle, _) = netns.run(rtnetlink::new_connection)?.map_err(NetworkError::Netlink)?;
        Ok(Self { handle, conversation: tokio::spawn(connection) })
    }

    pub(super) async fn bridge(&self, name: &str) -> Result<(), NetworkError> {
        let bridge = LinkBridge::new(name).build();
        told("make bridge", name, self.handle.link().add(bridge).execute().await)
    }

    /// A link between this namespace and another; both ends are down.
    pub(super) async fn veth(&self, name: &str, other: &Netns, peer: &str) -> Result<(), NetworkError> {
        let far = LinkUnspec::new_with_name(peer).setns_by_fd(other.as_fd().as_raw_fd()).build();
        let near = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(name)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(far)))
            .build();
        told("make link", name, self.handle.link().add(near).execute().await)
    }

    pub(super) async fn up(&self, name: &str) -> Result<(), NetworkError> {
        let link = LinkUnspec::new_with_index(self.index(name).await?).up().build();
        told("set up link", name, self.handle.link().set(link).execute().await)
    }

    /// Makes a link a port of a bridge, and sets it up.
    pub(super) async fn join(&self, name: &str, bridge: &str) -> Result<(), NetworkError> {
        let (link, bridge) = (self.index(name).await?, self.index(bridge).await?);
        let link = LinkUnspec::new_with_index(link).controller(bridge).up().build();
        told("join to the bridge", name, self.handle.link().set(link).execute().await)
    }

    pub(super) async fn address(&self, name: &str, ip: IpAddr, prefix: u8) -> Result<(), NetworkError> {
        let mut request = self.handle.address().add(self.index(name).await?, ip, prefix);
        if ip.is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        told("give an address to", name, request.execute().await)
    }

    pub(super) async fn route(&self, route: Route<'_>) -> Result<(), NetworkError> {
        let index = self.index(route.dev).await?;
        let builder = RouteMessageBuilder::<IpAddr>::new().output_interface(index);
        let builder = builder
            .destination_prefix(route.to.0, route.to.1)
            .map_err(|e| NetworkError::Route(e.to_string()))?;
        let builder = match route.via {
            Some(via) => builder.gateway(via).map_err(|e| NetworkError::Route(e.to_string()))?,
            None => builder.scope(RouteScope::Link),
        };
        told("route over", route.dev, self.handle.route().add(builder.build()).execute().await)
    }

    pub(super) async fn delete(&self, name: &str) -> Result<(), NetworkError> {
        let index = self.index(name).await?;
        told("delete link", name, self.handle.link().del(index).execute().await)
    }

    async fn index(&self, name: &str) -> Result<u32, NetworkError> {
        let mut links = self.handle.link().get().match_name(name).execute();
        match links.try_next().await {
            Ok(Some(link)) => Ok(link.header.index),
            Ok(None) => Err(NetworkError::NoLink(name.to_owned())),
            Err(source) => Err(NetworkError::Link { what: "find link", name: name.to_owned(), source }),
        }
    }
}

fn told(what: &'static str, name: &str, result: Result<(), rtnetlink::Error>) -> Result<(), NetworkError> {
    result.map_err(|source| NetworkError::Link { what, name: name.to_owned(), source })
}
