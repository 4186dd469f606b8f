//! What ztunnel holds of the redirection: two maps, by descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use thiserror::Error;

use crate::sys::{self, MapInfo, MapType};

/// The storage that exempts sockets from capture.
///
/// Shared freely between threads. An entry goes away with its socket.
#[derive(Debug)]
pub struct BypassStorage {
    fd: OwnedFd,
}

impl BypassStorage {
    /// Takes over the storage's descriptor.
    ///
    /// # Errors
    ///
    /// The descriptor is something else's.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, HandleError> {
        let info = sys::map_info(fd.as_fd()).map_err(HandleError::Info)?;
        match info {
            MapInfo { kind: MapType::SK_STORAGE, key_size: 4, value_size: 4, .. } => Ok(Self { fd }),
            other => Err(HandleError::OtherMap {
                expected: "a socket storage of u32",
                found: format!("{other:?}"),
            }),
        }
    }

    /// Exempts a socket from capture. To be called after `socket(2)` and before `connect(2)`.
    ///
    /// # Errors
    ///
    /// Not a socket, or no memory for the entry. The socket would be captured: do not connect it.
    pub fn exempt(&self, socket: &impl AsFd) -> io::Result<()> {
        sys::map_update(self.fd.as_fd(), socket.as_fd().as_raw_fd().cast_unsigned(), 1)
    }
}

/// A pod's listeners, as its socket lookup program sees them.
///
/// A closed listener leaves the map by itself; until another is set, connections for its slot are refused.
#[derive(Debug)]
pub struct ListenerMap {
    fd: OwnedFd,
}

impl ListenerMap {
    /// Takes over the map's descriptor.
    ///
    /// # Errors
    ///
    /// The descriptor is something else's.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, HandleError> {
        let info = sys::map_info(fd.as_fd()).map_err(HandleError::Info)?;
        match info {
            MapInfo { kind: MapType::SOCKMAP, key_size: 4, value_size: 4, max_entries, .. }
                if max_entries as usize >= ebpf_abi::slot::COUNT =>
            {
                Ok(Self { fd })
            }
            other => {
                Err(HandleError::OtherMap { expected: "a sockmap of 8 slots", found: format!("{other:?}") })
            }
        }
    }

    /// Puts a listening TCP socket, or a bound UDP socket, into a slot (see [`slot`](crate::slot)) in place of what was there.
    ///
    /// Any member of a group that shares the port by `SO_REUSEPORT` will do: connections are spread over the group.
    ///
    /// # Errors
    ///
    /// Neither of these sockets, or no such slot.
    pub fn set(&self, slot: u32, listener: &impl AsFd) -> io::Result<()> {
        sys::map_update(self.fd.as_fd(), slot, listener.as_fd().as_raw_fd().cast_unsigned())
    }
}

/// Why a descriptor is not the expected map's.
#[derive(Debug, Error)]
pub enum HandleError {
    /// The kernel tells nothing about it: it is no map's.
    #[error("the descriptor is not a BPF map's")]
    Info(#[source] io::Error),
    /// It is another kind of map.
    #[error("the descriptor is not {expected}, but {found}")]
    OtherMap {
        /// What was expected.
        expected: &'static str,
        /// What the kernel says.
        found: String,
    },
}
