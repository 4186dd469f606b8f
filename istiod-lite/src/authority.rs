//! Who may have which certificate.
//!
//! A node proxy asks for the identities of the pods of its node, and gets those alone: a node that is taken over yields
//! no identity of another node. Everyone else gets their own.

use std::sync::Arc;

use async_trait::async_trait;
use identity::signer::{Signer, SignerError};
use k8s_openapi::api::core::v1::Pod;
use model::SpiffeId;
use parking_lot::RwLock;
use thiserror::Error;
use xds::server::{IssueError, IssueRequest, Issuer, Peer, Subject};

use crate::store::Store;
use crate::translate::service_account;

/// The service account of node proxies, in the namespace of the installation: not one that the mesh's settings could name.
pub const NODE_PROXY: &str = "ztunnel";

/// Why someone may not have an identity.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Someone who is no node proxy asks for another's identity.
    #[error("{namespace}/{service_account} may ask for its own identity only, not for {asked}")]
    NotItsOwn {
        /// Who asks.
        namespace: Arc<str>,
        /// Who asks.
        service_account: Arc<str>,
        /// For what.
        asked: SpiffeId,
    },
    /// A node proxy asks for an identity of which its node runs no pod.
    #[error("node `{node}` runs no pod of {asked}")]
    NotOnNode {
        /// Its node.
        node: Arc<str>,
        /// For what it asks.
        asked: SpiffeId,
    },
    /// A node proxy's token is not bound to a node.
    #[error("the token of a node proxy must be bound to its node")]
    NoNode,
    /// The identity is of another trust domain.
    #[error("{asked} is not of the trust domain `{mesh}`")]
    TrustDomain {
        /// For what.
        asked: SpiffeId,
        /// The mesh's trust domain.
        mesh: Arc<str>,
    },
    /// The one who asks has no identity.
    #[error("{namespace}/{service_account} cannot be written as an identity")]
    Nameless {
        /// Who asks.
        namespace: Arc<str>,
        /// Who asks.
        service_account: Arc<str>,
    },
}

/// The identity that someone gets.
///
/// # Errors
/// Why they do not.
pub fn authorize(store: &Store, peer: &Peer, subject: &Subject) -> Result<SpiffeId, Refusal> {
    let (namespace, account) = (peer.namespace.clone(), peer.service_account.clone());
    let trust_domain = &store.mesh().trust_domain;
    let own = SpiffeId::new(trust_domain.clone(), &namespace, &account)
        .map_err(|_| Refusal::Nameless { namespace: namespace.clone(), service_account: account.clone() })?;
    let asked = match subject {
        Subject::Peer => return Ok(own),
        Subject::Impersonated(asked) => asked.clone(),
    };
    if asked == own {
        return Ok(own);
    }
    // A node proxy may not have heard yet that the trust domain has another name now.
    if !store.mesh().trust_domains().any(|name| name == asked.trust_domain()) {
        return Err(Refusal::TrustDomain { asked, mesh: trust_domain.as_str().into() });
    }
    if *namespace != *store.settings().config_namespace || &*account != NODE_PROXY {
        return Err(Refusal::NotItsOwn { namespace, service_account: account, asked });
    }
    let node = peer.node.clone().ok_or(Refusal::NoNode)?;
    if store.pods_on(&node).any(|pod| has_identity(pod, &asked)) {
        Ok(asked)
    } else {
        Err(Refusal::NotOnNode { node, asked })
    }
}

/// Whether a pod runs, or is about to, under an identity. One that shares the node's network has none of its own.
fn has_identity(pod: &Pod, id: &SpiffeId) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
    !matches!(phase, Some("Succeeded" | "Failed"))
        && !host_network
        && pod.metadata.namespace.as_deref() == Some(id.namespace())
        && service_account(pod) == id.service_account()
}

/// Decides by the store and signs.
#[derive(Clone, Debug)]
pub struct Authority {
    store: Arc<RwLock<Store>>,
    signer: Arc<Signer>,
}

impl Authority {
    /// An authority over the pods of a store.
    pub fn new(store: Arc<RwLock<Store>>, signer: Arc<Signer>) -> Self {
        Self { store, signer }
    }
}

