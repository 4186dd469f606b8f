//! Deployments: as many pods as wanted, `NAME-0`, `NAME-1`, …, all of the present template. Those that a rollout adds for
//! its time have the numbers after these.

mod rollout;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use manifest::Kind;
use sha2::{Digest as _, Sha256};

use self::rollout::{Moves, Replacement, Replica, moves};
use super::endpoints::is_ready;
use crate::lab::store::{Change, Mint, Store, name, namespace};

/// The label that tells which template a pod was made of.
const TEMPLATE: &str = "pod-template-hash";

/// Makes missing pods, ends superfluous ones and those whose deployment is gone, and replaces those of an older template
/// as the deployment's strategy says.
pub(super) fn changes(store: &Store, mint: &Mint) -> Vec<Change> {
    let mut changes: Vec<Change> =
        store.pods().filter(|pod| is_orphan(store, pod)).map(|pod| end(pod, mint)).collect();
    for deployment in store.deployments() {
        let pods = Replicas::of(deployment, store, mint.now);
        changes.extend(pods.changes(mint));
        let status = pods.status(mint);
        if deployment.status.as_ref() != Some(&status) {
            changes.push(Change::put(Deployment { status: Some(status), ..deployment.clone() }));
        }
    }
    changes
}

/// How long until a pod that is ready counts as available, which nothing else tells.
pub(super) fn next_look(store: &Store, now: Timestamp) -> Option<Duration> {
    let deployments = store.deployments().filter(|deployment| !patience(deployment).is_zero());
    let waits = deployments.flat_map(|deployment| {
        let replicas = Replicas::of(deployment, store, now);
        let young = replicas.alive().filter_map(ready_since).filter(|since| *since > replicas.settled);
        let waits = young.map(|since| Duration::try_from(since.duration_since(replicas.settled)));
        waits.collect::<Vec<_>>()
    });
    // It lies ahead of what it is counted from.
    waits.map(Result::unwrap_or_default).min()
}

/// `minReadySeconds`.
fn patience(deployment: &Deployment) -> Duration {
    let seconds = deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
    Duration::from_secs(seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0))
}

fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let mut conditions = pod.status.as_ref()?.conditions.iter().flatten();
    let ready = conditions.find(|c| c.type_ == "Ready" && c.status == "True")?;
    Some(ready.last_transition_time.as_ref().map_or(Timestamp::MIN, |time| time.0))
}

fn numbered(deployment: &Deployment, n: i32) -> String {
    format!("{}-{n}", name(&deployment.metadata))
}

fn is_orphan(store: &Store, pod: &Pod) -> bool {
    if pod.metadata.deletion_timestamp.is_some() {
        return false;
    }
    let Some(owner) = owner(pod) else { return false };
    !store.deployments().any(|deployment| {
        namespace(&deployment.metadata) == namespace(&pod.metadata)
            && deployment.metadata.uid.as_deref() == Some(&owner.uid)
    })
}

fn owner(pod: &Pod) -> Option<&OwnerReference> {
    let mut owners = pod.metadata.owner_references.iter().flatten();
    owners.find(|owner| owner.kind == "Deployment" && owner.controller == Some(true))
}

fn end(pod: &Pod, mint: &Mint) -> Change {
    let mut pod = pod.clone();
    pod.metadata.deletion_timestamp = Some(mint.time());
    Change::put(pod)
}

struct Replicas<'a> {
    deployment: &'a Deployment,
    wanted: BTreeSet<String>,
    template: String,
    strategy: Replacement,
    /// Since when a pod must have been ready to count as available.
    settled: Timestamp,
    /// The deployment's pods, those that are ending too.
    owned: Vec<&'a Pod>,
    /// Names that are not to be had now.
    taken: BTreeSet<&'a str>,
}

impl<'a> Replicas<'a> {
    fn of(deployment: &'a Deployment, store: &'a Store, now: Timestamp) -> Self {
        let here = namespace(&deployment.metadata);
        let count = deployment.spec.as_ref().map_or(0, |spec| spec.replicas.unwrap_or(1));
        let wanted = (0..count).map(|n| numbered(deployment, n)).collect();
        let neighbours = || store.pods().filter(move |pod| namespace(&pod.metadata) == here);
        let ours = |pod: &&Pod| owner(pod).map(|o| o.uid.as_str()) == deployment.metadata.uid.as_deref();
        Self {
            deployment,
            wanted,
            template: template_hash(deployment),
            strategy: Replacement::of(deployment),
            settled: match patience(deployment) {
                // Times have whole seconds, and may lie ahead of now.
                Duration::ZERO => Timestamp::MAX,
                patience => now.checked_sub(patience).unwrap_or(Timestamp::MIN),
            },
            owned: neighbours().filter(ours).collect(),
            taken: neighbours().map(|pod| name(&pod.metadata)).collect(),
        }
    }

