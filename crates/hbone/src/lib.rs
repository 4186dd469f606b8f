//! HBONE: TCP connections carried as HTTP/2 `CONNECT` streams between the proxies of a mesh.
//!
//! The crate takes any byte stream (a TLS session, a test's duplex pipe) and gives tunnels: [`server::Connection`]
//! yields the CONNECT requests of a peer, [`client::Pool`] opens streams over shared connections, and both end in a
//! [`Tunnel`], which reads and writes like a TCP connection, half-close included. What travels in the request's headers
//! has a codec each: [`Authority`], [`Baggage`], [`Forwarded`], [`Traceparent`]. They are total: any bytes a peer sends
//! give a value or an error.
//!
//! # Everything stays on its thread
//!
//! [`server::Connection`], [`client::Pool`] and [`Tunnel`] are not `Send`. A proxy here runs one current-thread runtime
//! a core and a connection lives where it was accepted, so nothing is gained from locks that could only ever be
//! uncontended; the types say so, which leaves room for an engine with a single owner a connection. Spawn what uses them
//! with `tokio::task::spawn_local`, inside a `tokio::runtime::LocalRuntime` or a `LocalSet` (as the pool does for its
//! own tasks).
//!
//! # What is not here
//!
//! TLS, policy, and the choice of a destination. The HTTP/2 engine underneath shows nowhere in this interface.

mod authority;
mod baggage;
pub mod client;
mod error;
mod forwarded;
pub mod frames;
mod headers;
mod keepalive;
pub mod server;
mod settings;
mod traceparent;
mod tunnel;
mod witness;

pub use authority::{Authority, Host, ParseAuthorityError};
pub use baggage::{Baggage, BaggageHeader};
pub use error::{ErrorCode, TransportError};
pub use forwarded::{Forwarded, ParseForwardedError};
pub use settings::Settings;
pub use traceparent::{ParseTraceparentError, Traceparent};
pub use tunnel::Tunnel;
