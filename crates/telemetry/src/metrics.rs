//! Metric families, by the names and labels of compatible meshes.
//!
//! A program registers the families it keeps on a [`Registry`], turns that into an [`Exposition`] and serves what
//! [`Exposition::render`] gives for a scrape.

mod build;
mod dns;
mod exposition;
mod labels;
mod pages;
mod pilot;
mod plain;
mod tcp;
mod workload_manager;
mod xds;

pub use build::register_build;
pub use dns::{DnsMetrics, Transport};
pub use exposition::{Exposition, Rendered};
pub use labels::{Reporter, ResponseFlags, Security};
pub use pages::{PageEnd, PageMetrics};
pub use pilot::{CsrFailure, PilotMetrics, PushTrigger};
pub use plain::PlainCounter;
pub use prometheus_client::registry::Registry;
pub use tcp::{Connection, Peer, TcpMetrics, TcpSeries};
pub use workload_manager::WorkloadManagerMetrics;
pub use xds::{Termination, XdsClientMetrics};
