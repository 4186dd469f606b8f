//! TLS as the mesh speaks it: version 1.3, both sides with a certificate, HTTP/2 inside.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::SystemTime;

use model::IdentitySet;
use parking_lot::Mutex;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::ServerName;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, CommonState, ServerConfig};
use thiserror::Error;
use webpki::KeyUsage;

use crate::bundle::LiveBundle;
use crate::clock::{Clock, TlsTime};
use crate::proof::{End, Proof, as_shown};
use crate::svid::Svid;
use crate::verifier::{ClientVerifier, PeerError, ServerVerifier, TrustDomains, peer_error, verify_chain};

/// The one application protocol inside.
pub const ALPN_H2: &[u8] = b"h2";

/// Client configurations kept an identity; beyond it they are made anew, which costs microseconds.
const CLIENTS_MAX: usize = 1024;

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    use aws_lc_rs::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    Arc::new(CryptoProvider {
        // AES-128 first: every node has AES in hardware, and 128 bits cost 15 % less than 256.
        cipher_suites: vec![
            TLS13_AES_128_GCM_SHA256,
            TLS13_AES_256_GCM_SHA384,
            TLS13_CHACHA20_POLY1305_SHA256,
        ],
        // The default's order has X25519MLKEM768 first, by the crate feature `prefer-post-quantum`.
        ..aws_lc_rs::default_provider()
    })
});

/// The algorithms of the mesh, in order of preference.
pub fn provider() -> &'static Arc<CryptoProvider> {
    &PROVIDER
}

/// What a client must name to the TLS library and nobody looks at: identities are checked, names are not, and no SNI is
/// sent.
pub fn unnamed() -> ServerName<'static> {
    ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into())
}

/// A workload's identity, ready for handshakes. One an SVID; made anew at each renewal.
///
/// Sessions are never resumed. A resumed session skips the certificate check, so a peer whose certificate has expired,
/// whose root is no longer trusted or whose identity is no longer expected would go on being accepted on the strength of
/// an old handshake; and a tunnel connection carries a hundred streams for minutes, so that there is little to gain.
/// Resumption between our own nodes can come when tickets are bound to the expected set and the bundle.
#[derive(Debug)]
pub struct TlsIdentity {
    svid: Svid,
    bundle: LiveBundle,
    accepted: TrustDomains,
    clock: Arc<dyn Clock>,
    certified: Arc<CertifiedKey>,
    server: OnceLock<Arc<ServerConfig>>,
    clients: Mutex<HashMap<IdentitySet, Arc<ClientConfig>>>,
}

impl TlsIdentity {
    /// `bundle` is what peers are checked against, `accepted` the trust domains that may connect.
    pub fn new(svid: Svid, bundle: LiveBundle, accepted: TrustDomains, clock: Arc<dyn Clock>) -> Self {
        let certified = Arc::new(CertifiedKey::new(svid.chain().to_vec(), Arc::new(svid.key().clone())));
        let (server, clients) = (OnceLock::new(), Mutex::default());
        Self { svid, bundle, accepted, clock, certified, server, clients }
    }

    /// The certificate.
    pub fn svid(&self) -> &Svid {
        &self.svid
    }

    pub(crate) fn bundle(&self) -> &LiveBundle {
        &self.bundle
    }

    /// Whether its peers would believe it now, as far as they believe what we do.
    pub(crate) fn believed(&self) -> Result<(), PeerError> {
        let Some((leaf, rest)) = self.svid.chain().split_first() else { return Ok(()) };
        let believed = self.bundle.believed();
        verify_chain(leaf, rest, &believed, KeyUsage::client_auth(), as_shown(self.clock.now()))
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Whether the certificate holds.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        self.svid.is_valid_at(now)
    }

