//! The program on the kubelet's sockets, by which pods know its probes.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use aya::EbpfLoader;
use aya::maps::Map;
use ebpf_abi::name;

use crate::attach::{self, Attachment, Cgroup};
use crate::instance::{Instance, OpenError, Single};
use crate::objects;
use crate::pins;
use crate::sys::AttachType;

/// The program, and the kubelet's cgroup once that is known.
#[derive(Debug)]
pub(crate) struct Kubelet {
    program: OwnedFd,
    netns: Single<u64>,
    at: Option<(PathBuf, Attachment)>,
}

impl Kubelet {
    /// Loads the program, and makes the map of pods that it shares.
    pub(crate) fn load(loader: &mut EbpfLoader<'static>) -> Result<Self, OpenError> {
        let mut object = loader.load(objects::KUBELET).map_err(OpenError::Load)?;
        let missing = OpenError::Missing { program: name::KUBELET };
        let program = attach::load(&mut object, name::KUBELET)
            .map_err(|source| OpenError::Program { program: name::KUBELET, source })?;
        let (Some(program), Some(Map::Array(netns))) = (program, object.take_map(name::KUBELET_NETNS)) else {
            return Err(missing);
        };
        Ok(Self { program, netns: Single::of(netns).map_err(OpenError::Watch)?, at: None })
    }

    /// Attaches the program again where it is not any more. Says whether it was not.
    ///
    /// The cgroup is looked for by its path: a service that starts anew gets another one of the same path. While there is
    /// none, there is no kubelet, and nothing is damaged.
    pub(crate) fn mend(&mut self) -> io::Result<bool> {
        let Some((path, attachment)) = &mut self.at else { return Ok(false) };
        let cgroup = match Cgroup::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened?,
        };
        let is_damaged = !attachment.stands(&cgroup)?;
        if is_damaged {
            attachment.mend(&cgroup)?;
        }
        Ok(is_damaged)
    }
}

impl Instance {
    /// Lets the probes in that processes of this cgroup make from the network namespace with this cookie, the node's.
    /// Only connections to pods of this instance count, only while their handshake lasts, and only those: whatever else
    /// comes from the node's address is a stranger's.
    ///
    /// # Errors
    ///
    /// See [`OpenError`].
    pub fn let_probes_in(&mut self, cgroup: &Path, node: u64) -> Result<(), OpenError> {
        let path = cgroup.to_owned();
        let cgroup =
            Cgroup::open(cgroup).map_err(|source| OpenError::Cgroup { path: path.clone(), source })?;
        self.kubelet.netns.set(node).map_err(OpenError::Watch)?;
        let failed = |source| OpenError::Attach { program: name::KUBELET, source };
        let program = self.kubelet.program.try_clone().map_err(failed)?;
        let pin = self.pins.entry(name::KUBELET);
        let attachment = Attachment::make(name::KUBELET, AttachType::CgroupSockOps, program, &cgroup, pin)
            .map_err(failed)?;
        self.kubelet.at = Some((path, attachment));
        Ok(())
    }

    /// Takes everybody for a stranger, also who an earlier process let in.
    ///
    /// # Errors
    ///
    /// What that one attached cannot be detached.
    pub fn let_no_probes_in(&mut self) -> io::Result<()> {
        self.kubelet.at = None;
        pins::detach(&self.pins.entry(name::KUBELET), AttachType::CgroupSockOps)
    }
}
