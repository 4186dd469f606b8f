//! Who workloads are, and how they prove it.
//!
//! - [`KeyPair`], [`Svid`], [`TrustBundle`]: a workload's key and certificate, and the roots that make it believable.
//! - [`verifier`]: whether a peer is who it must be. Pure, but for the clock that it is given.
//! - [`Revocations`]: which certificates their authority has taken back; [`Proof`]: whether a peer would still be believed.
//! - [`TlsIdentity`]: an SVID ready for handshakes in both directions; [`TlsFailure`] says why one failed.
//! - [`rotation`]: when a certificate is asked for. Pure.
//! - [`store`]: keeps the certificates of the workloads that a program speaks for, from a [`CertificateAuthority`].
//! - [`signer`]: the certificate authority itself.
//! - [`control`]: the client's side of TLS towards the control plane.
//!
//! Private keys live inside the cryptography library (aws-lc) and are wiped by it; no type here prints one.

mod bundle;
mod certificate;
pub mod clock;
pub mod control;
#[cfg(test)]
mod fixtures;
mod keys;
mod pem;
mod proof;
mod revocation;
pub mod rotation;
pub mod signer;
pub mod store;
mod svid;
mod tls;
pub mod verifier;

pub use bundle::{BundleError, LiveBundle, TrustBundle};
pub use certificate::{IdentityError, identity_of};
pub use clock::{Clock, SystemClock, TokioClock};
pub use keys::{Curve, KeyError, KeyPair};
pub use proof::{End, Proof};
pub use revocation::{RevocationError, Revocations};
pub use store::{CertificateAuthority, FetchError, Lease, SignError, StoreSettings, SvidStore};
pub use svid::{IssueError, Svid};
pub use tls::{ALPN_H2, TlsFailure, TlsIdentity, provider, unnamed};
pub use verifier::{PeerError, TrustDomains, peer_identity};
