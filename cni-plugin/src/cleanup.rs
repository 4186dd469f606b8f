//! Removing an instance: its pins, its attachments, its tables, and its routing in pods.

use std::io;

use ebpf_loader::{InstanceName, OpenError, Pins};
use net::Netns;
use telemetry::access::Chain;
use thiserror::Error;

use crate::namespaces;
use crate::nft::{NftError, Tables};
use crate::redirect;
use crate::routing::{self, Routing};

/// Removes everything of an instance that no agent runs for. Idempotent; when it returns no connection is captured.
///
/// Connections that were captured end: nothing routes them any more.
///
/// # Errors
///
/// See [`CleanupError`]. What could be removed is.
pub async fn cleanup(pins: &Pins, instance: &InstanceName, mark: u32, mask: u32) -> Result<(), CleanupError> {
    let _claim = redirect::claim(instance)?;
    let tables = Tables::of(instance.as_str());
    let routing = Routing { mark, mask, v4: None, v6: None };
    let mut failed = Vec::new();
    if let Some(_lock) = pins.lock()? {
        pins.detach().map_err(CleanupError::Pins)?;
        for pod in pins.pods().map_err(CleanupError::Pins)? {
            let Some(netns) = namespaces::locate(pod.key.cookie()).map_err(CleanupError::Namespaces)? else {
                continue;
            };
            if let Err(error) = routing::remove(&netns, &routing).await {
                failed.push(format!("{}: {}", pod.key.uid(), Chain(&error)));
            }
        }
        pins.remove().map_err(CleanupError::Pins)?;
    }
    for (netns, _) in namespaces::all().map_err(CleanupError::Namespaces)? {
        // A kernel without nftables has no tables to find.
        let Ok(Some(found)) = tables.find(&netns) else { continue };
        let removed = match tables.remove(&netns) {
            Ok(()) => routing::remove(&netns, &routing).await.map_err(|error| Chain(&error).to_string()),
            Err(error) => Err(Chain(&error).to_string()),
        };
        if let Err(error) = removed {
            failed.push(format!("{}: {error}", found.uid));
        }
    }
    if let Err(error) =
        Netns::current().map_err(NftError::from).and_then(|node| tables.remove_from_node(&node))
    {
        tracing::debug!(error = %Chain(&error), "the node has no table that could be removed");
    }
    if failed.is_empty() { Ok(()) } else { Err(CleanupError::Routing(failed)) }
}

/// Why an instance cannot be removed.
#[derive(Debug, Error)]
pub enum CleanupError {
    /// An agent runs for it.
    #[error(transparent)]
    InUse(#[from] OpenError),
    /// An agent that redirects by packet filter runs for it.
    #[error(transparent)]
    Claimed(#[from] redirect::RedirectError),
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
