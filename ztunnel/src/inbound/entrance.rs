//! Where in the pod a tunnel ends.
//!
//! Mostly that is the address and port that it asks for. A proxy that stands in the pod, behind this one (a "sandwich"),
//! takes its connections on loopback instead, each with a PROXY header before its first byte; it may be a waypoint, and
//! then what is asked for is what it stands before.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use hbone::{Authority, Host};
use index::{World, target_port};
use model::{ApplicationTunnelProtocol, NetworkAddr, Workload};

use super::admit::{WrongTarget, target};
use crate::local::LocalPod;
use crate::outbound::{Guarded, is_made_of};

/// Where in the pod a tunnel ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entrance {
    /// The pod's address and the port that was asked for: what policy is about.
    pub asked: SocketAddr,
    /// What to connect to.
    pub connect: SocketAddr,
    /// What to say before the first byte; nothing where the application takes the bytes as they are.
    pub told: Option<Told>,
}

/// What a proxy in the pod is told of a connection's destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The target of the CONNECT.
    pub destination: SocketAddr,
    /// The service that was addressed, where the target says so.
    pub service: Option<Arc<str>>,
}

/// The end of a tunnel that came to an address of the pod.
///
/// # Errors
/// Where the target is not behind that address.
pub fn entrance(
    world: &World,
    pod: &LocalPod,
    authority: &Authority,
    came_to: IpAddr,
) -> Result<Entrance, WrongTarget> {
    let proxy = pod.workload(world).and_then(|w| w.application_tunnel.as_ref());
    let proxy = proxy.filter(|tunnel| tunnel.protocol == ApplicationTunnelProtocol::Proxy);
    // Who comes through the gateway between two networks knows the service and not the pod.
    let own = target(authority, came_to)
        .or_else(|wrong| behind_service(world, pod, authority, came_to).ok_or(wrong));
    let Some(proxy) = proxy else {
        return own.map(|asked| Entrance { asked, connect: asked, told: None });
    };
    let told = match &own {
        Ok(destination) => Told { destination: *destination, service: None },
        Err(wrong) => guarded(world, pod, authority, came_to).ok_or_else(|| wrong.clone())?,
    };
    let came_to = came_to.to_canonical();
    let loopback: IpAddr = match came_to {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let asked = own.unwrap_or_else(|_| SocketAddr::new(came_to, authority.port()));
    let connect = SocketAddr::new(loopback, proxy.port.unwrap_or(authority.port()));
    Ok(Entrance { asked, connect, told: Some(told) })
}

/// The target of a tunnel to a service that the pod is an endpoint of.
fn behind_service(
    world: &World,
    pod: &LocalPod,
    authority: &Authority,
    came_to: IpAddr,
) -> Option<SocketAddr> {
    let Host::Name(name) = authority.host() else { return None };
    let workload = pod.workload(world)?;
    let mut services = workload.services.keys().filter(|key| key.hostname == *name);
    let port = services.find_map(|key| target_port(world.service(key)?, workload, authority.port()))?;
    Some(SocketAddr::new(came_to.to_canonical(), port))
}

/// The target of a tunnel to a waypoint, if it stands before that.
fn guarded(world: &World, pod: &LocalPod, authority: &Authority, came_to: IpAddr) -> Option<Told> {
    let viewer = pod.identity.namespace();
    let stands_before =
        |it: Guarded<'_>| it.gateways().any(|gateway| is_made_of(world, viewer, gateway, &pod.identity));
    let port = authority.port();
    match authority.host() {
        Host::Ip(ip) => {
            let addr = NetworkAddr::new(pod.network.clone(), *ip);
            let destination = SocketAddr::new(addr.ip, port);
            if let Some(service) = world.service_at(&addr, viewer) {
                let told = Told { destination, service: Some(service.hostname.clone()) };
                return stands_before(Guarded::Service(service)).then_some(told);
            }
            let guarded = |workload: &&Arc<Workload>| stands_before(Guarded::Workload(workload));
            world.workload_at(&addr).filter(guarded)?;
            Some(Told { destination, service: None })
        }
        Host::Name(name) => {
            let mut services = world.services_named(name).iter();
            let service = services.find(|service| stands_before(Guarded::Service(service)))?;
            // A header holds an address and no name: the service's own, if it has one.
            let vip = service.addresses.iter().find(|addr| addr.network == pod.network);
            let ip = vip.map_or(came_to.to_canonical(), |addr| addr.ip);
            let destination = SocketAddr::new(ip, port);
            Some(Told { destination, service: Some(service.hostname.clone()) })
        }
    }
}

#[cfg(test)]
mod tests {
    use index::Update;
    use model::{ApplicationTunnel, NamespacedName, NetworkId};
    use testkit::fixtures::{CLUSTER, identity, ip, pod, service, waypoint_named};

    use super::*;

    fn local() -> LocalPod {
        LocalPod {
            name: NamespacedName::new("shop", "gate-0"),
            identity: identity("shop", "gate"),
            node: "node1".into(),
            cluster_id: CLUSTER.into(),
            network: NetworkId::default(),
        }
    }

    fn proxied(port: Option<u16>) -> Option<ApplicationTunnel> {
        Some(ApplicationTunnel { protocol: ApplicationTunnelProtocol::Proxy, port })
    }

    /// A waypoint shop/gate before the service `web` and a pod, and a service that is none of its business.
    fn world(tunnel: Option<ApplicationTunnel>) -> World {
        let gate = service("shop", "gate").vip("10.96.0.9").port(15008, 15008).build();
        let waypoint = waypoint_named("shop", &gate.hostname);
        let pod_of = |name: &str, at: &str| pod("shop", name).ip(at);
        let updates: Vec<Update> = vec![
            pod_of("gate-0", "10.0.0.2").backs(&gate).with(|w| w.application_tunnel = tunnel).build().into(),
            pod_of("behind-0", "10.0.0.3").waypoint(waypoint.clone()).build().into(),
            pod_of("free-0", "10.0.0.4").build().into(),
            service("shop", "web").vip("10.96.0.1").port(80, 8080).waypoint(waypoint).build().into(),
            service("shop", "other").vip("10.96.0.2").port(80, 8080).build().into(),
            gate.into(),
        ];
        World::default().apply(updates).0
    }

    fn asked(world: &World, authority: &str) -> Result<Entrance, WrongTarget> {
        entrance(world, &local(), &authority.parse().unwrap(), ip("10.0.0.2"))
    }

    #[test]
    fn an_application_is_connected_to_where_it_was_asked_for() {
        let entrance = asked(&world(None), "10.0.0.2:8080").unwrap();
        assert_eq!((entrance.connect.to_string(), entrance.told), ("10.0.0.2:8080".to_owned(), None));
        assert!(asked(&world(None), "10.96.0.1:80").is_err(), "without a proxy no waypoint is here");
    }

    #[test]
    fn a_proxy_in_the_pod_takes_all_on_its_port_of_loopback() {
        let entrance = asked(&world(proxied(Some(15088))), "10.0.0.2:8080").unwrap();
        assert_eq!(entrance.connect, "127.0.0.1:15088".parse().unwrap());
        assert_eq!(entrance.asked, "10.0.0.2:8080".parse().unwrap());
        let told = Told { destination: "10.0.0.2:8080".parse().unwrap(), service: None };
        assert_eq!(entrance.told, Some(told));
        let entrance = asked(&world(proxied(None)), "10.0.0.2:8080").unwrap();
        assert_eq!(entrance.connect, "127.0.0.1:8080".parse().unwrap(), "the target's port, if it has none");
    }

    #[test]
    fn a_waypoint_in_the_pod_takes_what_it_stands_before_and_nothing_else() {
        let world = world(proxied(Some(15088)));
        let told = |authority: &str| {
            let entrance = asked(&world, authority).ok()?;
            assert_eq!(entrance.connect, "127.0.0.1:15088".parse().unwrap());
            let told = entrance.told?;
            Some((told.destination.to_string(), told.service.map(|s| s.to_string())))
        };
        let web = Some("web.shop.svc.cluster.local".to_owned());
        assert_eq!(told("10.96.0.1:80"), Some(("10.96.0.1:80".to_owned(), web.clone())));
        assert_eq!(told("web.shop.svc.cluster.local:80"), Some(("10.96.0.1:80".to_owned(), web)));
        assert_eq!(told("10.0.0.3:9090"), Some(("10.0.0.3:9090".to_owned(), None)));
        for foreign in ["10.96.0.2:80", "10.0.0.4:9090", "other.shop.svc.cluster.local:80", "192.0.2.1:80"] {
            assert_eq!(told(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn an_endpoint_may_be_asked_for_by_its_services_name_and_port() {
        let world = world(None);
        let entrance = asked(&world, "gate.shop.svc.cluster.local:15008").unwrap();
        assert_eq!((entrance.asked, entrance.told), ("10.0.0.2:15008".parse().unwrap(), None));
        assert_eq!(entrance.connect, entrance.asked);
        for foreign in ["web.shop.svc.cluster.local:80", "gate.shop.svc.cluster.local:80", "gate.shop:15008"]
        {
            assert!(matches!(asked(&world, foreign), Err(WrongTarget::Name(_))), "{foreign}");
        }
        let world = self::world(proxied(Some(15088)));
        let entrance = asked(&world, "gate.shop.svc.cluster.local:15008").unwrap();
        assert_eq!(entrance.connect, "127.0.0.1:15088".parse().unwrap());
    }

    #[test]
    fn a_pod_with_v6_is_entered_by_v6() {
        let entrance =
            entrance(&world(proxied(Some(15088))), &local(), &"[fd00::2]:80".parse().unwrap(), ip("fd00::2"));
        assert_eq!(entrance.unwrap().connect, "[::1]:15088".parse().unwrap());
    }
}
