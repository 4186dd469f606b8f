//! Two network namespaces joined by a cable: a pod and its neighbour.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use futures_util::TryStreamExt;
use net::Netns;
use netlink_packet_route::address::AddressHeaderFlags;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::process::{Child, Command};

pub(crate) struct Town {
    pub(crate) pod: Place,
    pub(crate) neighbour: Place,
}

impl Town {
    pub(crate) async fn build() -> Self {
        let pod = Place::build([10, 77, 0, 1].into(), "fd77::1".parse().unwrap());
        let neighbour = Place::build([10, 77, 0, 2].into(), "fd77::2".parse().unwrap());
        let handle = pod.netlink();
        handle.link().add(LinkVeth::new("eth0", "cable").build()).execute().await.unwrap();
        let moved =
            LinkUnspec::new_with_name("cable").setns_by_fd(neighbour.netns.as_fd().as_raw_fd()).build();
        handle.link().set(moved).execute().await.unwrap();
        pod.plug_in("eth0").await;
        neighbour.plug_in("cable").await;
        Self { pod, neighbour }
    }
}

/// A network namespace with a process in it, as a pod has.
pub(crate) struct Place {
    pub(crate) netns: Netns,
    process: Child,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

impl Place {
    fn build(v4: Ipv4Addr, v6: Ipv6Addr) -> Self {
        let netns = net::netns::unnamed().unwrap();
        netns.run(net::netns::loopback_up).unwrap().unwrap();
        let sleeping = netns.run(|| Command::new("sleep").arg("infinity").kill_on_drop(true).spawn());
        Self { netns, process: sleeping.unwrap().unwrap(), v4, v6 }
    }

    /// A place whose cable leads nowhere.
    pub(crate) async fn alone(number: u8) -> Self {
        let place =
            Self::build([10, 78, 0, number].into(), Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, number.into()));
        let handle = place.netlink();
        handle.link().add(LinkVeth::new("eth0", "cable").build()).execute().await.unwrap();
        place.plug_in("eth0").await;
        place
    }

    /// A path by which any process can open the namespace, for as long as this place is there.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.process.id().unwrap()).into()
    }

    pub(crate) fn ips(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    pub(crate) fn switch_ipv6_off(&self) {
        let off = || fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
        self.netns.run(off).unwrap().unwrap();
    }

    pub(crate) fn netlink(&self) -> Handle {
        let (connection, handle, _) = self.netns.run(rtnetlink::new_connection).unwrap().unwrap();
        tokio::spawn(connection);
        handle
    }

    async fn plug_in(&self, device: &str) {
        let handle = self.netlink();
        let index = handle
            .link()
            .get()
            .match_name(device.to_owned())
            .execute()
            .try_next()
            .await
            .unwrap()
            .unwrap()
            .header
            .index;
        handle.address().add(index, self.v4.into(), 24).execute().await.unwrap();
        // It can be used at once, without asking whether somebody else has it.
        let mut v6 = handle.address().add(index, self.v6.into(), 64);
        v6.message_mut().header.flags = AddressHeaderFlags::Nodad;
        v6.execute().await.unwrap();
        handle.link().set(LinkUnspec::new_with_name(device).up().build()).execute().await.unwrap();
    }

    /// Takes away the rules and routes that lead marked packets back, behind the agent's back.
    pub(crate) async fn drop_routing(&self) {
        let handle = self.netlink();
        let (rules, routes, _) = self.routing().await;
        let is_ours = |rule: &RuleMessage| rule.attributes.contains(&RuleAttribute::Priority(50));
        for rule in rules.into_iter().filter(is_ours) {
            handle.rule().del(rule).execute().await.unwrap();
        }
        for route in routes {
            handle.route().del(route).execute().await.unwrap();
        }
    }

    /// Has accepted sockets (`ipv4/tcp_fwmark_accept`) or answers of no socket (`fwmark_reflect`) not take over marks.
    pub(crate) fn refuse_marks(&self, sysctl: &str) {
        self.netns.run(|| fs::write(format!("/proc/sys/net/{sysctl}"), "0")).unwrap().unwrap();
    }

    /// All that enrolment may change of a pod's routing, to be compared.
    pub(crate) async fn routing(&self) -> (Vec<RuleMessage>, Vec<RouteMessage>, String) {
        let handle = self.netlink();
        let mut rules = Vec::new();
        for family in [IpVersion::V4, IpVersion::V6] {
            rules.extend(handle.rule().get(family).execute().try_collect::<Vec<_>>().await.unwrap());
        }
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let mut routes = Vec::new();
        for family in [v4, v6] {
            routes.extend(handle.route().get(family).execute().try_collect::<Vec<_>>().await.unwrap());
        }
        // Link-local routes of other tables come when the cable is ready.
        routes.retain(|route| route.header.table == 100);
        let sysctls = ["ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect"].map(|name| {
            self.netns.run(|| fs::read_to_string(format!("/proc/sys/net/{name}"))).unwrap().unwrap()
        });
        (rules, routes, sysctls.concat())
    }
}
