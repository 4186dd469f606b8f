//! What the agent tells of itself: its pods, and its metrics.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use serde::Serialize;
use telemetry::metrics::Registry;
use tokio::sync::watch;

use crate::choice::Choice;
use crate::membership::Member;
use crate::redirect::{Mended, PastTheMesh};
use crate::roster::{self, Outcome, Standings};

/// How a pod stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Shown {
    /// Its connections are captured.
    Enrolled,
    /// It belongs to the mesh and is not captured yet.
    Pending,
    /// Something went wrong; it is tried again.
    Failed,
}

impl Shown {
    const ALL: [Self; 3] = [Self::Enrolled, Self::Pending, Self::Failed];

    fn name(self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::Pending => "pending",
            Self::Failed => "failed",
        }
    }
}

/// One pod of `/debug/pods`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PodStatus {
    /// Its `metadata.uid`.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// The path of its network namespace.
    pub netns: Option<PathBuf>,
    /// The namespace's cookie, by which a sandbox that was made anew is told from the one before; nothing where it is not
    /// known yet.
    pub netns_cookie: Option<u64>,
    /// How it stands.
    pub state: Shown,
    /// Why, where there is something to say.
    pub reason: Option<String>,
    /// Connections that were established past the mesh since it was enrolled. None is the proof of enrolment.
    pub bypassed: u64,
    /// Connections that are older than its enrolment and still there.
    pub older_connections: usize,
    /// How often something that captures it was damaged and has been put back, as far as this agent has seen.
    pub repairs: u64,
}

/// What was seen of a captured pod when it was looked after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// What goes past the mesh.
    pub past: PastTheMesh,
    /// How often something was put back so far.
    pub repairs: u64,
    /// What was damaged this time.
    pub mended: Mended,
    /// What is damaged still.
    pub broken: Option<String>,
}

impl PodStatus {
    /// A member that cannot be enrolled.
    pub fn failed(member: &Member, reason: String) -> Self {
        Self { state: Shown::Failed, reason: Some(reason), ..Self::of(member) }
    }

    fn of(member: &Member) -> Self {
        Self {
            uid: member.uid.to_string(),
            namespace: member.namespace.to_string(),
            name: member.name.to_string(),
            ips: member.addresses().collect(),
            netns: Some(member.netns.clone()),
            netns_cookie: None,
            state: Shown::Pending,
            reason: None,
            bypassed: 0,
            older_connections: 0,
            repairs: 0,
        }
    }

    /// A pod as it stands, with what was seen of it.
    pub fn new(standings: &Standings<'_>, seen: Option<&Seen>) -> Self {
        let state = match standings.state {
            roster::State::Enrolled => Shown::Enrolled,
            roster::State::Pending | roster::State::Leaving => Shown::Pending,
            roster::State::Failed => Shown::Failed,
        };
        let broken = seen.and_then(|seen| seen.broken.clone());
        let state = if broken.is_some() { Shown::Failed } else { state };
        let trouble = seen.and_then(|seen| seen.past.trouble.clone());
        let reason = broken.or_else(|| standings.reason.clone()).or(trouble);
        let netns_cookie = Some(standings.key.cookie());
        let shown = match standings.member {
            Some(member) => Self { state, reason, netns_cookie, ..Self::of(member) },
            // Adopted, and its object not read yet.
            None => Self {
                bypassed: 0,
                older_connections: 0,
                repairs: 0,
                uid: standings.key.uid().to_owned(),
                namespace: String::new(),
                name: String::new(),
                ips: Vec::new(),
                netns: None,
                netns_cookie,
                state,
                reason,
            },
        };
        match seen {
            Some(Seen { past, repairs, .. }) => {
                Self { bypassed: past.bypassed, older_connections: past.older, repairs: *repairs, ..shown }
            }
            None => shown,
        }
    }
}

/// The agent's state as others see it. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Status {
    pods: watch::Sender<Vec<PodStatus>>,
    /// How the node redirects; nothing before the agent has begun.
    redirection: Arc<Mutex<Option<Choice>>>,
    redirects: Family<[(&'static str, &'static str); 1], Gauge>,
    by_state: Family<[(&'static str, &'static str); 1], Gauge<i64, AtomicI64>>,
    steps: Family<[(&'static str, &'static str); 2], Counter>,
    ztunnel_connected: Gauge,
    bypassed: Family<PodLabels, Counter>,
    older: Family<PodLabels, Gauge>,
    repairs: Family<[(&'static str, &'static str); 1], Counter>,
}

