//! The certificates of the workloads that a program speaks for.
//!
//! Whoever needs an identity takes a [`Lease`] on it. As long as one lease stands, one task keeps one certificate of that
//! identity: asks for it, renews it at half-life, keeps the old one while it holds. Who needs the certificate now waits
//! on the lease, however many wait there is one request. The last lease dropped ends the task and forgets the key.

mod keeper;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use model::SpiffeId;
use parking_lot::Mutex;
use serde::Serialize;
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bundle::LiveBundle;
use crate::clock::Clock;
use crate::keys::KeyError;
use crate::rotation::{Pace, State};
use crate::svid::IssueError;
use crate::tls::TlsIdentity;
use crate::verifier::TrustDomains;

/// Signs certificates: the control plane, or in tests a [`Signer`](crate::signer::Signer) itself.
#[async_trait]
pub trait CertificateAuthority: Send + Sync + 'static {
    /// Asks for a certificate of `id` for the key that signed `csr_pem`, holding for `ttl`. The answer is the leaf, then
    /// intermediates, the roots last, in PEM. Dropped after [`StoreSettings::request_timeout`].
    async fn sign(&self, id: &SpiffeId, csr_pem: &str, ttl: Duration) -> Result<Vec<String>, SignError>;
}

/// Why a CA signed nothing. Each is tried again: an identity that is denied may be known a moment later.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SignError {
    /// It cannot be reached, or failed in the middle.
    #[error("the CA cannot be reached: {0}")]
    Unreachable(String),
    /// It knows us and will not certify that identity for us, or does not know us.
    #[error("the CA denies it: {0}")]
    Denied(String),
    /// It does not understand the request.
    #[error("the CA refuses the request: {0}")]
    Refused(String),
}

/// Why an identity has no fresh certificate.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RefreshError {
    /// The CA signed nothing.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The CA gave no answer in time.
    #[error("the CA gives no answer within {0:?}")]
    Timeout(Duration),
    /// The CA's answer cannot be used.
    #[error("{0}{cause}", cause = cause(.0))]
    Issue(#[from] IssueError),
    /// There is no key to ask for.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// Errors that are kept as text lose their sources; this keeps the last word.
fn cause(e: &IssueError) -> String {
    std::error::Error::source(e).map(|s| format!(": {s}")).unwrap_or_default()
}

/// Why a wait for an identity ended without it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FetchError {
    /// The time is up.
    #[error("no certificate for {id} within {waited:?}{}", last.as_ref().map(|e| format!(": {e}")).unwrap_or_default())]
    Timeout {
        /// Whose.
        id: SpiffeId,
        /// How long the wait was.
        waited: Duration,
        /// What the last request failed with, if one has failed.
        last: Option<RefreshError>,
    },
    /// The store is shutting down.
    #[error("certificates are no longer fetched")]
    Closed,
}

/// What a store asks for, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreSettings {
    /// How long certificates are to hold (`SECRET_TTL`): 24 h. The CA may give less.
    pub ttl: Duration,
    /// The trust domains that may connect to the workloads.
    pub accepted: TrustDomains,
    /// Requests to the CA at once: 8.
    pub parallel_requests: usize,
    /// How long one request may take: 10 s.
    pub request_timeout: Duration,
    /// The delays of renewals and failures.
    pub pace: Pace,
}

impl StoreSettings {
    /// The defaults, with the trust domains that may connect.
    pub fn accepting(accepted: TrustDomains) -> Self {
        Self {
            ttl: Duration::from_secs(24 * 3600),
            accepted,
            parallel_requests: 8,
            request_timeout: Duration::from_secs(10),
            pace: Pace::default(),
        }
    }
}

