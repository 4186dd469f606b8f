//! What is believed of a certificate request.

use model::SpiffeId;
use rcgen::{PublicKeyData, SignatureAlgorithm};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateSigningRequestDer, SignatureVerificationAlgorithm};
use thiserror::Error;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384,
};
use x509_parser::prelude::FromDer;

/// The largest request that is read, in bytes; an honest one has some 500.
const REQUEST_MAX: usize = 16 << 10;

/// A public key that a requester has proven to hold.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ProvenKey(Vec<u8>);

impl PublicKeyData for ProvenKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RequestError {
    /// No PKCS#10 request in PEM, or too large a one.
    #[error("not a PEM certificate request of at most {REQUEST_MAX} bytes")]
    Malformed,
    /// The key is of another kind.
    #[error("the key is not on the curve P-256")]
    Key,
    /// The requester does not hold the key.
    #[error("the request is not signed by its own key")]
    Signature,
    /// It does not name exactly the identity that is to be certified.
    #[error("the request names {named}, to be certified is {id}")]
    Name {
        /// What it names.
        named: String,
        /// What was to be certified.
        id: SpiffeId,
    },
}

/// Checks a request and takes its key.
pub(super) fn verify(csr_pem: &str, id: &SpiffeId) -> Result<ProvenKey, RequestError> {
    if csr_pem.len() > REQUEST_MAX {
        return Err(RequestError::Malformed);
    }
    let der = CertificateSigningRequestDer::from_pem_slice(csr_pem.as_bytes())
        .map_err(|_| RequestError::Malformed)?;
    let Ok(([], request)) = X509CertificationRequest::from_der(&der) else {
        return Err(RequestError::Malformed);
    };
    let key = p256_key(&request).ok_or(RequestError::Key)?;
    verify_signature(&request, key)?;
    let named = names(&request);
    match &named[..] {
        [name] if *name == id.to_string() => Ok(ProvenKey(key.to_vec())),
        [] => Err(RequestError::Name { named: "nobody".to_owned(), id: id.clone() }),
        _ => Err(RequestError::Name { named: named.join(", "), id: id.clone() }),
    }
}

fn p256_key<'a>(request: &'a X509CertificationRequest<'_>) -> Option<&'a [u8]> {
    let key = &request.certification_request_info.subject_pki;
    let curve = key.algorithm.parameters.as_ref()?.as_oid().ok()?;
    let p256 = key.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == OID_EC_P256;
    p256.then_some(&*key.subject_public_key.data)
}

fn verify_signature(request: &X509CertificationRequest<'_>, key: &[u8]) -> Result<(), RequestError> {
    let oid = &request.signature_algorithm.algorithm;
    let algorithm: &dyn SignatureVerificationAlgorithm = if *oid == OID_SIG_ECDSA_WITH_SHA256 {
        webpki::aws_lc_rs::ECDSA_P256_SHA256
    } else if *oid == OID_SIG_ECDSA_WITH_SHA384 {
        webpki::aws_lc_rs::ECDSA_P256_SHA384
    } else {
        return Err(RequestError::Signature);
    };
    let signed = request.certification_request_info.raw;
    algorithm
        .verify_signature(key, signed, &request.signature_value.data)
        .map_err(|_| RequestError::Signature)
}

/// All alternative names of any kind, in all extension requests.
fn names(request: &X509CertificationRequest<'_>) -> Vec<String> {
    let mut names = Vec::new();
    for attribute in request.certification_request_info.iter_attributes() {
        let ParsedCriAttribute::ExtensionRequest(requested) = attribute.parsed_attribute() else { continue };
        for extension in &requested.extensions {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(san) => {
                    names.extend(san.general_names.iter().map(|name| match name {
                        GeneralName::URI(uri) => (*uri).to_owned(),
                        other => other.to_string(),
                    }));
                }
                ParsedExtension::ParseError { .. } => names.push("something unreadable".to_owned()),
                _ => {}
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::string::Ia5String;
    use rcgen::{CertificateParams, DnType, SanType};

    use super::*;
    use crate::keys::{Curve, KeyPair};
    use crate::pem;

    fn id() -> SpiffeId {
        "spiffe://cluster.local/ns/shop/sa/a".parse().unwrap()
    }

    fn request(curve: Curve, names: Vec<SanType>) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, "whoever");
        params.subject_alt_names = names;
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = KeyPair::generate(curve).unwrap();
        pem::encode("CERTIFICATE REQUEST", params.serialize_request(&key).unwrap().der())
    }

    fn uri(s: &str) -> SanType {
        SanType::URI(Ia5String::try_from(s).unwrap())
    }

    #[test]
    fn a_request_of_ours_is_taken() {
        let key = KeyPair::generate(Curve::P256).unwrap();
        let proven = verify(&key.request(&id()).unwrap(), &id()).unwrap();
        assert_eq!(proven.der_bytes(), key.public_key());
    }

    #[test]
    fn subject_and_other_wishes_are_passed_over() {
        verify(&request(Curve::P256, vec![uri(&id().to_string())]), &id()).unwrap();
    }

    #[test]
    fn any_other_name_is_refused() {
        let ours = uri(&id().to_string());
        let dns = SanType::DnsName("a.shop".try_into().unwrap());
        let other = uri("spiffe://cluster.local/ns/shop/sa/b");
        for names in
            [vec![], vec![dns.clone()], vec![other.clone()], vec![ours.clone(), other], vec![ours, dns]]
        {
            let refused = verify(&request(Curve::P256, names), &id());
            assert!(matches!(refused, Err(RequestError::Name { .. })), "{refused:?}");
        }
    }

    #[test]
    fn another_curve_is_refused() {
        let refused = verify(&request(Curve::P384, vec![uri(&id().to_string())]), &id());
        assert_eq!(refused, Err(RequestError::Key));
    }

    #[test]
    fn a_request_for_a_key_of_somebody_else_is_refused() {
        let pem = KeyPair::generate(Curve::P256).unwrap().request(&id()).unwrap();
        let mut der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
        // The public key's point is what follows the algorithm; one bit of it is turned.
        let point = der.windows(2).position(|w| w == [0x00, 0x04]).unwrap() + 20;
        der[point] ^= 1;
        let refused = verify(&pem::encode("CERTIFICATE REQUEST", &der), &id());
        assert_eq!(refused, Err(RequestError::Signature));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let cases =
            ["", "rubbish", &pem::encode("CERTIFICATE REQUEST", b"rubbish"), &"x".repeat(REQUEST_MAX + 1)];
        for case in cases {
            assert_eq!(verify(case, &id()), Err(RequestError::Malformed));
        }
    }

    proptest! {
        #[test]
        fn a_damaged_request_is_never_signed_for_another_key(at in 0usize..500, with: u8) {
            let key = KeyPair::generate(Curve::P256).unwrap();
            let pem = key.request(&id()).unwrap();
            let mut der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
            let at = at % der.len();
            der[at] = with;
            if let Ok(proven) = verify(&pem::encode("CERTIFICATE REQUEST", &der), &id()) {
                prop_assert_eq!(proven.der_bytes(), key.public_key());
            }
        }
    }
}
