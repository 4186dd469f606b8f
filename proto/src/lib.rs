//! Protocol messages, compiled from the `.proto` files beside this crate's manifest. The files carry the documentation.

/// The node protocol (`istio.workload.zds`).
pub mod zds {
    tonic::include_proto!("istio.workload.zds");
}

/// The workload API (`istio.workload`).
pub mod workload {
    tonic::include_proto!("istio.workload");
}

/// L4 authorization (`istio.security`).
pub mod security {
    tonic::include_proto!("istio.security");
}

/// Certificates (`istio.v1.auth`).
pub mod ca {
    tonic::include_proto!("istio.v1.auth");
}

/// Delta xDS. The nesting is that of the packages, because generated code refers to its neighbours by it.
pub mod envoy {
    pub mod config {
        pub mod core {
            pub mod v3 {
                tonic::include_proto!("envoy.config.core.v3");
            }
        }
    }
    pub mod service {
        pub mod discovery {
            pub mod v3 {
                tonic::include_proto!("envoy.service.discovery.v3");
            }
        }
    }
}

/// Errors that travel inside messages.
pub mod google {
    pub mod rpc {
        tonic::include_proto!("google.rpc");
    }
}

/// The messages of a delta stream under one roof.
pub mod discovery {
    pub use crate::envoy::config::core::v3::{ControlPlane, Node};
    pub use crate::envoy::service::discovery::v3::*;
    pub use crate::google::rpc::{BadRequest, Status, bad_request};
}
