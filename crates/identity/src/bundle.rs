//! The roots that a mesh trusts.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::pki_types::{CertificateDer, TrustAnchor};
use thiserror::Error;
use tokio::sync::watch;

use crate::pem;
use crate::revocation::Revocations;

/// A set of root certificates, never empty. Immutable; cloning shares it.
#[derive(Clone)]
pub struct TrustBundle(Arc<Roots>);

struct Roots {
    certificates: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
}

impl TrustBundle {
    /// Reads the roots of a PEM text.
    pub fn from_pem(pem: &str) -> Result<Self, BundleError> {
        Self::from_certificates(pem::certificates(pem).ok_or(BundleError::Pem)?)
    }

    /// Takes certificates as roots, each once.
    pub fn from_certificates(
        certificates: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, BundleError> {
        let mut roots = Roots { certificates: Vec::new(), anchors: Vec::new() };
        for certificate in certificates {
            if !roots.certificates.contains(&certificate) {
                let anchor = webpki::anchor_from_trusted_cert(&certificate)
                    .map_err(|_| BundleError::NotACertificate(roots.certificates.len()))?
                    .to_owned();
                roots.anchors.push(anchor);
                roots.certificates.push(certificate);
            }
        }
        if roots.certificates.is_empty() { Err(BundleError::Empty) } else { Ok(Self(Arc::new(roots))) }
    }

    /// The roots' certificates.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.0.certificates
    }

    /// The roots as one PEM text.
    pub fn to_pem(&self) -> String {
        self.0.certificates.iter().map(|c| pem::encode("CERTIFICATE", c)).collect()
    }

    /// These roots and the other's.
    fn with(&self, other: &Self) -> Self {
        Self::chosen_of([self, other], |_| true).unwrap_or_else(|| self.clone())
    }

    /// These roots without the other's, if any are left.
    fn without(&self, other: &Self) -> Option<Self> {
        Self::chosen_of([self], |root| !other.certificates().contains(root))
    }

    fn has_all_of(&self, other: &Self) -> bool {
        other.certificates().iter().all(|root| self.certificates().contains(root))
    }

    fn chosen_of<'a>(
        sets: impl IntoIterator<Item = &'a Self>,
        choose: impl Fn(&CertificateDer<'static>) -> bool,
    ) -> Option<Self> {
        let mut roots = Roots { certificates: Vec::new(), anchors: Vec::new() };
        for set in sets {
            for (certificate, anchor) in set.0.certificates.iter().zip(&set.0.anchors) {
                if choose(certificate) && !roots.certificates.contains(certificate) {
                    roots.certificates.push(certificate.clone());
                    roots.anchors.push(anchor.clone());
                }
            }
        }
        (!roots.certificates.is_empty()).then(|| Self(Arc::new(roots)))
    }

    pub(crate) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.0.anchors
    }
}

impl PartialEq for TrustBundle {
    fn eq(&self, other: &Self) -> bool {
        self.certificates() == other.certificates()
    }
}

impl Eq for TrustBundle {}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustBundle({} roots)", self.0.certificates.len())
    }
}

/// What peers are checked against now: the bundle, and what its authorities have taken back. Verifiers look at it anew for
/// each handshake, so that a change takes effect at once and without building anything again; and who holds a peer's
/// [`Proof`](crate::Proof) can look at it again when it has changed. A clone is another handle.
///
/// Roots come from two sides, from the one who set the program up and with the certificates that it is issued, and while
/// one root takes over from another the two learn of it at different times. So what either names is believed; and a root
/// that was set up and is taken out is believed no more, though the last certificate came with it, until another does.
#[derive(Clone, Debug)]
pub struct LiveBundle(Arc<Live>);

#[derive(Debug)]
struct Live {
    held: ArcSwap<Believed>,
    /// How often it has changed. What is told of was in force before.
    changes: watch::Sender<u64>,
}

/// A bundle, and what is revoked under it.
#[derive(Clone, Debug)]
pub(crate) struct Believed {
    /// All roots.
    pub(crate) roots: TrustBundle,
    set_up: TrustBundle,
    issued: Option<TrustBundle>,
    pub(crate) revoked: Revocations,
}

impl Believed {
    /// These roots, with nothing revoked.
    pub(crate) fn all(roots: TrustBundle) -> Self {
        Self { set_up: roots.clone(), roots, issued: None, revoked: Revocations::default() }
    }

    fn among(self, set_up: TrustBundle, issued: Option<TrustBundle>) -> Self {
        let roots = issued.as_ref().map_or_else(|| set_up.clone(), |issued| set_up.with(issued));
        Self { roots, set_up, issued, revoked: self.revoked }
    }
}

impl LiveBundle {
    /// A handle that holds `bundle`, with nothing revoked.
    pub fn new(bundle: TrustBundle) -> Self {
        let held = ArcSwap::from_pointee(Believed::all(bundle));
        Self(Arc::new(Live { held, changes: watch::Sender::new(0) }))
    }

    /// The bundle that holds now.
    pub fn load(&self) -> TrustBundle {
        self.0.held.load().roots.clone()
    }

    /// What is revoked now.
    pub fn revocations(&self) -> Revocations {
        self.0.held.load().revoked.clone()
    }

    /// Sets up other roots. Those that are taken out are believed no more, whoever named them.
    pub fn set_up(&self, roots: TrustBundle) {
        self.change(|held| {
            let gone = held.set_up.without(&roots);
            let issued = match (&held.issued, &gone) {
                (Some(issued), Some(gone)) => issued.without(gone),
                (issued, _) => issued.clone(),
            };
            held.clone().among(roots.clone(), issued)
        });
    }

    /// Takes the roots that came with a certificate: they are believed too, and no more those that came with the one
    /// before. Whether that is another set than before.
    pub fn issued(&self, roots: &TrustBundle) -> bool {
        self.change(|held| held.clone().among(held.set_up.clone(), Some(roots.clone())))
    }

    /// Refuses what these lists name from now on, and no more what others named before.
    pub fn revoke(&self, revoked: Revocations) {
        self.change(|held| Believed { revoked: revoked.clone(), ..held.clone() });
    }

    /// Tells of each change that comes from now on, after it is in force.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    pub(crate) fn believed(&self) -> Arc<Believed> {
        self.0.held.load_full()
    }

    /// Goes up with each change. Read before [`Self::believed`], it is never newer than that.
    pub(crate) fn generation(&self) -> u64 {
        *self.0.changes.borrow()
    }

    /// Whether what is believed is another than before.
    fn change(&self, next: impl Fn(&Believed) -> Believed) -> bool {
        let mut differs = false;
        self.0.held.rcu(|held| {
            let next = next(held);
            let same = held.roots.has_all_of(&next.roots) && next.roots.has_all_of(&held.roots);
            differs = !same || !held.revoked.is(&next.revoked);
            next
        });
        if differs {
            self.0.changes.send_modify(|n| *n += 1);
        }
        differs
    }
}

/// Why a text is no trust bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BundleError {
    /// The PEM text cannot be decoded, or holds more than 64 certificates.
    #[error("the PEM text cannot be decoded")]
    Pem,
    /// No certificate in it.
    #[error("there is no certificate in the PEM text")]
    Empty,
    /// That one, counted from 0, is no X.509 certificate.
    #[error("certificate {0} of the bundle is no X.509 certificate")]
    NotACertificate(usize),
}

#[cfg(test)]
mod tests;