    fn changes(&self, mint: &Mint) -> Vec<Change> {
        let pods = self.owned.iter().map(|pod| Replica {
            name: name(&pod.metadata),
            is_current: self.is_current(pod),
            is_ending: pod.metadata.deletion_timestamp.is_some(),
            is_ready: is_ready(pod),
            is_available: self.is_available(pod),
        });
        let pods: Vec<Replica<'_>> = pods.collect();
        let extra = |n| numbered(self.deployment, i32::try_from(self.wanted.len() + n).unwrap_or(i32::MAX));
        let Moves { end, make } = moves(&self.strategy, &self.wanted, &pods, &self.taken, extra);
        let ending = self.owned.iter().filter(|pod| end.contains(name(&pod.metadata)));
        let mut changes: Vec<Change> = make.iter().map(|name| Change::put(self.pod(name))).collect();
        changes.extend(ending.map(|pod| self::end(pod, mint)));
        changes
    }

    fn alive(&self) -> impl Iterator<Item = &'a Pod> + '_ {
        self.owned.iter().copied().filter(|pod| pod.metadata.deletion_timestamp.is_none())
    }

    fn is_current(&self, pod: &Pod) -> bool {
        manifest::label(&pod.metadata, TEMPLATE) == Some(&self.template)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        ready_since(pod).is_some_and(|since| since <= self.settled)
    }

    fn pod(&self, name: &str) -> Pod {
        let template = self.deployment.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
        let mut metadata = template.metadata.unwrap_or_default();
        let labels = metadata.labels.get_or_insert_with(BTreeMap::new);
        labels.insert(TEMPLATE.to_owned(), self.template.clone());
        let of = &self.deployment.metadata;
        let owner = OwnerReference {
            api_version: Kind::Deployment.api_version(),
            kind: Kind::Deployment.to_string(),
            name: of.name.clone().unwrap_or_default(),
            uid: of.uid.clone().unwrap_or_default(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        };
        Pod {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: of.namespace.clone(),
                owner_references: Some(vec![owner]),
                ..metadata
            },
            spec: template.spec,
            status: None,
        }
    }

    fn status(&self, mint: &Mint) -> DeploymentStatus {
        let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let all = self.alive().count();
        let ready = self.alive().filter(|pod| is_ready(pod)).count();
        let available = self.alive().filter(|pod| self.is_available(pod)).count();
        let current = self.alive().filter(|pod| self.is_current(pod)).count();
        let before = self.deployment.status.as_ref();
        let is_available = if available >= self.strategy.least(self.wanted.len()) { "True" } else { "False" };
        let since = before
            .and_then(|status| status.conditions.as_ref()?.first())
            .filter(|condition| condition.status == is_available)
            .and_then(|condition| condition.last_transition_time.clone());
        DeploymentStatus {
            observed_generation: self.deployment.metadata.generation,
            replicas: Some(count(all)),
            ready_replicas: Some(count(ready)),
            available_replicas: Some(count(available)),
            unavailable_replicas: Some(count(self.wanted.len().saturating_sub(available))),
            updated_replicas: Some(count(current)),
            conditions: Some(vec![DeploymentCondition {
                type_: "Available".to_owned(),
                status: is_available.to_owned(),
                last_transition_time: since.or_else(|| Some(mint.time())),
                ..DeploymentCondition::default()
            }]),
            ..DeploymentStatus::default()
        }
    }
}

