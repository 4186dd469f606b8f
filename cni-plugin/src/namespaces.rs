//! Telling network namespaces apart, and finding one again whose path is lost.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use net::{Netns, NetnsError};
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use thiserror::Error;

/// Namespaces that are never enrolled: the node's own, and whichever the agent runs in.
#[derive(Clone, Debug)]
pub struct Forbidden(BTreeSet<u64>);

impl Forbidden {
    /// The namespaces of process 1 and of the agent.
    ///
    /// # Errors
    ///
    /// The agent's cannot be read. That process 1 is not visible (another PID namespace) is no error.
    pub fn of_this_process() -> Result<Self, NetnsError> {
        let own = Netns::current()?.cookie()?;
        let init = Netns::open("/proc/1/ns/net").ok().and_then(|netns| netns.cookie().ok());
        Ok(Self([own].into_iter().chain(init).collect()))
    }

    /// Whether a namespace is one of them.
    pub fn holds(&self, cookie: u64) -> bool {
        self.0.contains(&cookie)
    }
}

/// A pod's namespace, known by what the BPF programs know it by.
#[derive(Clone, Debug)]
pub struct PodNamespace {
    /// The namespace.
    pub netns: Netns,
    /// Its cookie.
    pub cookie: u64,
    path: PathBuf,
}

impl PodNamespace {
    /// Opens a pod's namespace.
    ///
    /// # Errors
    ///
    /// See [`PodNamespaceError`].
    pub fn open(path: &Path, forbidden: &Forbidden) -> Result<Self, PodNamespaceError> {
        let netns = Netns::open(path)?;
        let cookie = netns.cookie()?;
        if forbidden.holds(cookie) {
            return Err(PodNamespaceError::NodesOwn);
        }
        Ok(Self { netns, cookie, path: path.to_owned() })
    }

    /// Checks that the namespace has all of these addresses on its devices: the path comes from an annotation, which may
    /// name another pod's.
    ///
    /// # Errors
    ///
    /// See [`PodNamespaceError`]; to be tried again, since the addresses may come later than the namespace.
    pub fn check_holds(&self, addresses: impl IntoIterator<Item = IpAddr>) -> Result<(), PodNamespaceError> {
        let held = self.netns.run(addresses_here)?.map_err(PodNamespaceError::Addresses)?;
        match addresses.into_iter().find(|address| !held.contains(address)) {
            Some(missing) => Err(PodNamespaceError::NotItsOwn(missing)),
            None => Ok(()),
        }
    }

    /// Whether the path still stands for this namespace. One whose file is gone is taken to be the same: a pod that
    /// ends loses its path first.
    pub fn is_at(&self, path: &Path) -> bool {
        self.path == path && fs::metadata(path).map_or(true, |found| found.ino() == self.netns.inode())
    }
}

/// Why a pod's namespace cannot be used.
#[derive(Debug, Error)]
pub enum PodNamespaceError {
    /// It cannot be opened or entered.
    #[error("its network namespace cannot be used")]
    Netns(#[from] NetnsError),
    /// It is the node's: capturing it would capture the node.
    #[error("its network namespace is the node's own")]
    NodesOwn,
    /// It is another pod's, or is not set up yet.
    #[error(
        "its network namespace does not have its address {0}: the namespace is another's, or not set up yet"
    )]
    NotItsOwn(IpAddr),
    /// Its addresses cannot be listed.
    #[error("the addresses of its network namespace cannot be listed")]
    Addresses(#[source] io::Error),
}

/// The addresses of the calling thread's network namespace.
fn addresses_here() -> io::Result<Vec<IpAddr>> {
    let address = |device: InterfaceAddress| {
        let address = device.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    Ok(getifaddrs()?.filter_map(address).collect())
}

/// Finds a network namespace by its cookie among those of all visible processes and mounts.
///
/// For namespaces whose path is not known any more. It enters each namespace once; nobody does this per connection.
///
/// # Errors
///
/// `/proc` cannot be read.
pub fn locate(cookie: u64) -> io::Result<Option<Netns>> {
    Ok(all()?.find(|(_, found)| *found == cookie).map(|(netns, _)| netns))
}

/// The network namespaces of all visible processes and mounts, each with its cookie.
///
/// # Errors
///
/// `/proc` cannot be read.
pub fn all() -> io::Result<impl Iterator<Item = (Netns, u64)>> {
    let mut seen = BTreeSet::new();
    Ok(candidates()?.into_iter().filter_map(move |path| {
        let netns = Netns::open(&path).ok()?;
        if !seen.insert(netns.inode()) {
            return None;
        }
        let cookie = netns.cookie().ok()?;
        Some((netns, cookie))
    }))
}

fn candidates() -> io::Result<Vec<PathBuf>> {
    let mut paths = mounted(&fs::read_to_string("/proc/self/mountinfo")?);
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        if name.to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
            paths.push(Path::new("/proc").join(name).join("ns/net"));
        }
    }
    Ok(paths)
}

/// Where network namespaces are mounted: lines whose root is `net:[inode]`.
fn mounted(mountinfo: &str) -> Vec<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(3);
            let (root, place) = (fields.next()?, fields.next()?);
            root.starts_with("net:[").then(|| PathBuf::from(place.replace("\\040", " ")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounted_namespaces_are_found_among_mounts() {
        let mountinfo = "22 1 0:21 / /proc rw - proc proc rw\n\
                         300 25 0:4 net:[4026532300] /run/netns/cart rw shared:5 - nsfs nsfs rw\n\
                         301 25 0:4 mnt:[4026532301] /run/snapd/ns/x rw - nsfs nsfs rw\n";
        assert_eq!(mounted(mountinfo), [Path::new("/run/netns/cart")]);
    }

    mod netns {
        use super::*;

        #[test]
        fn the_nodes_own_namespace_is_refused() {
            let forbidden = Forbidden::of_this_process().unwrap();
            let refused = PodNamespace::open(Path::new("/proc/thread-self/ns/net"), &forbidden);
            assert!(matches!(refused, Err(PodNamespaceError::NodesOwn)));
            let missing = PodNamespace::open(Path::new("/nowhere/netns"), &forbidden);
            assert!(matches!(missing, Err(PodNamespaceError::Netns(_))));
        }

        #[test]
        fn a_namespace_without_the_pods_addresses_is_not_the_pods() {
            let netns = net::netns::unnamed().unwrap();
            netns.run(net::netns::loopback_up).unwrap().unwrap();
            let cookie = netns.cookie().unwrap();
            let namespace = PodNamespace { netns, cookie, path: PathBuf::new() };
            let [v4, v6, others] = ["127.0.0.1", "::1", "10.0.0.5"].map(|ip| ip.parse().unwrap());
            namespace.check_holds([v4, v6]).unwrap();
            let refused = namespace.check_holds([v4, others]);
            assert!(matches!(refused, Err(PodNamespaceError::NotItsOwn(missing)) if missing == others));
        }

        #[test]
        fn a_namespace_is_located_by_its_cookie_while_a_process_is_in_it() {
            let cookie = std::thread::spawn(|| {
                let netns = net::netns::unnamed().unwrap();
                let cookie = netns.cookie().unwrap();
                let mut child =
                    netns.run(|| std::process::Command::new("sleep").arg("60").spawn()).unwrap().unwrap();
                let found = locate(cookie).unwrap();
                child.kill().unwrap();
                child.wait().unwrap();
                assert_eq!(found, Some(netns));
                cookie
            })
            .join()
            .unwrap();
            assert_eq!(locate(cookie).unwrap(), None);
        }
    }
}
