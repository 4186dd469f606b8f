//! What a program tells the people who run it: logs, metrics, and one access record a connection.
//!
//! Names and labels are those that dashboards of ambient meshes already read; where this crate invents one, it starts
//! with `ambit_` and is in base units. Nothing here reads the environment or opens a port: a program hands in what it
//! configured and serves what comes out.

pub mod access;
pub mod log;
pub mod metrics;
