//! Peers that are not who they should be, and peers that are not even peers.
//!
//! The intruder has every advantage but one: it sits in a pod of the mesh's own network and speaks HBONE; what it lacks is
//! a certificate that holds.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hbone::{Authority, Settings, client, server};
use identity::signer::{Signer, SignerSettings};
use identity::{Clock, SystemClock};
use model::{IdentitySet, SpiffeId, TrustDomain};
use net::Netns;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use testkit::lab::{Lab, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::papers::{Papers, authority_of, id};
use crate::world::{curl, meshed, netns, with_native_pod};

fn the_server() -> IdentitySet {
    IdentitySet::of([id("app", "server")]).expect("one identity")
}

#[derive(Debug)]
struct LongAgo;

impl Clock for LongAgo {
    fn now(&self) -> SystemTime {
        SystemTime::now() - Duration::from_secs(3 * 24 * 3600)
    }
}

/// Takes any server for what it says, so that only the server's judgement is tested.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        identity::provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Opens connections from inside a pod.
pub(crate) struct Intruder {
    netns: Netns,
    config: Arc<ClientConfig>,
}

impl Intruder {
    pub(crate) fn in_pod(lab: &Lab, namespace: &str, name: &str, papers: Option<Papers>) -> Self {
        let netns = netns(lab, namespace, name);
        let builder = ClientConfig::builder_with_provider(Arc::clone(identity::provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Credulous));
        let mut config = match papers {
            Some(papers) => {
                builder.with_client_auth_cert(papers.chain(), papers.key()).expect("papers that fit")
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.enable_sni = false;
        Self { netns, config: Arc::new(config) }
    }

    /// A session with who answers there.
    pub(crate) async fn session(
        &self,
        to: SocketAddr,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
        let stream = tokio::net::TcpStream::from_std(connect(&self.netns, to)?)?;
        TlsConnector::from(Arc::clone(&self.config)).connect(identity::unnamed(), stream).await
    }

    /// What the server application answers over a tunnel, or why there is none.
    fn asks(self, target: SocketAddr) -> Result<String, String> {
        local(async move {
            let key = client::Key {
                source: id("app", "client"),
                destinations: the_server(),
                address: SocketAddr::new(target.ip(), 15008),
                source_ip: IpAddr::from([0, 0, 0, 0]),
                holder: client::Holder { uid: model::Uid::new("server"), tenancy: 0 },
            };
            let pool = client::Pool::new(self, Settings::default());
            let request = client::ConnectRequest::to(Authority::from(target));
            let mut tunnel = pool.open(&key, &request).await.map_err(|e| format!("{e}: {e:?}"))?.tunnel;
            let mut answer = String::new();
            tunnel.write_all(b"GET / HTTP/1.0\r\n\r\n").await.map_err(|e| e.to_string())?;
            tunnel.read_to_string(&mut answer).await.map_err(|e| e.to_string())?;
            Ok(answer)
        })
    }
}

impl client::Connector for Intruder {
    type Io = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;
    type Peer = ();
    type Error = std::io::Error;

    async fn connect(&self, key: &client::Key) -> Result<client::Reached<Self::Io, ()>, Self::Error> {
        Ok(client::Reached::new(self.session(key.address).await?, ()))
    }

    fn holds(&self, (): &()) -> bool {
        true
    }
}

pub(crate) fn connect(netns: &Netns, to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = netns
        .run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))
        .map_err(std::io::Error::other)??;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

pub(crate) fn local<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(tokio::task::LocalSet::new().run_until(async {
        tokio::time::timeout(Duration::from_secs(60), work).await.expect("an end within a minute")
    }))
}

/// The certificate that a pod's proxy presents.
pub(crate) fn certificate_of(lab: &Lab, namespace: &str, name: &str) -> CertificateDer<'static> {
    let papers = Papers::signed_by(&authority_of(lab, Arc::new(SystemClock)), &id("app", "client"));
    let intruder = Intruder::in_pod(lab, "outside", "stranger", Some(papers));
    let to = SocketAddr::new(lab.ip(namespace, name).parse().expect("an address"), 15008);
    local(async move {
        let tls = intruder.session(to).await.expect("a handshake");
        let certificates = tls.get_ref().1.peer_certificates().expect("certificates");
        certificates[0].clone().into_owned()
    })
}

