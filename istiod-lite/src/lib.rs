//! The control plane: reads objects, serves the world over delta xDS, signs certificates.
//!
//! A change goes this way: [`manifest::source::Directory`] → [`store::Store::apply`] → [`push::Debounce`] →
//! [`world::World::translate`] → [`xds::server::Snapshot::apply`] → each proxy's session. Everything between the source
//! and the snapshot is pure; a change costs what depends on it.

pub mod authority;
pub mod config;
pub mod http;
pub mod observe;
pub mod program;
pub mod push;
pub mod reviewer;
pub mod store;
pub mod sync;
pub mod translate;
pub mod world;
