//! Routing inside a pod's network namespace: what makes marked connections loop back to ztunnel's listeners.
//!
//! For IPv4 and IPv6 alike, with our mark and mask (`ip rule`, `ip route`):
//!
//! ```text
//! 50:  fwmark MARK/MASK lookup 100        marked packets ask our table first, even before the local one,
//! 100: lookup local                       which therefore moves from 0 to 100
//! table 100: local default dev lo src POD_IP congctl reno
//! sysctl net.ipv4.tcp_fwmark_accept=1     accepted sockets take over the mark of the SYN
//! sysctl net.ipv{4,6}.fwmark_reflect=1    answers of no socket, a reset most of all, take over the mark of what they
//!                                         answer: the socket may be gone, and the answer must not leave the pod
//! ```
//!
//! Where somebody takes it away, marked packets would leave by the other routes: the guard at the pod's devices drops
//! them, and [`Vigil`] notices.
//!
//! Nothing of it touches connections without the mark, so it may be there before capture begins and must be there
//! until the last captured connection has ended ([`marked_connections`]).
//!
//! `congctl reno` is for speed: where the host defaults to BBR, pacing timers would run on loopback.

pub mod resolvers;
mod sockets;
mod vigil;

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use net::{Netns, NetnsError};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use nix::errno::Errno;
use rtnetlink::{Handle, RouteMessageBuilder};
use thiserror::Error;
use tokio::time::timeout;

pub use sockets::{Connection, SocketsError, connections, connections_at, destroy, marked_connections};
pub use vigil::{Damage, Vigil, VigilError};

/// The rule that sends marked packets to [`TABLE`].
const MARK_RULE: u32 = 50;
/// Where the rule for the kernel's local table stands in an enrolled pod.
const LOCAL_RULE: u32 = 100;
/// Where the kernel puts it.
const LOCAL_RULE_BEFORE: u32 = 0;
/// The routing table of marked packets.
const TABLE: u8 = 100;

const LOCAL_TABLE: u8 = 255;
/// `lo` is the first device of every network namespace.
const LOOPBACK_IFINDEX: u32 = 1;
const CONGESTION_CONTROL: &str = "reno";
const FWMARK_ACCEPT: &str = "/proc/sys/net/ipv4/tcp_fwmark_accept";
/// Not there in a kernel without IPv6, and only then.
const FWMARK_REFLECT: [&str; 2] = ["/proc/sys/net/ipv4/fwmark_reflect", "/proc/sys/net/ipv6/fwmark_reflect"];

/// How long the kernel may take for all changes in one pod.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the routing of a pod depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routing {
    /// The mark of captured connections.
    pub mark: u32,
    /// The bits in which it is compared.
    pub mask: u32,
    /// The pod's IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// The pod's IPv6 address.
    pub v6: Option<Ipv6Addr>,
}

/// Puts the routing in place. Idempotent.
///
/// A family that the pod has no address of gets the same, because it may still reach out by it; where that cannot be
/// (IPv6 switched off), its marked packets are made unroutable.
///
/// # Errors
///
/// See [`RoutingError`]; to be tried again. Unmarked connections are not affected by what was done.
pub async fn install(netns: &Netns, routing: &Routing) -> Result<(), RoutingError> {
    within(async {
        let handle = connect(netns)?;
        for family in [Family::V4, Family::V6] {
            install_family(&handle, family, routing).await?;
        }
        pass_on_marks(netns, true)
    })
    .await
}

/// Takes the routing away, that of questions too, and puts the local table's rule back to where it was. Idempotent.
///
/// # Errors
///
/// See [`RoutingError`]; to be tried again.
pub async fn remove(netns: &Netns, routing: &Routing) -> Result<(), RoutingError> {
    resolvers::remove(netns, routing).await?;
    within(async {
        let handle = connect(netns)?;
        for family in [Family::V4, Family::V6] {
            remove_family(&handle, family, routing).await?;
        }
        pass_on_marks(netns, false)
    })
    .await
}

