//! What a pod sees of the machine's files: all of them, but for a few of `/etc` that are the pod's own.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// A file of the pod's own, mounted over one of the machine's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Overlay {
    pub(crate) own: PathBuf,
    pub(crate) over: PathBuf,
}

/// Creates a mount namespace. It lives as long as the descriptor, or a process in it, does; others enter it by
/// `/proc/<this process>/fd/<descriptor>`.
pub(crate) fn namespace(overlays: Vec<Overlay>) -> io::Result<OwnedFd> {
    // The thread takes leave of the machine's mounts for good, so it is one of its own.
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        // What is unmounted outside goes here too; what is mounted here stays here.
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)?;
        for Overlay { own, over } in &overlays {
            mount(Some(own), over, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        }
        Ok(File::open("/proc/thread-self/ns/mnt")?.into())
    })
    .join()
    .unwrap_or_else(|_| Err(io::Error::other("the thread that makes the mount namespace panicked")))
}

/// Writes a pod's own files and tells what to mount them over.
///
/// Besides the resolver's configuration it is the order in which names are looked up: a machine may ask a daemon of its
/// own, which knows nothing of the pod's network.
///
/// # Errors
/// Where the files cannot be written, or the machine has no `/etc/resolv.conf` to mount over.
pub(crate) fn write(dir: &Path, resolv_conf: &str) -> io::Result<Vec<Overlay>> {
    fs::create_dir_all(dir)?;
    let mut overlays = Vec::new();
    let mut overlay = |name: &str, over: &str, text: &str| {
        let own = dir.join(name);
        fs::write(&own, text)?;
        overlays.push(Overlay { own, over: over.into() });
        io::Result::Ok(())
    };
    let resolver = "/etc/resolv.conf";
    if !Path::new(resolver).exists() {
        // A link to nowhere, as a resolver that does not run leaves behind, counts as none.
        let remedy =
            format!("{resolver} is not there, and a pod's own is mounted over it: create it, empty will do");
        return Err(io::Error::new(io::ErrorKind::NotFound, remedy));
    }
    overlay("resolv.conf", resolver, resolv_conf)?;
    if let Ok(machines) = fs::read_to_string("/etc/nsswitch.conf") {
        overlay("nsswitch.conf", "/etc/nsswitch.conf", &plain_hosts(&machines))?;
    }
    if Path::new("/run/nscd/socket").exists() {
        overlay("nscd", "/run/nscd/socket", "")?;
    }
    Ok(overlays)
}

/// A pod's `/etc/resolv.conf`.
pub(crate) fn resolv_conf(namespace: &str, resolver: std::net::IpAddr) -> String {
    format!(
        "search {namespace}.svc.cluster.local svc.cluster.local cluster.local\n\
         nameserver {resolver}\n\
         options ndots:5\n"
    )
}

/// The order of lookups with hosts' names from file and DNS alone.
fn plain_hosts(machines: &str) -> String {
    let kept = machines.lines().filter(|line| !line.trim_start().starts_with("hosts:"));
    kept.chain(["hosts: files dns"]).map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_names_are_looked_up_in_its_namespace_first() {
        let text = resolv_conf("shop", "10.96.0.10".parse().unwrap());
        assert_eq!(
            text,
            "search shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
        );
    }

    #[test]
    fn a_machines_daemons_are_not_asked_for_hosts() {
        let machines = "passwd: files systemd\nhosts: files mdns4_minimal [NOTFOUND=return] resolve dns\n";
        assert_eq!(plain_hosts(machines), "passwd: files systemd\nhosts: files dns\n");
    }

    mod netns {
        use super::*;

        #[test]
        fn mounts_of_a_namespace_are_seen_in_it_alone() {
            let dir = tempfile::tempdir().unwrap();
            let (own, over) = (dir.path().join("own"), dir.path().join("over"));
            fs::write(&own, "pod").unwrap();
            fs::write(&over, "machine").unwrap();
            let namespace = namespace(vec![Overlay { own, over: over.clone() }]).unwrap();
            let inside = over.clone();
            let seen = std::thread::spawn(move || {
                unshare(CloneFlags::CLONE_FS).unwrap();
                nix::sched::setns(namespace, CloneFlags::CLONE_NEWNS).unwrap();
                fs::read_to_string(inside).unwrap()
            });
            assert_eq!(seen.join().unwrap(), "pod");
            assert_eq!(fs::read_to_string(over).unwrap(), "machine");
        }
    }
}
