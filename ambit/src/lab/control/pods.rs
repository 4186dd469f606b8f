//! What the kubelet saw of a pod, as the pod's status.

use std::net::IpAddr;
use std::path::PathBuf;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::lab::store::Mint;

/// The annotation that tells agents where a pod's network namespace is.
pub(crate) const NETNS: &str = "ambit.dev/netns";
/// The annotation that says a pod's traffic is redirected; a cluster's agent writes it itself.
pub(crate) const ENROLLED: &str = "ambient.istio.io/redirection";

/// What the kubelet knows of a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PodReport {
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) host_ips: Vec<IpAddr>,
    pub(crate) netns: Option<PathBuf>,
    pub(crate) containers: Vec<ContainerReport>,
    /// Why the pod cannot run at all, a word and a sentence.
    pub(crate) problem: Option<(String, String)>,
}

/// What the kubelet knows of a container.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ContainerReport {
    pub(crate) name: String,
    pub(crate) image: String,
    /// It runs before the others, to its end.
    pub(crate) init: bool,
    pub(crate) phase: Phase,
    /// It passes its readiness probe, or has none.
    pub(crate) ready: bool,
    pub(crate) restarts: u32,
    /// It will run (again) by itself.
    pub(crate) pending: bool,
}

/// The state of a container.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Phase {
    /// It does not run, for a reason: a word and a sentence.
    Waiting(String, String),
    Running(Timestamp),
    Ended {
        code: i32,
        message: String,
        at: Timestamp,
    },
}

/// The pod with the status that follows from a report.
pub(crate) fn report(pod: &Pod, report: &PodReport, mint: &Mint) -> Pod {
    let mut pod = pod.clone();
    let annotations = pod.metadata.annotations.get_or_insert_default();
    match &report.netns {
        Some(path) => drop(annotations.insert(NETNS.to_owned(), path.to_string_lossy().into_owned())),
        None => drop(annotations.remove(NETNS)),
    }
    if annotations.is_empty() {
        pod.metadata.annotations = None;
    }
    let before = pod.status.take().unwrap_or_default();
    let (main, init): (Vec<_>, Vec<_>) = report.containers.iter().partition(|container| !container.init);
    let is_initialised = init.iter().all(|c| matches!(c.phase, Phase::Ended { code: 0, .. }));
    let is_ready = !main.is_empty() && main.iter().all(|c| c.ready && matches!(c.phase, Phase::Running(_)));
    let unready = || {
        let (reason, message) = waiting_for(report)?;
        Some((reason, message))
    };
    let condition = |kind: &str, holds: bool, why: Option<(String, String)>| {
        let status = if holds { "True" } else { "False" };
        let known = before.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == status);
        let since = known.and_then(|c| c.last_transition_time.clone()).or_else(|| Some(mint.time()));
        let (reason, message) = why.filter(|_| !holds).unzip();
        PodCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            last_transition_time: since,
            reason,
            message,
            ..PodCondition::default()
        }
    };
    let ips = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (pod_ips, host_ips) = (ips(&report.ips), ips(&report.host_ips));
    let statuses = |of: &[&ContainerReport]| of.iter().map(|c| status(c)).collect::<Vec<_>>();
    pod.status = Some(PodStatus {
        phase: Some(phase(report, &main).to_owned()),
        reason: report.problem.as_ref().map(|(reason, _)| reason.clone()),
        message: report.problem.as_ref().map(|(_, message)| message.clone()),
        conditions: Some(vec![
            condition("PodScheduled", true, None),
            condition("Initialized", is_initialised, unready()),
            condition("ContainersReady", is_ready, unready()),
            condition("Ready", is_ready, unready()),
        ]),
        pod_ip: pod_ips.first().cloned(),
        pod_ips: (!pod_ips.is_empty()).then(|| pod_ips.into_iter().map(|ip| PodIP { ip }).collect()),
        host_ip: host_ips.first().cloned(),
        host_ips: (!host_ips.is_empty()).then(|| host_ips.into_iter().map(|ip| HostIP { ip }).collect()),
        start_time: before.start_time.clone().or_else(|| Some(mint.time())),
        container_statuses: Some(statuses(&main)),
        init_container_statuses: (!init.is_empty()).then(|| statuses(&init)),
        ..PodStatus::default()
    });
    pod
}

fn phase(report: &PodReport, main: &[&ContainerReport]) -> &'static str {
    let ended = |c: &&&ContainerReport| matches!(c.phase, Phase::Ended { .. }) && !c.pending;
    let failed_init = report
        .containers
        .iter()
        .any(|c| c.init && !c.pending && matches!(c.phase, Phase::Ended { code, .. } if code != 0));
    if failed_init {
        return "Failed";
    }
    if !main.is_empty() && main.iter().filter(ended).count() == main.len() {
        let ok = main.iter().all(|c| matches!(c.phase, Phase::Ended { code: 0, .. }));
        return if ok { "Succeeded" } else { "Failed" };
    }
    let has_run = main.iter().any(|c| matches!(c.phase, Phase::Running(_)) || c.restarts > 0);
    if has_run { "Running" } else { "Pending" }
}

