//! Taking a lab down, whatever state it is in: only the machine is asked what there is, never the supervisor.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, umount2};
use thiserror::Error;

use super::cgroup;
use super::place::{Place, ROOT};

/// How long killed processes may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why something of a lab is still there.
#[derive(Debug, Error)]
pub(crate) enum TeardownError {
    #[error("cannot lock {}: {source}", path.display())]
    Lock {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot end the processes of the cgroup {}: {source}", group.display())]
    Kill {
        group: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("processes of the cgroup {} do not die", .0.display())]
    Undead(PathBuf),
    #[error("cannot remove the cgroup {}: {source}", group.display())]
    Cgroup {
        group: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot unmount {}: {source}", path.display())]
    Unmount {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot remove {}: {source}", path.display())]
    Files {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Ends all processes of a lab and removes all that it made. Nothing there is nothing to do.
///
/// Its namespaces and links vanish with the last process and the last mount, its BPF programs with the file system in
/// which they were pinned.
pub(crate) fn run(place: &Place) -> Result<(), TeardownError> {
    let dir = place.dir();
    // Two of these at once would stumble over each other; the second waits and finds nothing.
    let _lock = match fs::File::open(dir) {
        Ok(file) => Some(
            Flock::lock(file, FlockArg::LockExclusive)
                .map_err(|(_, errno)| TeardownError::Lock { path: dir.to_owned(), source: errno.into() })?,
        ),
        Err(_) => None,
    };
    if let Some(root) = cgroup::root() {
        end(&root.join(place.cgroup()))?;
    }
    unmount(dir)?;
    match fs::remove_dir_all(dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(TeardownError::Files { path: dir.to_owned(), source });
        }
        _ => {}
    }
    // The folders of all labs go with the last of them.
    for dir in Path::new(ROOT).ancestors().take(2) {
        if fs::remove_dir(dir).is_err() {
            break;
        }
    }
    Ok(())
}

fn end(group: &Path) -> Result<(), TeardownError> {
    if !group.exists() {
        return Ok(());
    }
    let failed = |source| TeardownError::Kill { group: group.to_owned(), source };
    cgroup::kill(group).map_err(failed)?;
    if !cgroup::wait_until_empty(group, PATIENCE).map_err(failed)? {
        return Err(TeardownError::Undead(group.to_owned()));
    }
    cgroup::remove(group).map_err(|source| TeardownError::Cgroup { group: group.to_owned(), source })
}

/// Unmounts all below a folder, the latest mount first.
fn unmount(dir: &Path) -> Result<(), TeardownError> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for path in below(&mounts, dir).into_iter().rev() {
        match umount2(&path, MntFlags::MNT_DETACH) {
            // Somebody else was faster.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(TeardownError::Unmount { path, source: errno.into() }),
        }
    }
    Ok(())
}

fn below(mounts: &str, dir: &Path) -> Vec<PathBuf> {
    let targets = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    targets
        .map(|target| PathBuf::from(cgroup::unescape(target)))
        .filter(|path| path.starts_with(dir))
        .collect()
}

/// What of a lab is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    /// Nothing.
    None,
    /// Its supervisor runs.
    Runs,
    /// Its supervisor is gone, other things are not.
    Remains,
}

/// Looks whether a lab is there.
pub(crate) fn presence(place: &Place) -> Presence {
    if !place.dir().exists() {
        return Presence::None;
    }
    let Ok(file) = fs::File::open(place.lock()) else { return Presence::Remains };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => Presence::Remains,
        Err(_) => Presence::Runs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_other_labs_are_left_alone() {
        let mounts = "nsfs /run/ambit/lab/a/netns/node1 nsfs rw 0 0\n\
                      bpf /run/ambit/lab/a/bpf bpf rw 0 0\n\
                      nsfs /run/ambit/lab/ab/netns/node1 nsfs rw 0 0\n\
                      tmpfs /run tmpfs rw 0 0\n";
        let found = below(mounts, Path::new("/run/ambit/lab/a"));
        assert_eq!(found, [PathBuf::from("/run/ambit/lab/a/netns/node1"), "/run/ambit/lab/a/bpf".into()]);
    }
}