pub(crate) fn server_address(lab: &Lab) -> SocketAddr {
    SocketAddr::new(lab.ip("app", "server").parse().expect("an address"), 8080)
}

/// Handshakes that failed at node2, whether for want of an identity or of sense.
fn refused_handshakes(lab: &Lab) -> f64 {
    let flagged = |flag: &str| {
        let flag = format!("response_flags=\"{flag}\"");
        lab.metric("node2", "istio_tcp_connections_failed_total", &["reporter=\"destination\"", &flag])
    };
    flagged("TLS_FAILURE") + flagged("IDENTITY_ERROR")
}

#[test]
fn only_a_certificate_that_holds_opens_a_tunnel() {
    let Some(lab) = meshed() else { return };
    let target = server_address(&lab);
    let ours = authority_of(&lab, Arc::new(SystemClock));
    let good = Papers::signed_by(&ours, &id("app", "client"));
    let answer = Intruder::in_pod(&lab, "outside", "stranger", Some(good)).asks(target);
    assert!(answer.as_ref().is_ok_and(|a| a.contains("200 OK")), "the means are sound: {answer:?}");

    let foreign = Signer::ephemeral(SignerSettings::default(), Arc::new(SystemClock)).expect("another root");
    let past = authority_of(&lab, Arc::new(LongAgo));
    let elsewhere = SpiffeId::new(TrustDomain::new("elsewhere.example").expect("a domain"), "app", "client");
    let cases = [
        ("no certificate", None),
        ("a foreign root", Some(Papers::signed_by(&foreign, &id("app", "client")))),
        ("an expired certificate", Some(Papers::signed_by(&past, &id("app", "client")))),
        ("another trust domain", Some(Papers::signed_by(&ours, &elsewhere.expect("an identity")))),
    ];
    for (what, papers) in cases {
        let before = refused_handshakes(&lab);
        let answer = Intruder::in_pod(&lab, "outside", "stranger", papers).asks(target);
        assert!(answer.is_err(), "{what}: {answer:?}");
        eventually(&format!("{what} is counted"), || refused_handshakes(&lab) > before);
    }
    lab.exec("app/client", &curl("http://server.app/")).expect_ok();
}

#[test]
fn a_tunnel_to_what_is_not_behind_the_address_is_refused() {
    let Some(lab) = meshed() else { return };
    let ours = authority_of(&lab, Arc::new(SystemClock));
    let other: SocketAddr = format!("{}:7000", lab.ip("app", "greeter")).parse().expect("an address");
    let through: SocketAddr = server_address(&lab);
    let intruder =
        Intruder::in_pod(&lab, "outside", "stranger", Some(Papers::signed_by(&ours, &id("app", "client"))));
    let refusal = local(async move {
        let key = client::Key {
            source: id("app", "client"),
            destinations: the_server(),
            address: SocketAddr::new(through.ip(), 15008),
            source_ip: IpAddr::from([0, 0, 0, 0]),
            holder: client::Holder { uid: model::Uid::new("server"), tenancy: 0 },
        };
        let pool = client::Pool::new(intruder, Settings::default());
        pool.open(&key, &client::ConnectRequest::to(Authority::from(other))).await.map(drop)
    });
    assert!(matches!(refusal, Err(client::OpenError::Refused { status: 400 })), "{refusal:?}");
}

