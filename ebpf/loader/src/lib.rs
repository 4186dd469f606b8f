//! Loads, attaches and pins the BPF programs that redirect meshed pods' connections to ztunnel.
//!
//! What must outlive the agent's process is pinned, per agent instance, below
//! `<bpffs>/ambit/<instance>/v1/` (see [`Pins`]). Everything is attached by links, so that removing the pins removes
//! the redirection and nothing is left over. [`Instance::open`] adopts what an earlier process left and replaces its
//! programs in place, without a moment in which pods are not captured.
//!
//! ztunnel gets two descriptors from the agent and uses them through [`BypassStorage`] and [`ListenerMap`]; it needs
//! neither access to the bpffs nor the right to load programs.

mod attach;
mod guard;
mod handle;
mod instance;
mod kubelet;
mod mend;
mod mounts;
mod objects;
mod pins;
mod pod;
mod probe;
mod sys;
mod watch;

/// Why a map cannot be read or changed.
pub use aya::maps::MapError;
pub use ebpf_abi::{Bypassed, DEFAULT_MARK, DEFAULT_MASK, NsConfig, OwnAddresses, slot};
pub use guard::GuardError;
pub use handle::{BypassStorage, HandleError, ListenerMap};
pub use instance::{Instance, OpenError};
pub use mend::MendError;
pub use mounts::{cgroup2_root, mount_bpffs};
pub use pins::{InstanceName, Lock, NameError, PinnedPod, Pins, PodKey, PodKeyError};
pub use pod::{CaptureError, Prepared, ReleaseError};
pub use probe::{Unsupported, probe};
