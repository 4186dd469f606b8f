//! Where an agent instance pins what outlives it.
//!
//! ```text
//! <bpffs>/ambit/<instance>/v1/MESHED            map: which network namespaces are captured
//!                             BYPASS            map: which sockets are exempt
//!                             WATCHED BYPASSED  maps: whose connections are watched, and how many got past the mesh
//!                             PODS PROBES       maps: the pods' addresses, and the kubelet's probes on their way
//!                             connect4 connect6 links: the programs on connect(2)
//!                             watch kubelet     links: the program that counts what gets past the mesh, and the
//!                                               one that notes the kubelet's probes
//!                             pods/<cookie>-<uid>/LISTENERS  map: ztunnel's listeners in the pod
//!                                                 STEERING   map: the pod's addresses, and whether inbound
//!                                                            connections are captured
//!                                                 steer      link: the pod's socket lookup program
//!                                                 guard-<n>  link: the guard of the pod's device with this index
//! ```
//!
//! `v1` is the version of the maps' layouts: another version adopts nothing of this one.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ebpf_abi::name;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;

use crate::guard;
use crate::instance::OpenError;
use crate::sys::{AttachType, Link};

/// The version of the pinned layouts.
const VERSION: &str = "v1";

/// The name of an agent instance. Instances share a kernel without touching each other's pins.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InstanceName(String);

impl InstanceName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for InstanceName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        let fits = (1..=63).contains(&name.len()) && name.bytes().all(is_name_byte);
        if fits { Ok(Self(name.to_owned())) } else { Err(NameError(name.to_owned())) }
    }
}

/// A name that cannot be an instance's.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is no instance name: 1 to 63 of a-z, A-Z, 0-9, `-` and `_` are")]
pub struct NameError(String);

/// The bpffs refuses dots, and a path must not be escaped from.
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

/// Which pod, in which network namespace: a pod whose sandbox was made anew is another one here.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodKey {
    cookie: u64,
    uid: String,
}

impl PodKey {
    /// The pod with this `metadata.uid` in the network namespace with this cookie.
    ///
    /// # Errors
    ///
    /// The UID has characters that cannot be in a name, or is longer than 200 bytes. Kubernetes makes no such UIDs.
    pub fn new(cookie: u64, uid: &str) -> Result<Self, PodKeyError> {
        let fits = (1..=200).contains(&uid.len()) && uid.bytes().all(is_name_byte);
        if fits { Ok(Self { cookie, uid: uid.to_owned() }) } else { Err(PodKeyError(uid.to_owned())) }
    }

    /// The cookie of the pod's network namespace.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The pod's `metadata.uid`.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    fn parse(name: &str) -> Option<Self> {
        let (cookie, uid) = name.split_at_checked(16)?;
        Self::new(u64::from_str_radix(cookie, 16).ok()?, uid.strip_prefix('-')?).ok()
    }
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}", self.cookie, self.uid)
    }
}

/// A UID that cannot name a pod's pins.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is no pod UID that can be pinned")]
pub struct PodKeyError(String);

/// An instance's claim by one process. It ends with the process at the latest.
#[derive(Debug)]
pub struct Lock {
    _lock: Flock<File>,
}

/// What is pinned for one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedPod {
    /// Which pod.
    pub key: PodKey,
    /// The inode of the network namespace in which its connections are steered; `None` if they are not, or it is gone.
    pub steered_in: Option<u64>,
}

/// The pin directory of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    instance: PathBuf,
}

impl Pins {
    /// The directory of `instance` below the BPF file system at `bpffs`. Nothing is created.
    pub fn new(bpffs: &Path, instance: &InstanceName) -> Self {
        Self { instance: bpffs.join("ambit").join(instance.as_str()) }
    }

    /// The directory itself, with the version.
    pub fn root(&self) -> PathBuf {
        self.instance.join(VERSION)
    }

