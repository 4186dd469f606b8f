//! Control groups: what runs in one is found, and ended, whatever it forked.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The mount point of the unified hierarchy; it may stand beside others.
pub(crate) fn root() -> Option<PathBuf> {
    root_of(&fs::read_to_string("/proc/self/mounts").ok()?)
}

fn root_of(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, target, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(unescape(target)))
    })
}

/// `/proc/self/mounts` writes blanks and backslashes in octal.
pub(crate) fn unescape(field: &str) -> String {
    let mut out = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        out.push_str(&rest[..at]);
        match code {
            Some(byte) => {
                out.push(byte.into());
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out + rest
}

/// Makes a group and those above it.
pub(crate) fn create(group: &Path) -> io::Result<()> {
    fs::create_dir_all(group)
}

/// Moves the calling process into a group.
pub(crate) fn join(group: &Path) -> io::Result<()> {
    fs::write(group.join("cgroup.procs"), "0")
}

/// Kills all that runs in a group and below it, at once.
pub(crate) fn kill(group: &Path) -> io::Result<()> {
    gone_is_fine(fs::write(group.join("cgroup.kill"), "1"))
}

/// Waits until nothing runs in a group and below it. False when the time is over.
pub(crate) fn wait_until_empty(group: &Path, patience: Duration) -> io::Result<bool> {
    let path = group.join("cgroup.events");
    // Each wait ends with an event of this group or the whole patience, and events are few.
    for _ in 0..64 {
        let file = match fs::File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            other => other?,
        };
        // Reading arms the notice of the next change.
        let text = io::read_to_string(&file)?;
        if text.lines().any(|line| line == "populated 0") {
            return Ok(true);
        }
        let mut polled = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        if poll(&mut polled, timeout)? == 0 {
            return Ok(false);
        }
    }
    Ok(false)
}

/// Removes an empty group and those below it.
pub(crate) fn remove(group: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path())?;
        }
    }
    gone_is_fine(fs::remove_dir(group))
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unified_hierarchy_is_found_beside_others() {
        let mounts = "proc /proc proc rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/uni\\040fied cgroup2 rw 0 0\n";
        assert_eq!(root_of(mounts), Some(PathBuf::from("/sys/fs/cgroup/uni fied")));
        assert_eq!(root_of("proc /proc proc rw 0 0\n"), None);
    }

    #[test]
    fn octal_escapes_are_read() {
        assert_eq!(unescape("a\\040b\\134c\\9"), "a b\\c\\9");
    }
}