fn template_hash(deployment: &Deployment) -> String {
    let template = deployment.spec.as_ref().map(|spec| &spec.template);
    // Kubernetes' types serialise without failing.
    let text = serde_json::to_string(&template).unwrap_or_default();
    Sha256::digest(text).iter().take(5).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodCondition, PodStatus};

    use super::*;
    use crate::lab::store::tests::{objects, store};

    fn yaml(replicas: u32, command: &str) -> String {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web, namespace: x}}\n\
             spec: {{replicas: {replicas}, selector: {{matchLabels: {{app: web}}}}, template: {{metadata: {{labels: {{app: web}}}}, \
             spec: {{containers: [{{name: m, command: [{command}]}}]}}}}}}\n"
        )
    }

    fn rounds(store: &mut Store, mint: &mut Mint) {
        loop {
            let changes = changes(store, mint);
            if !changes.into_iter().fold(false, |any, change| store.make(change, mint) | any) {
                return;
            }
        }
    }

    /// `name ready|idle|ending command`, a pod a line.
    fn pods(store: &Store) -> Vec<String> {
        let show = |pod: &Pod| {
            let state = match (pod.metadata.deletion_timestamp.is_some(), is_ready(pod)) {
                (true, _) => "ending",
                (_, true) => "ready",
                _ => "idle",
            };
            let command = &pod.spec.as_ref().unwrap().containers[0].command.as_ref().unwrap()[0];
            format!("{} {state} {command}", name(&pod.metadata))
        };
        store.pods().map(show).collect()
    }

    fn make_ready(store: &mut Store, mint: &mut Mint) {
        let pods: Vec<Pod> =
            store.pods().filter(|pod| pod.metadata.deletion_timestamp.is_none()).cloned().collect();
        for mut pod in pods.into_iter().filter(|pod| !is_ready(pod)) {
            let ready = PodCondition {
                type_: "Ready".into(),
                status: "True".into(),
                last_transition_time: Some(mint.time()),
                ..PodCondition::default()
            };
            pod.status = Some(PodStatus { conditions: Some(vec![ready]), ..PodStatus::default() });
            store.put(pod.into(), mint);
        }
    }

    fn bury(store: &mut Store) {
        let ended = store.of_kind(Kind::Pod).filter(|p| p.metadata().deletion_timestamp.is_some());
        for key in ended.map(manifest::Object::key).collect::<Vec<_>>() {
            store.remove(&key);
        }
    }

    fn apply(store: &mut Store, mint: &mut Mint, yaml: &str) {
        store.put(objects(yaml).remove(0), mint);
        rounds(store, mint);
    }

    #[test]
    fn pods_are_numbered_and_follow_the_count() {
        let (mut store, mut mint) = store("");
        apply(&mut store, &mut mint, &yaml(2, "a"));
        assert_eq!(pods(&store), ["web-0 idle a", "web-1 idle a"]);
        apply(&mut store, &mut mint, &yaml(1, "a"));
        assert_eq!(pods(&store), ["web-0 idle a", "web-1 ending a"]);
        bury(&mut store);
        rounds(&mut store, &mut mint);
        assert_eq!(pods(&store), ["web-0 idle a"]);
    }

    /// What the pods are after each step of a rollout: what runs becomes ready, then what ends is gone.
    fn rolled(store: &mut Store, mint: &mut Mint) -> Vec<String> {
        let mut seen = vec![pods(store).join(", ")];
        for _ in 0..20 {
            make_ready(store, mint);
            rounds(store, mint);
            seen.push(pods(store).join(", "));
            bury(store);
            rounds(store, mint);
            seen.push(pods(store).join(", "));
        }
        seen.dedup();
        seen
    }

    #[test]
    fn a_new_template_comes_with_one_more_pod_and_never_with_one_fewer_ready() {
        let (mut store, mut mint) = store("");
        apply(&mut store, &mut mint, &yaml(2, "a"));
        make_ready(&mut store, &mut mint);
        apply(&mut store, &mut mint, &yaml(2, "b"));
        let expected = [
            "web-0 ready a, web-1 ready a, web-2 idle b",
            "web-0 ending a, web-1 ready a, web-2 ready b",
            "web-0 idle b, web-1 ready a, web-2 ready b",
            "web-0 ready b, web-1 ending a, web-2 ready b",
            "web-0 ready b, web-1 idle b, web-2 ready b",
            "web-0 ready b, web-1 ready b, web-2 ending b",
            "web-0 ready b, web-1 ready b",
        ];
        assert_eq!(rolled(&mut store, &mut mint), expected);
    }

    #[test]
    fn pods_count_once_they_were_ready_for_as_long_as_is_asked() {
        let (mut store, mut mint) = store("");
        let slow = |command| yaml(1, command).replace("{replicas", "{minReadySeconds: 5, replicas");
        apply(&mut store, &mut mint, &slow("a"));
        make_ready(&mut store, &mut mint);
        mint.now += Duration::from_secs(100);
        apply(&mut store, &mut mint, &slow("b"));
        assert_eq!(next_look(&store, mint.now), None);
        make_ready(&mut store, &mut mint);
        rounds(&mut store, &mut mint);
        assert_eq!(pods(&store), ["web-0 ready a", "web-1 ready b"]);
        assert_eq!(next_look(&store, mint.now), Some(Duration::from_secs(5)));
        mint.now += Duration::from_secs(5);
        rounds(&mut store, &mut mint);
        assert_eq!(pods(&store), ["web-0 ending a", "web-1 ready b"]);
    }

    #[test]
    fn pods_end_with_their_deployment() {
        let (mut store, mut mint) = store("");
        apply(&mut store, &mut mint, &yaml(1, "a"));
        let key = store.of_kind(Kind::Deployment).next().unwrap().key();
        store.remove(&key);
        rounds(&mut store, &mut mint);
        assert_eq!(pods(&store), ["web-0 ending a"]);
    }

    #[test]
    fn the_status_counts_what_is_ready() {
        let (mut store, mut mint) = store("");
        apply(&mut store, &mut mint, &yaml(2, "a"));
        make_ready(&mut store, &mut mint);
        rounds(&mut store, &mut mint);
        let status = store.deployments().next().unwrap().status.clone().unwrap();
        assert_eq!((status.replicas, status.ready_replicas), (Some(2), Some(2)));
        assert_eq!(status.conditions.unwrap()[0].status, "True");
    }
}
