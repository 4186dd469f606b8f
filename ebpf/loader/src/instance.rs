//! One agent instance's redirection, loaded and pinned.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use aya::programs::ProgramError;
use aya::{Ebpf, EbpfError, EbpfLoader, Pod};
use ebpf_abi::{NsConfig, name};
use thiserror::Error;

use crate::attach::{self, Attachment, Cgroup};
use crate::guard::{Guard, GuardError};
use crate::kubelet::Kubelet;
use crate::mend::Held;
use crate::objects;
use crate::pins::{Lock, Pins, PodKey};
use crate::sys::{self, AttachType};
use crate::watch::WatchMaps;

/// A layout of the ABI as aya wants it.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout<T>(pub(crate) T);

// SAFETY: `repr(C)` of `u32`s alone, without padding (a test of ebpf-abi).
unsafe impl Pod for Layout<NsConfig> {}
// SAFETY: `repr(C)` of `u32`s alone, without padding (a test of ebpf-abi).
unsafe impl Pod for Layout<ebpf_abi::Steering> {}
// SAFETY: `repr(C)` of the above and a `u64`, without padding (a test of ebpf-abi).
unsafe impl Pod for Layout<ebpf_abi::Watched> {}
// SAFETY: a plain integer.
unsafe impl Pod for Layout<u64> {}
// SAFETY: `repr(C)` of `u64`s alone.
unsafe impl Pod for Layout<ebpf_abi::Bypassed> {}

/// An array map of one entry.
pub(crate) struct Single<T>(Array<MapData, Layout<T>>)
where
    Layout<T>: Pod;

impl<T> Single<T>
where
    Layout<T>: Pod,
{
    pub(crate) fn of(map: MapData) -> Result<Self, MapError> {
        Ok(Self(Map::Array(map).try_into()?))
    }

    pub(crate) fn get(&self) -> Result<T, MapError> {
        self.0.get(&0, 0).map(|Layout(value)| value)
    }

    pub(crate) fn set(&mut self, value: T) -> Result<(), MapError> {
        self.0.set(0, Layout(value), 0)
    }
}

impl<T> fmt::Debug for Single<T>
where
    Layout<T>: Pod,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Single").finish_non_exhaustive()
    }
}

/// The maps that all pods of an instance share.
const SHARED: [&str; 6] =
    [name::MESHED, name::BYPASS, name::WATCHED, name::BYPASSED, name::PODS, name::PROBES];

/// The redirection of one agent instance. There is at most one value a pin directory, also across processes.
///
/// Dropping it leaves everything in place: see [`Pins::remove`].
#[derive(Debug)]
pub struct Instance {
    pub(crate) pins: Pins,
    /// Kept, because making one parses the kernel's type information (some 35 ms).
    pub(crate) loader: EbpfLoader<'static>,
    pub(crate) meshed: HashMap<MapData, u64, Layout<NsConfig>>,
    bypass: OwnedFd,
    pub(crate) watch: WatchMaps,
    pub(crate) guard: Guard,
    pub(crate) cgroup: Cgroup,
    pub(crate) attachments: Vec<Attachment>,
    pub(crate) kubelet: Kubelet,
    /// The shared maps, and where they are pinned.
    pub(crate) maps: Vec<(PathBuf, OwnedFd)>,
    /// Of the pods that are captured.
    pub(crate) held: BTreeMap<PodKey, Held>,
    /// Loaded programs of pods whose capture has not begun.
    pub(crate) prepared: BTreeMap<PodKey, Ebpf>,
    _lock: Option<Lock>,
}

