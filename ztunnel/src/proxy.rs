//! What all pods of the proxy share.

use hbone::Settings;
use tokio_util::sync::CancellationToken;

use crate::limits::Limits;
use crate::mesh::Mesh;
use crate::metrics::Metrics;
use crate::names::Names;
use crate::quota::Quotas;
use crate::redirection::Redirection;

/// What all pods of the proxy share. One a process, behind an `Arc`.
#[derive(Debug)]
pub struct Proxy {
    /// What the control plane has told.
    pub mesh: Mesh,
    /// What is counted.
    pub metrics: Metrics,
    /// What the agent has said of the redirection.
    pub redirection: Redirection,
    /// How long anything is waited for.
    pub limits: Limits,
    /// Who looks up names of endpoints without addresses.
    pub names: Names,
    /// How much one pod may have.
    pub quotas: Quotas,
    /// How tunnels are spoken.
    pub hbone: Settings,
    /// Cancelled when it is the proxy's turn to take connections: until then another one takes them.
    pub turn: CancellationToken,
    /// Cancelled when the proxy is to take no more connections.
    pub drain: CancellationToken,
}

/// A [`Proxy::turn`] that has come already, for a proxy that is alone on its node.
pub fn begun() -> CancellationToken {
    let turn = CancellationToken::new();
    turn.cancel();
    turn
}
