//! What a program takes away from itself before it serves anybody.
//!
//! A process that was taken over by a peer can do what the kernel lets it do. So each program keeps the capabilities and
//! the system calls that it works with and gives up the rest, for good and by itself: the same in a cluster, in the lab and
//! by hand.
//!
//! A call that is not on the list answers EPERM. To kill the process instead would turn each call that a newer C library
//! makes, and that nobody listed, into an outage of a node; and who is inside gains nothing by being told no.

mod calls;

use std::collections::HashSet;

use caps::errors::CapsError;
use caps::{CapSet, Capability};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use seccompiler::apply_filter_all_threads;
use thiserror::Error;

/// A program of the mesh, by what it needs of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The node's proxy.
    Ztunnel,
    /// The node's agent.
    Agent,
    /// The control plane.
    Istiod,
}

impl Program {
    /// The capabilities that it works with.
    pub fn capabilities(self) -> &'static [Capability] {
        use Capability::{CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN, CAP_SYS_PTRACE};
        match self {
            // Pods' namespaces (SYS_ADMIN), their clients' addresses and marks.
            Self::Ztunnel => &[CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_NET_RAW],
            // Programs and namespaces (SYS_ADMIN), routes, and the namespaces of processes that are not its own.
            Self::Agent => &[CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_SYS_PTRACE],
            Self::Istiod => &[],
        }
    }
}

/// Why a program cannot give up what it should. It must not run then.
#[derive(Debug, Error)]
pub enum HardeningError {
    /// A limit or an attribute of the process.
    #[error("cannot {what}")]
    Process {
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: Errno,
    },
    /// Capabilities.
    #[error("cannot give up capabilities")]
    Capabilities(#[source] CapsError),
    /// System calls.
    #[error("cannot give up system calls (AMBIT_SECCOMP=off runs without)")]
    Calls(#[from] seccompiler::Error),
}

/// Gives up what the program does not need. Call it once, before any thread is started and after the log is set up: a
/// capability is a thread's own.
///
/// Without `seccomp` (`AMBIT_SECCOMP=off`) all system calls stay, which is for debugging and warned of.
///
/// # Errors
/// See [`HardeningError`].
pub fn harden(program: Program, seccomp: bool) -> Result<(), HardeningError> {
    let failed = |what| move |source| HardeningError::Process { what, source };
    // Memory with keys must not end up in a file, nor be read by another process of the same user.
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(failed("forbid core dumps"))?;
    prctl::set_dumpable(false).map_err(failed("hide the memory from others"))?;
    prctl::set_no_new_privs().map_err(failed("give up new privileges"))?;
    keep_only(program.capabilities()).map_err(HardeningError::Capabilities)?;
    if !seccomp {
        tracing::warn!("AMBIT_SECCOMP=off: this process may make every system call. Not for production");
        return Ok(());
    }
    for filter in calls::filters(program).map_err(seccompiler::Error::from)? {
        apply_filter_all_threads(&filter)?;
    }
    Ok(())
}

/// What was not there before is not given.
fn keep_only(wanted: &[Capability]) -> Result<(), CapsError> {
    let bound = |cap| caps::has_cap(None, CapSet::Bounding, cap);
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        for cap in caps::all().into_iter().filter(|cap| !wanted.contains(cap)) {
            // A kernel that does not know a capability has none to give up.
            if bound(cap).unwrap_or(false) {
                caps::drop(None, CapSet::Bounding, cap)?;
            }
        }
    }
    let permitted = caps::read(None, CapSet::Permitted)?;
    let kept: HashSet<_> = permitted.into_iter().filter(|cap| wanted.contains(cap)).collect();
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)
}
