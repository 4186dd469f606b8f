//! Certificates of the mesh's own authority, for peers that a test plays.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use identity::signer::{Signer, SignerSettings};
use identity::{Clock, Curve, KeyPair};
use model::{SpiffeId, TrustDomain};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use testkit::lab::Lab;

/// A certificate chain with its key, as PEM.
pub(crate) struct Papers {
    /// The leaf, what stands between, and the roots last.
    chain: Vec<String>,
    key: String,
}

/// Papers as files.
pub(crate) struct Filed {
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) roots: PathBuf,
}

impl Papers {
    pub(crate) fn signed_by(signer: &Signer, id: &SpiffeId) -> Self {
        let key = KeyPair::generate(Curve::P256).expect("a key");
        let request = key.request(id).expect("a request");
        let signed = signer.sign(&request, id, None).expect("a certificate");
        Self { chain: signed.chain, key: key.to_pkcs8_pem().expect("the key as PEM").to_string() }
    }

    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        let chain = self.chain.iter().flat_map(|pem| CertificateDer::pem_slice_iter(pem.as_bytes()));
        chain.collect::<Result<_, _>>().expect("PEM")
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("PEM")
    }

    /// Writes them into a folder.
    pub(crate) fn file(&self, folder: &Path) -> Filed {
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).expect("write a certificate");
            path
        };
        let (roots, chain) = self.chain.split_last().expect("a chain");
        Filed {
            chain: write("chain.pem", &chain.concat()),
            key: write("key.pem", &self.key),
            roots: write("roots.pem", roots),
        }
    }
}

/// An identity of the mesh's trust domain.
pub(crate) fn id(namespace: &str, account: &str) -> SpiffeId {
    SpiffeId::new(TrustDomain::default(), namespace, account).expect("an identity")
}

/// The mesh's own authority, at a moment of our choice.
pub(crate) fn authority_of(lab: &Lab, clock: Arc<dyn Clock>) -> Signer {
    Signer::open(&lab.state_dir().join("ca"), SignerSettings::default(), clock).expect("the lab's authority")
}
