//! An X.509-SVID: a workload's certificate with its key.

use std::time::SystemTime;

use model::SpiffeId;
use rustls::pki_types::CertificateDer;
use thiserror::Error;
use webpki::KeyUsage;

use crate::bundle::{Believed, BundleError, TrustBundle};
use crate::certificate::{self, IdentityError};
use crate::clock::unix;
use crate::keys::KeyPair;
use crate::pem;
use crate::verifier::{PeerError, verify_chain};

/// The most elements that are taken of a CA's answer.
const ELEMENTS_MAX: usize = 16;

/// A workload's certificate, the chain that it presents, the roots that came with it, and its key.
#[derive(Clone, Debug)]
pub struct Svid {
    id: SpiffeId,
    key: KeyPair,
    chain: Vec<CertificateDer<'static>>,
    roots: TrustBundle,
    not_before: SystemTime,
    not_after: SystemTime,
    serial: String,
}

impl Svid {
    /// Takes a CA's answer to a request for `id` made with `key`: PEM texts, the leaf first, then intermediates, the
    /// roots last, two elements at least. It is believed only if it is what was asked for and would convince a peer.
    pub fn from_response<S: AsRef<str>>(
        id: &SpiffeId,
        key: KeyPair,
        response: &[S],
        now: SystemTime,
    ) -> Result<Self, IssueError> {
        if !(2..=ELEMENTS_MAX).contains(&response.len()) {
            return Err(IssueError::Elements(response.len()));
        }
        let mut elements = Vec::with_capacity(response.len());
        for (n, element) in response.iter().enumerate() {
            let certificates = pem::certificates(element.as_ref()).filter(|c| !c.is_empty());
            elements.push(certificates.ok_or(IssueError::Pem(n))?);
        }
        let roots = TrustBundle::from_certificates(elements.pop().into_iter().flatten())?;
        let mut chain: Vec<_> = elements.into_iter().flatten().collect();
        // Some answers repeat the root within the chain; peers have it already.
        chain.retain(|c| !roots.certificates().contains(c));
        let (leaf, intermediates) = chain.split_first().ok_or(IssueError::Elements(1))?;

        let facts = certificate::facts(leaf)?;
        if facts.id != *id {
            return Err(IssueError::WrongIdentity { asked: id.clone(), got: facts.id });
        }
        if facts.public_key != key.public_key() {
            return Err(IssueError::WrongKey);
        }
        let at = unix(now).ok_or(IssueError::Clock)?;
        let believed = Believed::all(roots);
        for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
            verify_chain(leaf, intermediates, &believed, usage, at)?;
        }
        Ok(Self {
            id: facts.id,
            key,
            roots: believed.roots,
            not_before: facts.not_before,
            not_after: facts.not_after,
            serial: facts.serial,
            chain,
        })
    }

    /// Whose it is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The certificates to present: the leaf, then intermediates, without the root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The roots that the CA says the mesh trusts.
    pub fn roots(&self) -> &TrustBundle {
        &self.roots
    }

    /// When it begins to hold; back-dated by the CA against clocks that differ.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// When it ends.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Its serial number in lower-case hexadecimals.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Whether it holds.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        (self.not_before..self.not_after).contains(&now)
    }

    pub(crate) fn key(&self) -> &KeyPair {
        &self.key
    }
}

/// Why a CA's answer was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IssueError {
    /// Too few or too many elements.
    #[error(
        "the CA's answer has {0} elements, where 2 to {ELEMENTS_MAX} are expected: leaf, intermediates, roots"
    )]
    Elements(usize),
    /// That element, counted from 0, holds no readable certificate.
    #[error("element {0} of the CA's answer holds no certificate")]
    Pem(usize),
    /// The last element holds no usable root.
    #[error("the roots of the CA's answer are unusable")]
    Roots(#[from] BundleError),
    /// The leaf names no workload.
    #[error("the CA's certificate is unusable")]
    Leaf(#[from] IdentityError),
    /// The leaf is for somebody else.
    #[error("the CA certified {got}, asked was {asked}")]
    WrongIdentity {
        /// Whom we asked for.
        asked: SpiffeId,
        /// Whom it certified.
        got: SpiffeId,
    },
    /// The leaf is for another key.
    #[error("the CA certified another key than was asked")]
    WrongKey,
    /// No peer would accept the chain.
    #[error("the CA's chain does not hold")]
    Chain(#[from] PeerError),
    /// Our clock shows a time before 1970.
    #[error("the machine's clock shows a time before 1970")]
    Clock,
}

#[cfg(test)]
mod tests;
