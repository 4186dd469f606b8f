//! Network namespaces: who listens where, and what redirection does to a connection.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use net::{Accepted, Bind, Dial, Network, Source};
use tokio::sync::{Mutex, mpsc};
use tokio::time::{sleep, timeout};

use super::link::Link;
use super::stream::SimStream;
use super::{SimNet, State};

/// The ports that the mesh's proxy takes in an enrolled namespace.
const OUTBOUND: u16 = 15001;
const INBOUND_PLAINTEXT: u16 = 15006;
const INBOUND_HBONE: u16 = 15008;
/// How long a connection that nobody answers is tried.
const CONNECT: Duration = Duration::from_secs(127);
const BACKLOG: usize = 4096;

/// A namespace's state.
#[derive(Debug)]
pub(super) struct Namespace {
    node: Arc<str>,
    pub(super) addrs: Vec<IpAddr>,
    enrolled: bool,
    listeners: HashMap<u16, Vec<Listening>>,
    last_port: u16,
    turn: usize,
}

#[derive(Debug)]
struct Listening {
    bind: Bind,
    accepts: mpsc::Sender<Accepted<SimStream>>,
}

impl Namespace {
    pub(super) fn new(node: Arc<str>, addrs: Vec<IpAddr>) -> Self {
        Self { node, addrs, enrolled: false, listeners: HashMap::new(), last_port: 32_768, turn: 0 }
    }

    /// The next port that an outgoing connection comes from.
    fn port(&mut self) -> u16 {
        self.last_port = if self.last_port == u16::MAX { 32_769 } else { self.last_port + 1 };
        self.last_port
    }

    /// Who takes connections on a port: to an address, or, for a listener of the mesh, to any of its family.
    fn listener(&mut self, port: u16, to: Option<IpAddr>, v4: bool) -> Option<&Listening> {
        self.turn += 1;
        let all = self.listeners.get_mut(&port)?;
        all.retain(|l| !l.accepts.is_closed());
        let takes = |l: &&Listening| {
            let bound = l.bind.addr.ip();
            let family = bound.is_ipv4() == v4 || (v4 && bound.is_unspecified() && !l.bind.v6_only);
            family && to.is_none_or(|to| bound.is_unspecified() || bound == to)
        };
        let takers: Vec<&Listening> = all.iter().filter(takes).collect();
        (!takers.is_empty()).then(|| takers[self.turn % takers.len()])
    }
}

/// A namespace and the sockets that a proxy opens in it, which redirection passes over.
#[derive(Clone, Debug)]
pub struct SimHost {
    net: SimNet,
    id: usize,
}

impl SimHost {
    pub(super) fn new(net: SimNet, id: usize) -> Self {
        Self { net, id }
    }

    /// Turns redirection on or off: what applications open goes to port 15001, what comes from the network goes to 15006,
    /// or to 15008 where it is for that port. Connections that stand are left alone.
    pub fn enrol(&self, enrolled: bool) {
        self.net.0.lock().hosts[self.id].enrolled = enrolled;
    }

    /// The sockets of an application in the namespace.
    pub fn app(&self) -> SimApp {
        SimApp(self.clone())
    }

    /// The first address.
    pub fn ip(&self) -> IpAddr {
        self.net.0.lock().hosts[self.id].addrs[0]
    }

    async fn open(&self, dial: &Dial, captured: bool) -> io::Result<SimStream> {
        let route = self.net.0.lock().route(self.id, dial, captured)?;
        let (here, there) = &route.nodes;
        let link = self.net.link_between(here, there);
        if timeout(CONNECT, link.until_open()).await.is_err() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        sleep(link.delay()).await;
        let taken = self.net.0.lock().offer(&route, &link);
        sleep(link.delay()).await;
        taken
    }
}

/// Where a connection goes.
struct Route {
    nodes: (Arc<str>, Arc<str>),
    /// The namespace and the port in it that takes it, whatever was dialled.
    host: usize,
    port: u16,
    /// Whether the listener takes any address, for it is a proxy's.
    redirected: bool,
    from: SocketAddr,
    to: SocketAddr,
}

