//! The command line, and the lab: the whole mesh on one Linux machine.
//!
//! - [`cli`]: what a person types, and what they read;
//! - [`lab`]: nodes and pods as network namespaces with real processes in them, and the parts that a cluster would bring:
//!   kubelet, kube-proxy, cluster DNS, the Deployment and EndpointSlice controllers.

pub mod cli;
mod enter;
pub mod lab;
