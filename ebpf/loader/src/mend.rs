//! Putting back what somebody took away or changed: programs, links, pins, entries.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use aya::maps::{MapData, MapError};
use ebpf_abi::{NsConfig, Steering, name};
use thiserror::Error;

use crate::instance::{Instance, Layout, Single};
use crate::pins::{self, Pins, PodKey};
use crate::sys::{self, AttachType, Link};
use crate::watch::absent;

/// What of one captured pod is held, so that removing its pins ends nothing.
#[derive(Debug)]
pub(crate) struct Held {
    program: OwnedFd,
    link: Link,
    steering: Single<Steering>,
    maps: [(PathBuf, OwnedFd); 2],
}

impl Held {
    /// Takes hold of what is pinned for a pod.
    pub(crate) fn of(pins: &Pins, key: &PodKey, program: OwnedFd, link: Link) -> Result<Self, HoldError> {
        let pin = |map| pins.pod(key).join(map);
        let open = |map| Ok::<_, io::Error>((pin(map), sys::object(&pin(map))?));
        let steering = Single::of(MapData::from_pin(pin(name::STEERING))?)?;
        Ok(Self { program, link, steering, maps: [open(name::LISTENERS)?, open(name::STEERING)?] })
    }
}

/// Why what is pinned cannot be held.
#[derive(Debug, Error)]
pub(crate) enum HoldError {
    #[error(transparent)]
    Pin(#[from] io::Error),
    #[error(transparent)]
    Map(#[from] MapError),
}

impl Instance {
    /// Looks whether what is attached for the whole node still is, and puts it back. Gives the names of what was not.
    ///
    /// # Errors
    ///
    /// See [`MendError`]; to be tried again.
    pub fn mend(&mut self) -> Result<Vec<&'static str>, MendError> {
        let mut mended = Vec::new();
        fs::create_dir_all(self.pins.root().join("pods"))
            .map_err(|source| MendError { what: "pins", source })?;
        for attachment in &mut self.attachments {
            let what = attachment.name;
            let failed = |source| MendError { what, source };
            if !attachment.stands(&self.cgroup).map_err(failed)? {
                attachment.mend(&self.cgroup).map_err(failed)?;
                mended.push(what);
            }
        }
        if self.kubelet.mend().map_err(|source| MendError { what: name::KUBELET, source })? {
            mended.push(name::KUBELET);
        }
        for (pin, map) in &self.maps {
            if repin(pin, map).map_err(|source| MendError { what: "pins", source })? {
                mended.push("pins");
            }
        }
        Ok(mended)
    }

    /// Looks whether all that captures a pod, whose namespace is `netns`, is as [`Instance::capture`] left it, and puts
    /// it back. Gives the names of what was not. What is damaged captures nothing meanwhile, or drops.
    ///
    /// # Errors
    ///
    /// See [`MendError`]; to be tried again.
    pub fn mend_pod(
        &mut self,
        key: &PodKey,
        config: NsConfig,
        netns: impl AsFd,
    ) -> Result<Vec<&'static str>, MendError> {
        let mut mended = Vec::new();
        let cookie = key.cookie();
        let map_failed = |what| move |error: MapError| MendError { what, source: io::Error::other(error) };
        let meshed = absent(self.meshed.get(&cookie, 0)).map_err(map_failed("meshed"))?;
        if meshed.is_none_or(|Layout(meshed)| meshed != config) {
            self.meshed.insert(cookie, Layout(config), 0).map_err(map_failed("meshed"))?;
            mended.push("meshed");
        }
        if !self.watch.stands(cookie, &config).map_err(map_failed("watched"))? {
            let watch = &mut self.watch;
            let known = watch.know(cookie, &config.own).and_then(|()| watch.begin(cookie, config));
            known.map_err(map_failed("watched"))?;
            mended.push("watched");
        }
        let Some(held) = self.held.get_mut(key) else { return Ok(mended) };
        let steering = Steering::new(config.own, true);
        if held.steering.get().map_err(map_failed("steering"))? != steering {
            held.steering.set(steering).map_err(map_failed("steering"))?;
            mended.push("steering");
        }
        let failed = |source| MendError { what: name::STEER, source };
        let folder = self.pins.pod(key);
        let pin = folder.join(name::STEER);
        let is_attached = held.link.target(AttachType::SkLookup).map_err(failed)?.is_some();
        if !is_attached || !pin.try_exists().map_err(failed)? {
            fs::create_dir_all(&folder).map_err(failed)?;
            if !is_attached {
                held.link = Link::create(held.program.as_fd(), netns.as_fd(), AttachType::SkLookup)
                    .map_err(failed)?;
            }
            pins::absent_is_fine(fs::remove_file(&pin)).map_err(failed)?;
            held.link.pin(&pin).map_err(failed)?;
            mended.push(name::STEER);
        }
        for (pin, map) in &held.maps {
            if repin(pin, map).map_err(|source| MendError { what: "pins", source })? {
                mended.push("pins");
            }
        }
        Ok(mended)
    }
}

/// Pins a map where its pin is gone. Says whether it was.
fn repin(pin: &std::path::Path, map: &OwnedFd) -> io::Result<bool> {
    let is_gone = !pin.try_exists()?;
    if is_gone {
        sys::pin(map.as_fd(), pin)?;
    }
    Ok(is_gone)
}

/// Why something damaged is not as it was.
#[derive(Debug, Error)]
#[error("`{what}` is damaged and cannot be put back")]
pub struct MendError {
    /// What.
    pub what: &'static str,
    /// Why not.
    #[source]
    pub source: io::Error,
}
