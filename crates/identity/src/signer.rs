//! The certificate authority of a mesh: it signs workloads' certificates and the control plane's own.
//!
//! It has either a root of its own, made once and kept in a directory, or an intermediate that an operator plugged in
//! under a root kept elsewhere. Who may ask for which identity is decided before it is asked.

mod directory;
mod request;
mod serving;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use model::{SpiffeId, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyUsagePurpose, PublicKeyData, RevokedCertParams,
    SerialNumber,
};
use rustls::pki_types::CertificateDer;
use thiserror::Error;

pub use directory::OpenError;
pub use request::RequestError;
pub use serving::ServingName;

use crate::bundle::TrustBundle;
use crate::certificate;
use crate::clock::Clock;
use crate::keys::{Curve, KeyError, KeyPair, uri_san};
use crate::pem;
use crate::store::{CertificateAuthority, SignError};

/// How long a root that we make holds: ten years.
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// What a signer gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignerSettings {
    /// The trust domain, for the name of a root that is made.
    pub trust_domain: TrustDomain,
    /// How long a certificate holds where the request does not say: 24 h.
    pub ttl: Duration,
    /// How long a certificate holds at most: 90 days.
    pub ttl_max: Duration,
    /// How far before its making a certificate begins to hold, against clocks that differ: 2 min.
    pub backdate: Duration,
    /// The curve of a root that is made. P-256 signs several times as fast as P-384.
    pub root_curve: Curve,
}

impl Default for SignerSettings {
    fn default() -> Self {
        Self {
            trust_domain: TrustDomain::default(),
            ttl: Duration::from_secs(24 * 3600),
            ttl_max: Duration::from_secs(90 * 24 * 3600),
            backdate: Duration::from_secs(120),
            root_curve: Curve::P256,
        }
    }
}

/// A certificate authority. Cheap to use from many threads: nothing in it changes.
pub struct Signer {
    settings: SignerSettings,
    clock: Arc<dyn Clock>,
    issuer: Issuer<'static, KeyPair>,
    /// When the issuer's own certificate ends; nothing it signs may hold longer.
    issuer_end: SystemTime,
    /// What stands between a leaf and the roots, the issuer first; empty under a root of our own.
    intermediates: Vec<CertificateDer<'static>>,
    roots: TrustBundle,
}

/// A signed certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// PEM texts: the leaf, each intermediate, and the roots in one text, last.
    pub chain: Vec<String>,
    /// The leaf's serial number in hexadecimals.
    pub serial: String,
    /// When the leaf ends.
    pub not_after: SystemTime,
}

impl Signer {
    /// A signer with a new root that is kept nowhere.
    pub fn ephemeral(settings: SignerSettings, clock: Arc<dyn Clock>) -> Result<Self, SignerError> {
        let key = KeyPair::generate(settings.root_curve)?;
        let root = make_root(&key, &settings, clock.now())?;
        Self::of(key, vec![root.clone()], vec![root], settings, clock)
    }

    /// `chain` begins with the certificate of `key`.
    fn of(
        key: KeyPair,
        chain: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
        settings: SignerSettings,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, SignerError> {
        let roots = TrustBundle::from_certificates(roots).map_err(|_| SignerError::Chain)?;
        let own = chain.first().ok_or(SignerError::Chain)?;
        let (_, issuer_end) = certificate::summary(own).map_err(|_| SignerError::Chain)?;
        let issuer = Issuer::from_ca_cert_der(own, key).map_err(|_| SignerError::Chain)?;
        let intermediates = chain.into_iter().filter(|c| !roots.certificates().contains(c)).collect();
        Ok(Self { settings, clock, issuer, issuer_end, intermediates, roots })
    }

    /// The roots that the mesh is to trust.
    pub fn roots(&self) -> &TrustBundle {
        &self.roots
    }

    /// Signs the request of a workload (PKCS#10, PEM) for `id`, to hold for `ttl` (nothing or none at all: the default), at most for
    /// [`SignerSettings::ttl_max`] and for as long as the issuer itself.
    ///
    /// Of the request only the key is taken, which must be on P-256 and must have signed it; its one name must be `id`,
    /// so that nobody gets what they did not ask for. All else in it is passed over.
    pub fn sign(&self, csr_pem: &str, id: &SpiffeId, ttl: Option<Duration>) -> Result<Signed, SignerError> {
        let key = request::verify(csr_pem, id)?;
        let mut params = self.end_entity(ttl)?;
        params.subject_alt_names = vec![uri_san(id)];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(&params, &key)
    }

    /// A revocation list (PEM) of what this authority has signed: these serial numbers, in hexadecimals as [`Signed::serial`]
    /// has them, and no others. The next one is to come within `next_update`.
    ///
    /// # Errors
    /// If a number is none, or the key fails.
    pub fn revocation_list<S: AsRef<str>>(
        &self,
        serials: impl IntoIterator<Item = S>,
        next_update: Duration,
    ) -> Result<String, SignerError> {
        let now = self.clock.now();
        let revoked = |serial: S| {
            let bytes =
                number(serial.as_ref()).ok_or_else(|| SignerError::Serial(serial.as_ref().to_owned()))?;
            Ok(RevokedCertParams {
                serial_number: SerialNumber::from_slice(&bytes),
                revocation_time: now.into(),
                reason_code: None,
                invalidity_date: None,
            })
        };
        let since_1970 = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let params = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: (now + next_update.max(Duration::from_secs(1))).into(),
            crl_number: SerialNumber::from(since_1970),
            issuing_distribution_point: None,
            revoked_certs: serials.into_iter().map(revoked).collect::<Result<_, SignerError>>()?,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer).map_err(|_| KeyError::Sign)?;
        Ok(pem::encode("X509 CRL", list.der()))
    }

