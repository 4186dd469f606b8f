//! Whether a peer is who it must be.
//!
//! A client checks that the server's chain leads to a root of the mesh, holds now, and that its identity is one of those
//! expected. A server checks the chain and that the client's trust domain is one it accepts; what the client may do is
//! policy's business. Both ask for a certificate from the other side, always. The rules are those of SPIFFE's X.509-SVID
//! standard: one URI name and no other counts, the subject and host names are not looked at.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use model::{IdentitySet, SpiffeId, TrustDomain};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, CommonState, DigitallySignedStruct, DistinguishedName, OtherError, PeerIncompatible,
    SignatureScheme,
};
use thiserror::Error;
use webpki::{EndEntityCert, KeyUsage, RevocationOptions};

use crate::bundle::{Believed, LiveBundle};
use crate::certificate::{IdentityError, identity_of};
use crate::tls::provider;

/// The trust domains whose workloads may connect: the mesh's own and its aliases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustDomains(Arc<BTreeSet<TrustDomain>>);

impl TrustDomains {
    /// Those and no others; an empty set accepts nobody.
    pub fn of(domains: impl IntoIterator<Item = TrustDomain>) -> Self {
        Self(Arc::new(domains.into_iter().collect()))
    }

    /// Whether a domain is one of them.
    pub fn contains(&self, domain: &TrustDomain) -> bool {
        self.0.contains(domain)
    }
}

impl fmt::Display for TrustDomains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, domain) in self.0.iter().enumerate() {
            write!(f, "{}{domain}", if n == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// Why a peer's certificate was refused here.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PeerError {
    /// It has expired. Seconds since 1970.
    #[error("the peer's certificate expired {} s ago", .now.saturating_sub(*.not_after))]
    Expired {
        /// When it was looked at.
        now: u64,
        /// When it ended.
        not_after: u64,
    },
    /// It does not hold yet: the clocks differ, or it was made for later. Seconds since 1970.
    #[error("the peer's certificate is valid only in {} s", .not_before.saturating_sub(*.now))]
    NotYetValid {
        /// When it was looked at.
        now: u64,
        /// When it begins.
        not_before: u64,
    },
    /// Its chain leads to none of our roots.
    #[error("the peer's certificate is of an unknown root")]
    UnknownRoot,
    /// Its authority has taken it back, or one of those that it rests on.
    #[error("the peer's certificate is revoked")]
    Revoked,
    /// Its chain is broken in another way.
    #[error("the peer's certificate chain does not hold: {0}")]
    Chain(webpki::Error),
    /// It names no workload.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It names a workload, and not one that belongs there.
    #[error("the peer is {presented}, expected was {expected}")]
    WrongIdentity {
        /// Who may have answered.
        expected: IdentitySet,
        /// Who did.
        presented: SpiffeId,
    },
    /// It names a workload of a trust domain that is not ours.
    #[error("the peer is {presented}, of none of the trust domains {accepted}")]
    WrongTrustDomain {
        /// The trust domains that we accept.
        accepted: TrustDomains,
        /// Who connected.
        presented: SpiffeId,
    },
}

/// Goes through the TLS library and comes back by [`TlsFailure::find`](crate::TlsFailure::find).
impl From<PeerError> for rustls::Error {
    fn from(e: PeerError) -> Self {
        let seconds = |s: u64| UnixTime::since_unix_epoch(std::time::Duration::from_secs(s));
        // The variants that TLS knows give the peer the alert that says so.
        match e {
            PeerError::Expired { now, not_after } => {
                CertificateError::ExpiredContext { time: seconds(now), not_after: seconds(not_after) }
            }
            PeerError::NotYetValid { now, not_before } => {
                CertificateError::NotValidYetContext { time: seconds(now), not_before: seconds(not_before) }
            }
            PeerError::UnknownRoot => CertificateError::UnknownIssuer,
            PeerError::Revoked => CertificateError::Revoked,
            PeerError::Identity(IdentityError::Malformed) => CertificateError::BadEncoding,
            other => CertificateError::Other(OtherError(Arc::new(other))),
        }
        .into()
    }
}

/// The way back of `From<PeerError> for rustls::Error`.
pub(crate) fn peer_error(e: &CertificateError) -> Option<PeerError> {
    Some(match e {
        CertificateError::ExpiredContext { time, not_after } => {
            PeerError::Expired { now: time.as_secs(), not_after: not_after.as_secs() }
        }
        CertificateError::NotValidYetContext { time, not_before } => {
            PeerError::NotYetValid { now: time.as_secs(), not_before: not_before.as_secs() }
        }
        CertificateError::UnknownIssuer => PeerError::UnknownRoot,
        CertificateError::Revoked => PeerError::Revoked,
        CertificateError::BadEncoding => PeerError::Identity(IdentityError::Malformed),
        CertificateError::Other(OtherError(other)) => other.downcast_ref::<PeerError>()?.clone(),
        _ => return None,
    })
}

/// Checks that a chain leads from `leaf` to a root that is believed, holds at `now`, and has not been revoked.
pub(crate) fn verify_chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    believed: &Believed,
    usage: KeyUsage,
    now: UnixTime,
) -> Result<(), PeerError> {
    let parsed = EndEntityCert::try_from(leaf).map_err(|_| IdentityError::Malformed)?;
    let Believed { roots, revoked, .. } = believed;
    let verify = |revocation: Option<RevocationOptions<'_>>| {
        let algorithms = algorithms().all;
        parsed
            .verify_for_usage(algorithms, roots.anchors(), intermediates, now, usage, revocation, None)
            .map(|_| ())
    };
    match verify(None) {
        Ok(()) => {}
        Err(webpki::Error::CertExpired { time, not_after }) => {
            return Err(PeerError::Expired { now: time.as_secs(), not_after: not_after.as_secs() });
        }
        Err(webpki::Error::CertNotValidYet { time, not_before }) => {
            return Err(PeerError::NotYetValid { now: time.as_secs(), not_before: not_before.as_secs() });
        }
        // A root of ours by name whose key did not sign: another root of the same name.
        Err(webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey) => {
            return Err(PeerError::UnknownRoot);
        }
        Err(other) => return Err(PeerError::Chain(other)),
    }
    if revoked.lists() == 0 {
        return Ok(());
    }
    // One that cannot be read is not part of the chain that has just been verified.
    let others: Vec<_> = intermediates.iter().filter_map(|c| EndEntityCert::try_from(c).ok()).collect();
    revoked.check(std::iter::once(&parsed).chain(&others), |options| verify(Some(options)))
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    provider().signature_verification_algorithms
}