#[test]
fn rubbish_and_silence_on_15008_harm_nobody() {
    let Some(lab) = meshed() else { return };
    let stranger = netns(&lab, "outside", "stranger");
    let hbone = SocketAddr::new(server_address(&lab).ip(), 15008);
    let before = refused_handshakes(&lab);
    for rubbish in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 4096],
        &[0x16, 3, 1, 0xff, 0xff, 1, 2, 3],
        b"PRI * HTTP/2.0\r\n\r\n",
    ] {
        let mut stream = connect(&stranger, hbone).expect("a connection");
        stream.set_nonblocking(false).expect("a blocking socket");
        stream.set_read_timeout(Some(Duration::from_secs(15))).expect("a limit");
        stream.write_all(rubbish).expect("rubbish sent");
        stream.shutdown(std::net::Shutdown::Write).expect("a half-close");
        let mut rest = Vec::new();
        // Ended with or without a reset: but ended.
        let ended = stream.read_to_end(&mut rest);
        assert!(
            !matches!(&ended, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock),
            "{} bytes of rubbish are waited for",
            rubbish.len()
        );
    }
    eventually("rubbish is counted", || refused_handshakes(&lab) > before);

    // Many that say nothing at all: others are served meanwhile, and in the end they are let go.
    let mut silent: Vec<TcpStream> =
        (0..200).map(|_| connect(&stranger, hbone).expect("a connection")).collect();
    for _ in 0..3 {
        lab.exec("app/client", &curl("http://server.app/")).expect_ok();
    }
    let first = &mut silent[0];
    first.set_nonblocking(false).expect("a blocking socket");
    first.set_read_timeout(Some(Duration::from_secs(60))).expect("a limit");
    let ended = first.read(&mut [0; 1]);
    assert!(
        !matches!(&ended, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock),
        "silence has no end: {ended:?}"
    );
}

/// Listens on 15008 in the pod `outside/native`, with these papers.
pub(crate) fn listen_as(lab: &Lab, papers: &Papers) -> (std::net::TcpListener, TlsAcceptor) {
    let netns = netns(lab, "outside", "native");
    let listener =
        netns.run(|| std::net::TcpListener::bind("0.0.0.0:15008")).expect("enter").expect("listen on 15008");
    listener.set_nonblocking(true).expect("a non-blocking socket");
    let mut config = ServerConfig::builder_with_provider(Arc::clone(identity::provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(papers.chain(), papers.key())
        .expect("papers that fit");
    config.alpn_protocols = vec![b"h2".to_vec()];
    (listener, TlsAcceptor::from(Arc::new(config)))
}

/// Serves HBONE there for as long as the returned guard lives.
fn serve_as(lab: &Lab, papers: &Papers) -> std::thread::JoinHandle<()> {
    let (listener, acceptor) = listen_as(lab, papers);
    std::thread::spawn(move || {
        local(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            // One connection is all that a test makes.
            let served = async {
                let (stream, _) = listener.accept().await?;
                let stream = acceptor.accept(stream).await?;
                let mut connection = server::Connection::handshake(stream, &Settings::default())
                    .await
                    .map_err(std::io::Error::other)?;
                while let Some(request) = connection.accept().await.map_err(std::io::Error::other)? {
                    let mut tunnel = request.accept(None).map_err(std::io::Error::other)?;
                    tokio::task::spawn_local(async move {
                        // The client may break off.
                        drop(tunnel.write_all(b"served\n").await);
                        drop(tunnel.shutdown().await);
                    });
                }
                std::io::Result::Ok(())
            };
            // A client that refuses us is what half of these tests are about.
            drop(tokio::time::timeout(Duration::from_secs(10), served).await);
        });
    })
}

pub(crate) fn reads_from_native(lab: &Lab) -> String {
    let script = format!("timeout 5 bash -c 'cat < /dev/tcp/{}/9000'", lab.ip("outside", "native"));
    lab.exec("app/client", &["bash", "-c", &script]).stdout
}

#[test]
fn a_server_that_proves_another_identity_gets_no_byte() {
    let Some(lab) = with_native_pod() else { return };
    let ours = authority_of(&lab, Arc::new(SystemClock));

    let server = serve_as(&lab, &Papers::signed_by(&ours, &id("outside", "native")));
    assert_eq!(reads_from_native(&lab), "served\n", "the means are sound");
    server.join().expect("a server that ended");

    let server = serve_as(&lab, &Papers::signed_by(&ours, &id("outside", "plain")));
    // The good tunnel of before may still be pooled; its server is gone, so a new one is opened.
    assert_eq!(reads_from_native(&lab), "");
    server.join().expect("a server that ended");
    let log = lab.logs("ztunnel@node1");
    assert!(log.contains("ns/outside/sa/plain"), "the log names who was found instead: {log}");
}