    pub(crate) fn end_entity(&self, ttl: Option<Duration>) -> Result<CertificateParams, SignerError> {
        let now = self.clock.now();
        let ttl = ttl.filter(|t| !t.is_zero()).unwrap_or(self.settings.ttl).min(self.settings.ttl_max);
        let not_after = (now + ttl).min(self.issuer_end);
        if not_after <= now {
            return Err(SignerError::Expired);
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.not_before = (now - self.settings.backdate).into();
        params.not_after = not_after.into();
        params.serial_number = Some(random_serial()?);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }

    pub(crate) fn issue(
        &self,
        params: &CertificateParams,
        key: &impl PublicKeyData,
    ) -> Result<Signed, SignerError> {
        let leaf = params.signed_by(key, &self.issuer).map_err(|_| KeyError::Sign)?;
        let serial = params.serial_number.as_ref().map(SerialNumber::to_bytes).unwrap_or_default();
        let mut chain = vec![pem::encode("CERTIFICATE", leaf.der())];
        chain.extend(self.intermediates.iter().map(|c| pem::encode("CERTIFICATE", c)));
        chain.push(self.roots.to_pem());
        Ok(Signed {
            chain,
            serial: serial.iter().map(|b| format!("{b:02x}")).collect(),
            not_after: params.not_after.into(),
        })
    }
}

/// A number in hexadecimals, at most 20 bytes (RFC 5280 4.1.2.2).
fn number(hex: &str) -> Option<Vec<u8>> {
    let right = (2..=40).contains(&hex.len()) && hex.len().is_multiple_of(2) && hex.is_ascii();
    let byte = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
    if right { (0..hex.len()).step_by(2).map(byte).collect() } else { None }
}

/// A self-signed root.
fn make_root(
    key: &KeyPair,
    settings: &SignerSettings,
    now: SystemTime,
) -> Result<CertificateDer<'static>, SignerError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, settings.trust_domain.as_str());
    params.distinguished_name.push(DnType::CommonName, "Ambit mesh root");
    params.not_before = (now - settings.backdate).into();
    params.not_after = (now + ROOT_LIFE).into();
    params.serial_number = Some(random_serial()?);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let root = params.self_signed(key).map_err(|_| KeyError::Sign)?;
    Ok(root.der().clone())
}

/// RFC 5280 4.1.2.2: positive, at most 20 bytes, and not to be guessed.
fn random_serial() -> Result<SerialNumber, SignerError> {
    let mut bytes = [0u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| KeyError::Generate)?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer")
            .field("key", self.issuer.key())
            .field("intermediates", &self.intermediates.len())
            .field("roots", &self.roots)
            .finish_non_exhaustive()
    }
}

/// Without a network and without asking who asks: for tests and for programs that are their own CA.
#[async_trait]
impl CertificateAuthority for Signer {
    async fn sign(&self, id: &SpiffeId, csr_pem: &str, ttl: Duration) -> Result<Vec<String>, SignError> {
        match Self::sign(self, csr_pem, id, Some(ttl)) {
            Ok(signed) => Ok(signed.chain),
            Err(SignerError::Request(e)) => Err(SignError::Refused(e.to_string())),
            Err(other) => Err(SignError::Unreachable(other.to_string())),
        }
    }
}

/// Why nothing was signed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SignerError {
    /// The request must not be signed; its sender is at fault.
    #[error("the certificate request is refused: {0}")]
    Request(#[from] RequestError),
    /// The issuer's own certificate has expired.
    #[error("the CA's own certificate has expired")]
    Expired,
    /// The issuer's certificates cannot be used.
    #[error("the CA's own certificates are unusable")]
    Chain,
    /// The name cannot stand in a certificate.
    #[error("`{0}` is no host name or IP address")]
    Name(String),
    /// It is no certificate's serial number.
    #[error("`{0}` is no serial number")]
    Serial(String),
    /// The key failed.
    #[error(transparent)]
    Key(#[from] KeyError),
}

#[cfg(test)]
mod tests;
