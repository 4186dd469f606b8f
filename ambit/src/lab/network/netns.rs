//! Namespaces that others find by a path.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use net::Netns;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{NetworkError, sysctl, wire::Wire};

/// Creates a namespace, its loopback up, and mounts it on a file that this creates.
pub(crate) async fn create(path: &Path) -> Result<Netns, NetworkError> {
    let failed = |source| NetworkError::Publish { path: path.to_owned(), source };
    let netns = net::netns::unnamed()?;
    netns.run(sysctl::quiet_v6)?;
    Wire::of(&netns)?.up("lo").await?;
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(failed)?;
    }
    File::create(path).map_err(failed)?;
    let own = format!("/proc/self/fd/{}", netns.as_fd().as_raw_fd());
    let mounted = mount(Some(own.as_str()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>);
    mounted.map_err(|errno| failed(errno.into()))?;
    Ok(netns)
}

/// Takes away the path. The namespace goes when nobody is in it any more.
pub(crate) fn unpublish(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
