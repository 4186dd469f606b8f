//! Delta xDS: pure session cores, their gRPC shells, and the wire's translation.
//!
//! | module | does | I/O |
//! |---|---|---|
//! | [`decode`], [`encode`] | translate between wire messages and the words of `model` | none |
//! | [`client::Session`] | the client's side of a delta stream, across reconnects | none |
//! | [`server::Session`] | the server's side, one per stream, over shared [`server::Snapshot`]s | none |
//! | [`client::AdsClient`], [`ca::Client`] | hold the stream, ask for certificates | gRPC over TLS |
//! | [`server::AdsService`], [`server::CaService`], [`server::serve`] | answer | gRPC over TLS |
//!
//! The cores take messages and the time, and return messages; they are tested against each other without a socket.

#[cfg(test)]
mod arbitrary;
pub mod ca;
mod causes;
mod channel;
pub mod client;
pub mod decode;
pub mod encode;
mod maybe_tls;
mod resource;
pub mod server;
#[cfg(test)]
mod simulation;
mod type_url;

pub use channel::{ConnectError, ControlPlane};
pub use resource::{Resource, ResourceKey};
pub use type_url::TypeUrl;

/// What the mesh fills in where a message leaves something out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Defaults {
    /// The trust domain of workloads that name none: the mesh's own.
    pub trust_domain: model::TrustDomain,
}

/// The service account of workloads that name none.
pub(crate) const DEFAULT_SERVICE_ACCOUNT: &str = "default";

/// The port on which gateways take HBONE where an address names none.
pub(crate) const HBONE_PORT: u16 = 15008;

/// The extension of a workload that is about to end and still serves. Its status is that of one that is not ready, which is
/// how those who do not know the extension take it.
pub(crate) const TERMINATING: &str = "ambit.dev/terminating";
