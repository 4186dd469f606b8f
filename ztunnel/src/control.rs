//! The control plane: what it tells, and the certificates that it signs.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use identity::{CertificateAuthority, SignError, SvidStore};
use model::SpiffeId;
use runtime::Part;
use telemetry::metrics::{Termination, XdsClientMetrics};
use tokio::sync::watch;
use xds::ca::{CaError, Client};
use xds::client::{AdsConfig, Connection, Demand, NodeInfo, Observer, State, StreamError};
use xds::decode::DecodeError;
use xds::{ControlPlane, Defaults, TypeUrl};

use crate::config::{Config, Endpoint};
use crate::mesh::{Folder, Mesh};

/// Asks the control plane for certificates.
#[derive(Debug)]
pub struct Authority(Client);

impl Authority {
    /// Of the configured address.
    pub fn new(config: &Config) -> Self {
        Self(Client::new(control_plane(config, &config.ca)))
    }
}

#[async_trait]
impl CertificateAuthority for Authority {
    async fn sign(&self, id: &SpiffeId, csr_pem: &str, ttl: Duration) -> Result<Vec<String>, SignError> {
        self.0.create_certificate(csr_pem, ttl, id).await.map_err(|error| match error {
            CaError::Denied { reason, .. } => SignError::Denied(reason),
            CaError::ShortChain(_) => SignError::Refused(error.to_string()),
            _ => SignError::Unreachable(telemetry::access::Chain(&error).to_string()),
        })
    }
}

/// What the xDS client is told.
pub fn ads_config(config: &Config, demand: Option<Demand>) -> AdsConfig {
    let node = &config.node;
    AdsConfig {
        control_plane: control_plane(config, &config.xds),
        node: NodeInfo {
            instance_ip: node.instance_ip.to_string(),
            pod_name: node.pod_name.clone(),
            namespace: node.pod_namespace.clone(),
            node_name: node.name.to_string(),
            cluster_id: node.cluster_id.to_string(),
            metadata: BTreeMap::from([("NETWORK".to_owned(), node.network.to_string())]),
        },
        defaults: Defaults { trust_domain: config.trust_domain.clone() },
        demand,
    }
}

/// The token goes out under TLS only: whoever reads it may have certificates of all this node's pods.
fn control_plane(config: &Config, endpoint: &Endpoint) -> ControlPlane {
    let under_tls = endpoint.address.scheme_str() == Some("https");
    if !under_tls {
        tracing::warn!(address = %endpoint.address, "the control plane is asked without TLS, and so without the token");
    }
    ControlPlane {
        address: endpoint.address.clone(),
        roots: Some(endpoint.roots.clone()),
        alternative_names: endpoint.alternative_name.iter().cloned().collect(),
        token: under_tls.then(|| config.token_path.clone()),
        cluster_id: config.node.cluster_id.to_string(),
    }
}

/// Follows the client's state: the first time that all is told makes the mesh known and the proxy ready, and each new
/// stream is the moment to ask again for certificates that failed.
pub async fn follow(mut state: watch::Receiver<State>, mesh: Mesh, svids: SvidStore, mut synced: Part) {
    let mut streams = 0;
    loop {
        {
            let now = state.borrow_and_update();
            if now.ready && !mesh.is_synced() {
                Folder::set_synced(&mesh);
                synced.ready();
                tracing::info!("the mesh is known");
            }
            if matches!(now.connection, Connection::Up { .. }) && now.streams != streams {
                streams = now.streams;
                svids.encourage();
            }
        }
        if state.changed().await.is_err() {
            return;
        }
    }
}

/// Counts what happens on the stream.
#[derive(Debug)]
pub struct Counting(pub XdsClientMetrics);

impl Observer for Counting {
    fn connected(&self) {
        self.0.connected();
    }

    fn disconnected(&self, error: &StreamError) {
        self.0.terminated(match error {
            StreamError::Connect(_) => Termination::ConnectionError,
            StreamError::Closed => Termination::Complete,
            _ => Termination::Error,
        });
    }

    fn message(&self, type_url: TypeUrl, bytes: usize) {
        self.0.received(type_url.as_str(), bytes as u64);
    }

    fn refused(&self, type_url: TypeUrl, _: &DecodeError) {
        self.0.rejected(type_url.as_str(), 1);
    }
}

#[cfg(test)]
mod tests {
    use runtime::Env;

    use super::*;

    #[test]
    fn the_token_goes_out_under_tls_only() {
        let addresses = [("XDS_ADDRESS", "http://10.0.0.1:15010"), ("CA_ADDRESS", "https://10.0.0.1:15012")];
        let vars = [("NODE_NAME", "n")].into_iter().chain(addresses);
        let config = Config::read(Env::of(vars)).unwrap();
        assert_eq!(control_plane(&config, &config.xds).token, None);
        assert_eq!(control_plane(&config, &config.ca).token, Some(config.token_path.clone()));
    }
}
