//! The task behind an identity.

use std::sync::Arc;
use std::time::Duration;

use model::SpiffeId;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::{Keeper, Published, RefreshError, Shared};
use crate::keys::{Curve, KeyPair};
use crate::rotation::{Event, Plan};
use crate::svid::Svid;
use crate::tls::TlsIdentity;
use crate::verifier::PeerError;

/// The longest sleep: the wall clock may be set, or the machine suspended, while tokio's clock notices neither.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// Keeps one identity's certificate until the last lease on it is dropped.
pub(super) async fn keep(
    shared: Arc<Shared>,
    id: SpiffeId,
    keeper: Arc<Keeper>,
    publish: watch::Sender<Published>,
) {
    let stop = keeper.stop.clone();
    let mut rng = StdRng::from_os_rng();
    let mut trust = shared.bundle.changes();
    let work = async {
        loop {
            let now = shared.clock.now();
            let state = publish.borrow().state;
            let event = match state.plan(now) {
                Plan::Ask => match ask(&shared, &id).await {
                    Ok(svid) => take(&shared, &publish, svid),
                    Err(failure) => {
                        warn!(%id, %failure, failures = state.failures() + 1, "no certificate");
                        publish.send_modify(|p| p.failure = Some(failure));
                        Event::Failed
                    }
                },
                Plan::Wait(until) => {
                    let wait = until.duration_since(now).unwrap_or_default().min(SLEEP_MAX);
                    tokio::select! {
                        // All are cancel-safe: a sleep loses nothing, a permit of Notify and a change stay.
                        () = sleep(wait) => Event::Tick,
                        () = keeper.encouraged.notified() => Event::Encouraged,
                        () = keeper.wanted.notified() => Event::Tick,
                        Ok(()) = trust.changed() => look(&publish),
                    }
                }
            };
            let now = shared.clock.now();
            publish.send_modify(|p| p.state = p.state.step(event, now, &shared.settings.pace, &mut rng));
        }
    };
    let _: Option<std::convert::Infallible> = stop.run_until_cancelled(work).await;
    debug!(%id, "certificate released");
}

/// Whether the certificate that there is still has a root that is believed. One that is revoked stays until it is due: who
/// took it back meant its holder, who is not to have another at once.
fn look(publish: &watch::Sender<Published>) -> Event {
    let held = publish.borrow().identity.clone();
    match held.map(|identity| (identity.believed(), identity)) {
        Some((Err(PeerError::UnknownRoot), identity)) => {
            info!(id = %identity.svid().id(), serial = identity.svid().serial(), "a certificate's root is believed no more");
            Event::Uprooted
        }
        _ => Event::Tick,
    }
}

async fn ask(shared: &Shared, id: &SpiffeId) -> Result<Svid, RefreshError> {
    let settings = &shared.settings;
    // The semaphore is never closed; were it, the request would go out all the same.
    let _turn = shared.requests.acquire().await;
    let key = KeyPair::generate(Curve::P256)?;
    let request = key.request(id)?;
    let answer = timeout(settings.request_timeout, shared.ca.sign(id, &request, settings.ttl))
        .await
        .map_err(|_| RefreshError::Timeout(settings.request_timeout))??;
    Ok(Svid::from_response(id, key, &answer, shared.clock.now())?)
}

/// Publishes a certificate, and believes the roots that came with it.
fn take(shared: &Shared, publish: &watch::Sender<Published>, svid: Svid) -> Event {
    let (not_before, not_after) = (svid.not_before(), svid.not_after());
    info!(id = %svid.id(), serial = svid.serial(), "certificate issued");
    if shared.bundle.issued(svid.roots()) {
        info!(roots = shared.bundle.load().certificates().len(), "the mesh's roots have changed");
    }
    let accepted = shared.settings.accepted.clone();
    let identity = TlsIdentity::new(svid, shared.bundle.clone(), accepted, Arc::clone(&shared.clock));
    publish.send_modify(|p| {
        p.identity = Some(Arc::new(identity));
        p.failure = None;
    });
    Event::Issued { not_before, not_after }
}
