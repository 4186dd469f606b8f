//! A client of the control plane's certificate authority.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ambit_proto::ca::IstioCertificateRequest;
use ambit_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use async_trait::async_trait;
use identity::{CertificateAuthority, SignError};
use model::SpiffeId;
use parking_lot::Mutex;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use thiserror::Error;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Request};

use crate::causes::with_causes;
use crate::{ConnectError, ControlPlane};

/// The metadata key that names the identity asked for.
pub(crate) const IMPERSONATED: &str = "ImpersonatedIdentity";

/// How long one request may take, connecting included.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks for certificates. Cheap to clone; clones share one connection, which is opened when it is needed and given up
/// when it fails.
#[derive(Clone, Debug)]
pub struct Client {
    control_plane: ControlPlane,
    channel: Arc<Mutex<Option<Channel>>>,
}

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum CaError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The authority does not know the caller, or will not sign that identity for it.
    #[error("the certificate authority denies {identity}: {reason}")]
    Denied {
        /// The identity asked for.
        identity: SpiffeId,
        /// Its reason.
        reason: String,
    },
    /// The authority does not understand the request.
    #[error("the certificate authority refuses the request: {reason}")]
    Refused {
        /// Its reason.
        reason: String,
    },
    /// The authority cannot answer now.
    #[error("the certificate authority answered {code:?}: {reason}")]
    Failed {
        /// The gRPC status.
        code: Code,
        /// Its reason.
        reason: String,
    },
    /// No answer came.
    #[error("the certificate authority did not answer in {0:?}")]
    Late(Duration),
    /// The answer holds no leaf and root.
    #[error("the certificate authority sent a chain of {0}; a leaf and a root are the least")]
    ShortChain(usize),
}

impl Client {
    /// A client that is not connected yet.
    pub fn new(control_plane: ControlPlane) -> Self {
        Self { control_plane, channel: Arc::default() }
    }

    /// Asks for a certificate for a workload's identity, by a PKCS#10 request in PEM.
    ///
    /// The chain is PEM, one certificate an element: the leaf first, the roots last. It is the caller's to check that
    /// it fits the request. Dropping the future gives up the request.
    pub async fn create_certificate(
        &self,
        csr_pem: &str,
        ttl: Duration,
        impersonated: &SpiffeId,
    ) -> Result<Vec<String>, CaError> {
        let answer = timeout(PATIENCE, self.ask(csr_pem, ttl, impersonated)).await;
        let chain = answer.unwrap_or_else(|_| {
            self.channel.lock().take();
            Err(CaError::Late(PATIENCE))
        })?;
        match chain.len() {
            0 | 1 => Err(CaError::ShortChain(chain.len())),
            _ => Ok(chain),
        }
    }

    async fn ask(&self, csr_pem: &str, ttl: Duration, identity: &SpiffeId) -> Result<Vec<String>, CaError> {
        let held = self.channel.lock().clone();
        let channel = match held {
            Some(channel) => channel,
            None => {
                let channel = self.control_plane.connect().await?;
                self.channel.lock().get_or_insert(channel).clone()
            }
        };
        let name = Value { kind: Some(Kind::StringValue(identity.to_string())) };
        let mut call = Request::new(IstioCertificateRequest {
            csr: csr_pem.to_owned(),
            validity_duration: ttl.as_secs().try_into().unwrap_or(i64::MAX),
            metadata: Some(Struct { fields: BTreeMap::from([(IMPERSONATED.to_owned(), name)]) }),
        });
        self.control_plane.authorize(call.metadata_mut()).await?;
        match IstioCertificateServiceClient::new(channel).create_certificate(call).await {
            Ok(answer) => Ok(answer.into_inner().cert_chain),
            Err(status) => {
                let reason = status.message().to_owned();
                match status.code() {
                    Code::PermissionDenied | Code::Unauthenticated => {
                        Err(CaError::Denied { identity: identity.clone(), reason })
                    }
                    Code::InvalidArgument => Err(CaError::Refused { reason }),
                    code => {
                        self.channel.lock().take();
                        Err(CaError::Failed { code, reason })
                    }
                }
            }
        }
    }
}

#[async_trait]
impl CertificateAuthority for Client {
    async fn sign(&self, id: &SpiffeId, csr_pem: &str, ttl: Duration) -> Result<Vec<String>, SignError> {
        self.create_certificate(csr_pem, ttl, id).await.map_err(|error| match error {
            CaError::Denied { reason, .. } => SignError::Denied(reason),
            CaError::Refused { reason } => SignError::Refused(reason),
            CaError::ShortChain(_) => SignError::Refused(error.to_string()),
            CaError::Connect(_) | CaError::Failed { .. } | CaError::Late(_) => {
                SignError::Unreachable(with_causes(&error))
            }
        })
    }
}
