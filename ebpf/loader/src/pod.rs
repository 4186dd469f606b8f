//! Capture of one pod: prepared before ztunnel hears of it, begun when ztunnel listens, ended before ztunnel leaves.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{Array, Map, MapData, MapError};
use aya::programs::{ProgramError, SkLookup};
use aya::{Ebpf, EbpfError};
use ebpf_abi::{NsConfig, OwnAddresses, Steering, name};
use thiserror::Error;

use crate::instance::{Instance, Layout};
use crate::mend::{Held, HoldError};
use crate::objects;
use crate::pins::{self, PodKey};
use crate::sys::{self, AttachType, Link};

/// A pod that can be captured.
#[derive(Debug)]
pub struct Prepared {
    /// Its listener map, to be handed to ztunnel.
    pub listeners: OwnedFd,
    /// Whether it is captured already, by an earlier process of this instance.
    pub captured: bool,
}

type SteeringMap = Array<MapData, Layout<Steering>>;

impl Instance {
    /// Makes a pod's maps and loads its program, without capturing anything yet. Idempotent; a pod that is captured
    /// stays so, with this program in place of the one that it had.
    ///
    /// # Errors
    ///
    /// See [`CaptureError`]. What was captured stays captured.
    pub fn prepare(&mut self, key: &PodKey, own: OwnAddresses) -> Result<Prepared, CaptureError> {
        let folder = self.pins.pod(key);
        fs::create_dir_all(&folder).map_err(CaptureError::Pin)?;
        for map in [name::LISTENERS, name::STEERING] {
            self.loader.map_pin_path(map, folder.join(map));
        }
        let mut object = self.loader.load(objects::STEER)?;
        program(&mut object)?.load()?;
        // One whose entry in MESHED somebody removed stays captured on this side.
        let inbound = self.is_captured(key)? || self.held.contains_key(key);
        self.steer(key, Steering::new(own, inbound))?;

        let listeners = sys::object(&folder.join(name::LISTENERS)).map_err(CaptureError::Pin)?;
        let mut captured = false;
        if let Some(link) = Link::open(&folder.join(name::STEER)).map_err(CaptureError::Attach)?
            && link.target(AttachType::SkLookup).map_err(CaptureError::Attach)?.is_some()
        {
            link.update(program(&mut object)?.fd()?.as_fd()).map_err(CaptureError::Attach)?;
            captured = self.is_captured(key)?;
        }
        self.prepared.insert(key.clone(), object);
        Ok(Prepared { listeners, captured })
    }

    /// Begins to capture a prepared pod, whose network namespace is `netns`: connections that come in from the
    /// network, then those that it opens. A pod that is captured gets this configuration. Established connections go on as they are. Idempotent.
    ///
    /// # Errors
    ///
    /// See [`CaptureError`]; then nothing is captured that was not before. To be tried again.
    pub fn capture(&mut self, key: &PodKey, config: NsConfig, netns: impl AsFd) -> Result<(), CaptureError> {
        self.attach(key, netns)?;
        let was_captured = self.is_captured(key)?;
        self.steer(key, Steering::new(config.own, true))?;
        if let Err(error) = self.mesh(key, config) {
            if !was_captured {
                self.meshed.remove(&key.cookie()).ok();
            }
            self.steer(key, Steering::new(config.own, was_captured))?;
            return Err(error.into());
        }
        self.prepared.remove(key);
        Ok(())
    }

    /// Attaches a prepared pod's program, unless it is, and holds it.
    fn attach(&mut self, key: &PodKey, netns: impl AsFd) -> Result<(), CaptureError> {
        let pin = self.pins.pod(key).join(name::STEER);
        let attached = match Link::open(&pin).map_err(CaptureError::Attach)? {
            Some(link) if link.target(AttachType::SkLookup).map_err(CaptureError::Attach)?.is_some() => {
                Some(link)
            }
            _ => None,
        };
        if attached.is_some() && !self.prepared.contains_key(key) {
            return Ok(());
        }
        let object = self.prepared.get_mut(key).ok_or(CaptureError::Unprepared)?;
        let program = program(object)?.fd()?.as_fd().try_clone_to_owned().map_err(CaptureError::Attach)?;
        let link = match attached {
            Some(link) => link,
            None => {
                pins::detach(&pin, AttachType::SkLookup).map_err(CaptureError::Attach)?;
                let link = Link::create(program.as_fd(), netns.as_fd(), AttachType::SkLookup)
                    .map_err(CaptureError::Attach)?;
                link.pin(&pin).map_err(CaptureError::Pin)?;
                link
            }
        };
        let held = Held::of(&self.pins, key, program, link).map_err(|error| match error {
            HoldError::Pin(source) => CaptureError::Pin(source),
            HoldError::Map(source) => CaptureError::Map(source),
        })?;
        self.held.insert(key.clone(), held);
        Ok(())
    }

