//! What the system lets a process have.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What a process may have where the system does not even tell.
const UNKNOWN: u64 = 1024;

/// Takes as many descriptors as the system allows, and says how many that are. Where it allows no more, that is logged and
/// all goes on.
pub fn raise_descriptor_limit() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return UNKNOWN };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => {
            tracing::debug!(from = soft, to = hard, "raised the limit on descriptors");
            hard
        }
        Err(error) => {
            tracing::warn!(%error, soft, hard, "cannot raise the limit on descriptors");
            soft
        }
    }
}
