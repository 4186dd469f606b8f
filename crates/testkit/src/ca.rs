//! A certificate authority that does as the test says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use identity::signer::{Signer, SignerSettings};
use identity::{
    CertificateAuthority, Clock, Curve, KeyPair, LiveBundle, Revocations, SignError, StoreSettings, Svid,
    SvidStore, TlsIdentity, TokioClock, TrustDomains,
};
use model::{SpiffeId, TrustDomain};
use parking_lot::Mutex;

/// A certificate authority with a root of its own, whose clock is tokio's. Clones are the same one.
#[derive(Clone)]
pub struct FakeCa {
    signer: Arc<Signer>,
    clock: TokioClock,
    conduct: Arc<Mutex<Conduct>>,
}

struct Conduct {
    reachable: bool,
    denied: BTreeSet<SpiffeId>,
    latency: Duration,
    asked: BTreeMap<SpiffeId, usize>,
}

impl Default for FakeCa {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeCa {
    /// A reachable authority that signs everything at once. Its wall clock starts in 2027 and goes with tokio's.
    ///
    /// # Panics
    ///
    /// If the cryptography library makes no key.
    pub fn new() -> Self {
        let clock = TokioClock::starting_at(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        let signer = Signer::ephemeral(SignerSettings::default(), Arc::new(clock.clone())).expect("a root");
        let conduct = Conduct {
            reachable: true,
            denied: BTreeSet::new(),
            latency: Duration::ZERO,
            asked: BTreeMap::new(),
        };
        Self { signer: Arc::new(signer), clock, conduct: Arc::new(Mutex::new(conduct)) }
    }

    /// Whether it answers at all.
    pub fn set_reachable(&self, reachable: bool) {
        self.conduct.lock().reachable = reachable;
    }

    /// How long it takes for each answer.
    pub fn set_latency(&self, latency: Duration) {
        self.conduct.lock().latency = latency;
    }

    /// Refuses an identity from now on.
    pub fn deny(&self, id: &SpiffeId) {
        self.conduct.lock().denied.insert(id.clone());
    }

    /// How often a certificate of an identity was asked for.
    pub fn asked(&self, id: &SpiffeId) -> usize {
        self.conduct.lock().asked.get(id).copied().unwrap_or_default()
    }

    /// The clock that its certificates are judged by.
    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(self.clock.clone())
    }

    /// Sets everyone's wall clock, its own and that of all its stores, ahead by so many seconds, or back.
    pub fn set_clock_by(&self, seconds: i64) {
        self.clock.set_by(seconds);
    }

    /// The roots that make its certificates believable.
    pub fn bundle(&self) -> LiveBundle {
        LiveBundle::new(self.signer.roots().clone())
    }

    /// A list that revokes these serial numbers and no others.
    ///
    /// # Panics
    ///
    /// If they are none.
    pub fn revoking<S: AsRef<str>>(&self, serials: impl IntoIterator<Item = S>) -> Revocations {
        let list = self.signer.revocation_list(serials, Duration::from_secs(24 * 3600)).expect("a list");
        Revocations::from_pem(list.as_bytes()).expect("a list that was just made")
    }

    /// A store of certificates of its own, on the caller's runtime, that takes callers of the default trust domain.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn store(&self) -> SvidStore {
        let settings = StoreSettings::accepting(TrustDomains::of([TrustDomain::default()]));
        let runtime = tokio::runtime::Handle::current();
        SvidStore::new(Arc::new(self.clone()), settings, self.bundle(), self.clock(), runtime)
    }

    /// A certificate that it signed, ready for handshakes, without asking: for peers that a test plays itself.
    ///
    /// # Panics
    ///
    /// If the cryptography library fails.
    pub fn identity(&self, id: &SpiffeId) -> TlsIdentity {
        let key = KeyPair::generate(Curve::P256).expect("a key");
        let request = key.request(id).expect("a request");
        let signed = self.signer.sign(&request, id, None).expect("a certificate");
        let svid =
            Svid::from_response(id, key, &signed.chain, self.clock.now()).expect("an answer to the request");
        TlsIdentity::new(svid, self.bundle(), TrustDomains::of([TrustDomain::default()]), self.clock())
    }
}

#[async_trait]
impl CertificateAuthority for FakeCa {
    async fn sign(&self, id: &SpiffeId, csr_pem: &str, ttl: Duration) -> Result<Vec<String>, SignError> {
        let latency = {
            let mut conduct = self.conduct.lock();
            *conduct.asked.entry(id.clone()).or_default() += 1;
            conduct.latency
        };
        tokio::time::sleep(latency).await;
        {
            let conduct = self.conduct.lock();
            if !conduct.reachable {
                return Err(SignError::Unreachable("the test said so".to_owned()));
            }
            if conduct.denied.contains(id) {
                return Err(SignError::Denied("the test said so".to_owned()));
            }
        }
        let signed =
            self.signer.sign(csr_pem, id, Some(ttl)).map_err(|e| SignError::Refused(e.to_string()))?;
        Ok(signed.chain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::identity;

    const LONG: Duration = Duration::from_secs(600);

    #[tokio::test(start_paused = true)]
    async fn what_it_signs_can_be_used() {
        let (ca, id) = (FakeCa::new(), identity("shop", "frontend"));
        assert_eq!(ca.store().fetch(&id, LONG).await.unwrap().svid().id(), &id);
        assert_eq!(ca.asked(&id), 1);
        assert_eq!(ca.identity(&id).svid().id(), &id);
    }

    #[tokio::test(start_paused = true)]
    async fn what_it_refuses_comes_about_only_when_it_relents() {
        let (ca, id) = (FakeCa::new(), identity("shop", "frontend"));
        ca.set_reachable(false);
        let store = ca.store();
        let lease = store.lease(&id);
        assert!(lease.fetch(Duration::from_secs(10)).await.is_err());
        ca.set_reachable(true);
        assert!(lease.fetch(LONG).await.is_ok());
        ca.deny(&identity("shop", "other"));
        assert!(store.fetch(&identity("shop", "other"), Duration::from_secs(10)).await.is_err());
    }
}
