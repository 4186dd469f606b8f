use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::time::{Instant, advance, sleep};

use super::*;
use crate::fixtures::{Mesh, id, own_domain};
use crate::signer::Signer;
use crate::{Curve, KeyPair, Revocations};

const SOON: Duration = Duration::from_secs(5);
const HOUR: Duration = Duration::from_secs(3600);

/// A CA that does as it is told.
struct Told {
    signer: Mutex<Arc<Signer>>,
    mood: Mutex<Mood>,
    asked: AtomicUsize,
    at_once: AtomicUsize,
    at_once_max: AtomicUsize,
}

#[derive(Clone)]
enum Mood {
    Sign {
        after: Duration,
    },
    Fail(SignError),
    Hang,
    /// Certifies somebody else.
    Confused,
    /// Certifies another key.
    OtherKey,
}

#[async_trait]
impl CertificateAuthority for Told {
    async fn sign(&self, id: &SpiffeId, csr_pem: &str, ttl: Duration) -> Result<Vec<String>, SignError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.at_once_max.fetch_max(now, Ordering::SeqCst);
        let (mood, signer) = (self.mood.lock().clone(), Arc::clone(&*self.signer.lock()));
        let sign = |id: &SpiffeId, csr: &str| Ok(signer.sign(csr, id, Some(ttl)).unwrap().chain);
        let answer = match mood {
            Mood::Sign { after } => {
                sleep(after).await;
                sign(id, csr_pem)
            }
            Mood::Fail(e) => Err(e),
            Mood::Hang => std::future::pending().await,
            Mood::Confused => {
                let other = crate::fixtures::id("other");
                sign(&other, &KeyPair::generate(Curve::P256).unwrap().request(&other).unwrap())
            }
            Mood::OtherKey => sign(id, &KeyPair::generate(Curve::P256).unwrap().request(id).unwrap()),
        };
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        answer
    }
}

struct Bench {
    mesh: Mesh,
    ca: Arc<Told>,
    store: SvidStore,
}

fn bench(mood: Mood) -> Bench {
    let mesh = Mesh::new();
    let ca = Arc::new(Told {
        signer: Mutex::new(Arc::clone(&mesh.signer)),
        mood: Mutex::new(mood),
        asked: AtomicUsize::new(0),
        at_once: AtomicUsize::new(0),
        at_once_max: AtomicUsize::new(0),
    });
    let settings = StoreSettings::accepting(own_domain());
    let bundle = LiveBundle::new(mesh.signer.roots().clone());
    let store = SvidStore::new(ca.clone(), settings, bundle, mesh.clock(), Handle::current());
    Bench { mesh, ca, store }
}

impl Bench {
    fn asked(&self) -> usize {
        self.ca.asked.load(Ordering::SeqCst)
    }

    fn be(&self, mood: Mood) {
        *self.ca.mood.lock() = mood;
    }

    fn status(&self) -> SvidStatus {
        self.store.snapshot().remove(0)
    }
}

fn prompt() -> Mood {
    Mood::Sign { after: Duration::from_millis(10) }
}

fn down() -> Mood {
    Mood::Fail(SignError::Unreachable("down".into()))
}

/// Lets the tasks run that have something to do now.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_brings_the_certificate_without_anybody_waiting() {
    let bench = bench(prompt());
    let lease = bench.store.lease(&id("a"));
    assert!(lease.current().is_none());
    sleep(SOON).await;
    assert_eq!(lease.current().unwrap().svid().id(), &id("a"));
    assert_eq!(bench.status().state, SvidState::Valid);
}

