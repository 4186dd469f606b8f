//! What a certificate says, read strictly.

use std::time::{Duration, SystemTime};

use model::SpiffeId;
use rustls::pki_types::CertificateDer;
use thiserror::Error;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, SubjectAlternativeName};
use x509_parser::prelude::FromDer;

/// The facts of an end-entity certificate that concern us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) id: SpiffeId,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    pub(crate) serial: String,
    /// The bits of the subject's public key.
    pub(crate) public_key: Vec<u8>,
}

/// Why a certificate names no workload.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// Not an X.509 certificate, or one whose names cannot be read.
    #[error("the certificate cannot be read")]
    Malformed,
    /// No URI among its names.
    #[error("the certificate carries no identity")]
    None,
    /// X.509-SVID 2: exactly one URI.
    #[error("the certificate carries {0} identities, where one is allowed")]
    Several(usize),
    /// The URI is no workload's.
    #[error("the certificate is for `{0}`, which is no workload identity")]
    Foreign(String),
}

/// The identity that a certificate carries: its one URI name. Names of other kinds are passed over.
///
/// Says nothing about who signed it; see [`crate::verifier`].
pub fn identity_of(certificate: &CertificateDer<'_>) -> Result<SpiffeId, IdentityError> {
    identity(&parse(certificate)?)
}

/// All facts of an SVID.
pub(crate) fn facts(certificate: &CertificateDer<'_>) -> Result<Facts, IdentityError> {
    let parsed = parse(certificate)?;
    let validity = parsed.validity();
    Ok(Facts {
        id: identity(&parsed)?,
        not_before: time(validity.not_before.timestamp()),
        not_after: time(validity.not_after.timestamp()),
        serial: serial(&parsed),
        public_key: parsed.public_key().subject_public_key.data.to_vec(),
    })
}

/// The serial number and the end of the validity of any certificate.
pub(crate) fn summary(certificate: &CertificateDer<'_>) -> Result<(String, SystemTime), IdentityError> {
    let parsed = parse(certificate)?;
    Ok((serial(&parsed), time(parsed.validity().not_after.timestamp())))
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, IdentityError> {
    match X509Certificate::from_der(certificate) {
        Ok(([], parsed)) => Ok(parsed),
        _ => Err(IdentityError::Malformed),
    }
}

fn identity(certificate: &X509Certificate<'_>) -> Result<SpiffeId, IdentityError> {
    let names = certificate.subject_alternative_name().map_err(|_| IdentityError::Malformed)?;
    one_uri(names.iter().map(|ext| ext.value))
}

/// The one URI in all names.
pub(crate) fn one_uri<'a>(
    names: impl Iterator<Item = &'a SubjectAlternativeName<'a>>,
) -> Result<SpiffeId, IdentityError> {
    let mut uris = Vec::new();
    for name in names.flat_map(|san| &san.general_names) {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::Invalid(..) => return Err(IdentityError::Malformed),
            _ => {}
        }
    }
    match uris[..] {
        [] => Err(IdentityError::None),
        [uri] => uri.parse().map_err(|_| IdentityError::Foreign(uri.to_owned())),
        _ => Err(IdentityError::Several(uris.len())),
    }
}

/// Lower-case hexadecimals, as other tools print it without its colons.
fn serial(certificate: &X509Certificate<'_>) -> String {
    certificate.raw_serial().iter().map(|b| format!("{b:02x}")).collect()
}

fn time(seconds: i64) -> SystemTime {
    let offset = Duration::from_secs(seconds.unsigned_abs());
    if seconds >= 0 { SystemTime::UNIX_EPOCH + offset } else { SystemTime::UNIX_EPOCH - offset }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::string::Ia5String;
    use rcgen::{CertificateParams, SanType};

    use super::*;
    use crate::keys::{Curve, KeyPair};

    fn certificate(names: Vec<SanType>) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        params.self_signed(&KeyPair::generate(Curve::P256).unwrap()).unwrap().into()
    }

    fn uri(s: &str) -> SanType {
        SanType::URI(Ia5String::try_from(s).unwrap())
    }

    #[test]
    fn the_one_uri_is_the_identity() {
        let dns = SanType::DnsName("a.shop".try_into().unwrap());
        let der = certificate(vec![dns, uri("spiffe://cluster.local/ns/shop/sa/a")]);
        assert_eq!(identity_of(&der).unwrap().to_string(), "spiffe://cluster.local/ns/shop/sa/a");
        assert_eq!(facts(&der).unwrap().id, identity_of(&der).unwrap());
    }

    #[test]
    fn none_several_and_foreign_ones_are_refused() {
        let dns = SanType::DnsName("a.shop".try_into().unwrap());
        assert_eq!(identity_of(&certificate(vec![])), Err(IdentityError::None));
        assert_eq!(identity_of(&certificate(vec![dns])), Err(IdentityError::None));
        let a = uri("spiffe://cluster.local/ns/shop/sa/a");
        let two = certificate(vec![a.clone(), uri("spiffe://cluster.local/ns/shop/sa/b")]);
        assert_eq!(identity_of(&two), Err(IdentityError::Several(2)));
        let and_foreign = certificate(vec![a, uri("https://example.org/")]);
        assert_eq!(identity_of(&and_foreign), Err(IdentityError::Several(2)));
        let foreign = certificate(vec![uri("spiffe://example.org/other")]);
        assert_eq!(identity_of(&foreign), Err(IdentityError::Foreign("spiffe://example.org/other".into())));
    }

    #[test]
    fn what_follows_a_certificate_makes_it_unreadable() {
        let mut der = certificate(vec![uri("spiffe://cluster.local/ns/shop/sa/a")]).to_vec();
        der.push(0);
        assert_eq!(identity_of(&der.into()), Err(IdentityError::Malformed));
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(identity_of(&bytes.into()).is_err());
        }

        #[test]
        fn a_damaged_certificate_gives_an_answer(at in 0usize..400, with: u8) {
            let mut der = certificate(vec![uri("spiffe://cluster.local/ns/shop/sa/a")]).to_vec();
            let at = at % der.len();
            der[at] = with;
            let _ = facts(&der.into());
        }
    }
}