#[async_trait]
impl Issuer for Authority {
    async fn issue(&self, request: IssueRequest) -> Result<Vec<String>, IssueError> {
        let id = authorize(&self.store.read(), &request.peer, &request.subject)
            .map_err(|refusal| IssueError::Denied(refusal.to_string()))?;
        let signed = self.signer.sign(&request.csr_pem, &id, request.ttl).map_err(|error| match error {
            SignerError::Request(error) => IssueError::BadRequest(error.to_string()),
            other => IssueError::Unavailable(other.to_string()),
        })?;
        tracing::info!(
            identity = %id, node = request.peer.node.as_deref(), serial = signed.serial, "certificate signed"
        );
        Ok(signed.chain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Settings;

    fn store() -> Store {
        let pod = |name: &str, node: &str, account: &str, more: &str| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{nodeName: {node}, serviceAccountName: {account}, containers: [{{name: c}}]{more}}}\n---\n"
            )
        };
        let text = [
            pod("web", "node1", "web", ""),
            pod("db", "node2", "db", ""),
            pod("host", "node1", "agent", ", hostNetwork: true"),
            pod("done", "node1", "job", "").replace("\n---", "\nstatus: {phase: Succeeded}\n---"),
        ]
        .concat();
        let parsed = manifest::parse("t.yaml", &text);
        assert_eq!(parsed.problems, []);
        let objects: Vec<_> = parsed.documents.into_iter().map(|d| Arc::new(d.object)).collect();
        let mut store = Store::new(Settings::default());
        store.apply(&objects, []);
        store
    }

    fn peer(namespace: &str, account: &str, node: Option<&str>) -> Peer {
        Peer { namespace: namespace.into(), service_account: account.into(), node: node.map(Into::into) }
    }

    fn ask(peer: &Peer, id: &str) -> Result<SpiffeId, Refusal> {
        authorize(&store(), peer, &Subject::Impersonated(id.parse().unwrap()))
    }

    #[test]
    fn a_node_proxy_gets_the_identities_of_its_own_pods() {
        let node1 = peer("istio-system", "ztunnel", Some("node1"));
        let web = "spiffe://cluster.local/ns/shop/sa/web";
        assert_eq!(ask(&node1, web).unwrap().to_string(), web);
        for foreign in ["db", "agent", "job", "none"] {
            let refusal = ask(&node1, &format!("spiffe://cluster.local/ns/shop/sa/{foreign}")).unwrap_err();
            assert!(matches!(refusal, Refusal::NotOnNode { .. }), "{foreign}: {refusal}");
        }
        let other = ask(&node1, "spiffe://elsewhere/ns/shop/sa/web").unwrap_err();
        assert!(matches!(other, Refusal::TrustDomain { .. }));
    }

    #[test]
    fn a_node_proxy_may_know_the_trust_domain_by_another_of_its_names() {
        let mut store = store();
        let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    trustDomain: new.example\n    trustDomainAliases: [cluster.local]\n";
        let parsed = manifest::parse("t.yaml", text);
        assert_eq!(parsed.problems, []);
        let objects: Vec<_> = parsed.documents.into_iter().map(|d| Arc::new(d.object)).collect();
        store.apply(&objects, []);
        let node1 = peer("istio-system", "ztunnel", Some("node1"));
        let ask = |domain: &str, account: &str| {
            let id = format!("spiffe://{domain}/ns/shop/sa/{account}");
            authorize(&store, &node1, &Subject::Impersonated(id.parse().unwrap()))
        };
        assert!(ask("new.example", "web").is_ok());
        assert!(ask("cluster.local", "web").is_ok());
        assert!(matches!(ask("cluster.local", "db"), Err(Refusal::NotOnNode { .. })));
        assert!(matches!(ask("else.example", "web"), Err(Refusal::TrustDomain { .. })));
    }

    #[test]
    fn a_node_proxy_without_a_node_gets_nothing() {
        let refusal = ask(&peer("istio-system", "ztunnel", None), "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(refusal, Err(Refusal::NoNode));
    }

    #[test]
    fn everyone_else_gets_their_own() {
        let web = peer("shop", "web", None);
        assert_eq!(
            authorize(&store(), &web, &Subject::Peer).unwrap().principal(),
            "cluster.local/ns/shop/sa/web"
        );
        assert!(ask(&web, "spiffe://cluster.local/ns/shop/sa/web").is_ok());
        for (namespace, account) in [("shop", "ztunnel"), ("shop", "web"), ("istio-system", "web")] {
            let asking = peer(namespace, account, Some("node2"));
            let refusal = ask(&asking, "spiffe://cluster.local/ns/shop/sa/db").unwrap_err();
            assert!(matches!(refusal, Refusal::NotItsOwn { .. }), "{namespace}/{account}");
        }
    }
}
