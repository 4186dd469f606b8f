//! Private keys, and requests for certificates for them.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use model::SpiffeId;
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, DistinguishedName, PublicKeyData, SanType, SignatureAlgorithm};
use rustls::SignatureScheme;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer};
use thiserror::Error;
use zeroize::Zeroizing;

/// A private key, which signs and never shows itself.
///
/// A generated key exists only inside the cryptography library, which wipes it when it is dropped; it is never written
/// out unless [`Self::to_pkcs8_pem`] is asked. Cloning shares it.
#[derive(Clone)]
pub struct KeyPair(Arc<Kind>);

enum Kind {
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

/// The curves on which keys are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Curve {
    /// NIST P-256, as every SVID has it.
    #[default]
    P256,
    /// NIST P-384.
    P384,
}

impl KeyPair {
    /// Makes a key. Fails only where the operating system gives no randomness.
    pub fn generate(curve: Curve) -> Result<Self, KeyError> {
        let make = |alg| EcdsaKeyPair::generate(alg).map_err(|_| KeyError::Generate);
        Ok(Self(Arc::new(match curve {
            Curve::P256 => Kind::P256(make(&ECDSA_P256_SHA256_ASN1_SIGNING)?),
            Curve::P384 => Kind::P384(make(&ECDSA_P384_SHA384_ASN1_SIGNING)?),
        })))
    }

    /// Reads the first private key of a PEM text: PKCS#8, SEC 1 or PKCS#1; P-256, P-384 or RSA.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let key = Zeroizing::new(PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| KeyError::Pem)?);
        let der = key.secret_der();
        let ecdsa = |alg: &'static EcdsaSigningAlgorithm| EcdsaKeyPair::from_private_key_der(alg, der).ok();
        let kind = if let Some(key) = ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING) {
            Kind::P256(key)
        } else if let Some(key) = ecdsa(&ECDSA_P384_SHA384_ASN1_SIGNING) {
            Kind::P384(key)
        } else {
            let rsa = RsaKeyPair::from_pkcs8(der).or_else(|_| RsaKeyPair::from_der(der));
            Kind::Rsa(rsa.map_err(|_| KeyError::Kind)?)
        };
        Ok(Self(Arc::new(kind)))
    }

    /// The key as a PEM text, which wipes itself. For the root key on disk only.
    pub fn to_pkcs8_pem(&self) -> Result<Zeroizing<String>, KeyError> {
        let (Kind::P256(key) | Kind::P384(key)) = &*self.0 else { return Err(KeyError::Kind) };
        let document = key.to_pkcs8v1().map_err(|_| KeyError::Generate)?;
        Ok(Zeroizing::new(crate::pem::encode("PRIVATE KEY", document.as_ref())))
    }

    /// A request (PKCS#10, PEM) for a certificate of `id`: empty subject, one URI SAN, signed by this key.
    pub fn request(&self, id: &SpiffeId) -> Result<String, KeyError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri_san(id)];
        let request = params.serialize_request(self).map_err(|_| KeyError::Sign)?;
        Ok(crate::pem::encode("CERTIFICATE REQUEST", request.der()))
    }

    /// The public key as the point or the RSA structure that stands in a certificate.
    pub(crate) fn public_key(&self) -> &[u8] {
        match &*self.0 {
            Kind::P256(key) | Kind::P384(key) => key.public_key().as_ref(),
            Kind::Rsa(key) => key.public_key().as_ref(),
        }
    }

    fn sign_message(&self, message: &[u8]) -> Option<Vec<u8>> {
        let rng = SystemRandom::new();
        match &*self.0 {
            Kind::P256(key) | Kind::P384(key) => Some(key.sign(&rng, message).ok()?.as_ref().to_vec()),
            Kind::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &rng, message, &mut signature).ok()?;
                Some(signature)
            }
        }
    }

    /// The scheme in which the key signs a TLS 1.3 handshake; an RSA key signs certificates only.
    fn scheme(&self) -> Option<SignatureScheme> {
        match &*self.0 {
            Kind::P256(_) => Some(SignatureScheme::ECDSA_NISTP256_SHA256),
            Kind::P384(_) => Some(SignatureScheme::ECDSA_NISTP384_SHA384),
            Kind::Rsa(_) => None,
        }
    }
}

/// The identity as it stands in a certificate or a request.
pub(crate) fn uri_san(id: &SpiffeId) -> SanType {
    SanType::URI(Ia5String::try_from(id.to_string()).expect("an identity is ASCII by construction"))
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &*self.0 {
            Kind::P256(_) => "P-256",
            Kind::P384(_) => "P-384",
            Kind::Rsa(_) => "RSA",
        };
        write!(f, "KeyPair({kind})")
    }
}

/// For requests and certificates.
impl PublicKeyData for KeyPair {
    fn der_bytes(&self) -> &[u8] {
        self.public_key()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        match &*self.0 {
            Kind::P256(_) => &rcgen::PKCS_ECDSA_P256_SHA256,
            Kind::P384(_) => &rcgen::PKCS_ECDSA_P384_SHA384,
            Kind::Rsa(_) => &rcgen::PKCS_RSA_SHA256,
        }
    }
}

impl rcgen::SigningKey for KeyPair {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.sign_message(message).ok_or(rcgen::Error::RemoteKeyError)
    }
}

/// For TLS handshakes.
impl rustls::sign::SigningKey for KeyPair {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn rustls::sign::Signer>> {
        let scheme = self.scheme().filter(|s| offered.contains(s))?;
        Some(Box::new(HandshakeSigner { key: self.clone(), scheme }))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(self.subject_public_key_info().into())
    }

    fn algorithm(&self) -> rustls::SignatureAlgorithm {
        match &*self.0 {
            Kind::P256(_) | Kind::P384(_) => rustls::SignatureAlgorithm::ECDSA,
            Kind::Rsa(_) => rustls::SignatureAlgorithm::RSA,
        }
    }
}

#[derive(Debug)]
struct HandshakeSigner {
    key: KeyPair,
    scheme: SignatureScheme,
}

impl rustls::sign::Signer for HandshakeSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.key.sign_message(message).ok_or_else(|| rustls::Error::General("cannot sign".to_owned()))
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}

/// What can go wrong with a private key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    /// No randomness.
    #[error("a private key cannot be made")]
    Generate,
    /// The text holds no private key.
    #[error("there is no private key in the PEM text")]
    Pem,
    /// Another kind of key than is supported.
    #[error("the private key is neither ECDSA on P-256 or P-384 nor RSA of 2048 bits or more")]
    Kind,
    /// The library refused to sign.
    #[error("the private key does not sign")]
    Sign,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_shows_only_its_kind() {
        let key = KeyPair::generate(Curve::P256).unwrap();
        assert_eq!(format!("{key:?}"), "KeyPair(P-256)");
    }

    #[test]
    fn a_key_survives_the_disk() {
        for curve in [Curve::P256, Curve::P384] {
            let key = KeyPair::generate(curve).unwrap();
            let read = KeyPair::from_pem(&key.to_pkcs8_pem().unwrap()).unwrap();
            assert_eq!(read.public_key(), key.public_key());
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        assert_eq!(KeyPair::from_pem("").unwrap_err(), KeyError::Pem);
        let other = crate::pem::encode("PRIVATE KEY", b"rubbish");
        assert_eq!(KeyPair::from_pem(&other).unwrap_err(), KeyError::Kind);
    }
}
