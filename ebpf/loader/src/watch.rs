//! The watch over pods: how many of their connections got past the mesh.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData, MapError};
use ebpf_abi::{Bypassed, NsConfig, OwnAddresses, Watched, mapped, name, words_v4, words_v6};

use crate::instance::{Instance, Layout};
use crate::pins::{Pins, PodKey};
use crate::sys;

/// Handshakes that had begun before capture have ended by then.
const HANDSHAKES_END: Duration = Duration::from_secs(1);

/// The maps of the watch, and of the kubelet's program.
#[derive(Debug)]
pub(crate) struct WatchMaps {
    watched: HashMap<MapData, u64, Layout<Watched>>,
    bypassed: HashMap<MapData, u64, Layout<Bypassed>>,
    pods: HashMap<MapData, [u32; 4], u64>,
}

impl WatchMaps {
    /// Opens the pinned maps.
    pub(crate) fn open(pins: &Pins) -> Result<Self, MapError> {
        let map = |name| Ok::<_, MapError>(Map::HashMap(MapData::from_pin(pins.entry(name))?));
        Ok(Self {
            watched: map(name::WATCHED)?.try_into()?,
            bypassed: map(name::BYPASSED)?.try_into()?,
            pods: map(name::PODS)?.try_into()?,
        })
    }

    /// Makes a pod's addresses known as a pod's.
    pub(crate) fn know(&mut self, cookie: u64, own: &OwnAddresses) -> Result<(), MapError> {
        let known: Vec<_> = addresses(own).collect();
        for stale in self.of_pod(cookie)?.into_iter().filter(|address| !known.contains(address)) {
            self.pods.remove(&stale)?;
        }
        known.iter().try_for_each(|address| self.pods.insert(address, cookie, 0))
    }

    /// Begins to count, or goes on with this configuration.
    pub(crate) fn begin(&mut self, cookie: u64, config: NsConfig) -> Result<(), MapError> {
        let since = self.since(cookie)?;
        let accepted_since = since.unwrap_or_else(|| nanoseconds(sys::monotonic() + HANDSHAKES_END));
        if absent(self.bypassed.get(&cookie, 0))?.is_none() {
            self.bypassed.insert(cookie, Layout(Bypassed::default()), 0)?;
        }
        self.watched.insert(cookie, Layout(Watched { config, accepted_since }), 0)
    }

    fn since(&self, cookie: u64) -> Result<Option<u64>, MapError> {
        Ok(absent(self.watched.get(&cookie, 0))?.map(|Layout(watched)| watched.accepted_since))
    }

    /// Whether all that was made known of a pod still is.
    pub(crate) fn stands(&self, cookie: u64, config: &NsConfig) -> Result<bool, MapError> {
        let watched = absent(self.watched.get(&cookie, 0))?;
        if watched.is_none_or(|Layout(watched)| watched.config != *config)
            || absent(self.bypassed.get(&cookie, 0))?.is_none()
        {
            return Ok(false);
        }
        for address in addresses(&config.own) {
            if absent(self.pods.get(&address, 0))? != Some(cookie) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Ends counting and forgets the count. Idempotent.
    pub(crate) fn end(&mut self, cookie: u64) -> Result<(), MapError> {
        absent(self.watched.remove(&cookie))?;
        absent(self.bypassed.remove(&cookie))?;
        self.of_pod(cookie)?.iter().try_for_each(|address| absent(self.pods.remove(address)).map(drop))
    }

    /// Forgets all but these namespaces.
    pub(crate) fn sweep(&mut self, known: &BTreeSet<u64>) -> Result<(), MapError> {
        let mut stale: BTreeSet<u64> = self.watched.keys().collect::<Result<_, _>>()?;
        stale.extend(self.bypassed.keys().collect::<Result<Vec<_>, _>>()?);
        stale.extend(self.pods.iter().map(|entry| Ok(entry?.1)).collect::<Result<Vec<_>, MapError>>()?);
        stale.difference(known).try_for_each(|cookie| self.end(*cookie))
    }

    fn of_pod(&self, cookie: u64) -> Result<Vec<[u32; 4]>, MapError> {
        let entries: Result<Vec<_>, _> = self.pods.iter().collect();
        Ok(entries?.into_iter().filter(|(_, of)| *of == cookie).map(|(address, _)| address).collect())
    }
}

impl Instance {
    /// How many connections of a pod got past the mesh since it was enrolled; `None` where it is not.
    ///
    /// # Errors
    ///
    /// The map cannot be read.
    pub fn bypassed(&self, key: &PodKey) -> Result<Option<Bypassed>, MapError> {
        Ok(absent(self.watch.bypassed.get(&key.cookie(), 0))?.map(|Layout(bypassed)| bypassed))
    }
}

/// The addresses as the programs look them up.
fn addresses(own: &OwnAddresses) -> impl Iterator<Item = [u32; 4]> + use<> {
    let v4 = own.v4().map(|v4: Ipv4Addr| mapped(words_v4(v4)));
    v4.into_iter().chain(own.v6().map(|v6: Ipv6Addr| words_v6(v6)))
}

/// Takes a missing key for nothing, whether it was to be read or removed.
pub(crate) fn absent<T>(result: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
