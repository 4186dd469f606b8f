//! A directory of object files, watched.
//!
//! All `*.yaml`, `*.yml` and `*.json` below the directory are read, whatever the folders between; names that begin with
//! a dot are passed over. A file is taken whole or not at all: where it cannot be used, its problems are told and what
//! it last held stays, for as long as this watch lasts: see [`Batch::never_good`]. Of two files that hold the same object the one that had it keeps it.
//!
//! A writer that puts a decimal number into the file `.revision`, by rename and after the files that belong to it, gets
//! that number back in [`Batch::revision`] once those files have been taken in.
//!
//! The directory may appear later. Where it vanishes altogether, what it held stays and a problem says so: a volume
//! that is gone is no order to drop every policy.

mod shelf;
mod watch;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::document::Unused;
use crate::object::{Object, ObjectKey};
use crate::problem::Problem;

pub use shelf::{Changes, Reading, Shelf};
use watch::Watcher;

/// What came in at once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Objects that are new or different.
    pub upserts: Vec<Arc<Object>>,
    /// Objects that are gone.
    pub deletes: Vec<ObjectKey>,
    /// The highest revision that has been taken in; nothing where the writer counts none.
    pub revision: Option<u64>,
    /// All that is wrong now, in the order of the files; not only what is new.
    pub problems: Vec<Problem>,
    /// The files that are refused and were never good since the watch began, in order. What they held before is not
    /// known, so the absence of an object says nothing: whoever begins with this directory removes nothing until it is
    /// empty once.
    pub never_good: Vec<Arc<str>>,
    /// The first object of each kind that is met for the first time and that nothing is done with.
    pub unused: Vec<Unused>,
    /// Whether the directory has been read. Before, it is not there, and the objects are not known to be none.
    pub loaded: bool,
}

/// A directory under watch. Dropping it ends the watch.
#[derive(Debug)]
pub struct Directory {
    root: Arc<Path>,
    batches: mpsc::Receiver<Batch>,
    task: JoinHandle<()>,
}

/// Why a directory cannot be watched.
#[derive(Debug, Error)]
pub enum WatchError {
    /// The kernel gives no watch queue.
    #[error("cannot watch {}", root.display())]
    Inotify {
        /// The directory.
        root: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}

impl Directory {
    /// Begins to watch; the directory need not be there. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// No watch queue can be had: too many are in use.
    pub fn watch(root: impl AsRef<Path>) -> Result<Self, WatchError> {
        let root: Arc<Path> = root.as_ref().into();
        let failed = |source| WatchError::Inotify { root: root.to_path_buf(), source };
        let (watcher, queue) = Watcher::open(&root).map_err(failed)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe; an OwnedFd, which nobody else closes, is what it is safe for"
        )]
        let queue = AsyncFd::new(queue).map_err(failed)?;
        // One batch waits at most: while nobody takes it, changes gather in the kernel's queue.
        let (sender, batches) = mpsc::channel(1);
        let task = tokio::spawn(run(watcher, queue, sender));
        Ok(Self { root, batches, task })
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Waits for the next batch. The first comes at once and holds everything; nothing comes after a failure of the
    /// watch itself. Cancel-safe.
    pub async fn next(&mut self) -> Option<Batch> {
        self.batches.recv().await
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(mut watcher: Watcher, queue: AsyncFd<std::os::fd::OwnedFd>, batches: mpsc::Sender<Batch>) {
    loop {
        // Reading files blocks; the loop comes back when all that was pending has been taken in.
        let Ok((next, batch)) = spawn_blocking(move || {
            let batch = watcher.step();
            (watcher, batch)
        })
        .await
        else {
            return;
        };
        watcher = next;
        if let Some(batch) = batch
            && batches.send(batch).await.is_err()
        {
            return;
        }
        if watcher.is_idle() {
            match queue.readable().await {
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let temp = path.with_file_name(".tmp");
        fs::write(&temp, text).unwrap();
        fs::rename(temp, path).unwrap();
    }

    fn namespace(name: &str) -> String {
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
    }

    #[tokio::test]
    async fn batches_come_as_the_directory_changes() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "a.yaml", &namespace("a"));
        let mut source = Directory::watch(dir.path()).unwrap();
        let first = source.next().await.unwrap();
        assert!(first.loaded);
        assert_eq!(first.upserts.len(), 1);
        write(dir.path(), "x/y/b.yaml", &namespace("b"));
        write(dir.path(), ".revision", "1");
        let mut names = Vec::new();
        loop {
            let batch = source.next().await.unwrap();
            names.extend(batch.upserts.iter().map(|o| o.name().to_owned()));
            if batch.revision == Some(1) {
                break;
            }
        }
        assert_eq!(names, ["b"], "all that belongs to a revision has come when the revision is told");
    }

    #[tokio::test]
    async fn every_revision_finds_its_files_taken_in() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_path_buf();
        let mut source = Directory::watch(&root).unwrap();
        let writer = std::thread::spawn(move || {
            for n in 1..=200 {
                write(&root, &format!("f{}/o{n}.yaml", n % 7), &namespace(&format!("o{n}")));
                write(&root, ".revision", &n.to_string());
            }
        });
        let mut seen = std::collections::BTreeSet::new();
        let mut revision = 0;
        while revision < 200 {
            let batch = source.next().await.unwrap();
            seen.extend(batch.upserts.iter().map(|o| o.name().to_owned()));
            revision = batch.revision.unwrap_or(0);
            for n in 1..=revision {
                assert!(seen.contains(&format!("o{n}")), "revision {revision} without o{n}");
            }
        }
        writer.join().unwrap();
    }
}
