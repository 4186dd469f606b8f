//! The files that say whom to believe.
//!
//! They are read at the start and whenever they change. What cannot be used changes nothing: the last that could goes on
//! counting, and a metric and the log say so until it is mended.

mod roots;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use identity::{Clock, LiveBundle, RevocationError, Revocations};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use runtime::WatchedFile;
use telemetry::access::Chain;
use telemetry::metrics::Registry;
use thiserror::Error;
use tokio::time::timeout;

pub use self::roots::{RootFile, RootMetrics, RootsError};

/// How often it is looked whether lists are late.
const LOOK: Duration = Duration::from_secs(10);

/// Why a file's revocation lists cannot be used.
#[derive(Debug, Error)]
pub enum ListsError {
    /// It cannot be read.
    #[error("cannot read the revocation lists at {}", path.display())]
    Read {
        /// Where they should be.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// They are none.
    #[error("the revocation lists at {} cannot be used", path.display())]
    Lists {
        /// Where they are.
        path: PathBuf,
        /// Why not.
        #[source]
        source: RevocationError,
    },
}

/// How revocation stands, for whoever watches it.
#[derive(Clone, Debug, Default)]
pub struct RevocationMetrics {
    lists: Gauge,
    certificates: Gauge,
    late: Gauge,
    unusable: Gauge,
    failures: Counter,
}

impl RevocationMetrics {
    /// Registers all families.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let Self { lists, certificates, late, unusable, failures } = metrics.clone();
        registry.register("ambit_revocation_lists", "Revocation lists in force", lists);
        registry.register("ambit_revoked_certificates", "Certificates that they name", certificates);
        registry.register(
            "ambit_revocation_lists_late",
            "1 while a list in force is older than its authority promised; it goes on counting",
            late,
        );
        registry.register(
            "ambit_revocation_file_unusable",
            "1 while the file cannot be used as it is, and what it held before is in force",
            unusable,
        );
        registry.register(
            "ambit_revocation_reads_failed",
            "States of the file that could not be used",
            failures,
        );
        metrics
    }
}

/// The file with the revocation lists (`CRL_PATH`).
#[derive(Debug)]
pub struct RevocationFile {
    file: WatchedFile,
    bundle: LiveBundle,
    metrics: RevocationMetrics,
    clock: Arc<dyn Clock>,
    warned: bool,
}

impl RevocationFile {
    /// Puts the file's lists in force. Where there is no file nothing is revoked, until there is one.
    ///
    /// # Errors
    /// If there is one and it cannot be used: a proxy that starts without knowing what is revoked would let it in.
    pub async fn open(
        path: PathBuf,
        bundle: LiveBundle,
        metrics: RevocationMetrics,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ListsError> {
        let mut opened = Self { file: WatchedFile::new(&path), bundle, metrics, clock, warned: false };
        match opened.file.read().await {
            Ok(pem) => opened.take(&pem)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                tracing::info!(path = %path.display(), "there are no revocation lists yet");
            }
            Err(source) => return Err(ListsError::Read { path, source }),
        }
        Ok(opened)
    }

    /// Follows the file until this is dropped.
    pub async fn follow(mut self) {
        loop {
            // A wait that is over loses nothing.
            drop(timeout(LOOK, self.next()).await);
            self.look();
        }
    }

    /// Waits for the file's next state and puts it in force, if it can be used. Cancel-safe.
    async fn next(&mut self) {
        let taken = match self.file.changed().await {
            Ok(pem) => self.take(&pem),
            Err(source) => Err(ListsError::Read { path: self.file.path().to_owned(), source }),
        };
        if let Err(error) = taken {
            self.metrics.failures.inc();
            self.metrics.unusable.set(1);
            tracing::error!(error = %Chain(&error), "what was revoked before stays so");
        }
    }

    fn take(&mut self, pem: &[u8]) -> Result<(), ListsError> {
        let revoked = Revocations::from_pem(pem)
            .map_err(|source| ListsError::Lists { path: self.file.path().to_owned(), source })?;
        let issuers = revoked.issuers().collect::<Vec<_>>().join("; ");
        tracing::info!(lists = revoked.lists(), certificates = revoked.entries(), %issuers, "revocation lists are in force");
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.metrics.lists.set(count(revoked.lists()));
        self.metrics.certificates.set(count(revoked.entries()));
        self.metrics.unusable.set(0);
        self.warned = false;
        self.bundle.revoke(revoked);
        self.look();
        Ok(())
    }

    /// Whether lists are late. They go on counting: what was revoked does not come back by itself.
    fn look(&mut self) {
        let next = self.bundle.revocations().next_update();
        let late = next.is_some_and(|next| next < self.clock.now());
        self.metrics.late.set(late.into());
        if late && !self.warned {
            tracing::warn!(path = %self.file.path().display(), "a revocation list should have been replaced by now");
        }
        self.warned = late;
    }
}

#[cfg(test)]
mod tests;
