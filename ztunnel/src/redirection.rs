//! How this node's redirection is kept off the proxy's own sockets.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use ebpf_loader::{BypassStorage, HandleError};
use net::Exempt;
use zds::Exemption;

/// The mark that peers' agents, which redirect by packet filter, keep their hands off. It also brings replies to foreign
/// addresses back to the proxy there.
pub(crate) const PEERS_MARK: u32 = 0x539;

/// What the agent has said of its redirection. Cloning is cheap and shares it.
#[derive(Clone, Debug, Default)]
pub struct Redirection(Arc<ArcSwapOption<Told>>);

#[derive(Debug)]
struct Told {
    mark: u32,
    exempt: Exemption<BypassStorage>,
}

impl Redirection {
    /// Takes in what the agent says; it holds for sockets that are made from now on.
    ///
    /// # Errors
    /// If the descriptor is not a bypass storage's.
    pub fn set(&self, mark: u32, exempt: Exemption<OwnedFd>) -> Result<(), HandleError> {
        let exempt = match exempt {
            Exemption::Storage(bypass) => Exemption::Storage(BypassStorage::from_fd(bypass)?),
            Exemption::Mark(mark) => Exemption::Mark(mark),
        };
        self.0.store(Some(Arc::new(Told { mark, exempt })));
        Ok(())
    }

    /// Whether the agent redirects by packet filter, so that sockets are found by their addresses and not by a map.
    pub fn is_by_address(&self) -> bool {
        self.0.load().as_ref().is_some_and(|told| matches!(told.exempt, Exemption::Mark(_)))
    }

    /// The mark of a socket that connects to where the pod was going anyhow.
    ///
    /// Such a socket is exempted by the storage, which nobody can forge. Only with an agent that has none is it marked.
    pub fn mark(&self) -> Option<u32> {
        match self.0.load().as_ref().map(|told| &told.exempt) {
            Some(Exemption::Storage(_)) => None,
            Some(Exemption::Mark(mark)) => Some(*mark),
            None => Some(PEERS_MARK),
        }
    }

    /// The mark of a socket that carries a client's address towards the application, by which replies find back.
    pub fn reply_mark(&self) -> u32 {
        self.0.load().as_ref().map_or(PEERS_MARK, |told| told.mark)
    }

    /// Whether a connection with this mark was made by the proxy itself, as one whose destination is the pod's own after
    /// all can come back to it: whatever a pod's applications send is marked before it is steered here, and what is
    /// exempted is not.
    ///
    /// Nobody knows with an agent that has no storage.
    pub fn is_own(&self, mark: Option<u32>) -> bool {
        let has_storage = |told: &Arc<Told>| matches!(told.exempt, Exemption::Storage(_));
        mark == Some(0) && self.0.load().as_ref().is_some_and(has_storage)
    }

    /// Exempts sockets by whatever the agent has said by then.
    pub fn exempt(&self) -> Exempt {
        let redirection = self.clone();
        Arc::new(move |socket: BorrowedFd<'_>| -> io::Result<()> {
            match redirection.0.load().as_ref().map(|told| &told.exempt) {
                Some(Exemption::Storage(bypass)) => bypass.exempt(&socket),
                // What connects is marked when it does.
                Some(Exemption::Mark(_)) | None => Ok(()),
            }
        })
    }
}
