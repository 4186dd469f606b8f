//! The gRPC service that signs certificates.

use std::sync::Arc;
use std::time::Duration;

use ambit_proto::ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use ambit_proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use model::SpiffeId;
use prost_types::value::Kind;
use thiserror::Error;
use tonic::{Request, Response, Status, async_trait};

use super::authenticate::caller;
use super::{Authenticator, Observer, Peer};
use crate::ca::IMPERSONATED;

/// A request holds a CSR and a name.
const LONGEST_REQUEST: usize = 64 << 10;

/// Decides and signs.
#[async_trait]
pub trait Issuer: Send + Sync + 'static {
    /// A chain for the subject, PEM, one certificate an element: the leaf first, the roots last, at least two. It is
    /// the issuer's to check that the peer may have it and that the request asks for nothing else.
    async fn issue(&self, request: IssueRequest) -> Result<Vec<String>, IssueError>;
}

/// What a certificate is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssueRequest {
    /// Who asks.
    pub peer: Peer,
    /// Whom it is for.
    pub subject: Subject,
    /// The PKCS#10 request, PEM, as it came.
    pub csr_pem: String,
    /// The lifetime asked for, if one is.
    pub ttl: Option<Duration>,
}

/// Whom a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The one who asks.
    Peer,
    /// A workload for which a node proxy asks.
    Impersonated(SpiffeId),
}

/// Why there is no certificate.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IssueError {
    /// The request is no good.
    #[error("bad certificate request: {0}")]
    BadRequest(String),
    /// The peer may not have it.
    #[error("not permitted: {0}")]
    Denied(String),
    /// It cannot be signed now.
    #[error("cannot sign now: {0}")]
    Unavailable(String),
}

/// Signs certificates for proxies. Cheap to clone.
#[derive(Clone)]
pub struct CaService {
    issuer: Arc<dyn Issuer>,
    authenticator: Arc<dyn Authenticator>,
    observer: Arc<dyn Observer>,
}

impl CaService {
    /// A service of that issuer.
    pub fn new(
        issuer: Arc<dyn Issuer>,
        authenticator: Arc<dyn Authenticator>,
        observer: Arc<dyn Observer>,
    ) -> Self {
        Self { issuer, authenticator, observer }
    }

    /// The service for a gRPC server.
    pub(super) fn into_grpc(self) -> IstioCertificateServiceServer<Self> {
        IstioCertificateServiceServer::new(self).max_decoding_message_size(LONGEST_REQUEST)
    }

    async fn issue(&self, peer: Peer, message: IstioCertificateRequest) -> Result<Vec<String>, IssueError> {
        let subject = subject(&message)?;
        let ttl = u64::try_from(message.validity_duration).ok().filter(|s| *s > 0).map(Duration::from_secs);
        let request = IssueRequest { peer, subject, csr_pem: message.csr, ttl };
        self.issuer.issue(request).await
    }
}

fn subject(message: &IstioCertificateRequest) -> Result<Subject, IssueError> {
    let named = message.metadata.as_ref().and_then(|m| m.fields.get(IMPERSONATED));
    match named.map(|value| &value.kind) {
        None => Ok(Subject::Peer),
        Some(Some(Kind::StringValue(name))) => match name.parse() {
            Ok(id) => Ok(Subject::Impersonated(id)),
            Err(error) => Err(IssueError::BadRequest(format!("{IMPERSONATED}: {error}"))),
        },
        Some(_) => Err(IssueError::BadRequest(format!("{IMPERSONATED} must be a string"))),
    }
}

#[async_trait]
impl IstioCertificateService for CaService {
    async fn create_certificate(
        &self,
        call: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let peer = caller(&*self.authenticator, &call).await.map_err(|status| *status)?;
        let issued = self.issue(peer.clone(), call.into_inner()).await;
        self.observer.issued(&peer, issued.as_ref().err());
        match issued {
            Ok(cert_chain) => Ok(Response::new(IstioCertificateResponse { cert_chain })),
            Err(error) => {
                tracing::warn!(
                    namespace = %peer.namespace,
                    service_account = %peer.service_account,
                    node = peer.node.as_deref(),
                    %error,
                    "no certificate"
                );
                let message = error.to_string();
                Err(match error {
                    IssueError::BadRequest(_) => Status::invalid_argument(message),
                    IssueError::Denied(_) => Status::permission_denied(message),
                    IssueError::Unavailable(_) => Status::unavailable(message),
                })
            }
        }
    }
}
