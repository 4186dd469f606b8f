use std::fs;
use std::path::Path;

use identity::signer::{Signer, SignerSettings};
use identity::{SystemClock, TrustBundle};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);
const PATIENCE: Duration = Duration::from_secs(20);

struct Rig {
    signer: Signer,
    bundle: LiveBundle,
    metrics: RevocationMetrics,
    dir: tempfile::TempDir,
}

fn rig() -> Rig {
    let signer = Signer::ephemeral(SignerSettings::default(), Arc::new(SystemClock)).unwrap();
    let bundle = LiveBundle::new(TrustBundle::clone(signer.roots()));
    Rig { signer, bundle, metrics: RevocationMetrics::default(), dir: tempfile::tempdir().unwrap() }
}

impl Rig {
    fn path(&self) -> PathBuf {
        self.dir.path().join("crl.pem")
    }

    async fn open(&self) -> Result<RevocationFile, ListsError> {
        let (bundle, metrics) = (self.bundle.clone(), self.metrics.clone());
        RevocationFile::open(self.path(), bundle, metrics, Arc::new(SystemClock)).await
    }

    fn list(&self, serials: &[&str], next: Duration) -> String {
        self.signer.revocation_list(serials, next).unwrap()
    }

    /// Waits until so many certificates are revoked.
    async fn revoked(&self, entries: usize) {
        let mut changes = self.bundle.changes();
        let until = async {
            while self.bundle.revocations().entries() != entries {
                changes.changed().await.unwrap();
            }
        };
        let came = timeout(PATIENCE, until).await;
        assert!(came.is_ok(), "{:?}, not {entries}", self.bundle.revocations());
    }
}

fn replace(path: &Path, text: &str) {
    let aside = path.with_extension("new");
    fs::write(&aside, text).unwrap();
    fs::rename(&aside, path).unwrap();
}

#[tokio::test]
async fn lists_are_followed_and_what_cannot_be_used_leaves_the_last_in_force() {
    let rig = rig();
    let mut file = rig.open().await.unwrap();
    assert_eq!(rig.bundle.revocations().lists(), 0, "there is no file yet");
    let failures = || rig.metrics.failures.get();
    replace(&rig.path(), &rig.list(&["0a"], DAY));
    next(&mut file).await;
    assert_eq!((rig.bundle.revocations().entries(), failures()), (1, 0));
    for (spoilt, so_far) in [("", 1), ("-----BEGIN X509 CRL-----\nrubbish", 2)] {
        replace(&rig.path(), spoilt);
        next(&mut file).await;
        assert_eq!(failures(), so_far);
        assert_eq!((rig.bundle.revocations().entries(), rig.metrics.unusable.get()), (1, 1));
    }
    fs::remove_file(rig.path()).unwrap();
    next(&mut file).await;
    assert_eq!((rig.bundle.revocations().entries(), failures()), (1, 3), "that it is gone is counted");
    // From here on as in a proxy.
    let followed = tokio::spawn(file.follow());
    replace(&rig.path(), &rig.list(&["0a", "0b"], DAY));
    rig.revoked(2).await;
    assert_eq!(rig.metrics.unusable.get(), 0);
    replace(&rig.path(), &rig.list(&[], DAY));
    rig.revoked(0).await;
    followed.abort();
}

/// Takes the file's next state in.
async fn next(file: &mut RevocationFile) {
    timeout(PATIENCE, file.next()).await.expect("the file has changed");
}

#[tokio::test]
async fn a_proxy_does_not_start_on_lists_that_it_cannot_use() {
    let rig = rig();
    fs::write(rig.path(), "").unwrap();
    let error = rig.open().await.unwrap_err();
    assert!(matches!(error, ListsError::Lists { source: RevocationError::Empty, .. }));
    fs::remove_file(rig.path()).unwrap();
    fs::create_dir(rig.path()).unwrap();
    assert!(matches!(rig.open().await.unwrap_err(), ListsError::Read { .. }));
}

#[tokio::test]
async fn a_list_that_is_late_is_told_and_counts() {
    let rig = rig();
    fs::write(rig.path(), rig.list(&["0a"], Duration::from_secs(1))).unwrap();
    let mut file = rig.open().await.unwrap();
    file.clock = Arc::new(Later);
    file.look();
    assert_eq!((rig.metrics.late.get(), rig.bundle.revocations().entries()), (1, 1));
}

#[derive(Debug)]
struct Later;

impl Clock for Later {
    fn now(&self) -> std::time::SystemTime {
        std::time::SystemTime::now() + DAY
    }
}