/// Why a pod is not ready: the first container that is not.
fn waiting_for(report: &PodReport) -> Option<(String, String)> {
    if let Some(problem) = &report.problem {
        return Some(problem.clone());
    }
    report.containers.iter().find_map(|container| {
        let (reason, message) = match &container.phase {
            Phase::Waiting(reason, message) => (reason.clone(), message.clone()),
            Phase::Ended { code: 0, .. } if container.init => return None,
            Phase::Ended { message, .. } => ("ContainerEnded".to_owned(), message.clone()),
            Phase::Running(_) if container.init => ("PodInitializing".to_owned(), "it still runs".to_owned()),
            Phase::Running(_) if !container.ready => {
                ("ContainersNotReady".to_owned(), "its probe does not succeed".to_owned())
            }
            Phase::Running(_) => return None,
        };
        Some((reason, format!("container `{}`: {message}", container.name)))
    })
}

fn status(container: &ContainerReport) -> ContainerStatus {
    let whole = |at: &Timestamp| Time(at.round(jiff::Unit::Second).unwrap_or(*at));
    let state = match &container.phase {
        Phase::Waiting(reason, message) => ContainerState {
            waiting: Some(ContainerStateWaiting {
                reason: Some(reason.clone()),
                message: Some(message.clone()),
            }),
            ..ContainerState::default()
        },
        Phase::Running(since) => ContainerState {
            running: Some(ContainerStateRunning { started_at: Some(whole(since)) }),
            ..ContainerState::default()
        },
        Phase::Ended { code, message, at } => ContainerState {
            terminated: Some(ContainerStateTerminated {
                exit_code: *code,
                message: Some(message.clone()),
                finished_at: Some(whole(at)),
                ..ContainerStateTerminated::default()
            }),
            ..ContainerState::default()
        },
    };
    let runs = matches!(container.phase, Phase::Running(_));
    ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone(),
        ready: runs && container.ready,
        started: Some(runs),
        restart_count: i32::try_from(container.restarts).unwrap_or(i32::MAX),
        state: Some(state),
        ..ContainerStatus::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::control::is_ready;
    use crate::lab::store::tests::mint;

    fn container(phase: Phase) -> ContainerReport {
        ContainerReport {
            name: "main".into(),
            image: "none".into(),
            init: false,
            phase,
            ready: true,
            restarts: 0,
            pending: false,
        }
    }

    fn reported(containers: Vec<ContainerReport>) -> Pod {
        let seen = PodReport { containers, netns: Some("/run/x".into()), ..PodReport::default() };
        report(&Pod::default(), &seen, &mint())
    }

    fn phase_of(pod: &Pod) -> &str {
        pod.status.as_ref().unwrap().phase.as_deref().unwrap()
    }

    #[test]
    fn a_pod_is_ready_when_all_its_containers_are() {
        let running = || container(Phase::Running(Timestamp::UNIX_EPOCH));
        let pod = reported(vec![running(), running()]);
        assert!(is_ready(&pod));
        assert_eq!(phase_of(&pod), "Running");
        assert_eq!(manifest::annotation(&pod.metadata, NETNS), Some("/run/x"));
        assert!(!is_ready(&reported(vec![running(), ContainerReport { ready: false, ..running() }])));
    }

    #[test]
    fn a_pod_that_ran_to_its_end_says_how() {
        let ended =
            |code| container(Phase::Ended { code, message: String::new(), at: Timestamp::UNIX_EPOCH });
        assert_eq!(phase_of(&reported(vec![ended(0)])), "Succeeded");
        assert_eq!(phase_of(&reported(vec![ended(0), ended(3)])), "Failed");
        let back_soon = ContainerReport { pending: true, restarts: 1, ..ended(3) };
        assert_eq!(phase_of(&reported(vec![back_soon])), "Running");
    }

    #[test]
    fn what_a_pod_waits_for_stands_in_its_condition() {
        let pod =
            reported(vec![container(Phase::Waiting("CrashLoopBackOff".into(), "exit status 1".into()))]);
        let conditions = pod.status.unwrap().conditions.unwrap();
        let ready = conditions.iter().find(|c| c.type_ == "Ready").unwrap();
        assert_eq!(ready.reason.as_deref(), Some("CrashLoopBackOff"));
        assert_eq!(ready.message.as_deref(), Some("container `main`: exit status 1"));
    }
}
