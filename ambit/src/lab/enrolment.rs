//! Which pods should be in the mesh, and which are, by what each node's agent says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use manifest::{Kind, ObjectKey, label};
use net::Netns;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use super::api::Laggard;
use super::control::NETNS;
use super::http;
use super::status::Redirection;
use super::store::{Store, name, namespace};
use super::system::AGENT_HTTP;

const MODE: &str = "istio.io/dataplane-mode";
const AMBIENT: &str = "ambient";

/// A pod as an agent sees it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct AgentPod {
    pub(crate) uid: String,
    pub(crate) state: State,
    #[serde(default)]
    pub(crate) reason: Option<String>,
    /// Connections that were established past the mesh since it was enrolled.
    #[serde(default)]
    pub(crate) bypassed: u64,
    /// Connections that are older than its enrolment and still there.
    #[serde(default)]
    pub(crate) older_connections: u64,
    /// The cookie of its network namespace, by which a sandbox that was made anew is told from the one before.
    pub(crate) netns_cookie: Option<u64>,
}

/// How far an agent is with a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Enrolled,
    Pending,
    Failed,
}

/// What the agents said last, by node and then by the pods' UIDs.
pub(crate) type Enrolments = BTreeMap<String, BTreeMap<String, AgentPod>>;

/// Whether a pod runs such that an agent can know of it.
fn is_running(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    manifest::annotation(&pod.metadata, NETNS).is_some()
        && pod.metadata.deletion_timestamp.is_none()
        && !matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether a pod should be in the mesh: the pod's own label beats its namespace's, and a sidecar stays alone.
pub(crate) fn is_wanted(pod: &Pod, store: &Store) -> bool {
    let has_sidecar = manifest::annotation(&pod.metadata, "sidecar.istio.io/status").is_some()
        || label(&pod.metadata, "sidecar.istio.io/inject") == Some("true");
    let on_host = pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
    if has_sidecar || on_host {
        return false;
    }
    let home = store.get(&ObjectKey::new(Kind::Namespace, "", namespace(&pod.metadata)));
    let mode = label(&pod.metadata, MODE).or_else(|| home.and_then(|home| home.label(MODE)));
    mode == Some(AMBIENT)
}

/// Whether a pod is in the mesh.
pub(crate) fn is_enrolled(pod: &Pod, enrolments: &Enrolments) -> bool {
    seen(pod, enrolments).is_some_and(|seen| seen.state == State::Enrolled)
}

/// The cookie of the network namespace that was taken in for a pod.
pub(crate) fn enrolled_in(pod: &Pod, enrolments: &Enrolments) -> Option<u64> {
    seen(pod, enrolments).filter(|seen| seen.state == State::Enrolled).and_then(|seen| seen.netns_cookie)
}

/// What the agent of a pod's node says of it.
pub(crate) fn seen<'a>(pod: &Pod, enrolments: &'a Enrolments) -> Option<&'a AgentPod> {
    let node = pod.spec.as_ref()?.node_name.as_ref()?;
    enrolments.get(node)?.get(pod.metadata.uid.as_ref()?)
}

/// A pod that is not what its labels say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) uid: String,
    /// The agent whose work it is, and what is not done.
    pub(crate) laggard: Laggard,
}

/// The pods that are in the mesh and should not be, or the other way round.
pub(crate) fn differences(store: &Store, enrolments: &Enrolments) -> Vec<Difference> {
    let running = store.pods().filter(|pod| is_running(pod));
    let told = running.filter_map(|pod| {
        let wanted = is_wanted(pod, store);
        if wanted == is_enrolled(pod, enrolments) {
            return None;
        }
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
        let what = if wanted { "is not in the mesh yet" } else { "is still in the mesh" };
        let why = seen(pod, enrolments).and_then(|seen| seen.reason.as_deref()).filter(|why| !why.is_empty());
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        let what = format!("pod {}/{} {what}{why}", namespace(&pod.metadata), name(&pod.metadata));
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        Some(Difference { uid, laggard: Laggard::new(format!("agent@{node}"), what) })
    });
    told.collect()
}

/// The UIDs of the pods that should be in the mesh.
pub(crate) fn wanted(store: &Store) -> BTreeSet<String> {
    let wanted = store.pods().filter(|pod| is_wanted(pod, store));
    wanted.filter_map(|pod| pod.metadata.uid.clone()).collect()
}