/// The certificates of a program's workloads. A clone is another handle; usable from any thread and runtime.
#[derive(Clone)]
pub struct SvidStore {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    kept: Mutex<HashMap<SpiffeId, Kept>>,
    runtime: Handle,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What all keepers use.
struct Shared {
    ca: Arc<dyn CertificateAuthority>,
    settings: StoreSettings,
    clock: Arc<dyn Clock>,
    bundle: LiveBundle,
    requests: Semaphore,
}

/// An identity that is leased.
struct Kept {
    leases: usize,
    keeper: Arc<Keeper>,
}

/// What leases share with the task behind them.
struct Keeper {
    published: watch::Receiver<Published>,
    encouraged: Notify,
    /// Somebody waits for the certificate.
    wanted: Notify,
    stop: CancellationToken,
}

/// What is known of an identity.
#[derive(Clone, Debug)]
struct Published {
    identity: Option<Arc<TlsIdentity>>,
    state: State,
    failure: Option<RefreshError>,
}

impl SvidStore {
    /// An empty store whose tasks run on `runtime`: not on one of the data path's.
    ///
    /// `bundle` holds what peers are checked against, to begin with; each answer of the CA replaces it, so that what the
    /// CA says last of the mesh's roots holds for all identities at once.
    pub fn new(
        ca: Arc<dyn CertificateAuthority>,
        settings: StoreSettings,
        bundle: LiveBundle,
        clock: Arc<dyn Clock>,
        runtime: Handle,
    ) -> Self {
        let requests = Semaphore::new(settings.parallel_requests.max(1));
        Self {
            inner: Arc::new(Inner {
                shared: Arc::new(Shared { ca, settings, clock, bundle, requests }),
                kept: Mutex::default(),
                runtime,
                tasks: TaskTracker::new(),
                stop: CancellationToken::new(),
            }),
        }
    }

    /// Keeps a certificate of `id` from now on until the lease, and all others on it, are dropped. Returns at once; the
    /// first request goes out in the background.
    pub fn lease(&self, id: &SpiffeId) -> Lease {
        let keeper = {
            let mut kept = self.inner.kept.lock();
            let entry = kept
                .entry(id.clone())
                .or_insert_with(|| Kept { leases: 0, keeper: self.inner.start_keeper(id.clone()) });
            entry.leases += 1;
            Arc::clone(&entry.keeper)
        };
        Lease { id: id.clone(), keeper, inner: Arc::clone(&self.inner) }
    }

    /// A certificate of `id` that holds, waiting at most `within` for it. Without a standing lease, the request is made
    /// for this call alone and its result forgotten when the call's users drop it.
    pub async fn fetch(&self, id: &SpiffeId, within: Duration) -> Result<Arc<TlsIdentity>, FetchError> {
        self.lease(id).fetch(within).await
    }

    /// Makes all identities whose requests failed ask again within a second: call it when the control plane is reached
    /// again.
    pub fn encourage(&self) {
        for kept in self.inner.kept.lock().values() {
            kept.keeper.encouraged.notify_one();
        }
    }

    /// The roots that peers are checked against.
    pub fn bundle(&self) -> &LiveBundle {
        &self.inner.shared.bundle
    }

    /// What is kept, for dumps; in the identities' order. No keys.
    pub fn snapshot(&self) -> Vec<SvidStatus> {
        let now = self.inner.shared.clock.now();
        let kept = self.inner.kept.lock();
        let mut all: Vec<_> = kept.iter().map(|(id, kept)| SvidStatus::of(id, kept, now)).collect();
        drop(kept);
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    /// Stops all renewals and waits for their tasks. Leases give no new certificates afterwards.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

impl Inner {
    fn start_keeper(&self, id: SpiffeId) -> Arc<Keeper> {
        let state = State::wanting(self.shared.clock.now());
        let (publish, published) = watch::channel(Published { identity: None, state, failure: None });
        let keeper = Arc::new(Keeper {
            published,
            encouraged: Notify::new(),
            wanted: Notify::new(),
            stop: self.stop.child_token(),
        });
        let task = keeper::keep(Arc::clone(&self.shared), id, Arc::clone(&keeper), publish);
        self.tasks.spawn_on(task, &self.runtime);
        keeper
    }
}

impl std::fmt::Debug for SvidStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SvidStore").field("identities", &self.inner.kept.lock().len()).finish_non_exhaustive()
    }
}

/// The right to a certificate, and the reason for keeping it fresh. Cloning takes another.
pub struct Lease {
    id: SpiffeId,
    keeper: Arc<Keeper>,
    inner: Arc<Inner>,
}

impl Lease {
    /// Whose.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// What peers are checked against.
    pub fn bundle(&self) -> &LiveBundle {
        &self.inner.shared.bundle
    }