impl Instance {
    /// Loads the programs on connect and attaches them to the cgroup at `cgroup`, normally the root of the cgroup2
    /// tree. What an earlier process of this instance pinned is adopted: its maps stay, its programs are replaced in
    /// place. Entries of MESHED that belong to no pinned pod are removed.
    ///
    /// # Errors
    ///
    /// See [`OpenError`]. What was attached before stays as it was.
    pub fn open(pins: Pins, cgroup: &Path) -> Result<Self, OpenError> {
        pins.create().map_err(|source| OpenError::Pins { path: pins.root(), source })?;
        let lock = pins.lock()?;
        let mut loader = EbpfLoader::new();
        for map in SHARED {
            loader.map_pin_path(map, pins.entry(map));
        }
        let mut object = loader.load(objects::CONNECT).map_err(OpenError::Load)?;
        let bypass = sys::object(&pins.entry(name::BYPASS))
            .map_err(|source| OpenError::Pins { path: pins.entry(name::BYPASS), source })?;
        let meshed = meshed(&pins)?;
        let cgroup =
            Cgroup::open(cgroup).map_err(|source| OpenError::Cgroup { path: cgroup.to_owned(), source })?;
        let mut attachments = Vec::new();
        for (program, kind) in [
            (name::CONNECT4, AttachType::CgroupInet4Connect),
            (name::CONNECT6, AttachType::CgroupInet6Connect),
        ] {
            attachments.push(attach(&mut object, program, kind, &cgroup, &pins)?);
        }
        // After the programs that capture, or it would count what they have not caught yet.
        let mut object = loader.load(objects::WATCH).map_err(OpenError::Load)?;
        attachments.push(attach(&mut object, name::WATCH, AttachType::CgroupSockOps, &cgroup, &pins)?);
        let kubelet = Kubelet::load(&mut loader)?;
        let watch = WatchMaps::open(&pins).map_err(OpenError::Watch)?;
        let guard = Guard::load(&mut loader)?;
        let maps = SHARED.map(|map| {
            let pin = pins.entry(map);
            sys::object(&pin)
                .map(|map| (pin.clone(), map))
                .map_err(|source| OpenError::Pins { path: pin, source })
        });
        let maps = maps.into_iter().collect::<Result<_, _>>()?;
        let mut instance = Self {
            pins,
            loader,
            meshed,
            bypass,
            watch,
            guard,
            cgroup,
            attachments,
            kubelet,
            maps,
            held: BTreeMap::new(),
            prepared: BTreeMap::new(),
            _lock: lock,
        };
        instance.sweep()?;
        Ok(instance)
    }

    /// The bypass storage, to be handed to ztunnel.
    pub fn bypass(&self) -> BorrowedFd<'_> {
        self.bypass.as_fd()
    }

    /// Where this instance's pins are.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// The network namespaces whose outbound connections are captured, by cookie.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn meshed(&self) -> Result<BTreeMap<u64, NsConfig>, MapError> {
        self.meshed.iter().map(|entry| entry.map(|(cookie, Layout(config))| (cookie, config))).collect()
    }

    fn sweep(&mut self) -> Result<(), OpenError> {
        let pods = self.pins.pods().map_err(|source| OpenError::Pins { path: self.pins.root(), source })?;
        let known: BTreeSet<u64> = pods.iter().map(|pod| pod.key.cookie()).collect();
        for cookie in
            self.meshed().map_err(OpenError::Meshed)?.keys().filter(|cookie| !known.contains(cookie))
        {
            self.meshed.remove(cookie).map_err(OpenError::Meshed)?;
        }
        self.watch.sweep(&known).map_err(OpenError::Watch)
    }
}

fn meshed(pins: &Pins) -> Result<HashMap<MapData, u64, Layout<NsConfig>>, OpenError> {
    let map = MapData::from_pin(pins.entry(name::MESHED)).map_err(OpenError::Meshed)?;
    HashMap::try_from(Map::HashMap(map)).map_err(OpenError::Meshed)
}

/// Loads one program of an object and attaches it, or puts it in place of the one that is pinned.
fn attach(
    object: &mut Ebpf,
    name: &'static str,
    kind: AttachType,
    cgroup: &Cgroup,
    pins: &Pins,
) -> Result<Attachment, OpenError> {
    let program = attach::load(object, name)
        .map_err(|source| OpenError::Program { program: name, source })?
        .ok_or(OpenError::Missing { program: name })?;
    Attachment::make(name, kind, program, cgroup, pins.entry(name))
        .map_err(|source| OpenError::Attach { program: name, source })
}

/// Why an instance cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The pin directory cannot be used; is a BPF file system mounted there?
    #[error("the pins at {} cannot be used", path.display())]
    Pins {
        /// What was tried.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another process has this instance open.
    #[error("another agent uses the instance at {}", path.display())]
    InUse {
        /// Its pin directory.
        path: PathBuf,
    },
    /// The cgroup cannot be opened.
    #[error("the cgroup {} cannot be opened", path.display())]
    Cgroup {
        /// What was tried.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The kernel does not take the object's maps.
    #[error("an object cannot be loaded")]
    Load(#[source] EbpfError),
    /// The committed object lacks a program.
    #[error("no object has a program `{program}`")]
    Missing {
        /// Which.
        program: &'static str,
    },
    /// The kernel does not take a program.
    #[error("the program `{program}` cannot be loaded")]
    Program {
        /// Which.
        program: &'static str,
        /// Why not.
        #[source]
        source: ProgramError,
    },
    /// A program cannot be attached or pinned.
    #[error("the program `{program}` cannot be attached")]
    Attach {
        /// Which.
        program: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// MESHED cannot be used, or has another layout than this version's.
    #[error("the map MESHED cannot be used")]
    Meshed(#[source] MapError),
    /// A map of the watch cannot be used, or has another layout than this version's.
    #[error("the maps of the watch cannot be used")]
    Watch(#[source] MapError),
    /// The program that guards pods' devices cannot be loaded.
    #[error(transparent)]
    Guard(#[from] GuardError),
}
