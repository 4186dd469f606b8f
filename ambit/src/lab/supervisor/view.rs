//! What those who ask are shown of a lab's state.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use manifest::{Kind, ObjectKey};

use super::cluster::Cluster;
use crate::lab::api::{Laggard, PodReference};
use crate::lab::control::{self, is_ready};
use crate::lab::enrolment::{self, Difference};
use crate::lab::kubelet::Entrance;
use crate::lab::network::UPLINK;
use crate::lab::status::{NodeStatus, PodStatus, Redirection, Status};
use crate::lab::store::{name, namespace};
use crate::lab::system::Part;

/// What those who wait need to know.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    /// The newest revision that is written out.
    pub(super) revision: u64,
    /// The newest table of services.
    pub(super) table: u64,
    /// Pods that are in the mesh and should not be, or the other way round.
    pub(super) enrolment: Vec<Difference>,
    /// Pods that are not ready, with the reason.
    pub(super) unready: Vec<Laggard>,
    /// The UIDs of all pods and namespaces.
    pub(super) uids: BTreeMap<ObjectKey, String>,
}

impl Cluster {
    pub(super) fn view(&self) -> View {
        let uids = self.store.of_kind(Kind::Pod).chain(self.store.namespaces());
        View {
            revision: self.revision,
            table: self.outside.tables.borrow().version,
            enrolment: enrolment::differences(&self.store, &self.enrolments),
            unready: self.store.pods().filter_map(unready).collect(),
            uids: uids.filter_map(|o| Some((o.key(), o.metadata().uid.clone()?))).collect(),
        }
    }

    pub(super) fn status(&self) -> Status {
        let pids = self.outside.keeper.pids();
        let leaving =
            |part: &Part| pids.leaving.iter().filter(|(of, _)| of == part).map(|(_, pid)| *pid).collect();
        let nodes = self.outside.nodes.iter().map(|node| {
            let of = &node.plan.name;
            NodeStatus {
                name: of.clone(),
                netns: node.path.clone(),
                uplink: UPLINK.to_owned(),
                ztunnel_pid: pids.serving.get(&Part::Ztunnel(of.clone())).copied(),
                ztunnels_leaving: leaving(&Part::Ztunnel(of.clone())),
                agent_pid: pids.serving.get(&Part::Agent(of.clone())).copied(),
            }
        });
        let pods = self.store.pods().map(|pod| {
            let seen = enrolment::seen(pod, &self.enrolments);
            PodStatus {
                namespace: namespace(&pod.metadata).to_owned(),
                name: name(&pod.metadata).to_owned(),
                ip: pod.status.as_ref().and_then(|status| status.pod_ip.clone()),
                node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
                netns: manifest::annotation(&pod.metadata, control::NETNS).map(Into::into),
                ready: is_ready(pod),
                enrolled: enrolment::is_enrolled(pod, &self.enrolments),
                bypassed: seen.map_or(0, |seen| seen.bypassed),
                older_connections: seen.map_or(0, |seen| seen.older_connections),
            }
        });
        // Nodes may differ; the one that has less is what its user should know of.
        let fallback = self.redirections.values().find(|told| told.redirection == Redirection::Nftables);
        Status {
            redirection: fallback.map_or(Redirection::Ebpf, |fallback| fallback.redirection),
            redirection_reason: fallback.map(|fallback| fallback.reason.clone()),
            supervisor_pid: std::process::id(),
            istiod_pid: pids.serving.get(&Part::Istiod).copied(),
            nodes: nodes.collect(),
            pods: pods.collect(),
            waypoints: Vec::new(),
        }
    }

    /// The way into a pod that runs.
    ///
    /// # Errors
    /// If there is none; whether to wait for it.
    pub(super) fn entrance(&self, namespace: &str, pod: &PodReference) -> Result<Entrance, NoEntrance> {
        let here = || self.store.pods().filter(|pod| self::namespace(&pod.metadata) == namespace);
        let name = match pod {
            PodReference::Pod(wanted) => here().map(|pod| name(&pod.metadata)).find(|name| name == wanted),
            PodReference::Deployment(wanted) => {
                let owned = |pod: &&Pod| {
                    let mut owners = pod.metadata.owner_references.iter().flatten();
                    owners.any(|owner| owner.kind == "Deployment" && owner.name == *wanted)
                };
                let best = here().filter(owned).max_by_key(|pod| {
                    (
                        pod.metadata.deletion_timestamp.is_none(),
                        is_ready(pod),
                        std::cmp::Reverse(name(&pod.metadata)),
                    )
                });
                best.map(|pod| name(&pod.metadata))
            }
        };
        let (PodReference::Pod(wanted) | PodReference::Deployment(wanted)) = pod;
        let Some(name) = name else {
            let what = match pod {
                PodReference::Pod(_) => "pod",
                PodReference::Deployment(_) => "pod of the deployment",
            };
            let names: Vec<&str> = here().map(|pod| self::name(&pod.metadata)).collect();
            let near = manifest::nearest(wanted, names).map(|near| format!(" (did you mean `{near}`?)"));
            let why = format!("there is no {what} `{namespace}/{wanted}`{}", near.unwrap_or_default());
            return Err(NoEntrance::Never(why));
        };
        let entrance = self.outside.kubelet.entrance(namespace, name);
        let not_yet = || NoEntrance::NotYet(format!("pod `{namespace}/{name}` does not run yet"));
        entrance.cloned().ok_or_else(not_yet)
    }
}

/// Why there is no way into a pod.
#[derive(Debug)]
pub(super) enum NoEntrance {
    /// It does not run yet.
    NotYet(String),
    /// There is no such pod.
    Never(String),
}

/// Why a pod is not ready; nothing where it is, or is done.
fn unready(pod: &Pod) -> Option<Laggard> {
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
    if is_ready(pod) || phase == "Succeeded" || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let conditions = || status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let why = conditions().find_map(|condition| condition.message.clone());
    let who = format!("pod {}/{}", namespace(&pod.metadata), name(&pod.metadata));
    Some(Laggard::new(who, why.unwrap_or_else(|| "is not ready".to_owned())))
}