    /// The certificate, if there is one that holds now.
    pub fn current(&self) -> Option<Arc<TlsIdentity>> {
        let now = self.inner.shared.clock.now();
        self.keeper.published.borrow().identity.clone().filter(|i| i.is_valid_at(now))
    }

    /// The certificate, waiting at most `within` for one that holds. Never one that has expired. Cancel-safe.
    pub async fn fetch(&self, within: Duration) -> Result<Arc<TlsIdentity>, FetchError> {
        if let Some(identity) = self.current() {
            return Ok(identity);
        }
        // One that does not hold any more, or not yet, is news to its keeper where the wall clock was set.
        self.keeper.wanted.notify_one();
        let mut published = self.keeper.published.clone();
        let clock = &self.inner.shared.clock;
        let holds = |p: &Published| p.identity.as_ref().is_some_and(|i| i.is_valid_at(clock.now()));
        let arrived = match timeout(within, published.wait_for(holds)).await {
            Ok(Ok(published)) => published.identity.clone(),
            Ok(Err(_)) => return Err(FetchError::Closed),
            Err(_) => None,
        };
        arrived.ok_or_else(|| FetchError::Timeout {
            id: self.id.clone(),
            waited: within,
            last: self.keeper.published.borrow().failure.clone(),
        })
    }
}

impl Clone for Lease {
    fn clone(&self) -> Self {
        SvidStore { inner: Arc::clone(&self.inner) }.lease(&self.id)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut kept = self.inner.kept.lock();
        if let Some(entry) = kept.get_mut(&self.id) {
            entry.leases -= 1;
            if entry.leases == 0 {
                entry.keeper.stop.cancel();
                kept.remove(&self.id);
            }
        }
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Lease").field(&self.id).finish()
    }
}

/// An identity as a dump shows it. Times are RFC 3339.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SvidStatus {
    /// Whose.
    pub id: SpiffeId,
    /// Where it stands.
    pub state: SvidState,
    /// How many want it.
    pub leases: usize,
    /// The certificate's serial number in hexadecimals.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// When the certificate begins to hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<String>,
    /// When the certificate ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
    /// When the CA is asked (again).
    pub next_request: String,
    /// Requests that failed since the last success.
    pub failures: u32,
    /// What the last of them failed with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
}

/// The words for where an identity stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SvidState {
    /// The first certificate has not come yet.
    Pending,
    /// The certificate holds and the last request succeeded.
    Valid,
    /// The certificate holds and its renewal fails.
    Overdue,
    /// The certificate has expired and none has come in its place.
    Expired,
}

impl SvidStatus {
    fn of(id: &SpiffeId, kept: &Kept, now: SystemTime) -> Self {
        let published = kept.keeper.published.borrow().clone();
        let svid = published.identity.as_deref().map(TlsIdentity::svid);
        let (state, ask_at) = match published.state {
            State::Lacking { ask_at, expired, .. } => {
                (if expired { SvidState::Expired } else { SvidState::Pending }, ask_at)
            }
            State::Holding { not_after, ask_at, .. } if now >= not_after => (SvidState::Expired, ask_at),
            State::Holding { ask_at, failures: 0, .. } => (SvidState::Valid, ask_at),
            State::Holding { ask_at, .. } => (SvidState::Overdue, ask_at),
        };
        Self {
            id: id.clone(),
            state,
            leases: kept.leases,
            serial: svid.map(|s| s.serial().to_owned()),
            not_before: svid.map(|s| rfc3339(s.not_before())),
            not_after: svid.map(|s| rfc3339(s.not_after())),
            next_request: rfc3339(ask_at),
            failures: published.state.failures(),
            last_failure: published.failure.map(|f| f.to_string()),
        }
    }
}

fn rfc3339(at: SystemTime) -> String {
    let at = time::OffsetDateTime::from(at).replace_nanosecond(0).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    at.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests;
