//! Connections that are older than a pod's enrolment: counted while they last, ended where that is wished.
//!
//! They are those that were there when capture had just begun, are neither captured nor ztunnel's own, and lead out of
//! the pod. The kernel's cookies tell them from later ones that got past the mesh, and from the kubelet's probes.

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use ebpf_loader::NsConfig;
use manifest::ExistingConnections;
use net::Netns;
use telemetry::access::Chain;

use crate::nft;
use crate::routing::{self, Connection, SocketsError};

/// How often they are counted at most; more seldom where counting takes long.
const PAUSE: Duration = Duration::from_secs(1);
/// The share of its time that counting may take, as a divisor.
const COST: u32 = 100;

/// The older connections of one pod.
#[derive(Debug)]
pub struct Older {
    /// Their cookies, while any of them is there.
    known: BTreeSet<u64>,
    live: usize,
    closing: Closing,
    count_at: Instant,
}

#[derive(Debug, PartialEq, Eq)]
enum Closing {
    /// Nobody has asked for it.
    No,
    /// They are ended from the next count on: a pod that an earlier process enrolled may be in the middle of a probe.
    Next,
    Now,
    /// It cannot be done.
    Refused(String),
}

/// Where a pod's connections are found, and which of them are captured or ztunnel's.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The pod's namespace.
    pub netns: &'a Netns,
    /// The mark of captured connections, and the pod's addresses.
    pub config: &'a NsConfig,
    /// How the others are told.
    pub by: By<'a>,
}

/// How captured connections, and ztunnel's own, are told from those past the mesh.
#[derive(Clone, Copy, Debug)]
pub enum By<'a> {
    /// Captured ones are marked, and ztunnel's sockets have an entry in this storage.
    Storage(BorrowedFd<'a>),
    /// ztunnel's sockets are marked, and captured ones lead to one of its ports.
    Ports,
}

impl Place<'_> {
    /// Those that lead out of the pod, and are neither captured nor ztunnel's.
    ///
    /// # Errors
    ///
    /// They cannot be listed.
    pub fn past_the_mesh(&self) -> Result<Vec<Connection>, SocketsError> {
        let storage = match self.by {
            By::Storage(storage) => Some(storage),
            By::Ports => None,
        };
        let mut all = routing::connections(self.netns, storage)?;
        let redirected = match self.by {
            By::Storage(_) => HashSet::new(),
            By::Ports => all.iter().filter(|c| c.local.port() == nft::OUTBOUND).map(|c| c.peer).collect(),
        };
        all.retain(|connection| {
            is_past_the_mesh(connection, self.config)
                && match self.by {
                    By::Storage(_) => true,
                    By::Ports => !is_of_filter(connection, &redirected),
                }
        });
        Ok(all)
    }
}

impl Older {
    /// Takes note of a pod's connections. To be called when its capture has begun, just now or by an earlier process
    /// (`adopted`), and ends them where `wish` says so.
    ///
    /// # Errors
    ///
    /// They cannot be listed.
    pub fn begin(
        place: &Place<'_>,
        wish: ExistingConnections,
        adopted: bool,
        now: Instant,
    ) -> Result<Self, SocketsError> {
        let found = place.past_the_mesh()?;
        let closing = match wish {
            ExistingConnections::Keep => Closing::No,
            ExistingConnections::Close if adopted => Closing::Next,
            ExistingConnections::Close => Closing::Now,
        };
        let known = found.iter().map(Connection::cookie).collect();
        let mut older = Self { known, live: 0, closing, count_at: now + PAUSE };
        older.take(place, &found);
        Ok(older)
    }

    /// Whether the connection with this cookie is one of them.
    pub fn holds(&self, cookie: u64) -> bool {
        self.known.contains(&cookie)
    }

    /// How many there still are.
    pub fn live(&self) -> usize {
        self.live
    }

    /// Why they are not ended though they should be.
    pub fn trouble(&self) -> Option<&str> {
        match &self.closing {
            Closing::Refused(why) if self.live > 0 => Some(why),
            _ => None,
        }
    }

    /// Counts them again if that is due. What is wished may be something else by now.
    ///
    /// # Errors
    ///
    /// They cannot be listed; the former count stands.
    pub fn again(
        &mut self,
        place: &Place<'_>,
        wish: ExistingConnections,
        now: Instant,
    ) -> Result<(), SocketsError> {
        if self.known.is_empty() || now < self.count_at {
            return Ok(());
        }
        self.count_at = now + PAUSE;
        self.closing = match (wish, std::mem::replace(&mut self.closing, Closing::No)) {
            (ExistingConnections::Keep, _) => Closing::No,
            (ExistingConnections::Close, Closing::Refused(why)) => Closing::Refused(why),
            (ExistingConnections::Close, _) => Closing::Now,
        };
        let begun = tokio::time::Instant::now();
        let found = place.past_the_mesh()?;
        self.take(place, &found);
        self.count_at = now + PAUSE.max(begun.elapsed() * COST);
        Ok(())
    }

    fn take(&mut self, place: &Place<'_>, found: &[Connection]) {
        let mut known: Vec<Connection> =
            found.iter().filter(|connection| self.known.contains(&connection.cookie())).copied().collect();
        self.known = known.iter().map(Connection::cookie).collect();
        // One whose handshake lasts is known, so that it is not lost when it ends, but is none yet.
        known.retain(|connection| connection.is_live);
        self.live = known.len();
        if self.live == 0 || self.closing != Closing::Now {
            return;
        }
        match routing::destroy(place.netns, &known) {
            Ok(()) => {
                tracing::info!(
                    count = self.live,
                    "ended connections that are older than their pod's enrolment"
                );
                self.live = 0;
            }
            Err(error) => {
                let why = format!("its older connections cannot be ended: {}", Chain(&error));
                tracing::warn!(count = self.live, why, "connections past the mesh go on");
                self.closing = Closing::Refused(why);
            }
        }
    }
}

/// Whether a connection leads out of the pod, and is neither captured nor ztunnel's.
fn is_past_the_mesh(connection: &Connection, config: &NsConfig) -> bool {
    let own = |peer: IpAddr| match peer {
        IpAddr::V4(v4) => config.own.v4() == Some(v4),
        IpAddr::V6(v6) => config.own.v6() == Some(v6),
    };
    let peer = connection.peer.ip();
    connection.mark & config.mask != config.mark
        && !connection.has_storage
        && !peer.is_loopback()
        && !peer.is_unspecified()
        && !own(peer)
}

/// Whether a connection is ztunnel's, or leads to it by a packet filter that has `redirected` those ends.
fn is_of_filter(connection: &Connection, redirected: &HashSet<SocketAddr>) -> bool {
    connection.mark & nft::EXEMPT_MASK == nft::EXEMPT
        || [nft::OUTBOUND, nft::INBOUND, nft::TUNNELS].contains(&connection.local.port())
        || redirected.contains(&connection.local)
}