#[tokio::test(start_paused = true)]
async fn many_that_wait_make_one_request() {
    let bench = bench(prompt());
    let lease = bench.store.lease(&id("a"));
    let waits: Vec<_> = (0..50)
        .map(|_| {
            let lease = lease.clone();
            tokio::spawn(async move { lease.fetch(SOON).await.unwrap().svid().serial().to_owned() })
        })
        .collect();
    let mut serials = Vec::new();
    for wait in waits {
        serials.push(wait.await.unwrap());
    }
    serials.dedup();
    assert_eq!((serials.len(), bench.asked()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_with_what_the_last_request_failed_with() {
    let bench = bench(Mood::Fail(SignError::Denied("not on this node".into())));
    let begun = Instant::now();
    let error = bench.store.fetch(&id("a"), SOON).await.unwrap_err();
    assert_eq!(begun.elapsed(), SOON);
    let denied = RefreshError::Sign(SignError::Denied("not on this node".into()));
    assert_eq!(error, FetchError::Timeout { id: id("a"), waited: SOON, last: Some(denied) });
    assert!(error.to_string().contains("not on this node"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_wait_outlasts_failures() {
    let bench = bench(down());
    let lease = bench.store.lease(&id("a"));
    let waiting = tokio::spawn(async move { lease.fetch(SOON).await });
    sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.status().state, SvidState::Pending);
    bench.be(prompt());
    waiting.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_certificate_is_renewed_around_half_life() {
    let bench = bench(prompt());
    let lease = bench.store.lease(&id("a"));
    let first = lease.fetch(SOON).await.unwrap();
    sleep(HOUR * 10).await;
    assert_eq!(lease.current().unwrap().svid().serial(), first.svid().serial());
    sleep(HOUR * 4).await;
    assert_ne!(lease.current().unwrap().svid().serial(), first.svid().serial());
    assert_eq!(bench.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_old_certificate_serves_until_its_end_and_not_beyond() {
    let bench = bench(prompt());
    let lease = bench.store.lease(&id("a"));
    let first = lease.fetch(SOON).await.unwrap();
    bench.be(down());
    sleep(HOUR * 23).await;
    assert!(Arc::ptr_eq(&lease.current().unwrap(), &first));
    assert_eq!(bench.status().state, SvidState::Overdue);
    sleep(HOUR * 2).await;
    assert!(lease.current().is_none());
    assert!(matches!(lease.fetch(SOON).await, Err(FetchError::Timeout { .. })));
    let status = bench.status();
    assert_eq!(status.state, SvidState::Expired);
    assert!(status.last_failure.unwrap().contains("down"));
    bench.be(prompt());
    lease.fetch(Duration::from_secs(200)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn encouragement_cuts_a_long_back_off_short() {
    let bench = bench(down());
    let lease = bench.store.lease(&id("a"));
    sleep(HOUR).await;
    bench.be(prompt());
    bench.store.encourage();
    lease.fetch(Duration::from_secs(2)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_hangs_is_given_up_and_asked_again() {
    let bench = bench(Mood::Hang);
    let lease = bench.store.lease(&id("a"));
    sleep(Duration::from_secs(11)).await;
    assert!(bench.status().last_failure.unwrap().contains("10s"));
    bench.be(prompt());
    // The second request hangs already; the third is answered.
    lease.fetch(SOON * 4).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_was_not_asked_for_is_not_taken() {
    let bench = bench(Mood::Confused);
    let lease = bench.store.lease(&id("a"));
    let FetchError::Timeout { last, .. } = lease.fetch(SOON).await.unwrap_err() else { panic!() };
    assert!(matches!(last, Some(RefreshError::Issue(IssueError::WrongIdentity { .. }))), "{last:?}");
    bench.be(Mood::OtherKey);
    let FetchError::Timeout { last, .. } = lease.fetch(SOON * 4).await.unwrap_err() else { panic!() };
    assert_eq!(last, Some(RefreshError::Issue(IssueError::WrongKey)));
}

#[tokio::test(start_paused = true)]
async fn the_last_lease_dropped_releases_the_identity() {
    let bench = bench(prompt());
    let lease = bench.store.lease(&id("a"));
    let second = lease.clone();
    let held = lease.fetch(SOON).await.unwrap();
    drop(lease);
    assert_eq!(bench.status().leases, 1);
    drop(second);
    assert!(bench.store.snapshot().is_empty());
    sleep(HOUR * 30).await;
    assert_eq!(bench.asked(), 1, "nobody renews it");
    assert_eq!(held.svid().id(), &id("a"), "who has it keeps it");
    assert!(bench.store.inner.tasks.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_released_identity_that_is_wanted_again_is_asked_for_anew() {
    let bench = bench(prompt());
    let first = bench.store.fetch(&id("a"), SOON).await.unwrap();
    let second = bench.store.fetch(&id("a"), SOON).await.unwrap();
    assert_ne!(first.svid().serial(), second.svid().serial());
}

#[tokio::test(start_paused = true)]
async fn no_more_requests_run_at_once_than_allowed() {
    let bench = bench(Mood::Sign { after: Duration::from_millis(100) });
    let leases: Vec<_> = (0..40).map(|n| bench.store.lease(&id(&format!("a{n}")))).collect();
    for lease in &leases {
        lease.fetch(SOON).await.unwrap();
    }
    assert_eq!(bench.ca.at_once_max.load(Ordering::SeqCst), 8);
}

#[tokio::test(start_paused = true)]
async fn new_roots_hold_for_all_identities_at_once() {
    let bench = bench(prompt());
    let early = bench.store.lease(&id("early"));
    early.fetch(SOON).await.unwrap();
    let other = Mesh::new();
    *bench.ca.signer.lock() = other.signer.clone();
    bench.store.fetch(&id("late"), SOON).await.unwrap();
    let believed = || bench.store.bundle().load().certificates().to_vec();
    let both = [bench.mesh.signer.roots(), other.signer.roots()].map(|r| r.certificates()[0].clone());
    assert_eq!(believed(), both, "those that were set up stay");
    bench.store.bundle().set_up(other.signer.roots().clone());
    assert_eq!(believed(), both[1..]);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_whose_root_is_believed_no_more_is_renewed_at_once() {
    let bench = bench(prompt());
    let (first, second) = (bench.store.lease(&id("a")), bench.store.lease(&id("b")));
    let old = first.fetch(SOON).await.unwrap();
    second.fetch(SOON).await.unwrap();
    let list = bench.mesh.signer.revocation_list([old.svid().serial()], HOUR).unwrap();
    bench.store.bundle().revoke(Revocations::from_pem(list.as_bytes()).unwrap());
    sleep(Duration::from_secs(5)).await;
    assert_eq!(bench.asked(), 2, "who took it back did not mean to give another");
    let other = Mesh::new();
    *bench.ca.signer.lock() = other.signer.clone();
    bench.store.bundle().set_up(other.signer.roots().clone());
    sleep(Duration::from_secs(5)).await;
    assert_eq!(bench.asked(), 4);
    assert_ne!(first.current().unwrap().svid().serial(), old.svid().serial());
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_the_tasks_and_the_waits() {
    let bench = bench(Mood::Hang);
    let lease = bench.store.lease(&id("a"));
    let waiting = tokio::spawn(async move { lease.fetch(HOUR).await });
    settle().await;
    bench.store.shutdown().await;
    assert_eq!(waiting.await.unwrap().unwrap_err(), FetchError::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_dump_shows_lives_and_no_keys() {
    let bench = bench(prompt());
    let lease = bench.store.lease(&id("a"));
    let serial = lease.fetch(SOON).await.unwrap().svid().serial().to_owned();
    advance(Duration::from_secs(1)).await;
    let dump = serde_json::to_value(bench.store.snapshot()).unwrap();
    assert_eq!(dump[0]["serial"], serial);
    assert_eq!(dump[0]["state"], "valid");
    assert_eq!(dump[0]["not_after"], "2027-01-16T08:00:00Z");
    let keys: Vec<_> = dump[0].as_object().unwrap().keys().collect();
    assert_eq!(
        keys,
        ["id", "state", "leases", "serial", "not_before", "not_after", "next_request", "failures"]
    );
}

#[test]
fn shards_on_their_own_runtimes_share_a_store() {
    let admin = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (store, _mesh) = {
        let _inside = admin.enter();
        let bench = bench(Mood::Sign { after: Duration::ZERO });
        (bench.store, bench.mesh)
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let shard = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                shard.block_on(async {
                    for n in 0..5 {
                        store.lease(&id(&format!("a{n}"))).fetch(SOON * 4).await.unwrap();
                    }
                });
            });
        }
    });
}