/// How often an agent is asked before its first answer and when something is expected to change, and otherwise.
const BUSY: Duration = Duration::from_millis(20);
const IDLE: Duration = Duration::from_secs(1);

/// How an agent's node redirects, and why so.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct AgentRedirection {
    pub(crate) redirection: Redirection,
    pub(crate) reason: String,
}

/// What an agent said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    /// Of which node.
    pub(crate) node: String,
    pub(crate) pods: BTreeMap<String, AgentPod>,
    /// Nothing where it has not said.
    pub(crate) redirection: Option<AgentRedirection>,
}

/// Asks an agent again and again and passes on what is new; `busy` tells when to ask often. Never ends; cancel-safe.
pub(crate) async fn follow(
    node: String,
    netns: Netns,
    said: mpsc::Sender<Said>,
    mut busy: watch::Receiver<bool>,
) {
    let mut last = None;
    loop {
        // An agent that does not answer has changed nothing.
        if let Some(pods) = ask(&netns).await
            && last.as_ref() != Some(&pods)
        {
            last = Some(pods.clone());
            let redirection = page(&netns, "/debug/redirection").await;
            if said.send(Said { node: node.clone(), pods, redirection }).await.is_err() {
                return std::future::pending().await;
            }
        }
        if *busy.borrow_and_update() || last.is_none() {
            sleep(BUSY).await;
        } else {
            // Ends early when there is something to do.
            let _ = timeout(IDLE, busy.changed()).await;
        }
    }
}

async fn ask(netns: &Netns) -> Option<BTreeMap<String, AgentPod>> {
    let mut pods: Vec<AgentPod> = page(netns, "/debug/pods").await?;
    // Of two sandboxes of one pod the one that is taken in counts.
    pods.sort_by_key(|pod| pod.state == State::Enrolled);
    Some(pods.into_iter().map(|pod| (pod.uid.clone(), pod)).collect())
}

async fn page<T: DeserializeOwned>(netns: &Netns, path: &str) -> Option<T> {
    let agent = SocketAddr::from(([127, 0, 0, 1], AGENT_HTTP));
    let (status, body) = http::get(netns, agent, path, &[], IDLE).await.ok()?;
    serde_json::from_slice(&body).ok().filter(|_| status == 200)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::store::tests::store;

    fn world(namespace: &str, pod: &str) -> Store {
        let yaml = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: x, labels: {{{namespace}}}}}\n---\napiVersion: v1\nkind: Pod\n\
             metadata: {{name: a, namespace: x, labels: {{{pod}}}, annotations: {{ambit.dev/netns: /n}}}}\n\
             spec: {{nodeName: node1, containers: [{{name: m, command: [s]}}]}}\n"
        );
        store(&yaml).0
    }

    const IN: &str = "istio.io/dataplane-mode: ambient";
    const OUT: &str = "istio.io/dataplane-mode: none";

    fn said(state: State) -> Enrolments {
        let pod = AgentPod {
            uid: "uid-2".into(),
            state,
            reason: Some("no eBPF".into()),
            bypassed: 0,
            older_connections: 0,
            netns_cookie: Some(7),
        };
        [("node1".to_owned(), [("uid-2".to_owned(), pod)].into())].into()
    }

    #[test]
    fn the_pods_label_beats_its_namespaces() {
        let wanted = |namespace: &str, pod: &str| {
            let store = world(namespace, pod);
            is_wanted(store.pod("x", "a").unwrap(), &store)
        };
        assert!(wanted(IN, "") && wanted("", IN) && wanted(OUT, IN));
        assert!(!wanted("", "") && !wanted(IN, OUT));
        assert!(!wanted(IN, "sidecar.istio.io/inject: \"true\""));
    }

    #[test]
    fn who_is_not_what_the_labels_say_is_named_with_the_reason() {
        let told = |store: &Store, enrolments: &Enrolments| -> Vec<String> {
            differences(store, enrolments).iter().map(|d| d.laggard.to_string()).collect()
        };
        let store = world(IN, "");
        assert_eq!(told(&store, &said(State::Enrolled)), [""; 0]);
        assert_eq!(
            told(&store, &said(State::Failed)),
            ["agent@node1: pod x/a is not in the mesh yet: no eBPF"]
        );
        assert_eq!(told(&store, &Enrolments::new()).len(), 1);
        assert!(told(&world("", ""), &said(State::Enrolled))[0].contains("is still in the mesh"));
    }
}
