//! The last hop: from the proxy to the application in the pod.

use std::io;
use std::net::{IpAddr, SocketAddr};

use model::SpiffeId;
use net::{Dial, Network, ProxyHeader, Source};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::InboundError;
use super::entrance::{Entrance, Told};
use crate::pod::Served;

/// Connects to where a tunnel ends, and says there who comes, where that is wanted.
pub(super) async fn enter<N: Network>(
    served: &Served<N>,
    entrance: &Entrance,
    client: SocketAddr,
    identity: &SpiffeId,
) -> Result<N::Stream, InboundError> {
    match &entrance.told {
        None => connect(served, entrance.connect, client.ip()).await,
        Some(told) => introduced(served, entrance.connect, told, client, identity).await,
    }
}

/// Connects to a proxy in the pod over loopback, from the pod itself: the header says who the client is.
async fn introduced<N: Network>(
    served: &Served<N>,
    to: SocketAddr,
    told: &Told,
    client: SocketAddr,
    identity: &SpiffeId,
) -> Result<N::Stream, InboundError> {
    let header = ProxyHeader {
        source: client,
        destination: told.destination,
        identity: Some(identity.to_string()),
        service: told.service.as_deref().map(str::to_owned),
    };
    let header = header.encode()?;
    let dial = Dial { to, source: Source::Own, mark: served.proxy.redirection.mark() };
    let entering = async {
        let mut stream = served.pod.network.connect(&dial).await?;
        stream.write_all(&header).await?;
        io::Result::Ok(stream)
    };
    let limit = served.proxy.limits.application;
    match timeout(limit, entering).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(source)) => Err(InboundError::Application { addr: to, source }),
        Err(_) => Err(InboundError::ApplicationTimeout { addr: to, limit }),
    }
}

/// Connects to an application, from the client's address, so that the application sees whom it talks to.
///
/// The pod's own address is used where the client's cannot be: it is of the other family, or means something on one link
/// only; and where the pod has left, for what brings replies to foreign addresses back to the proxy may be gone then.
pub(super) async fn connect<N: Network>(
    served: &Served<N>,
    to: SocketAddr,
    client: IpAddr,
) -> Result<N::Stream, InboundError> {
    let redirection = &served.proxy.redirection;
    let preserved = client.is_ipv4() == to.is_ipv4() && is_routable(client) && !served.has_left();
    let dial = if preserved {
        Dial { to, source: Source::Foreign(client), mark: Some(redirection.reply_mark()) }
    } else {
        Dial { to, source: Source::Own, mark: redirection.mark() }
    };
    let limit = served.proxy.limits.application;
    match timeout(limit, served.pod.network.connect(&dial)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(source)) => Err(InboundError::Application { addr: to, source }),
        Err(_) => Err(InboundError::ApplicationTimeout { addr: to, limit }),
    }
}

fn is_routable(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_loopback(),
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_loopback() && !ip.is_unicast_link_local(),
    }
}