    /// For accepting connections as this workload: a client certificate of an accepted trust domain is demanded.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(self.server.get_or_init(|| {
            let verifier = ClientVerifier::new(self.bundle.clone(), self.accepted.clone());
            let mut config = ServerConfig::builder_with_details(Arc::clone(provider()), self.time())
                .with_protocol_versions(&[&rustls::version::TLS13])
                .expect("the provider's suites are those of TLS 1.3")
                .with_client_cert_verifier(Arc::new(verifier))
                .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.certified))));
            config.alpn_protocols = vec![ALPN_H2.to_vec()];
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            // Peers may list AES-256 first; the choice is ours.
            config.ignore_client_order = true;
            Arc::new(config)
        }))
    }

    /// For connecting as this workload to one whose identity is in `expected`. Use [`unnamed`] as the server's name.
    pub fn client_config(&self, expected: &IdentitySet) -> Arc<ClientConfig> {
        let mut clients = self.clients.lock();
        if let Some(config) = clients.get(expected) {
            return Arc::clone(config);
        }
        let verifier = ServerVerifier::new(self.bundle.clone(), expected.clone(), self.accepted.clone());
        let mut config = ClientConfig::builder_with_details(Arc::clone(provider()), self.time())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider's suites are those of TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.certified))));
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        let config = Arc::new(config);
        if clients.len() >= CLIENTS_MAX {
            clients.clear();
        }
        clients.insert(expected.clone(), Arc::clone(&config));
        config
    }

    /// What the peer of a session that was made as this workload has proved; nothing only where there was no handshake.
    ///
    /// # Errors
    /// If it is believed no more already.
    pub fn proof(&self, session: &CommonState, peer: End) -> Option<Result<Proof, PeerError>> {
        Proof::of(session, peer, self)
    }

    fn time(&self) -> Arc<TlsTime> {
        Arc::new(TlsTime(Arc::clone(&self.clock)))
    }
}

/// What a failed handshake or session comes down to, for response flags and logs.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum TlsFailure {
    /// We refused the peer's certificate.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The client showed no certificate.
    #[error("the client shows no certificate")]
    NoCertificate,
    /// The peer refused us, or gave up: its alert. `certificate_unknown`, `unknown_ca`, `certificate_expired` and
    /// `access_denied` concern our certificate.
    #[error("the peer refuses with the TLS alert {0}")]
    Alert(String),
    /// The peer does not speak TLS 1.3 as the mesh does.
    #[error("TLS fails: {0}")]
    Protocol(rustls::Error),
}

impl TlsFailure {
    /// Looks for the TLS library's error in an error and what caused it, I/O errors' insides included.
    pub fn find(error: &(dyn StdError + 'static)) -> Option<Self> {
        let mut next = Some(error);
        // No chain of ours is deeper; the bound is against errors that name each other as their source.
        for _ in 0..16 {
            let error = next?;
            if let Some(tls) = error.downcast_ref::<rustls::Error>() {
                return Some(Self::from_tls(tls));
            }
            if let Some(told) = error.downcast_ref::<Self>() {
                return Some(told.clone());
            }
            // What is inside an I/O error is not its source: that would be the source of what is inside.
            let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            next = match inner {
                Some(inner) => Some(inner as &(dyn StdError + 'static)),
                None => error.source(),
            };
        }
        None
    }

    /// The same I/O error, telling what [`Self::find`] finds in it: the TLS library's own words are for programmers.
    pub fn in_plain_words(error: io::Error) -> io::Error {
        match Self::find(&error) {
            Some(failure) => io::Error::new(error.kind(), failure),
            None => error,
        }
    }

    /// Whether a certificate is revoked, the peer's or our own.
    pub fn is_revocation(&self) -> bool {
        match self {
            Self::Peer(error) => *error == PeerError::Revoked,
            Self::Alert(alert) => alert == "CertificateRevoked",
            _ => false,
        }
    }

    /// Whether it is about who the two are, rather than about how they talk.
    pub fn is_identity(&self) -> bool {
        match self {
            Self::Peer(_) | Self::NoCertificate => true,
            Self::Alert(alert) => {
                let about_us = [
                    "UnknownCA",
                    "BadCertificate",
                    "CertificateExpired",
                    "CertificateUnknown",
                    "CertificateRevoked",
                    "CertificateRequired",
                    "UnsupportedCertificate",
                    "AccessDenied",
                ];
                about_us.contains(&alert.as_str())
            }
            Self::Protocol(_) => false,
        }
    }

    fn from_tls(e: &rustls::Error) -> Self {
        match e {
            rustls::Error::InvalidCertificate(e) => match peer_error(e) {
                Some(peer) => Self::Peer(peer),
                None => Self::Protocol(e.clone().into()),
            },
            rustls::Error::NoCertificatesPresented => Self::NoCertificate,
            rustls::Error::AlertReceived(alert) => Self::Alert(format!("{alert:?}")),
            other => Self::Protocol(other.clone()),
        }
    }
}

#[cfg(test)]
mod tests;
