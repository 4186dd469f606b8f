use std::time::Duration;

use tokio::io::duplex;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::fixtures::Mesh;
use crate::signer::ServingName;
use crate::{PeerError, TlsFailure};

fn names(names: &[&str]) -> Vec<ServingName> {
    names.iter().map(|n| n.parse().unwrap()).collect()
}

/// Connects by `name`, and gives the server's leaf.
async fn connect(
    client: Arc<ClientConfig>,
    server: Arc<rustls::ServerConfig>,
    name: &str,
) -> std::io::Result<CertificateDer<'static>> {
    let (near, far) = duplex(64 << 10);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connect = TlsConnector::from(client).connect(name, near);
    let (client, _server) = tokio::join!(connect, TlsAcceptor::from(server).accept(far));
    Ok(client?.get_ref().1.peer_certificates().unwrap()[0].clone())
}

#[tokio::test]
async fn the_control_plane_is_known_by_each_of_its_names() {
    let mesh = Mesh::new();
    let server =
        mesh.signer.serving_config(names(&["istiod.istio-system.svc", "10.0.0.5", "fd00::5"])).unwrap();
    let client = client_config(mesh.bundle.clone(), vec![], mesh.clock());
    for name in ["istiod.istio-system.svc", "10.0.0.5", "fd00::5"] {
        connect(client.clone(), server.clone(), name).await.unwrap();
    }
    let refused = connect(client, server.clone(), "other.svc").await.unwrap_err();
    assert!(matches!(TlsFailure::find(&refused), Some(TlsFailure::Protocol(_))), "{refused}");
    let also = vec![ServerName::try_from("istiod.istio-system.svc").unwrap()];
    connect(client_config(mesh.bundle.clone(), also, mesh.clock()), server, "other.svc").await.unwrap();
}

#[tokio::test]
async fn a_control_plane_of_another_root_is_refused() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let server = other.signer.serving_config(names(&["istiod"])).unwrap();
    let refused = connect(client_config(mesh.bundle.clone(), vec![], mesh.clock()), server, "istiod").await;
    assert_eq!(TlsFailure::find(&refused.unwrap_err()), Some(TlsFailure::Peer(PeerError::UnknownRoot)));
}

#[tokio::test(start_paused = true)]
async fn the_serving_certificate_is_renewed_at_half_life() {
    let mesh = Mesh::new();
    let server = mesh.signer.serving_config(names(&["istiod"])).unwrap();
    let client = client_config(mesh.bundle.clone(), vec![], mesh.clock());
    let first = connect(client.clone(), server.clone(), "istiod").await.unwrap();
    tokio::time::advance(Duration::from_secs(11 * 3600)).await;
    assert_eq!(connect(client.clone(), server.clone(), "istiod").await.unwrap(), first);
    tokio::time::advance(Duration::from_secs(2 * 3600)).await;
    assert_ne!(connect(client, server, "istiod").await.unwrap(), first);
}

#[test]
fn what_is_no_name_is_refused() {
    for bad in ["", "a b", "*.", "a..b"] {
        assert!(bad.parse::<ServingName>().is_err(), "{bad}");
    }
}
