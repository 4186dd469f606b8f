//! Removing an instance: its pins, its attachments, and its routing in pods.

use std::io;

use ebpf_loader::{OpenError, Pins};
use telemetry::access::Chain;
use thiserror::Error;

use crate::namespaces;
use crate::routing::{self, Routing};

/// Removes everything of an instance that no agent runs for. Idempotent; when it returns no connection is captured.
///
/// Connections that were captured end: nothing routes them any more.
///
/// # Errors
///
/// See [`CleanupError`]. What could be removed is.
pub async fn cleanup(pins: &Pins, mark: u32, mask: u32) -> Result<(), CleanupError> {
    let Some(_lock) = pins.lock()? else { return Ok(()) };
    pins.detach().map_err(CleanupError::Pins)?;
    let routing = Routing { mark, mask, v4: None, v6: None };
    let mut failed = Vec::new();
    for pod in pins.pods().map_err(CleanupError::Pins)? {
        let Some(netns) = namespaces::locate(pod.key.cookie()).map_err(CleanupError::Namespaces)? else {
            continue;
        };
        if let Err(error) = routing::remove(&netns, &routing).await {
            failed.push(format!("{}: {}", pod.key.uid(), Chain(&error)));
        }
    }
    pins.remove().map_err(CleanupError::Pins)?;
    if failed.is_empty() { Ok(()) } else { Err(CleanupError::Routing(failed)) }
}

/// Why an instance cannot be removed.
#[derive(Debug, Error)]
pub enum CleanupError {
    /// An agent runs for it.
    #[error(transparent)]
    InUse(#[from] OpenError),
    /// Its pins cannot be removed.
    #[error("the instance's pins cannot be removed")]
    Pins(#[source] io::Error),
    /// The namespaces of pods cannot be searched.
    #[error("network namespaces cannot be searched")]
    Namespaces(#[source] io::Error),
    /// The routing of some pods is still there.
    #[error("the routing in some pods cannot be removed: {}", .0.join("; "))]
    Routing(Vec<String>),
}
