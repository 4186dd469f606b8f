//! What every program of the mesh needs to run: settings, tasks with an owner, readiness, and its own HTTP pages.
//!
//! A program reads its settings once ([`Env`]), gives up what it does not need ([`hardening::harden`]), binds its listeners, spawns its work on [`Tasks`], says by [`Readiness`]
//! which of its parts stand, serves [`admin`] pages, and hands itself to [`Tasks::run_until_stopped`].

pub mod admin;
mod crowd;
mod env;
pub mod hardening;
mod limits;
mod quantity;
mod readiness;
mod tasks;
mod watched;

pub use crowd::{Crowd, Place};
pub use env::{Checked, ConfigError, Env, Mistake, Setting, log_config, seccomp};
pub use limits::raise_descriptor_limit;
pub use quantity::{ByteSize, ParseByteSizeError, ParseSpanError, Span};
pub use readiness::{Part, Readiness};
pub use tasks::{Grace, StopError, Tasks};
pub use watched::WatchedFile;