/// The labels of a series of a pod.
type PodLabels = [(&'static str, String); 2];

impl Status {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let status = Self::default();
        registry.register(
            "ambit_bypassed_connections",
            "TCP connections of enrolled pods that were established past the mesh",
            status.bypassed.clone(),
        );
        registry.register(
            "ambit_older_connections",
            "TCP connections that are older than their pod's enrolment, and past the mesh",
            status.older.clone(),
        );
        registry.register(
            "ambit_repairs",
            "Parts of the redirection that somebody took away or changed, and that were put back",
            status.repairs.clone(),
        );
        registry.register(
            "ambit_agent_redirection",
            "How the node captures connections",
            status.redirects.clone(),
        );
        let registry = registry.sub_registry_with_prefix("ambit_agent");
        registry.register("pods", "Pods of the node by how they stand", status.by_state.clone());
        registry.register("steps", "What was done for pods, and how it ended", status.steps.clone());
        registry.register(
            "ztunnel_connected",
            "Whether a ztunnel is connected",
            status.ztunnel_connected.clone(),
        );
        status
    }

    /// The pages `/debug/pods`, a JSON list, and `/debug/redirection`, a JSON object: how the node redirects, and why so.
    pub fn pages(&self) -> Router {
        let pages = Router::new().route("/debug/pods", get(pods));
        pages.route("/debug/redirection", get(redirection)).with_state(self.clone())
    }

    /// Shows that the node redirects so.
    pub fn redirects(&self, choice: Choice) {
        self.redirects.get_or_create(&[("by", choice.redirection.name())]).set(1);
        *self.redirection.lock() = Some(choice);
    }

    /// Shows these pods from now on.
    pub fn publish(&self, pods: Vec<PodStatus>, leaving: usize, ztunnel_connected: bool) {
        for state in Shown::ALL {
            let count = pods.iter().filter(|pod| pod.state == state).count();
            self.by_state.get_or_create(&[("state", state.name())]).set(gauge(count));
        }
        self.by_state.get_or_create(&[("state", "leaving")]).set(gauge(leaving));
        self.ztunnel_connected.set(ztunnel_connected.into());
        self.count_past_the_mesh(&pods);
        self.pods.send_if_modified(|shown| {
            let changed = *shown != pods;
            *shown = pods;
            changed
        });
    }

    /// Brings the series of pods to what the kernel has counted, and lets those of former pods go.
    fn count_past_the_mesh(&self, pods: &[PodStatus]) {
        let labels = |pod: &PodStatus| [("namespace", pod.namespace.clone()), ("pod", pod.name.clone())];
        let shown = self.pods.borrow();
        let before: HashMap<&str, u64> =
            shown.iter().map(|known| (known.uid.as_str(), known.bypassed)).collect();
        let now: HashSet<&str> = pods.iter().map(|pod| pod.uid.as_str()).collect();
        for gone in shown.iter().filter(|gone| !now.contains(gone.uid.as_str())) {
            self.bypassed.remove(&labels(gone));
            self.older.remove(&labels(gone));
        }
        for pod in pods.iter().filter(|pod| !pod.name.is_empty()) {
            let more = grown(before.get(pod.uid.as_str()).copied().unwrap_or(0), pod.bypassed);
            if pod.state == Shown::Enrolled || more > 0 {
                self.bypassed.get_or_create_owned(&labels(pod)).inc_by(more);
                self.older.get_or_create_owned(&labels(pod)).set(gauge(pod.older_connections));
            }
        }
    }

    /// The pods, and notice when they change.
    pub fn pods(&self) -> watch::Receiver<Vec<PodStatus>> {
        self.pods.subscribe()
    }

    /// Counts something that was put back.
    pub fn count_repair(&self, what: &'static str) {
        self.repairs.get_or_create(&[("what", what)]).inc();
    }

    /// Counts a step.
    pub fn count(&self, step: &'static str, outcome: &Outcome) {
        let result = if matches!(outcome, Outcome::Failed(_)) { "failed" } else { "done" };
        self.steps.get_or_create(&[("step", step), ("result", result)]).inc();
    }
}

/// By how much a count of the kernel's has grown, which begins anew with each enrolment.
fn grown(before: u64, now: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

async fn pods(State(status): State<Status>) -> Json<Vec<PodStatus>> {
    Json(status.pods.borrow().clone())
}

async fn redirection(State(status): State<Status>) -> Json<Option<Choice>> {
    Json(status.redirection.lock().clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_shown_as_documented() {
        let member = Member {
            uid: "u-1".into(),
            name: "cart".into(),
            namespace: "shop".into(),
            service_account: "cart".into(),
            v4: Some([10, 0, 0, 5].into()),
            v6: Some("fd00::5".parse().unwrap()),
            netns: "/run/netns/cart".into(),
            existing: manifest::ExistingConnections::Keep,
            dns: true,
        };
        let shown = serde_json::to_value(PodStatus::failed(&member, "no room".to_owned())).unwrap();
        let expected = serde_json::json!({
            "uid": "u-1", "namespace": "shop", "name": "cart", "ips": ["10.0.0.5", "fd00::5"],
            "netns": "/run/netns/cart", "netns_cookie": null, "state": "failed", "reason": "no room",
            "bypassed": 0, "older_connections": 0, "repairs": 0,
        });
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_pods_series_grows_by_what_each_of_its_enrolments_counts_and_ends_with_it() {
        let status = Status::default();
        let pod = |uid: &str, state, bypassed| PodStatus {
            uid: uid.to_owned(),
            namespace: "shop".to_owned(),
            name: "cart".to_owned(),
            ips: Vec::new(),
            netns_cookie: None,
            netns: None,
            state,
            reason: None,
            bypassed,
            older_connections: 0,
            repairs: 0,
        };
        let labels = [("namespace", "shop".to_owned()), ("pod", "cart".to_owned())];
        let counted = |pods: Vec<PodStatus>| {
            status.publish(pods, 0, true);
            status.bypassed.get(&labels).map(|count| count.get())
        };
        assert_eq!(counted(vec![pod("u-1", Shown::Pending, 0)]), None);
        assert_eq!(counted(vec![pod("u-1", Shown::Enrolled, 2)]), Some(2));
        assert_eq!(
            counted(vec![pod("u-1", Shown::Failed, 3)]),
            Some(3),
            "what was broken counts most of all"
        );
        assert_eq!(counted(vec![pod("u-1", Shown::Pending, 0)]), Some(3));
        assert_eq!(counted(vec![pod("u-1", Shown::Enrolled, 1)]), Some(4));
        assert_eq!(counted(vec![pod("u-2", Shown::Enrolled, 1)]), Some(1), "another pod of the same name");
        assert_eq!(counted(Vec::new()), None);
    }
}
