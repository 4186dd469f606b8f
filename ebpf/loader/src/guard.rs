//! The guard at the devices of pods: what is captured does not leave where the pod's routing is damaged.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use aya::maps::{Map, MapError};
use aya::{Ebpf, EbpfError, EbpfLoader};
use ebpf_abi::{NsConfig, name};
use nix::errno::Errno;
use nix::net::if_::if_nameindex;
use thiserror::Error;

use crate::attach;
use crate::instance::{Instance, Single};
use crate::objects;
use crate::pins::{self, PodKey};
use crate::sys::{AttachType, Link};

/// `lo` is the first device of every network namespace.
const LOOPBACK_IFINDEX: u32 = 1;

/// How the pin of a guard begins; the device's index follows.
pub(crate) const PIN: &str = "guard-";

/// The program, and where it is attached.
#[derive(Debug)]
pub(crate) struct Guard {
    program: OwnedFd,
    guarded: Single<NsConfig>,
    config: Option<NsConfig>,
    /// By pod and by device.
    links: BTreeMap<PodKey, BTreeMap<u32, Link>>,
}

impl Guard {
    pub(crate) fn load(loader: &mut EbpfLoader<'static>) -> Result<Self, GuardError> {
        let mut object: Ebpf = loader.load(objects::GUARD)?;
        let program = attach::load(&mut object, name::GUARD)?.ok_or(GuardError::Incomplete)?;
        let map = object.take_map(name::GUARDED).ok_or(GuardError::Incomplete)?;
        let Map::Array(map) = map else { return Err(GuardError::Incomplete) };
        let guarded = Single::of(map)?;
        Ok(Self { program, guarded, config: None, links: BTreeMap::new() })
    }

    pub(crate) fn forget(&mut self, key: &PodKey) {
        self.links.remove(key);
    }

    /// The mark is the same for all pods of an instance.
    fn configure(&mut self, config: NsConfig) -> Result<(), MapError> {
        if self.config != Some(config) {
            self.guarded.set(config)?;
            self.config = Some(config);
        }
        Ok(())
    }

    fn stand_at(&mut self, key: &PodKey, folder: &Path, device: u32) -> io::Result<bool> {
        const KIND: AttachType = AttachType::TcxEgress;
        let pin = folder.join(format!("{PIN}{device}"));
        let links = self.links.entry(key.clone()).or_default();
        if let Some(link) = links.get(&device)
            && link.target(KIND)? == Some(device.into())
        {
            if pin.try_exists()? {
                return Ok(false);
            }
            link.pin(&pin)?;
            return Ok(true);
        }
        // An earlier process's stays, with this program.
        if let Some(link) = Link::open(&pin)?
            && link.target(KIND)? == Some(device.into())
        {
            link.update(self.program.as_fd())?;
            links.insert(device, link);
            return Ok(false);
        }
        let is_new = links.remove(&device).is_none();
        pins::detach(&pin, KIND)?;
        let link = Link::create_at(self.program.as_fd(), device, KIND)?;
        link.pin(&pin)?;
        links.insert(device, link);
        Ok(!is_new)
    }
}

impl Instance {
    /// Has what leaves a prepared pod's devices guarded, also devices that came since the last time. To be called inside
    /// the pod's network namespace. Says whether a guard was missing that had been there.
    ///
    /// # Errors
    ///
    /// See [`GuardError`]. [`GuardError::Unsupported`] stays: then only the pod's routing keeps captured packets in.
    pub fn guard(&mut self, key: &PodKey, config: NsConfig) -> Result<bool, GuardError> {
        let folder = self.pins.pod(key);
        let devices = if_nameindex().map_err(|errno| GuardError::Devices(errno.into()))?;
        self.guard.configure(config)?;
        let mut was_missing = false;
        let mut there = Vec::new();
        for device in devices.iter().map(|device| device.index()) {
            if device != LOOPBACK_IFINDEX {
                there.push(device);
                was_missing |= self.guard.stand_at(key, &folder, device).map_err(attach_error)?;
            }
        }
        if let Some(links) = self.guard.links.get_mut(key) {
            links.retain(|device, _| there.contains(device));
        }
        Ok(was_missing)
    }

    /// Whether all guards of a pod that were there still are.
    ///
    /// # Errors
    ///
    /// The kernel does not say.
    pub fn is_guarded(&self, key: &PodKey) -> io::Result<bool> {
        for (device, link) in self.guard.links.get(key).into_iter().flatten() {
            if link.target(AttachType::TcxEgress)? != Some((*device).into()) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn attach_error(error: io::Error) -> GuardError {
    match error.raw_os_error().map(Errno::from_raw) {
        // What kernels say that do not know the kind of attachment.
        Some(Errno::EINVAL | Errno::EOPNOTSUPP) => GuardError::Unsupported(error),
        _ => GuardError::Attach(error),
    }
}

/// Why a pod's devices are not guarded.
#[derive(Debug, Error)]
pub enum GuardError {
    /// The kernel does not take the object's map.
    #[error("the guard object cannot be loaded")]
    Load(#[from] EbpfError),
    /// The kernel does not take the program.
    #[error("the program `guard` cannot be loaded")]
    Program(#[from] aya::programs::ProgramError),
    /// The committed object lacks something.
    #[error("the guard object is incomplete")]
    Incomplete,
    /// The map refuses the mark.
    #[error("the guard cannot be told the mark")]
    Map(#[from] MapError),
    /// The namespace's devices cannot be listed.
    #[error("the pod's devices cannot be listed")]
    Devices(#[source] io::Error),
    /// The kernel is older than 6.6, which brought this kind of attachment.
    #[error("this kernel has no guard for a pod's devices (it needs Linux 6.6)")]
    Unsupported(#[source] io::Error),
    /// The program cannot be attached or pinned.
    #[error("the guard cannot be attached to a device of the pod")]
    Attach(#[source] io::Error),
}