fn no_tls12() -> rustls::Error {
    PeerIncompatible::ServerDoesNotSupportTls12Or13.into()
}

/// A client's check of the server it reached. The server's name or address is not looked at: identity is all.
#[derive(Clone, Debug)]
pub struct ServerVerifier {
    bundle: LiveBundle,
    expected: IdentitySet,
    domains: TrustDomains,
}

impl ServerVerifier {
    /// Accepts those whose identity is one of `expected`, of which `domains` are one trust domain by several names.
    pub fn new(bundle: LiveBundle, expected: IdentitySet, domains: TrustDomains) -> Self {
        Self { bundle, expected, domains }
    }

    /// The check itself.
    pub fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<SpiffeId, PeerError> {
        verify_chain(leaf, intermediates, &self.bundle.believed(), KeyUsage::server_auth(), now)?;
        let presented = identity_of(leaf)?;
        if self.expected.contains(&presented) || self.is_alias(&presented) {
            Ok(presented)
        } else {
            Err(PeerError::WrongIdentity { expected: self.expected.clone(), presented })
        }
    }
}

impl ServerVerifier {
    /// Whether it is one that is expected, under another name of the trust domain.
    fn is_alias(&self, presented: &SpiffeId) -> bool {
        let same = |id: &SpiffeId| {
            self.domains.contains(id.trust_domain())
                && id.namespace() == presented.namespace()
                && id.service_account() == presented.service_account()
        };
        self.domains.contains(presented.trust_domain()) && self.expected.iter().any(same)
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

/// A server's check of the client that connected. A client without a certificate is refused.
#[derive(Clone, Debug)]
pub struct ClientVerifier {
    bundle: LiveBundle,
    accepted: TrustDomains,
}

impl ClientVerifier {
    /// Accepts workloads of the given trust domains.
    pub fn new(bundle: LiveBundle, accepted: TrustDomains) -> Self {
        Self { bundle, accepted }
    }

    /// The check itself.
    pub fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<SpiffeId, PeerError> {
        verify_chain(leaf, intermediates, &self.bundle.believed(), KeyUsage::client_auth(), now)?;
        let presented = identity_of(leaf)?;
        if self.accepted.contains(presented.trust_domain()) {
            Ok(presented)
        } else {
            Err(PeerError::WrongTrustDomain { accepted: self.accepted.clone(), presented })
        }
    }
}

impl ClientCertVerifier for ClientVerifier {
    /// None: our peers have one certificate and need no help in choosing it.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(end_entity, intermediates, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

/// Who the peer of an established session is; nothing only where no handshake was made or no client certificate asked
/// for, as the verifiers let nobody through who is not somebody.
pub fn peer_identity(session: &CommonState) -> Option<SpiffeId> {
    identity_of(session.peer_certificates()?.first()?).ok()
}

#[cfg(test)]
mod tests;
