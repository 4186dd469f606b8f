//! A small mesh for tests: one CA, one clock.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use model::{IdentitySet, SpiffeId, TrustDomain};
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, SanType};
use rustls::pki_types::CertificateDer;

use crate::clock::{Clock, TokioClock};
use crate::signer::{Signer, SignerSettings};
use crate::{Curve, End, KeyPair, LiveBundle, Proof, Svid, TlsIdentity, TrustDomains, pem};

pub(crate) struct Mesh {
    pub(crate) signer: Arc<Signer>,
    pub(crate) clock: TokioClock,
    pub(crate) bundle: LiveBundle,
}

pub(crate) fn id(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

pub(crate) fn ids(accounts: &[&str]) -> IdentitySet {
    IdentitySet::of(accounts.iter().map(|a| id(a))).unwrap()
}

pub(crate) fn own_domain() -> TrustDomains {
    TrustDomains::of([TrustDomain::default()])
}

impl Mesh {
    pub(crate) fn new() -> Self {
        let clock = TokioClock::starting_at(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        let signer = Arc::new(Signer::ephemeral(SignerSettings::default(), Arc::new(clock.clone())).unwrap());
        let bundle = LiveBundle::new(signer.roots().clone());
        Self { signer, clock, bundle }
    }

    pub(crate) fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(self.clock.clone())
    }

    pub(crate) fn svid(&self, id: &SpiffeId) -> Svid {
        let key = KeyPair::generate(Curve::P256).unwrap();
        let signed = self.signer.sign(&key.request(id).unwrap(), id, None).unwrap();
        Svid::from_response(id, key, &signed.chain, self.clock.now()).unwrap()
    }

    pub(crate) fn identity(&self, account: &str) -> TlsIdentity {
        self.identity_of(&id(account))
    }

    pub(crate) fn identity_of(&self, id: &SpiffeId) -> TlsIdentity {
        TlsIdentity::new(self.svid(id), self.bundle.clone(), own_domain(), self.clock())
    }

    /// A leaf that the CA would never sign, signed by its root.
    pub(crate) fn leaf(
        &self,
        uris: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> CertificateDer<'static> {
        let mut params = self.leaf_params(uris);
        change(&mut params);
        let signed = self.signer.issue(&params, &KeyPair::generate(Curve::P256).unwrap()).unwrap();
        pem::certificates(&signed.chain[0]).unwrap().remove(0)
    }

    pub(crate) fn leaf_params(&self, uris: &[&str]) -> CertificateParams {
        let mut params = self.signer.end_entity(None).unwrap();
        params.subject_alt_names =
            uris.iter().map(|u| SanType::URI(Ia5String::try_from(*u).unwrap())).collect();
        params
    }
}

/// What a client and a server have proved to each other: the client's to the server first.
pub(crate) fn proofs(client: &TlsIdentity, server: &TlsIdentity) -> (Proof, Proof) {
    let expected = IdentitySet::one(server.svid().id().clone());
    let config = client.client_config(&expected);
    let mut near = rustls::ClientConnection::new(config, crate::unnamed()).unwrap();
    let mut far = rustls::ServerConnection::new(server.server_config()).unwrap();
    while near.is_handshaking() || far.is_handshaking() {
        let mut bytes = Vec::new();
        near.write_tls(&mut bytes).unwrap();
        far.read_tls(&mut bytes.as_slice()).unwrap();
        far.process_new_packets().unwrap();
        bytes.clear();
        far.write_tls(&mut bytes).unwrap();
        near.read_tls(&mut bytes.as_slice()).unwrap();
        near.process_new_packets().unwrap();
    }
    let clients = server.proof(&far, End::Client).unwrap().unwrap();
    (clients, client.proof(&near, End::Server).unwrap().unwrap())
}