    pub(crate) fn entry(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    fn pods_folder(&self) -> PathBuf {
        self.root().join("pods")
    }

    pub(crate) fn pod(&self, key: &PodKey) -> PathBuf {
        self.pods_folder().join(key.to_string())
    }

    pub(crate) fn create(&self) -> io::Result<()> {
        fs::create_dir_all(self.pods_folder())
    }

    /// The pods that have pins, also those whose enrolment was cut short.
    ///
    /// # Errors
    ///
    /// The directory cannot be read. That it does not exist is no error: nothing is pinned then.
    pub fn pods(&self) -> io::Result<Vec<PinnedPod>> {
        let mut pods = Vec::new();
        for name in names(&self.pods_folder())? {
            let Some(key) = PodKey::parse(&name) else { continue };
            let link = Link::open(&self.pod(&key).join(name::STEER))?;
            let steered_in = link.map(|link| link.target(AttachType::SkLookup)).transpose()?.flatten();
            pods.push(PinnedPod { key, steered_in });
        }
        pods.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(pods)
    }

    /// Removes the pins of one pod. What is attached there is detached first.
    ///
    /// # Errors
    ///
    /// A pin cannot be removed.
    pub(crate) fn remove_pod(&self, key: &PodKey) -> io::Result<()> {
        let folder = self.pod(key);
        detach_pod(&folder)?;
        absent_is_fine(fs::remove_dir_all(folder))
    }

    /// Claims the instance for this process until the lock is dropped; `None` where nothing is pinned.
    ///
    /// # Errors
    ///
    /// [`OpenError::InUse`] while another process has it.
    pub fn lock(&self) -> Result<Option<Lock>, OpenError> {
        let path = self.root();
        let folder = match File::open(&path) {
            Ok(folder) => folder,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(OpenError::Pins { path, source }),
        };
        match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(Lock { _lock: lock })),
            Err((_, Errno::EWOULDBLOCK)) => Err(OpenError::InUse { path }),
            Err((_, errno)) => Err(OpenError::Pins { path, source: errno.into() }),
        }
    }

    /// Ends all capture of this instance: when it returns, no new connection is captured. What is pinned besides the
    /// attachments stays, so that [`Pins::pods`] still lists the pods. Idempotent.
    ///
    /// # Errors
    ///
    /// A pin cannot be removed.
    pub fn detach(&self) -> io::Result<()> {
        detach(&self.entry(name::CONNECT4), AttachType::CgroupInet4Connect)?;
        detach(&self.entry(name::CONNECT6), AttachType::CgroupInet6Connect)?;
        detach(&self.entry(name::WATCH), AttachType::CgroupSockOps)?;
        detach(&self.entry(name::KUBELET), AttachType::CgroupSockOps)?;
        for pod in self.pods()? {
            detach_pod(&self.pod(&pod.key))?;
        }
        Ok(())
    }

    /// Removes everything of this instance, after [`Pins::detach`], which it implies. Idempotent.
    ///
    /// Rules and routes inside the pods are not its business.
    ///
    /// # Errors
    ///
    /// A pin cannot be removed.
    pub fn remove(&self) -> io::Result<()> {
        self.detach()?;
        absent_is_fine(fs::remove_dir_all(&self.instance))
    }
}

/// Ends a pinned attachment at once and removes the pin. Idempotent.
pub(crate) fn detach(path: &Path, kind: AttachType) -> io::Result<()> {
    if let Some(link) = Link::open(path)? {
        // One whose cgroup or namespace is gone is detached already, and the kernel says so by an error.
        if link.target(kind)?.is_some() {
            link.detach()?;
        }
    }
    absent_is_fine(fs::remove_file(path))
}

/// Ends all attachments that are pinned in a pod's folder.
fn detach_pod(folder: &Path) -> io::Result<()> {
    detach(&folder.join(name::STEER), AttachType::SkLookup)?;
    let guards = names(folder)?.into_iter().filter(|name| name.starts_with(guard::PIN));
    guards.into_iter().try_for_each(|guard| detach(&folder.join(guard), AttachType::TcxEgress))
}

fn names(folder: &Path) -> io::Result<Vec<String>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

pub(crate) fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_keys_survive_as_file_names() {
        let key = PodKey::new(0x1f, "3f0c9a7e-52f4-4f3c-9d5e-0a3b6a1f2c4d").unwrap();
        assert_eq!(key.to_string(), "000000000000001f-3f0c9a7e-52f4-4f3c-9d5e-0a3b6a1f2c4d");
        assert_eq!(PodKey::parse(&key.to_string()), Some(key));
    }

    #[test]
    fn uids_that_escape_the_directory_are_refused() {
        for uid in ["", "..", "a/b", "a.b", "a\0b", &"x".repeat(201)] {
            assert!(PodKey::new(1, uid).is_err(), "{uid:?}");
        }
    }

    #[test]
    fn foreign_names_are_no_pods() {
        for name in
            ["", "lost+found", "000000000000001f", "000000000000001f_x", "00000000000000zz-a", "äääääääää-a"]
        {
            assert_eq!(PodKey::parse(name), None, "{name:?}");
        }
    }

    #[test]
    fn instances_are_apart_and_versioned() {
        let pins = |name: &str| Pins::new(Path::new("/sys/fs/bpf"), &name.parse().unwrap());
        assert_eq!(pins("lab-a").root(), Path::new("/sys/fs/bpf/ambit/lab-a/v1"));
        assert_ne!(pins("lab-a"), pins("lab-b"));
        for name in ["", "..", "a/b", "a.b", &"x".repeat(64)] {
            assert!(name.parse::<InstanceName>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn an_instance_without_pins_has_no_pods_and_is_removed_already() {
        let folder = tempfile::tempdir().unwrap();
        let pins = Pins::new(folder.path(), &"none".parse().unwrap());
        assert_eq!(pins.pods().unwrap(), []);
        pins.remove().unwrap();
    }
}