async fn within(work: impl Future<Output = Result<(), RoutingError>>) -> Result<(), RoutingError> {
    timeout(PATIENCE, work).await.unwrap_or(Err(RoutingError::Slow))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn address_family(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }
}

impl Routing {
    fn has(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.v4.is_some(),
            Family::V6 => self.v6.is_some(),
        }
    }

    fn route(&self, family: Family, congestion_control: bool) -> RouteMessage {
        let mut route = match family {
            Family::V4 => {
                let route = RouteMessageBuilder::<Ipv4Addr>::new();
                self.v4.map_or(route.clone(), |source| route.pref_source(source)).build()
            }
            Family::V6 => {
                let route = RouteMessageBuilder::<Ipv6Addr>::new();
                self.v6.map_or(route.clone(), |source| route.pref_source(source)).build()
            }
        };
        route.header.table = TABLE;
        route.header.kind = RouteType::Local;
        route.header.scope = RouteScope::Host;
        route.attributes.push(RouteAttribute::Oif(LOOPBACK_IFINDEX));
        if congestion_control {
            let metric = RouteMetric::CcAlgo(CONGESTION_CONTROL.to_owned());
            route.attributes.push(RouteAttribute::Metrics(vec![metric]));
        }
        route
    }

    fn mark_rule(&self, family: Family, action: RuleAction) -> RuleMessage {
        let table = if action == RuleAction::ToTable { TABLE } else { RouteHeader::RT_TABLE_UNSPEC };
        let mut rule = rule(family, MARK_RULE, action, table);
        rule.attributes.push(RuleAttribute::FwMark(self.mark));
        rule.attributes.push(RuleAttribute::FwMask(self.mask));
        rule
    }
}

fn rule(family: Family, priority: u32, action: RuleAction, table: u8) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family.address_family();
    rule.header.action = action;
    rule.header.table = table;
    rule.attributes.push(RuleAttribute::Priority(priority));
    rule
}

fn local_rule(family: Family, priority: u32) -> RuleMessage {
    rule(family, priority, RuleAction::ToTable, LOCAL_TABLE)
}

/// The local table's rule as the kernel itself makes it.
fn kernels_local_rule(family: Family) -> RuleMessage {
    let mut rule = local_rule(family, LOCAL_RULE_BEFORE);
    rule.attributes.push(RuleAttribute::Protocol(RouteProtocol::Kernel));
    rule
}

fn connect(netns: &Netns) -> Result<Handle, RoutingError> {
    // The socket stays in the namespace in which it is opened.
    let (connection, handle, _) = netns.run(rtnetlink::new_connection)?.map_err(RoutingError::Socket)?;
    // It ends when the last handle is dropped.
    tokio::spawn(connection);
    Ok(handle)
}

/// The route, then the rule that leads to it; the local table's rule never missing in between.
async fn install_family(handle: &Handle, family: Family, routing: &Routing) -> Result<(), RoutingError> {
    let action = match install_route(handle, family, routing).await {
        Ok(()) => RuleAction::ToTable,
        Err(error) if routing.has(family) => return Err(error),
        Err(error) => {
            tracing::debug!(?family, %error, "marked packets of a family that the pod does not have are made unroutable");
            RuleAction::Unreachable
        }
    };
    for (what, rule) in [
        ("the rule for marked packets", routing.mark_rule(family, action)),
        ("the later rule for the local table", local_rule(family, LOCAL_RULE)),
    ] {
        match add_rule(handle, rule).await {
            // The kernel has no IPv6 at all.
            Err(error) if !routing.has(family) && is_unsupported(&error) => return Ok(()),
            other => {
                tolerate(other, &[Errno::EEXIST]).map_err(|source| RoutingError::Change { what, source })?
            }
        }
    }
    let gone = handle.rule().del(local_rule(family, LOCAL_RULE_BEFORE)).execute().await;
    tolerate(gone, &[Errno::ENOENT])
        .map_err(|source| RoutingError::Change { what: "the first rule for the local table", source })
}

