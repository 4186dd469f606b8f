//! A lab's name, and where everything that it makes is found.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

/// Below it each lab has a folder of its name.
pub(crate) const ROOT: &str = "/run/ambit/lab";

/// The name of a lab: 1 to 20 of `a-z`, `0-9` and `-`, beginning with a letter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LabName(String);

/// A text is no name of a lab.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is no name of a lab: 1 to 20 of a-z, 0-9 and -, beginning with a letter")]
pub struct ParseLabNameError(String);

impl FromStr for LabName {
    type Err = ParseLabNameError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let fits = s.len() <= 20 && s.starts_with(|c: char| c.is_ascii_lowercase()) && s.bytes().all(plain);
        if fits { Ok(Self(s.to_owned())) } else { Err(ParseLabNameError(s.to_owned())) }
    }
}

impl LabName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The files of a lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    name: LabName,
    dir: PathBuf,
}

impl Place {
    pub(crate) fn of(name: LabName) -> Self {
        let dir = Path::new(ROOT).join(name.as_str());
        Self { name, dir }
    }

    pub(crate) fn name(&self) -> &LabName {
        &self.name
    }

    /// The folder of everything else.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the supervisor listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("lab.sock")
    }

    /// Locked by the supervisor for as long as it lives.
    pub(crate) fn lock(&self) -> PathBuf {
        self.dir.join("supervisor.lock")
    }

    /// The objects, as control plane and agents read them.
    pub(crate) fn objects(&self) -> PathBuf {
        self.dir.join("objects")
    }

    /// The file on which a network namespace is mounted.
    pub(crate) fn netns(&self, name: &str) -> PathBuf {
        self.netns_dir().join(name)
    }

    pub(crate) fn netns_dir(&self) -> PathBuf {
        self.dir.join("netns")
    }

    /// A file system of BPF objects of the lab's own: what is pinned there is gone with its mount.
    pub(crate) fn bpffs(&self) -> PathBuf {
        self.dir.join("bpf")
    }

    /// Roots and keys of the certificate authority.
    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.join("ca")
    }

    /// The root certificate that proxies trust; the control plane writes it.
    pub(crate) fn root_certificate(&self) -> PathBuf {
        self.ca().join("root-cert.pem")
    }

    /// The revocation lists that proxies heed, if somebody puts any there.
    pub(crate) fn revocation_lists(&self) -> PathBuf {
        self.dir.join("crl.pem")
    }

    /// What the control plane knows of tokens.
    pub(crate) fn token_file(&self) -> PathBuf {
        self.dir.join("tokens.json")
    }

    /// What names the resolver of the nodes.
    pub(crate) fn resolv_conf(&self) -> PathBuf {
        self.dir.join("resolv.conf")
    }

    /// What a node's ztunnel shows for itself.
    pub(crate) fn token(&self, node: &str) -> PathBuf {
        self.node(node).join("token")
    }

    /// The socket between a node's agent and its ztunnel.
    pub(crate) fn zds_socket(&self, node: &str) -> PathBuf {
        self.node(node).join("ztunnel.sock")
    }

    /// A node's own files.
    pub(crate) fn node(&self, node: &str) -> PathBuf {
        self.dir.join("nodes").join(node)
    }

    /// A pod's own files: what is mounted over the machine's.
    pub(crate) fn pod(&self, namespace: &str, name: &str) -> PathBuf {
        self.dir.join("pods").join(pod_folder(namespace, name))
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    pub(crate) fn supervisor_log(&self) -> PathBuf {
        self.logs().join("supervisor.log")
    }

    /// The log of one of the mesh's own processes.
    pub(crate) fn part_log(&self, part: &str) -> PathBuf {
        self.logs().join(format!("{part}.log"))
    }

    /// The logs of a pod's containers.
    pub(crate) fn pod_logs(&self, namespace: &str, name: &str) -> PathBuf {
        self.logs().join("pods").join(pod_folder(namespace, name))
    }

    /// The name of the cgroup, below the root of the hierarchy.
    pub(crate) fn cgroup(&self) -> String {
        format!("ambit-{}", self.name)
    }

    /// The instance name of a node's agent: what its pins hang on.
    pub(crate) fn instance(&self, node: &str) -> String {
        format!("{}-{node}", self.name)
    }
}

/// Neither namespaces nor pods have `_` in their names.
pub(crate) fn pod_folder(namespace: &str, name: &str) -> String {
    format!("{namespace}_{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_short() {
        for good in ["lab", "t1a2b3", "a-b", "abcdefghijklmnopqrst"] {
            assert_eq!(good.parse::<LabName>().unwrap().as_str(), good);
        }
        for bad in ["", "1a", "A", "a/b", "..", "a_b", "abcdefghijklmnopqrstu", "ä"] {
            assert!(bad.parse::<LabName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sockets_fit_into_their_addresses() {
        let place = Place::of("abcdefghijklmnopqrst".parse().unwrap());
        // sun_path has 108 bytes, the last a zero.
        assert!(place.zds_socket("node200").as_os_str().len() < 108);
        assert!(place.socket().as_os_str().len() < 108);
    }
}