impl State {
    fn route(&mut self, id: usize, dial: &Dial, captured: bool) -> io::Result<Route> {
        let to = SocketAddr::new(dial.to.ip().to_canonical(), dial.to.port());
        let here = &mut self.hosts[id];
        let own = here.addrs.iter().copied().find(|ip| ip.is_ipv4() == to.is_ipv4());
        let from_ip = match dial.source {
            Source::Local(ip) | Source::Foreign(ip) => ip.to_canonical(),
            Source::Own if to.ip().is_loopback() => to.ip(),
            Source::Own => own.ok_or(io::ErrorKind::NetworkUnreachable)?,
        };
        if from_ip.is_ipv4() != to.is_ipv4() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let from = SocketAddr::new(from_ip, here.port());
        let node = here.node.clone();
        let local = to.ip().is_loopback() || here.addrs.contains(&to.ip());
        if captured && here.enrolled && !to.ip().is_loopback() {
            let nodes = (node.clone(), node);
            return Ok(Route { nodes, host: id, port: OUTBOUND, redirected: true, from, to });
        }
        if local {
            let nodes = (node.clone(), node);
            return Ok(Route { nodes, host: id, port: to.port(), redirected: false, from, to });
        }
        let host = self.hosts.iter().position(|h| h.addrs.contains(&to.ip()));
        let host = host.ok_or(io::ErrorKind::HostUnreachable)?;
        let there = &self.hosts[host];
        let nodes = (node, there.node.clone());
        let redirected = there.enrolled && to.port() != INBOUND_HBONE;
        let port = if redirected { INBOUND_PLAINTEXT } else { to.port() };
        Ok(Route { nodes, host, port, redirected, from, to })
    }

    fn offer(&mut self, route: &Route, link: &Arc<Link>) -> io::Result<SimStream> {
        let to = (!route.redirected).then_some(route.to.ip());
        let listener = self.hosts[route.host].listener(route.port, to, route.to.is_ipv4());
        let listener = listener.ok_or(io::ErrorKind::ConnectionRefused)?;
        let (client, server) = SimStream::pair(link, route.from, route.to);
        let accepted = Accepted { stream: server, peer: route.from, original_dst: route.to };
        listener.accepts.try_send(accepted).map_err(|_| io::ErrorKind::ConnectionRefused)?;
        Ok(client)
    }

    fn listen(&mut self, id: usize, bind: &Bind) -> io::Result<SimListener> {
        let (accepts, accepted) = mpsc::channel(BACKLOG);
        let all = self.hosts[id].listeners.entry(bind.addr.port()).or_default();
        all.retain(|l| !l.accepts.is_closed());
        let clashes = |l: &Listening| l.bind.addr == bind.addr && !(l.bind.reuse_port && bind.reuse_port);
        if all.iter().any(clashes) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        all.push(Listening { bind: *bind, accepts });
        Ok(SimListener { accepted: Mutex::new(accepted) })
    }
}

impl Network for SimHost {
    type Stream = SimStream;
    type Listener = SimListener;

    async fn listen(&self, bind: &Bind) -> io::Result<SimListener> {
        self.net.0.lock().listen(self.id, bind)
    }

    async fn connect(&self, dial: &Dial) -> io::Result<SimStream> {
        self.open(dial, false).await
    }

    fn holds(&self, address: IpAddr) -> io::Result<bool> {
        Ok(self.net.0.lock().hosts[self.id].addrs.contains(&address))
    }
}

/// The sockets of an application, which redirection is about.
#[derive(Clone, Debug)]
pub struct SimApp(SimHost);

impl Network for SimApp {
    type Stream = SimStream;
    type Listener = SimListener;

    async fn listen(&self, bind: &Bind) -> io::Result<SimListener> {
        self.0.listen(bind).await
    }

    async fn connect(&self, dial: &Dial) -> io::Result<SimStream> {
        self.0.open(dial, true).await
    }

    fn holds(&self, address: IpAddr) -> io::Result<bool> {
        self.0.holds(address)
    }
}

/// A listening socket. Dropping it ends what waits in it.
#[derive(Debug)]
pub struct SimListener {
    accepted: Mutex<mpsc::Receiver<Accepted<SimStream>>>,
}

impl net::Listener for SimListener {
    type Stream = SimStream;

    async fn accept(&self) -> io::Result<Accepted<SimStream>> {
        self.accepted.lock().await.recv().await.ok_or_else(|| io::ErrorKind::ConnectionAborted.into())
    }
}

#[cfg(test)]
mod tests;