async fn install_route(handle: &Handle, family: Family, routing: &Routing) -> Result<(), RoutingError> {
    let route = |congestion_control| routing.route(family, congestion_control);
    if handle.route().add(route(true)).replace().execute().await.is_ok() {
        return Ok(());
    }
    // Kernels without the algorithm refuse the metric; the route matters more.
    let plain = handle.route().add(route(false)).replace().execute().await;
    plain.map_err(|source| RoutingError::Change { what: "the route of marked packets", source })
}

async fn remove_family(handle: &Handle, family: Family, routing: &Routing) -> Result<(), RoutingError> {
    let absent = [Errno::ENOENT, Errno::ESRCH, Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP];
    let added = add_rule(handle, kernels_local_rule(family)).await;
    tolerate(added, &[Errno::EEXIST, Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP])
        .map_err(|source| RoutingError::Change { what: "the first rule for the local table", source })?;
    for (what, rule) in [
        ("the later rule for the local table", local_rule(family, LOCAL_RULE)),
        // Whichever action it has.
        ("the rule for marked packets", routing.mark_rule(family, RuleAction::Unspec)),
    ] {
        let gone = handle.rule().del(rule).execute().await;
        tolerate(gone, &absent).map_err(|source| RoutingError::Change { what, source })?;
    }
    // Named by table and kind alone: the source may be another one since.
    let any_source = Routing { v4: None, v6: None, ..*routing };
    let gone = handle.route().del(any_source.route(family, false)).execute().await;
    tolerate(gone, &absent)
        .map_err(|source| RoutingError::Change { what: "the route of marked packets", source })
}

async fn add_rule(handle: &Handle, rule: RuleMessage) -> Result<(), rtnetlink::Error> {
    let mut request = handle.rule().add();
    *request.message_mut() = rule;
    request.execute().await
}

/// Takes some errors of the kernel for success.
fn tolerate(result: Result<(), rtnetlink::Error>, errnos: &[Errno]) -> Result<(), rtnetlink::Error> {
    match result {
        Err(error) if errno(&error).is_some_and(|errno| errnos.contains(&errno)) => Ok(()),
        other => other,
    }
}

fn is_unsupported(error: &rtnetlink::Error) -> bool {
    matches!(errno(error), Some(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP))
}

fn errno(error: &rtnetlink::Error) -> Option<Errno> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(|code| Errno::from_raw(-code.get())),
        _ => None,
    }
}

fn pass_on_marks(netns: &Netns, pass_on: bool) -> Result<(), RoutingError> {
    let value = if pass_on { "1" } else { "0" };
    let write = |path| fs::write(path, value).map_err(|source| RoutingError::Sysctl { path, source });
    // What /proc/sys/net shows depends on the namespace of the thread that opens it.
    netns.run(|| {
        write(FWMARK_ACCEPT)?;
        for path in FWMARK_REFLECT {
            match write(path) {
                Err(RoutingError::Sysctl { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                written => written?,
            }
        }
        Ok(())
    })?
}

/// Why a pod's routing cannot be changed.
#[derive(Debug, Error)]
pub enum RoutingError {
    /// The namespace cannot be entered.
    #[error("the pod's network namespace cannot be entered")]
    Netns(#[from] NetnsError),
    /// No netlink socket.
    #[error("no netlink socket can be opened in the pod's network namespace")]
    Socket(#[source] io::Error),
    /// The kernel refuses a change.
    #[error("{what} cannot be changed")]
    Change {
        /// Of what.
        what: &'static str,
        /// What the kernel says.
        #[source]
        source: rtnetlink::Error,
    },
    /// A sysctl cannot be written.
    #[error("{path} cannot be written")]
    Sysctl {
        /// Which.
        path: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The kernel does not answer.
    #[error("the kernel did not answer within {} s", PATIENCE.as_secs())]
    Slow,
}
