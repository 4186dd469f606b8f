//! The file with the mesh's roots (`CA_ROOT_CA`).

use std::io;
use std::path::PathBuf;

use identity::{BundleError, LiveBundle, TrustBundle};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use runtime::WatchedFile;
use telemetry::access::Chain;
use telemetry::metrics::Registry;
use thiserror::Error;

/// Why there are no roots to believe peers by.
#[derive(Debug, Error)]
pub enum RootsError {
    /// They cannot be read.
    #[error("cannot read the mesh's roots at {}", path.display())]
    Read {
        /// Where they should be.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// They are no roots.
    #[error("the mesh's roots at {} are unusable", path.display())]
    Bundle {
        /// Where they are.
        path: PathBuf,
        /// Why not.
        #[source]
        source: BundleError,
    },
}

/// How the file stands, for whoever watches it.
#[derive(Clone, Debug, Default)]
pub struct RootMetrics {
    roots: Gauge,
    unusable: Gauge,
    failures: Counter,
}

impl RootMetrics {
    /// Registers all families.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let Self { roots, unusable, failures } = metrics.clone();
        registry.register("ambit_trust_roots", "Roots in the file with the mesh's roots", roots);
        registry.register(
            "ambit_trust_roots_unusable",
            "1 while the file cannot be used as it is, and what it held before is believed",
            unusable,
        );
        registry.register(
            "ambit_trust_roots_reads_failed",
            "States of the file that could not be used",
            failures,
        );
        metrics
    }
}

/// The file.
#[derive(Debug)]
pub struct RootFile {
    file: WatchedFile,
    bundle: LiveBundle,
    metrics: RootMetrics,
}

impl RootFile {
    /// Waits until there is one: a control plane that comes later than the proxy puts it there. Cancel-safe.
    ///
    /// # Errors
    /// If there is one and it cannot be used.
    pub async fn wait(path: PathBuf, metrics: RootMetrics) -> Result<Self, RootsError> {
        let mut file = WatchedFile::new(&path);
        let mut read = file.read().await;
        while read.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            tracing::warn!(path = %path.display(), "waiting for the mesh's roots, which are not there yet");
            read = file.changed().await;
        }
        let roots = roots(&path, read)?;
        metrics.count(&roots);
        Ok(Self { file, bundle: LiveBundle::new(roots), metrics })
    }

    /// What peers are checked against.
    pub fn bundle(&self) -> &LiveBundle {
        &self.bundle
    }

    /// Follows the file until this is dropped.
    pub async fn follow(mut self) {
        loop {
            self.next().await;
        }
    }

    /// Waits for the file's next state and puts it in force, if it can be used.
    async fn next(&mut self) {
        let read = self.file.changed().await;
        match roots(self.file.path(), read) {
            Ok(roots) => {
                tracing::info!(roots = roots.certificates().len(), "the mesh's roots are set up anew");
                self.metrics.count(&roots);
                self.metrics.unusable.set(0);
                self.bundle.set_up(roots);
            }
            Err(error) => {
                self.metrics.failures.inc();
                self.metrics.unusable.set(1);
                tracing::error!(error = %Chain(&error), "the roots that were believed before stay so");
            }
        }
    }
}

impl RootMetrics {
    fn count(&self, roots: &TrustBundle) {
        self.roots.set(i64::try_from(roots.certificates().len()).unwrap_or(i64::MAX));
    }
}

fn roots(path: &std::path::Path, read: io::Result<Vec<u8>>) -> Result<TrustBundle, RootsError> {
    let path = || path.to_owned();
    let pem = read.map_err(|source| RootsError::Read { path: path(), source })?;
    let text =
        str::from_utf8(&pem).map_err(|_| RootsError::Bundle { path: path(), source: BundleError::Pem })?;
    TrustBundle::from_pem(text).map_err(|source| RootsError::Bundle { path: path(), source })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;
    use std::time::Duration;

    use identity::SystemClock;
    use identity::signer::{Signer, SignerSettings};
    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn pem() -> String {
        Signer::ephemeral(SignerSettings::default(), Arc::new(SystemClock)).unwrap().roots().to_pem()
    }

    #[tokio::test]
    async fn roots_are_waited_for_and_followed_and_what_cannot_be_used_leaves_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root-cert.pem");
        let put = |text: &str| {
            let aside = dir.path().join("aside");
            fs::write(&aside, text).unwrap();
            fs::rename(&aside, &path).unwrap();
        };
        let metrics = RootMetrics::default();
        let mut waiting = std::pin::pin!(RootFile::wait(path.clone(), metrics.clone()));
        let early = timeout(Duration::from_millis(50), &mut waiting).await;
        assert!(early.is_err(), "there is no file yet");
        let (old, new) = (pem(), pem());
        put(&old);
        let mut file = timeout(PATIENCE, waiting).await.expect("the file is found").unwrap();
        let bundle = file.bundle().clone();
        assert_eq!(bundle.load().to_pem(), old);
        put(&format!("{old}{new}"));
        timeout(PATIENCE, file.next()).await.expect("the file has changed");
        assert_eq!(bundle.load().to_pem(), format!("{old}{new}"));
        for (spoilt, so_far) in [("", 1), ("-----BEGIN CERTIFICATE-----\n!!", 2)] {
            put(spoilt);
            timeout(PATIENCE, file.next()).await.expect("the file has changed");
            assert_eq!(metrics.failures.get(), so_far);
            assert_eq!((metrics.unusable.get(), bundle.load().certificates().len()), (1, 2));
        }
        // From here on as in a proxy.
        let mut changes = bundle.changes();
        let followed = tokio::spawn(file.follow());
        put(&new);
        timeout(PATIENCE, changes.changed()).await.expect("news").unwrap();
        assert_eq!((bundle.load().to_pem(), metrics.unusable.get()), (new, 0));
        followed.abort();
    }

    #[tokio::test]
    async fn a_proxy_does_not_start_on_roots_that_it_cannot_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root-cert.pem");
        fs::write(&path, "rubbish").unwrap();
        let error = RootFile::wait(path, RootMetrics::default()).await.unwrap_err();
        assert!(matches!(error, RootsError::Bundle { source: BundleError::Empty, .. }), "{error}");
    }
}
