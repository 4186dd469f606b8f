//! Certificates that their authority has taken back.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use thiserror::Error;
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, OwnedCertRevocationList, RevocationCheckDepth,
    RevocationOptions, RevocationOptionsBuilder, UnknownStatusPolicy,
};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use crate::verifier::PeerError;

/// The most lists that are read of one text: one an authority, and a mesh has few.
const LISTS_MAX: usize = 64;

/// Revocation lists (RFC 5280 5), each of one authority; none by default. Immutable; cloning shares them.
///
/// A list counts for what its authority has signed, and its own signature is checked when it names a certificate: a list
/// of another authority with the same name, such as the root before this one, says nothing of this one's certificates. It
/// goes on counting when its time for the next has passed, as what was revoked stays so.
#[derive(Clone, Default)]
pub struct Revocations(Arc<Vec<List>>);

struct List {
    crl: CertRevocationList<'static>,
    issuer: String,
    entries: usize,
    next_update: Option<SystemTime>,
}

impl Revocations {
    /// Reads the lists of a PEM text, of which there must be one at least.
    ///
    /// # Errors
    /// Where one cannot be read, or has parts that must be understood and are not: then none of them counts.
    pub fn from_pem(pem: &[u8]) -> Result<Self, RevocationError> {
        let ders: Vec<_> = CertificateRevocationListDer::pem_slice_iter(pem)
            .take(LISTS_MAX + 1)
            .collect::<Result<_, _>>()
            .map_err(|_| RevocationError::Pem)?;
        match ders.len() {
            0 => return Err(RevocationError::Empty),
            n if n > LISTS_MAX => return Err(RevocationError::Pem),
            _ => {}
        }
        let lists = ders.iter().enumerate().map(|(at, der)| List::read(der).map_err(|why| why.at(at)));
        Ok(Self(Arc::new(lists.collect::<Result<_, _>>()?)))
    }

    /// Whether both are the same, read once.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// How many lists.
    pub fn lists(&self) -> usize {
        self.0.len()
    }

    /// How many certificates they name.
    pub fn entries(&self) -> usize {
        self.0.iter().map(|list| list.entries).sum()
    }

    /// When the first of them was to be replaced.
    pub fn next_update(&self) -> Option<SystemTime> {
        self.0.iter().filter_map(|list| list.next_update).min()
    }

    /// Whose they are.
    pub fn issuers(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|list| list.issuer.as_str())
    }

    /// Asks each list that names one of the certificates whether that is meant: `verify` verifies their chain with it.
    ///
    /// # Errors
    /// If it is, or if a list that names one cannot be relied on.
    pub(crate) fn check<'a>(
        &self,
        chain: impl Iterator<Item = &'a EndEntityCert<'a>> + Clone,
        verify: impl Fn(RevocationOptions<'_>) -> Result<(), webpki::Error>,
    ) -> Result<(), PeerError> {
        for list in self.0.iter() {
            let named = |c: &EndEntityCert<'_>| !matches!(list.crl.find_serial(c.serial()), Ok(None));
            if !chain.clone().any(named) {
                continue;
            }
            let lists = [&list.crl];
            // It fails only where there is no list.
            let Ok(options) = RevocationOptionsBuilder::new(&lists) else { continue };
            let options = options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Allow)
                .with_expiration_policy(ExpirationPolicy::Ignore);
            match verify(options.build()) {
                // The serial number is another authority's too.
                Ok(()) | Err(webpki::Error::InvalidCrlSignatureForPublicKey) => {}
                Err(webpki::Error::CertRevoked) => return Err(PeerError::Revoked),
                Err(other) => return Err(PeerError::Chain(other)),
            }
        }
        Ok(())
    }
}

impl List {
    fn read(der: &[u8]) -> Result<Self, Unusable> {
        let crl = OwnedCertRevocationList::from_der(der).map_err(Unusable::Strict)?;
        let Ok(([], shown)) = CertificateRevocationList::from_der(der) else { return Err(Unusable::Garbled) };
        let at = |t: x509_parser::time::ASN1Time| {
            let seconds = u64::try_from(t.timestamp()).unwrap_or_default();
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
        };
        Ok(Self {
            crl: CertRevocationList::Owned(crl),
            issuer: shown.issuer().to_string(),
            entries: shown.iter_revoked_certificates().count(),
            next_update: shown.next_update().map(at),
        })
    }
}

enum Unusable {
    Strict(webpki::Error),
    Garbled,
}

impl Unusable {
    fn at(self, list: usize) -> RevocationError {
        match self {
            Self::Strict(why) => RevocationError::List { list, why },
            Self::Garbled => RevocationError::Garbled(list),
        }
    }
}

impl fmt::Debug for Revocations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Revocations({} lists, {} entries)", self.lists(), self.entries())
    }
}

/// Why a text holds no revocation lists.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RevocationError {
    /// The PEM text cannot be decoded, or holds more than 64 lists.
    #[error("the PEM text cannot be decoded")]
    Pem,
    /// No list in it. One that names nobody would say that nothing is revoked; an empty text may be one half written.
    #[error("there is no revocation list in the PEM text")]
    Empty,
    /// That one, counted from 0, cannot be used.
    #[error("revocation list {list} cannot be used: {why}")]
    List {
        /// Which.
        list: usize,
        /// Why not.
        why: webpki::Error,
    },
    /// That one, counted from 0, is no revocation list.
    #[error("revocation list {0} cannot be read")]
    Garbled(usize),
}

#[cfg(test)]
mod tests;
