//! Services with endpoints in other networks.

use model::{GatewayAddress, LoadBalancingMode, NetworkAddr, Scope};
use testkit::fixtures::{ServiceBuilder, WorkloadBuilder, ip};

use super::*;

const EAST: &str = "east";

/// The gateway of the other network, by an address there.
fn gateway_at(text: &str) -> GatewayAddress {
    let at = NetworkAddr::new(NetworkId::new(EAST), ip(text));
    GatewayAddress { destination: GatewayDestination::Address(at), hbone_port: 15008 }
}

fn abroad(name: &str, service: &Service) -> WorkloadBuilder {
    pod("shop", name).ip("10.9.0.1").backs(service).with(|w| {
        w.network = NetworkId::new(EAST);
        w.network_gateway = Some(gateway_at("192.0.2.9"));
    })
}

fn gate() -> WorkloadBuilder {
    pod("istio-system", "eastgate-0").ip("192.0.2.9").with(|w| w.network = NetworkId::new(EAST))
}

/// The catalog with its endpoints, the first of which are at home, and the gateway.
fn planned_with(
    service: ServiceBuilder,
    pods: impl IntoIterator<Item = WorkloadBuilder>,
    gate: Option<WorkloadBuilder>,
    seed: u64,
) -> String {
    let pods = pods.into_iter().chain(gate).map(|pod| pod.build().into());
    let world = world(pods.chain([service.build().into()]));
    line(&planned_by(&world, &local("shop", "frontend"), "10.96.0.1:80", seed))
}

const BEYOND: &str = "beyond 192.0.2.9:15008 as istio-system/eastgate for catalog.shop.svc.cluster.local:80";

#[test]
fn an_endpoint_in_another_network_is_reached_through_its_gateway_by_the_services_name() {
    let service = catalog().build();
    let planned = planned_with(catalog(), [abroad("catalog-0", &service)], Some(gate()), 0);
    assert_eq!(planned, format!("catalog: {BEYOND} as shop/catalog"));
}

#[test]
fn any_endpoint_behind_the_gateway_may_answer_and_all_are_one_way() {
    let service = catalog().build();
    let pods = [abroad("catalog-0", &service), abroad("canary-0", &service), {
        // Of another network: it is none of those that the gateway leads to.
        pod("shop", "west-0").ip("10.8.0.1").backs(&service).with(|w| w.network = NetworkId::new("west"))
    }];
    let planned = planned_with(catalog(), pods, Some(gate()), 0);
    assert_eq!(planned, format!("catalog: {BEYOND} as shop/canary|shop/catalog"));
}

#[test]
fn networks_share_by_the_capacity_of_their_endpoints() {
    let service = catalog().build();
    let share = (0..2_000).filter(|seed| {
        let home = pod("shop", "catalog-0").ip("10.0.0.2").backs(&service);
        let pods = [home, abroad("catalog-1", &service).capacity(3)];
        planned_with(catalog(), pods, Some(gate()), *seed).starts_with("catalog: beyond")
    });
    let share = share.count();
    assert!((1_400..1_600).contains(&share), "{share} of 2000 instead of 1500");
}

#[test]
fn where_its_own_network_is_preferred_the_others_come_last() {
    let service = catalog().build();
    let preferring = || catalog().prefers(LoadBalancingMode::Failover, [Scope::Network]);
    let home = || pod("shop", "catalog-0").ip("10.0.0.2").backs(&service);
    for seed in 0..20 {
        let pods = [home(), abroad("catalog-1", &service).capacity(100)];
        let planned = planned_with(preferring(), pods, Some(gate()), seed);
        assert!(planned.starts_with("catalog: hbone 10.0.0.2:15008"), "{planned}");
        assert!(planned.contains(BEYOND), "{planned}");
        let pods = [home().unhealthy(), abroad("catalog-1", &service)];
        let planned = planned_with(preferring(), pods, Some(gate()), seed);
        assert_eq!(planned, format!("catalog: {BEYOND} as shop/catalog"));
    }
}

#[test]
fn nothing_goes_to_another_network_without_its_gateway() {
    let service = catalog().build();
    let planned = |pod: WorkloadBuilder, gate| planned_with(catalog(), [pod], gate, 0);
    let no_gateway = "whose gateways are not known or not ready";
    let no_way = "without a gateway or a tunnel of their own";
    for (pod, gate, why) in [
        (abroad("catalog-0", &service), None, no_gateway),
        (
            abroad("catalog-0", &service),
            Some(gate().with(|g| g.service_account = "no/name".into())),
            no_gateway,
        ),
        (abroad("catalog-0", &service).with(|w| w.network_gateway = None), Some(gate()), no_way),
        (abroad("catalog-0", &service).unmeshed(), Some(gate()), no_way),
    ] {
        let planned = planned(pod, gate);
        assert!(planned.starts_with("refused: ") && planned.contains(why), "{planned}");
    }
}

#[test]
fn a_gateway_that_is_a_service_is_reached_at_an_endpoint_of_its_own() {
    let service = catalog().build();
    let gates = testkit::fixtures::service("istio-system", "eastgate").port(15008, 15008).build();
    let gate = |name: &str, at: &str| pod("istio-system", name).ip(at).backs(&gates);
    let named = waypoint_named("istio-system", &gates.hostname);
    let pod = abroad("catalog-0", &service).with(|w| w.network_gateway = Some(named));
    let world = world([
        pod.build().into(),
        gate("eastgate-0", "10.0.0.8").unhealthy().build().into(),
        gate("eastgate-1", "10.0.0.9").build().into(),
        gates.clone().into(),
        service.clone().into(),
    ]);
    assert_eq!(
        line(&planned(&world, "10.96.0.1:80")),
        "catalog: beyond 10.0.0.9:15008 as istio-system/eastgate for catalog.shop.svc.cluster.local:80 as shop/catalog"
    );
}
