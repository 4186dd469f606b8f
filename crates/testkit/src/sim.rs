//! A network of virtual hosts on virtual time.
//!
//! [`SimNet`] stands in for the kernel below the [`net::Network`] seam: hosts are network namespaces with addresses,
//! listeners and redirection as the eBPF programs do it, nodes are what hosts stand on, and between two nodes runs a link
//! with latency, loss, and moods. Everything happens on tokio's paused clock in one thread, so that minutes of a mesh's
//! life pass in milliseconds and a wait for the wrong thing hangs nobody.
//!
//! What TCP promises still holds: bytes come in order and once. Loss on a link therefore shows as delay, and reorder as
//! one connection overtaking another; a link that is [closed](SimNet::close) delivers nothing until it opens, and
//! [`SimNet::cut`] resets all that runs over it.
//!
//! ```no_run
//! # async fn example() -> std::io::Result<()> {
//! use net::{Dial, Network};
//! let sim = testkit::sim::SimNet::new(7);
//! let a = sim.host("node1", ["10.0.0.1"]);
//! let b = sim.host("node2", ["10.0.0.2"]);
//! let listener = b.listen(&net::Bind::plain("10.0.0.2:80".parse().unwrap())).await?;
//! let stream = a.connect(&Dial::to("10.0.0.2:80".parse().unwrap())).await?;
//! # Ok(()) }
//! ```

mod host;
mod link;
mod pipe;
mod seed;
mod stream;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

pub use host::{SimApp, SimHost, SimListener};
pub use seed::{Seed, seeds};
pub use stream::SimStream;

use host::Namespace;
use link::Link;

/// The network. Clones are the same one.
#[derive(Clone, Debug)]
pub struct SimNet(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    seed: u64,
    hosts: Vec<Namespace>,
    links: BTreeMap<(Arc<str>, Arc<str>), Arc<Link>>,
}

impl SimNet {
    /// An empty network. All that is left to chance on its links follows from the seed.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State { seed, hosts: vec![], links: BTreeMap::new() })))
    }

    /// Adds a namespace with these addresses on a node. An address that another host has moves here.
    pub fn host<'a>(&self, node: &str, addrs: impl IntoIterator<Item = &'a str>) -> SimHost {
        let addrs: Vec<IpAddr> = addrs.into_iter().map(|ip| ip.parse().expect("an address")).collect();
        let mut state = self.0.lock();
        state.hosts.iter_mut().for_each(|h| h.addrs.retain(|ip| !addrs.contains(ip)));
        state.hosts.push(Namespace::new(node.into(), addrs));
        SimHost::new(self.clone(), state.hosts.len() - 1)
    }

    /// Sets the latency between two nodes, drawn evenly from a range for each segment, and the share of segments that are
    /// lost and have to be sent again.
    pub fn link(&self, a: &str, b: &str, latency: std::ops::Range<Duration>, loss: f64) {
        self.link_between(a, b).tune(latency, loss);
    }

    /// Delivers nothing between two nodes until [`SimNet::open`].
    pub fn close(&self, a: &str, b: &str) {
        self.link_between(a, b).close();
    }

    /// Delivers again, and what was held up a retransmission later.
    pub fn open(&self, a: &str, b: &str) {
        self.link_between(a, b).open();
    }

    /// Resets every connection between two nodes.
    pub fn cut(&self, a: &str, b: &str) {
        self.link_between(a, b).cut();
    }

    fn link_between(&self, a: &str, b: &str) -> Arc<Link> {
        let key: (Arc<str>, Arc<str>) = if a <= b { (a.into(), b.into()) } else { (b.into(), a.into()) };
        let mut state = self.0.lock();
        let seed = state.seed;
        state.links.entry(key.clone()).or_insert_with(|| Arc::new(Link::new(seed, &key.0, &key.1))).clone()
    }
}
