//! The file systems that redirection stands on.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// Makes sure that a BPF file system is mounted at `path`, creating the directory where needed. Says whether it had to
/// mount one.
///
/// # Errors
///
/// The directory cannot be created, or the kernel refuses the mount.
pub fn mount_bpffs(path: &Path) -> io::Result<bool> {
    fs::create_dir_all(path)?;
    if statfs(path)?.filesystem_type() == BPF_FS_MAGIC {
        return Ok(false);
    }
    mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), Some("mode=0700"))?;
    Ok(true)
}

/// Where the root of the cgroup2 tree is mounted; on hybrid systems it is not `/sys/fs/cgroup`.
///
/// # Errors
///
/// The mounts cannot be read, or cgroup2 is not among them.
pub fn cgroup2_root() -> io::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    first_cgroup2(&mounts)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no cgroup2 file system is mounted"))
}

fn first_cgroup2(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
        // The kernel writes a space in a path as `\040`.
        (kind == "cgroup2").then(|| PathBuf::from(place.replace("\\040", " ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_beside_version_1() {
        let mounts = "proc /proc proc rw 0 0\n\
                      tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(first_cgroup2(mounts).unwrap(), Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(first_cgroup2("proc /proc proc rw 0 0\n"), None);
        assert_eq!(first_cgroup2("x /a\\040b cgroup2 rw 0 0\n").unwrap(), Path::new("/a b"));
    }
}
