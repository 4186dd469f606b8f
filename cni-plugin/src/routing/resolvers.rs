//! Routing of what a pod asks resolvers: what makes its datagrams to port 53 loop to ztunnel's sockets.
//!
//! For each family that the pod has an address of:
//!
//! ```text
//! 102: iif lo fwmark 0/0xfff ipproto udp dport 53 lookup 101
//! table 101: local default dev lo src POD_IP
//! ```
//!
//! It stands behind the local table's rule: a resolver in the pod itself is its own business. Whoever sends with peers'
//! mark `0x539` passes by, as ztunnel does for what it relays. Every socket is reached by that, bound or connected or
//! neither and from before the pod was enrolled, and none sees another address than it sent to.

use netlink_packet_route::IpProtocol;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use nix::errno::Errno;
use rtnetlink::Handle;

use super::{Family, Routing, RoutingError, add_rule, connect, rule, tolerate, within};
use net::Netns;

/// The rule that sends questions to [`TABLE`].
const RULE: u32 = 102;
/// The routing table of questions.
pub(super) const TABLE: u8 = 101;
/// The bits in which ztunnel's own datagrams are marked, as by peers.
const EXEMPT_MASK: u32 = 0xfff;
/// The port of resolvers.
pub(super) const PORT: u16 = 53;

impl Routing {
    fn resolvers_route(&self, family: Family) -> RouteMessage {
        let mut route = self.route(family, false);
        route.header.table = TABLE;
        route
    }
}

fn resolvers_rule(family: Family) -> RuleMessage {
    let mut rule = rule(family, RULE, RuleAction::ToTable, TABLE);
    rule.attributes.extend([
        RuleAttribute::Iifname("lo".to_owned()),
        RuleAttribute::FwMark(0),
        RuleAttribute::FwMask(EXEMPT_MASK),
        RuleAttribute::IpProtocol(IpProtocol::Udp),
        RuleAttribute::DestinationPortRange(RulePortRange { start: PORT, end: PORT }),
    ]);
    rule
}

/// Begins to steer questions. Idempotent. The rest of the routing must be there.
///
/// # Errors
///
/// See [`RoutingError`]; to be tried again.
pub async fn install(netns: &Netns, routing: &Routing) -> Result<(), RoutingError> {
    within(async {
        let handle = connect(netns)?;
        for family in [Family::V4, Family::V6].into_iter().filter(|family| routing.has(*family)) {
            let route = handle.route().add(routing.resolvers_route(family)).replace().execute().await;
            route.map_err(|source| RoutingError::Change { what: "the route of questions", source })?;
            let rule = add_rule(&handle, resolvers_rule(family)).await;
            tolerate(rule, &[Errno::EEXIST])
                .map_err(|source| RoutingError::Change { what: "the rule for questions", source })?;
        }
        Ok(())
    })
    .await
}

/// Ends steering questions. Idempotent.
///
/// # Errors
///
/// See [`RoutingError`]; to be tried again.
pub async fn remove(netns: &Netns, routing: &Routing) -> Result<(), RoutingError> {
    within(async {
        let handle = connect(netns)?;
        for family in [Family::V4, Family::V6] {
            remove_family(&handle, family, routing).await?;
        }
        Ok(())
    })
    .await
}

async fn remove_family(handle: &Handle, family: Family, routing: &Routing) -> Result<(), RoutingError> {
    let absent = [Errno::ENOENT, Errno::ESRCH, Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP];
    let gone = handle.rule().del(resolvers_rule(family)).execute().await;
    tolerate(gone, &absent)
        .map_err(|source| RoutingError::Change { what: "the rule for questions", source })?;
    // Named by table and kind alone: the source may be another one since.
    let route = Routing { v4: None, v6: None, ..*routing }.resolvers_route(family);
    let gone = handle.route().del(route).execute().await;
    tolerate(gone, &absent).map_err(|source| RoutingError::Change { what: "the route of questions", source })
}
