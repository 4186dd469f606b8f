//! Tunnel connections that grow old: they give way to others, and nobody notices.

use std::time::Duration;

use testkit::fixtures::pod;
use tokio::time::sleep;
use ztunnel::limits::Limits;
use ztunnel::relay::Patience;

use crate::mesh::{SimMesh, SimPod, simulate};

const PORT: u16 = 8080;
const SERVER: &str = "10.0.2.1:8080";
/// How long the authority's certificates hold.
const TTL: Duration = Duration::from_secs(24 * HOUR);
const HOUR: u64 = 3600;

async fn hours(n: u64) {
    sleep(Duration::from_secs(n * HOUR)).await;
}

/// A caller on one node and a server on the other, by how many hours their tunnels may grow old there.
async fn town(client: Option<u64>, server: Option<u64>) -> (SimMesh, SimPod) {
    let mut mesh = SimMesh::new(1);
    for (name, hours) in [("node1", client), ("node2", server)] {
        let tunnel_age = hours.map(|n| Duration::from_secs(n * HOUR));
        // What is held here is idle for longer than is usual.
        let relay = Patience { idle: Duration::ZERO, half_closed: Duration::ZERO };
        mesh.node_within(name, Limits { tunnel_age, relay, ..Limits::default() });
    }
    let client = mesh.meshed(pod("shop", "client").ip("10.0.1.1").build(), PORT).await;
    mesh.meshed(pod("shop", "server").ip("10.0.2.1").node("node2").build(), PORT).await;
    mesh.settled().await;
    (mesh, client)
}

#[test]
fn a_tunnel_that_is_old_to_either_end_gives_way_and_what_it_carries_goes_on() {
    for (of_client, of_server) in [(Some(2), None), (None, Some(2))] {
        simulate(async {
            let (mesh, client) = town(of_client, of_server).await;
            let mut held = client.hold(SERVER).await.unwrap();
            hours(1).await;
            client.call(SERVER, 10).await.unwrap();
            assert_eq!(mesh.taken(), 1);
            hours(2).await;
            client.call(SERVER, 10).await.unwrap();
            assert_eq!(mesh.taken(), 2);
            held.echo().await.unwrap();
        });
    }
}

#[test]
fn no_tunnel_is_used_for_longer_than_its_certificates_hold() {
    simulate(async {
        let (mesh, client) = town(None, None).await;
        let mut held = client.hold(SERVER).await.unwrap();
        sleep(TTL - Duration::from_secs(HOUR)).await;
        client.call(SERVER, 10).await.unwrap();
        assert_eq!(mesh.taken(), 1);
        hours(2).await;
        client.call(SERVER, 10).await.unwrap();
        assert_eq!(mesh.taken(), 2);
        hours(24).await;
        held.echo().await.unwrap();
    });
}

#[test]
fn a_clock_that_is_set_ahead_ends_no_stream_and_lets_no_old_tunnel_be_used() {
    simulate(async {
        let (mesh, client) = town(Some(24), Some(24)).await;
        let mut held = client.hold(SERVER).await.unwrap();
        mesh.ca.set_clock_by(30 * 3600);
        sleep(Duration::from_secs(60)).await;
        client.call(SERVER, 10).await.unwrap();
        assert_eq!(mesh.taken(), 2);
        held.echo().await.unwrap();
    });
}

#[test]
fn what_outlives_its_tunnel_s_certificates_for_long_is_ended() {
    simulate(async {
        let (mesh, client) = town(Some(1), Some(3)).await;
        let mut held = client.hold(SERVER).await.unwrap();
        sleep(TTL).await;
        hours(2).await;
        held.echo().await.unwrap();
        let mut new = client.hold(SERVER).await.unwrap();
        assert!(held.is_reset_within(Duration::from_secs(2 * HOUR)).await);
        assert_eq!(mesh.ended("outlived"), 1);
        assert!(mesh.tcp_failures("destination", "IDENTITY_ERROR") >= 1);
        hours(1).await;
        new.echo().await.unwrap();
    });
}