    /// Begins to capture what a pod opens, and to watch what gets past: the watch last, as it would count what was opened
    /// before.
    fn mesh(&mut self, key: &PodKey, config: NsConfig) -> Result<(), MapError> {
        self.watch.know(key.cookie(), &config.own)?;
        self.meshed.insert(key.cookie(), Layout(config), 0)?;
        self.watch.begin(key.cookie(), config)
    }

    /// Ends the capture of a pod: first of the connections that it opens, then of those that come in. When it returns
    /// no new connection is captured; established ones go on, and one that was marked just before still finds its
    /// listener, until [`forget`](Self::forget). Idempotent.
    ///
    /// # Errors
    ///
    /// See [`ReleaseError`]; to be tried again.
    pub fn release(&mut self, key: &PodKey) -> Result<(), ReleaseError> {
        self.held.remove(key);
        self.watch.end(key.cookie())?;
        if self.is_captured(key)? {
            self.meshed.remove(&key.cookie())?;
        }
        if let Some(mut steering) = self.steering(key)? {
            let Layout(captured) = steering.get(&0, 0)?;
            steering.set(0, Layout(Steering::new(captured.own, false)), 0)?;
        }
        Ok(())
    }

    /// Removes what is left of a pod after [`release`](Self::release), which it implies. Idempotent.
    ///
    /// # Errors
    ///
    /// See [`ReleaseError`]; to be tried again.
    pub fn forget(&mut self, key: &PodKey) -> Result<(), ReleaseError> {
        self.release(key)?;
        self.prepared.remove(key);
        self.guard.forget(key);
        self.pins.remove_pod(key).map_err(ReleaseError::Pin)
    }

    /// The pinned map of a pod's steering; `None` where the pod was never prepared.
    fn steering(&self, key: &PodKey) -> Result<Option<SteeringMap>, MapError> {
        let pin = self.pins.pod(key).join(name::STEERING);
        if !pin.exists() {
            return Ok(None);
        }
        Ok(Some(Array::try_from(Map::Array(MapData::from_pin(pin)?))?))
    }

    fn steer(&mut self, key: &PodKey, steering: Steering) -> Result<(), CaptureError> {
        let mut map = self.steering(key)?.ok_or(CaptureError::Unprepared)?;
        Ok(map.set(0, Layout(steering), 0)?)
    }

    /// Whether a pod's outbound connections are captured.
    ///
    /// # Errors
    ///
    /// MESHED cannot be read.
    pub fn is_captured(&self, key: &PodKey) -> Result<bool, MapError> {
        match self.meshed.get(&key.cookie(), 0) {
            Ok(_) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

pub(crate) fn program(object: &mut Ebpf) -> Result<&mut SkLookup, CaptureError> {
    let program = object.program_mut(name::STEER).ok_or(CaptureError::Incomplete { part: name::STEER })?;
    Ok(program.try_into()?)
}

/// Why a pod cannot be captured.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// A pin cannot be made or opened.
    #[error("the pod's pins cannot be used")]
    Pin(#[source] io::Error),
    /// The kernel does not take the object's maps.
    #[error("the steer object cannot be loaded")]
    Load(#[from] EbpfError),
    /// The committed object lacks something.
    #[error("the steer object has no `{part}`")]
    Incomplete {
        /// What.
        part: &'static str,
    },
    /// The kernel does not take the program.
    #[error("the steer program cannot be loaded")]
    Program(#[from] ProgramError),
    /// A map refuses an entry; MESHED is full at 4096 pods.
    #[error("a map of the redirection refuses an entry")]
    Map(#[from] MapError),
    /// The program cannot be attached to the network namespace.
    #[error("the steer program cannot be attached")]
    Attach(#[source] io::Error),
    /// [`Instance::prepare`] was not called for this pod.
    #[error("the pod was not prepared")]
    Unprepared,
}

/// Why the capture of a pod cannot be ended.
#[derive(Debug, Error)]
pub enum ReleaseError {
    /// MESHED cannot be changed.
    #[error("the pod's entry cannot be removed from MESHED")]
    Map(#[from] MapError),
    /// A pin cannot be removed.
    #[error("the pod's pins cannot be removed")]
    Pin(#[source] io::Error),
}
