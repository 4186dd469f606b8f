//! Who calls.

use std::time::Duration;

use async_trait::async_trait;
use thiserror::Error;
use tokio::time::timeout;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use super::Peer;
use super::door::Standing;

/// How long an authenticator may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tells by a bearer token who calls.
#[async_trait]
pub trait Authenticator: Send + Sync + 'static {
    /// Who a token belongs to.
    async fn authenticate(&self, token: &str) -> Result<Peer, AuthenticateError>;
}

/// Why a token tells nobody.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AuthenticateError {
    /// The token is no good.
    #[error("the token is not accepted: {0}")]
    Refused(String),
    /// The token could not be looked at now.
    #[error("the token cannot be reviewed now: {0}")]
    Unavailable(String),
}

/// Who makes a call. Whoever makes a connection's first with a good token is no stranger on it any more.
pub(super) async fn caller<T>(
    authenticator: &dyn Authenticator,
    call: &Request<T>,
) -> Result<Peer, Box<Status>> {
    let peer = bearer(authenticator, call.metadata()).await?;
    if let Some(standing) = call.extensions().get::<Standing>() {
        standing.prove();
    }
    Ok(peer)
}

async fn bearer(authenticator: &dyn Authenticator, metadata: &MetadataMap) -> Result<Peer, Box<Status>> {
    let unauthenticated = |why: &str| Box::new(Status::unauthenticated(why));
    let header = metadata
        .get("authorization")
        .ok_or_else(|| unauthenticated("a bearer token is required in `authorization`"))?;
    let token = header
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty())
        .map(|(_, token)| token.trim())
        .ok_or_else(|| unauthenticated("`authorization` must be `Bearer <token>`"))?;
    match timeout(PATIENCE, authenticator.authenticate(token)).await {
        Ok(Ok(peer)) => Ok(peer),
        Ok(Err(error @ AuthenticateError::Refused(_))) => Err(unauthenticated(&error.to_string())),
        Ok(Err(error @ AuthenticateError::Unavailable(_))) => {
            Err(Box::new(Status::unavailable(error.to_string())))
        }
        Err(_) => Err(Box::new(Status::unavailable("the token was not reviewed in time"))),
    }
}
