//! The client's side towards the control plane, whose server proves a host name and not a workload's identity.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, PeerIncompatible, SignatureScheme,
};
use webpki::{EndEntityCert, KeyUsage};

use crate::bundle::LiveBundle;
use crate::clock::{Clock, TlsTime};
use crate::tls::{ALPN_H2, provider};
use crate::verifier::verify_chain;

/// For connecting to xDS and the CA: TLS 1.3, `h2`, the server's chain checked against `roots` and its names against the
/// one connected to, or one of `also` (`ALT_XDS_HOSTNAME`, `ALT_CA_HOSTNAME`). Without a client certificate: callers
/// prove themselves by token.
pub fn client_config(
    roots: LiveBundle,
    also: Vec<ServerName<'static>>,
    clock: Arc<dyn Clock>,
) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_details(Arc::clone(provider()), Arc::new(TlsTime(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider's suites are those of TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(HostVerifier { roots, also }))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    Arc::new(config)
}

#[derive(Debug)]
struct HostVerifier {
    roots: LiveBundle,
    also: Vec<ServerName<'static>>,
}

impl ServerCertVerifier for HostVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        verify_chain(end_entity, intermediates, &self.roots.believed(), KeyUsage::server_auth(), now)?;
        let leaf = EndEntityCert::try_from(end_entity).map_err(|_| CertificateError::BadEncoding)?;
        let named = |name: &ServerName<'_>| leaf.verify_is_valid_for_subject_name(name).is_ok();
        if named(server_name) || self.also.iter().any(named) {
            return Ok(ServerCertVerified::assertion());
        }
        let presented = leaf.valid_dns_names().map(str::to_owned).collect();
        Err(CertificateError::NotValidForNameContext { expected: server_name.to_owned(), presented }.into())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::ServerDoesNotSupportTls12Or13.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
