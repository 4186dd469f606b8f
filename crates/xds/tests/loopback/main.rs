//! Client and server over TLS on loopback.

mod plane;
mod strangers;

use std::sync::Arc;
use std::time::Duration;

use identity::signer::{Signer, SignerSettings};
use identity::{CertificateAuthority, Curve, KeyPair, SignError, SystemClock};
use index::Update;
use model::policy::{Action, PolicyScope};
use model::{Policy, PolicyKey, SpiffeId, TrustDomain};
use tokio::net::TcpListener;
use tokio::time::timeout;
use xds::client::{Connection, State};
use xds::server::{AdsService, Change, Entry, Listen, Services, Strangers, serve};
use xds::{ControlPlane, Defaults, Resource, TypeUrl, ca};

use crate::plane::{PATIENCE, Plane, Proxy, TOKEN, Tokens};

fn policy(name: &str) -> Policy {
    Policy {
        key: PolicyKey::new("shop", name),
        scope: PolicyScope::Namespace,
        action: Action::Deny,
        rules: vec![],
        dry_run: false,
    }
}

fn set(policy: Policy) -> Change {
    Change::Set(Entry::new(&Resource::from(policy), &Defaults::default()))
}

fn down(state: &State, part: &str) -> bool {
    matches!(&state.connection, Connection::Down { reason, .. } if reason.contains(part))
}

#[tokio::test]
async fn a_proxy_learns_the_world_and_its_changes_and_survives_a_restart_of_the_server() {
    let plane = Plane::start().await;
    let mut proxy = Proxy::start(plane.control_plane());
    // The stream stands before the source has been read, and says nothing until then.
    proxy.until(|s| matches!(s.connection, Connection::Up { .. })).await;
    plane.publish(1, vec![set(policy("a")), set(policy("b"))]);
    assert_eq!(proxy.next().await.len(), 2);
    proxy.until(|s| s.ready).await;
    plane.acked(1).await;

    plane.publish(2, vec![Change::Remove(TypeUrl::Authorization, "shop/a".into())]);
    assert_eq!(proxy.next().await, [Update::RemovePolicy(PolicyKey::new("shop", "a"))]);
    plane.acked(2).await;
    let status = plane.registry.proxies()[0].status.clone();
    assert_eq!(&*status.node.id, "ztunnel~10.0.0.1~ztunnel-1.istio-system~istio-system.svc.cluster.local");
    assert_eq!(&*status.node.node, "node1");

    let plane = plane.restart().await;
    plane.publish(3, vec![set(policy("c"))]);
    assert_eq!(proxy.next().await, [Update::from(policy("c"))], "only what differs");
    plane.acked(3).await;
    assert!(proxy.until(|s| s.streams >= 2).await.ready, "readiness does not fall");
}

#[tokio::test]
async fn a_proxy_without_a_good_token_is_told_so_and_served_once_it_has_one() {
    let plane = Plane::start().await;
    plane.publish(1, vec![set(policy("a"))]);
    std::fs::write(plane.path("token"), "another").unwrap();
    let mut proxy = Proxy::start(plane.control_plane());
    proxy.until(|s| down(s, "the token is not accepted")).await;
    std::fs::write(plane.path("token"), TOKEN).unwrap();
    assert_eq!(proxy.next().await.len(), 1);
    assert_eq!(plane.registry.proxies().len(), 1);
}

#[tokio::test]
async fn a_server_that_cannot_prove_its_name_is_not_spoken_to() {
    let plane = Plane::start().await;
    let nameless = ControlPlane { alternative_names: vec![], ..plane.control_plane() };
    Proxy::start(nameless).until(|s| down(s, "TLS handshake")).await;

    let foreign = Signer::ephemeral(SignerSettings::default(), Arc::new(SystemClock)).unwrap();
    std::fs::write(plane.path("foreign.pem"), foreign.roots().to_pem()).unwrap();
    let foreign = ControlPlane { roots: Some(plane.path("foreign.pem")), ..plane.control_plane() };
    Proxy::start(foreign).until(|s| down(s, "TLS handshake")).await;

    let missing = ControlPlane { roots: Some(plane.path("missing.pem")), ..plane.control_plane() };
    Proxy::start(missing).until(|s| down(s, "missing.pem")).await;
    assert!(plane.registry.proxies().is_empty());
}

#[tokio::test]
async fn a_proxy_whose_control_plane_is_not_there_tries_again() {
    let plane = Plane::start().await;
    let control_plane = plane.control_plane();
    plane.publish(1, vec![set(policy("a"))]);
    plane.cancel.cancel();
    timeout(PATIENCE, plane.task).await.unwrap().unwrap();
    let mut proxy = Proxy::start(control_plane);
    proxy.until(|s| down(s, "connection with 127.0.0.1")).await;
    let listener = TcpListener::bind(plane.address).await.unwrap();
    let _plane = Plane::on(listener, plane.signer, plane.feed, plane.files);
    assert_eq!(proxy.next().await.len(), 1);
}

#[tokio::test]
async fn plaintext_serves_too_where_it_is_asked_for() {
    let plane = Plane::start().await;
    plane.publish(1, vec![set(policy("a"))]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let ads = AdsService::new(plane.feed.subscribe(), Arc::new(Tokens), Arc::new(()), plane.cancel.clone());
    let services = Services { ads, ca: None };
    tokio::spawn(serve(
        Listen { listener, tls: None, strangers: Strangers::default() },
        services,
        plane.cancel.clone(),
    ));
    let mut proxy = Proxy::start(ControlPlane { address, roots: None, ..plane.control_plane() });
    assert_eq!(proxy.next().await.len(), 1);
}

#[tokio::test]
async fn certificates_are_signed_for_those_who_may_have_them() {
    let plane = Plane::start().await;
    let client = ca::Client::new(plane.control_plane());
    let id = |ns| SpiffeId::new(TrustDomain::default(), ns, "web").unwrap();
    let key = KeyPair::generate(Curve::P256).unwrap();
    let csr = key.request(&id("shop")).unwrap();
    let day = Duration::from_secs(24 * 3600);

    let chain = client.create_certificate(&csr, day, &id("shop")).await.unwrap();
    assert_eq!(chain.len(), 2);
    assert_eq!(chain[1], plane.signer.roots().to_pem());
    let denied = client.sign(&id("bank"), &csr, day).await.unwrap_err();
    assert!(matches!(&denied, SignError::Denied(why) if why.contains("does not run there")), "{denied}");
    let refused = client.sign(&id("shop"), "rubbish", day).await.unwrap_err();
    assert!(matches!(refused, SignError::Refused(_)));

    plane.cancel.cancel();
    timeout(PATIENCE, plane.task).await.unwrap().unwrap();
    let unreachable = client.sign(&id("shop"), &csr, day).await.unwrap_err();
    assert!(matches!(unreachable, SignError::Unreachable(_)), "{unreachable}");
}

#[tokio::test]
async fn strangers_and_rubbish_do_not_disturb_the_server() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let plane = Plane::start().await;
    plane.publish(1, vec![set(policy("a"))]);
    let mut idle = Vec::new();
    for _ in 0..20 {
        let mut stranger = tokio::net::TcpStream::connect(plane.address).await.unwrap();
        stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        // The server answers with an alert and hangs up.
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, stranger.read_to_end(&mut answer)).await.expect("the server hangs up");
        idle.push(tokio::net::TcpStream::connect(plane.address).await.unwrap());
    }
    assert_eq!(Proxy::start(plane.control_plane()).next().await.len(), 1);
}
