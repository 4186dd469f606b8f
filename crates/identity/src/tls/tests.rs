use std::time::Duration;

use model::SpiffeId;
use rustls::{HandshakeKind, NamedGroup, ProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::*;
use crate::fixtures::{Mesh, id, ids, own_domain};
use crate::peer_identity;

type Sides = (io::Result<client::TlsStream<DuplexStream>>, io::Result<server::TlsStream<DuplexStream>>);

async fn handshake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Sides {
    let (near, far) = duplex(64 << 10);
    let connect = TlsConnector::from(client).connect(unnamed(), near);
    let accept = TlsAcceptor::from(server).accept(far);
    tokio::join!(connect, accept)
}

async fn between(client: &TlsIdentity, server: &TlsIdentity, expected: &[&str]) -> Sides {
    handshake(client.client_config(&ids(expected)), server.server_config()).await
}

fn failure<T>(side: io::Result<T>) -> TlsFailure {
    let Err(error) = side else { panic!("the handshake succeeded") };
    TlsFailure::find(&error).expect("a TLS failure")
}

#[tokio::test]
async fn both_sides_know_each_other() {
    let mesh = Mesh::new();
    let (client, server) = between(&mesh.identity("a"), &mesh.identity("b"), &["b", "c"]).await;
    let (mut client, mut server) = (client.unwrap(), server.unwrap());
    assert_eq!(peer_identity(client.get_ref().1), Some(id("b")));
    assert_eq!(peer_identity(server.get_ref().1), Some(id("a")));
    client.write_all(b"ping").await.unwrap();
    client.flush().await.unwrap();
    let mut read = [0; 4];
    server.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"ping");
}

#[tokio::test]
async fn the_session_is_what_the_mesh_prescribes() {
    let mesh = Mesh::new();
    let (a, b) = (mesh.identity("a"), mesh.identity("b"));
    for _ in 0..2 {
        let (client, server) = between(&a, &b, &["b"]).await;
        let (client, server) = (client.unwrap(), server.unwrap());
        let (_, session) = server.get_ref();
        assert_eq!(session.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        let suite = session.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
        let group = session.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, NamedGroup::X25519MLKEM768);
        assert_eq!(session.alpn_protocol(), Some(ALPN_H2));
        assert_eq!(session.server_name(), None, "no SNI");
        assert_eq!(client.get_ref().1.handshake_kind(), Some(HandshakeKind::Full), "never resumed");
    }
}

#[tokio::test]
async fn our_cipher_comes_first_whatever_the_peer_prefers() {
    let mesh = Mesh::new();
    let mut theirs = CryptoProvider::clone(provider());
    theirs.cipher_suites.reverse();
    let svid = mesh.svid(&id("a"));
    let key = CertifiedKey::new(svid.chain().to_vec(), Arc::new(svid.key().clone()));
    let verifier = ServerVerifier::new(mesh.bundle.clone(), ids(&["b"]), own_domain());
    let time = Arc::new(TlsTime(mesh.clock()));
    let config = ClientConfig::builder_with_details(Arc::new(theirs), time)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    let (_client, server) = handshake(Arc::new(config), mesh.identity("b").server_config()).await;
    let suite = server.unwrap().get_ref().1.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
}

#[tokio::test]
async fn a_client_says_whom_it_expected_and_whom_it_got() {
    let mesh = Mesh::new();
    let (client, server) = between(&mesh.identity("a"), &mesh.identity("imposter"), &["b"]).await;
    let failure = failure(client);
    assert!(failure.is_identity());
    let expected = PeerError::WrongIdentity { expected: ids(&["b"]), presented: id("imposter") };
    assert_eq!(failure, TlsFailure::Peer(expected));
    let told = self::failure(server);
    assert!(matches!(&told, TlsFailure::Alert(_)) && told.is_identity(), "{told}");
}

#[tokio::test]
async fn a_foreign_root_is_refused_by_either_side() {
    let (mesh, foreign) = (Mesh::new(), Mesh::new());
    let (client, server) = between(&mesh.identity("a"), &foreign.identity("b"), &["b"]).await;
    assert_eq!(failure(client), TlsFailure::Peer(PeerError::UnknownRoot));
    assert_eq!(failure(server), TlsFailure::Alert("UnknownCA".into()));

    // A client that trusts anybody reaches the server's check; TLS 1.3 tells it only when it reads.
    let blind = foreign.identity("a");
    blind.bundle.set_up(mesh.signer.roots().clone());
    let (client, server) = between(&blind, &mesh.identity("b"), &["b"]).await;
    assert_eq!(failure(server), TlsFailure::Peer(PeerError::UnknownRoot));
    let told = client.unwrap().read(&mut [0]).await;
    assert_eq!(failure(told), TlsFailure::Alert("UnknownCA".into()));
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let mesh = Mesh::new();
    let config = ClientConfig::builder_with_details(Arc::clone(provider()), Arc::new(TlsTime(mesh.clock())))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier::new(
            mesh.bundle.clone(),
            ids(&["b"]),
            own_domain(),
        )))
        .with_no_client_auth();
    let (_client, server) = handshake(Arc::new(config), mesh.identity("b").server_config()).await;
    let failure = failure(server);
    assert_eq!(failure, TlsFailure::NoCertificate);
    assert!(failure.is_identity());
}

#[tokio::test(start_paused = true)]
async fn an_expired_certificate_is_refused() {
    let mesh = Mesh::new();
    let old = mesh.identity("a");
    tokio::time::advance(Duration::from_secs(24 * 3600 + 60)).await;
    assert!(!old.is_valid_at(mesh.clock.now()));
    let (_client, server) = between(&old, &mesh.identity("b"), &["b"]).await;
    assert!(matches!(failure(server), TlsFailure::Peer(PeerError::Expired { .. })));
}

#[tokio::test]
async fn a_foreign_trust_domain_is_refused() {
    let mesh = Mesh::new();
    let foreign: SpiffeId = "spiffe://example.org/ns/shop/sa/a".parse().unwrap();
    let (_client, server) = between(&mesh.identity_of(&foreign), &mesh.identity("b"), &["b"]).await;
    assert!(matches!(failure(server), TlsFailure::Peer(PeerError::WrongTrustDomain { .. })));
}

#[tokio::test]
async fn rubbish_is_no_matter_of_identity() {
    let mesh = Mesh::new();
    let (mut near, far) = duplex(1024);
    near.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let refused = TlsAcceptor::from(mesh.identity("b").server_config()).accept(far).await;
    let failure = failure(refused);
    assert!(matches!(failure, TlsFailure::Protocol(_)) && !failure.is_identity());
}

#[tokio::test]
async fn configurations_are_made_once() {
    let mesh = Mesh::new();
    let a = mesh.identity("a");
    assert!(Arc::ptr_eq(&a.server_config(), &a.server_config()));
    assert!(Arc::ptr_eq(&a.client_config(&ids(&["b", "c"])), &a.client_config(&ids(&["c", "b"]))));
    assert!(!Arc::ptr_eq(&a.client_config(&ids(&["b"])), &a.client_config(&ids(&["c"]))));
}
