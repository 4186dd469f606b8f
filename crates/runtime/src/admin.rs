//! The pages that a program serves about itself: readiness, metrics, and the admin port.
//!
//! Each is an axum router of its own, because each has a port of its own; [`serve`] puts one on a listener. The admin
//! routes can end the program and change its log, so that port belongs on loopback.

mod pages;
mod server;

pub use pages::{control, metrics, private, readiness};
pub use server::{BindError, Port, bind, bind_beside, serve};
