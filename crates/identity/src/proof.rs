//! What a peer has proved, to be looked at again.
//!
//! A handshake is believed on what holds at its time. Its connection may stand for long, and meanwhile a certificate may
//! be revoked or a root be trusted no more.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use model::SpiffeId;
use parking_lot::Mutex;
use rustls::CommonState;
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::KeyUsage;

use crate::bundle::LiveBundle;
use crate::certificate::{IdentityError, facts};
use crate::clock::Clock;
use crate::tls::TlsIdentity;
use crate::verifier::{PeerError, verify_chain};

/// A peer's certificates, which were believed when it showed them.
pub struct Proof {
    id: SpiffeId,
    /// When the first of the session's two certificates ends.
    ends: SystemTime,
    chain: Vec<CertificateDer<'static>>,
    usage: KeyUsage,
    /// When it was shown. It is looked at again as of then: that a certificate comes to its end is no news.
    shown: UnixTime,
    bundle: LiveBundle,
    clock: Arc<dyn Clock>,
    verdict: Mutex<Verdict>,
}

/// What was found, and when the bundle had changed so often.
struct Verdict {
    generation: u64,
    found: Result<(), PeerError>,
}

/// Which end a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The one that connected.
    Client,
    /// The one that was connected to.
    Server,
}

impl Proof {
    /// What the peer of a session has proved; nothing only where there was no handshake.
    ///
    /// # Errors
    /// If it is believed no more already.
    pub(crate) fn of(session: &CommonState, peer: End, own: &TlsIdentity) -> Option<Result<Self, PeerError>> {
        let chain: Vec<_> = session.peer_certificates()?.iter().map(|c| c.clone().into_owned()).collect();
        let facts = match facts(chain.first()?) {
            Ok(facts) => facts,
            Err(error) => return Some(Err(error.into())),
        };
        let usage = match peer {
            End::Client => KeyUsage::client_auth(),
            End::Server => KeyUsage::server_auth(),
        };
        // No change has come so often: the first look is at what is believed now.
        let verdict = Mutex::new(Verdict { generation: u64::MAX, found: Ok(()) });
        let clock = Arc::clone(own.clock());
        let proof = Self {
            id: facts.id,
            ends: facts.not_after.min(own.svid().not_after()),
            chain,
            usage,
            shown: as_shown(clock.now()),
            bundle: own.bundle().clone(),
            clock,
            verdict,
        };
        Some(proof.holds().map(|()| proof))
    }

    /// Who the peer is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// How long the session's certificates still hold, the peer's and our own; nothing once one has ended.
    pub fn time_left(&self) -> Duration {
        self.ends.duration_since(self.clock.now()).unwrap_or_default()
    }

    /// Whether it would still be believed. Costs something only after the bundle has changed.
    ///
    /// # Errors
    /// With the reason why not.
    pub fn holds(&self) -> Result<(), PeerError> {
        let mut verdict = self.verdict.lock();
        // In this order: what is found counts for this generation or a later one.
        let generation = self.bundle.generation();
        if verdict.generation != generation {
            let found = match self.chain.split_first() {
                Some((leaf, rest)) => {
                    verify_chain(leaf, rest, &self.bundle.believed(), self.usage, self.shown)
                }
                None => Err(IdentityError::None.into()),
            };
            *verdict = Verdict { generation, found };
        }
        verdict.found.clone()
    }
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Proof").field(&self.id).finish()
    }
}

/// A wall-clock time as certificates have it.
pub(crate) fn as_shown(now: SystemTime) -> UnixTime {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    UnixTime::since_unix_epoch(since)
}
