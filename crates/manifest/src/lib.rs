//! Kubernetes YAML: strict reading, kinds, validation, translation of policies, and the directory source.
//!
//! Existing users' YAML is the API of the mesh, so reading it is strict: an unknown or misplaced field, a value of a
//! wrong type, an unknown kind, a name that cannot be, all are told at once with file, line and a did-you-mean.
//!
//! - [`parse`]: a text to [`Document`]s and [`Problem`]s, validated;
//! - [`Object`], [`ObjectKey`], [`Kind`]: what is read;
//! - [`kinds`]: the mesh's own kinds;
//! - [`gateway`]: waypoints and the gateways of networks;
//! - [`policy`]: AuthorizationPolicy and PeerAuthentication to [`model::Policy`], pure;
//! - [`source`]: a directory of such files, watched;
//! - [`mod@write`]: objects back to YAML and JSON.

mod de;
mod distribution;
mod document;
pub mod gateway;
mod kind;
pub mod kinds;
mod membership;
mod object;
pub mod policy;
mod problem;
pub mod source;
mod suggest;
mod unused;
mod validate;
pub mod write;
pub mod yaml;

pub use distribution::{TRAFFIC_DISTRIBUTION, TrafficDistribution, is_kept_on_node};
pub use document::{DEFAULT_NAMESPACE, Document, Parsed, Unused, parse, read_as};
pub use kind::{Kind, Lookup};
pub use membership::{
    DATAPLANE_MODE_LABEL, EXISTING_CONNECTIONS, ExistingConnections, Outside, existing_connections,
    membership,
};
pub use object::{Object, ObjectKey, annotation, label};
pub use problem::{Position, Problem, Severity};
pub use suggest::nearest;
pub use validate::{FieldPath, Finding, Segment, mesh_settings, validate};
