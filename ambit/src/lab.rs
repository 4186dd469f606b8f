//! The whole mesh on one Linux machine: root, no Kubernetes, no containers.
//!
//! A *supervisor* process owns a lab; the command line talks to it over a Unix socket (`api`). It keeps the objects
//! (`store`), lets the controllers derive what follows from them (`control`), writes them where control plane and
//! node agents read them (`objects`), and brings the machine to what they say: namespaces and links (`network`), service
//! translation (`translation`), names (`dns`), pods (`kubelet`) and the mesh's own processes (`system`, `keeper`).
//!
//! All that a lab makes hangs on its name (`place`), so that `teardown` finds it also where the supervisor was killed.

pub(crate) mod address;
pub(crate) mod admission;
pub(crate) mod api;
pub(crate) mod cgroup;
pub(crate) mod client;
pub(crate) mod control;
pub(crate) mod dns;
pub(crate) mod enrolment;
pub(crate) mod http;
pub(crate) mod keeper;
pub(crate) mod kubelet;
pub(crate) mod logs;
pub(crate) mod network;
pub(crate) mod objects;
pub(crate) mod place;
pub(crate) mod precheck;
pub(crate) mod settled;
pub(crate) mod status;
pub(crate) mod store;
pub(crate) mod supervisor;
pub(crate) mod system;
pub(crate) mod teardown;
pub(crate) mod translation;
pub(crate) mod trust;

pub use place::{LabName, ParseLabNameError};
