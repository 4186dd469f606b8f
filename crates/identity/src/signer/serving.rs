//! The control plane's own certificate.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rcgen::{ExtendedKeyUsagePurpose, SanType};
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tracing::{info, warn};

use super::{Signer, SignerError};
use crate::clock::TlsTime;
use crate::keys::{Curve, KeyPair};
use crate::pem;
use crate::tls::{ALPN_H2, provider};

/// A name by which clients reach the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServingName {
    /// A DNS name.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

impl FromStr for ServingName {
    type Err = SignerError;

    fn from_str(s: &str) -> Result<Self, SignerError> {
        if let Ok(ip) = s.parse() {
            return Ok(Self::Ip(ip));
        }
        rustls::pki_types::DnsName::try_from(s)
            .map(|name| Self::Dns(name.as_ref().to_owned()))
            .map_err(|_| SignerError::Name(s.to_owned()))
    }
}

impl fmt::Display for ServingName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(ip) => ip.fmt(f),
        }
    }
}

impl Signer {
    /// TLS for the control plane's server: version 1.3, `h2`, no client certificate, a certificate for `names` that is
    /// renewed by itself at half-life, when a client comes.
    pub fn serving_config(
        self: &Arc<Self>,
        names: Vec<ServingName>,
    ) -> Result<Arc<ServerConfig>, SignerError> {
        let current = ArcSwap::from_pointee(self.serving(&names)?);
        let resolver = Resolver { signer: Arc::clone(self), names, current, renewing: Mutex::new(()) };
        let time = Arc::new(TlsTime(Arc::clone(&self.clock)));
        let mut config = ServerConfig::builder_with_details(Arc::clone(provider()), time)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider's suites are those of TLS 1.3")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        Ok(Arc::new(config))
    }

    fn serving(&self, names: &[ServingName]) -> Result<Serving, SignerError> {
        let key = KeyPair::generate(Curve::P256)?;
        let mut params = self.end_entity(None)?;
        for name in names {
            params.subject_alt_names.push(match name {
                ServingName::Dns(dns) => {
                    SanType::DnsName(dns.as_str().try_into().map_err(|_| SignerError::Name(dns.clone()))?)
                }
                ServingName::Ip(ip) => SanType::IpAddress(*ip),
            });
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let signed = self.issue(&params, &key)?;
        let presented = &signed.chain[..signed.chain.len() - 1];
        let chain = presented.iter().filter_map(|text| pem::certificates(text)).flatten().collect();
        let now = self.clock.now();
        let life = signed.not_after.duration_since(now).unwrap_or_default();
        info!(serial = signed.serial, "serving certificate issued");
        Ok(Serving { certified: Arc::new(CertifiedKey::new(chain, Arc::new(key))), renew_at: now + life / 2 })
    }
}

struct Serving {
    certified: Arc<CertifiedKey>,
    renew_at: SystemTime,
}

struct Resolver {
    signer: Arc<Signer>,
    names: Vec<ServingName>,
    current: ArcSwap<Serving>,
    renewing: Mutex<()>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let now = self.signer.clock.now();
        // One renews, in the tenth of a millisecond that it takes; others go on with the old one.
        if now >= self.current.load().renew_at
            && let Some(_one) = self.renewing.try_lock()
            && now >= self.current.load().renew_at
        {
            match self.signer.serving(&self.names) {
                Ok(serving) => self.current.store(Arc::new(serving)),
                Err(error) => warn!(%error, "the serving certificate cannot be renewed"),
            }
        }
        Some(Arc::clone(&self.current.load().certified))
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("names", &self.names).finish_non_exhaustive()
    }
}
