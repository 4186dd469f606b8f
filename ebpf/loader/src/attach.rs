//! Programs at cgroups: attached by a link, pinned, and put back where somebody takes them away.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::{CgroupSockAddr, Program, ProgramError, SchedClassifier, SkLookup, SockOps};

use crate::sys::{AttachType, Link};

/// A cgroup to attach to.
#[derive(Debug)]
pub(crate) struct Cgroup {
    folder: File,
    id: u64,
}

impl Cgroup {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let folder = File::open(path)?;
        // On cgroup2 the directory's inode is the cgroup's identifier.
        let id = folder.metadata()?.ino();
        Ok(Self { folder, id })
    }
}

/// A program that is attached to a cgroup. The link's descriptor is held: removing the pin alone detaches nothing.
#[derive(Debug)]
pub(crate) struct Attachment {
    pub(crate) name: &'static str,
    kind: AttachType,
    pin: PathBuf,
    program: OwnedFd,
    link: Link,
}

impl Attachment {
    /// Attaches a program, or puts it in place of the one that is pinned.
    pub(crate) fn make(
        name: &'static str,
        kind: AttachType,
        program: OwnedFd,
        cgroup: &Cgroup,
        pin: PathBuf,
    ) -> io::Result<Self> {
        let pinned = Link::open(&pin)?;
        if let Some(link) = pinned
            && link.target(kind)? == Some(cgroup.id)
        {
            link.update(program.as_fd())?;
            return Ok(Self { name, kind, pin, program, link });
        }
        // Pinned elsewhere or detached: the new one first, so that there is no gap, then it takes the old one's place.
        let link = Link::create(program.as_fd(), cgroup.folder.as_fd(), kind)?;
        let fresh = pin.with_file_name(format!("{name}-new"));
        crate::pins::detach(&fresh, kind)?;
        link.pin(&fresh)?;
        fs::rename(&fresh, &pin)?;
        Ok(Self { name, kind, pin, program, link })
    }

    /// Whether it still is attached to this cgroup, and pinned.
    pub(crate) fn stands(&self, cgroup: &Cgroup) -> io::Result<bool> {
        Ok(self.link.target(self.kind)? == Some(cgroup.id) && self.pin.try_exists()?)
    }

    /// Attaches and pins it again, as far as it is not.
    pub(crate) fn mend(&mut self, cgroup: &Cgroup) -> io::Result<()> {
        if self.link.target(self.kind)? == Some(cgroup.id) {
            return if self.pin.try_exists()? { Ok(()) } else { self.link.pin(&self.pin) };
        }
        let program = self.program.try_clone()?;
        *self = Self::make(self.name, self.kind, program, cgroup, self.pin.clone())?;
        Ok(())
    }
}

/// Loads one program of an object; `None` where the object has none of that name and kind.
pub(crate) fn load(object: &mut Ebpf, name: &str) -> Result<Option<OwnedFd>, ProgramError> {
    fn typed<'a, T: TryFrom<&'a mut Program>>(program: &'a mut Program) -> Option<T> {
        T::try_from(program).ok()
    }
    let Some(program) = object.program_mut(name) else { return Ok(None) };
    match program {
        Program::CgroupSockAddr(_) => typed::<&mut CgroupSockAddr>(program).map(CgroupSockAddr::load),
        Program::SockOps(_) => typed::<&mut SockOps>(program).map(SockOps::load),
        Program::SkLookup(_) => typed::<&mut SkLookup>(program).map(SkLookup::load),
        Program::SchedClassifier(_) => typed::<&mut SchedClassifier>(program).map(SchedClassifier::load),
        _ => return Ok(None),
    }
    .transpose()?;
    let fd = object.program(name).map(Program::fd).transpose()?;
    fd.map(|fd| fd.as_fd().try_clone_to_owned().map_err(ProgramError::IOError)).transpose()
}
