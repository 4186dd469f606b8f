//! Running a pod: its sandbox (namespaces, cgroup), its containers, and the end of both.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use futures_util::future::join_all;
use k8s_openapi::api::core::v1::{self as core, ConfigMap, Pod};
use net::Netns;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::blueprint::{Blueprint, ContainerPlan, Surroundings, blueprint, order};
use super::container::Container;
use super::sandbox::Sandbox;
use super::{Happening, PodEvent, PodName};
use crate::lab::address::{FAMILIES, Families};
use crate::lab::control::{ContainerReport, Phase, PodReport};
use crate::lab::network::{self, PodLink};
use crate::lab::place::Place;

/// Everything that running a pod takes.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) name: PodName,
    pub(super) pod: Pod,
    pub(super) node: network::Node,
    /// The pod's number on its node; none where it uses the node's own network.
    pub(super) host: Option<u8>,
    pub(super) place: Place,
    pub(super) programs: PathBuf,
    /// The cgroup of all pods.
    pub(super) cgroups: PathBuf,
    /// Those of the pod's namespace, by name.
    pub(super) config_maps: BTreeMap<String, ConfigMap>,
}

/// What happens around a pod.
#[derive(Debug)]
pub(super) struct Around {
    /// Whether its node has power.
    pub(super) power: watch::Receiver<bool>,
    /// Whether it may begin.
    pub(super) gate: watch::Receiver<Gate>,
    /// Whether anything of it runs.
    pub(super) runs: watch::Sender<bool>,
}

/// What holds up a pod's containers until it is in the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gate {
    /// Whether the pod belongs to the mesh.
    pub(crate) wanted: bool,
    /// The cookie of the network namespace that the agent has taken in for it.
    pub(crate) enrolled: Option<u64>,
}

impl Gate {
    fn is_open(&self, cookie: u64) -> bool {
        !self.wanted || self.enrolled == Some(cookie)
    }
}

impl Job {
    /// Runs the pod until it is told to stop and all of it is gone.
    pub(super) async fn run(
        self,
        events: mpsc::Sender<PodEvent>,
        stop: CancellationToken,
        mut around: Around,
    ) {
        let reports = watch::Sender::new(self.first_report());
        // Cancel-safe: the newest report is what counts, and after the end none does.
        tokio::select! {
            () = self.live(&reports, &events, &stop, &mut around) => {}
            () = forward(&self.name, reports.subscribe(), &events) => {}
        }
        // Nobody listens any more when the whole lab ends.
        let _ = events.send(PodEvent { pod: self.name, what: Happening::Gone }).await;
    }

    fn first_report(&self) -> PodReport {
        let waiting = |container: &core::Container, init| ContainerReport {
            name: container.name.clone(),
            image: container.image.clone().unwrap_or_default(),
            init,
            phase: Phase::Waiting("PodInitializing".to_owned(), "it is about to start".to_owned()),
            ready: false,
            restarts: 0,
            pending: true,
        };
        let (init, main) = self.pod.spec.as_ref().map(order).unwrap_or_default();
        let init = init.into_iter().map(|c| waiting(c, true));
        let containers = init.chain(main.into_iter().map(|c| waiting(c, false))).collect();
        PodReport { host_ips: self.host_ips(), containers, ..PodReport::default() }
    }

    fn host_ips(&self) -> Vec<IpAddr> {
        self.node.plan.uplink().addresses(self.node.has_v6)
    }

    fn ips(&self) -> Vec<IpAddr> {
        match self.host {
            Some(host) => self.node.plan.pod(host).of(self.families()),
            None => self.host_ips(),
        }
    }

    /// The families of which the pod has addresses.
    pub(super) fn families(&self) -> Families {
        let wish = manifest::annotation(&self.pod.metadata, FAMILIES);
        Families::of_pod(wish, self.node.has_v6)
    }

    async fn live(
        &self,
        reports: &watch::Sender<PodReport>,
        events: &mpsc::Sender<PodEvent>,
        stop: &CancellationToken,
        around: &mut Around,
    ) {
        loop {
            tokio::select! {
                // Both cancel-safe.
                () = stop.cancelled() => break,
                // Without the kubelet there is no node that could go on.
                on = around.power.wait_for(|on| *on) => drop(on),
            }
            around.runs.send_replace(true);
            reports.send_replace(self.first_report());
            let ran = self.run_once(reports, events, stop, around).await;
            if stop.is_cancelled() && ran {
                break;
            }
            around.runs.send_replace(false);
        }
        self.remove_files();
    }

    /// Runs the pod once, from its sandbox to the end of that. False where it was the node's power that failed.
    async fn run_once(
        &self,
        reports: &watch::Sender<PodReport>,
        events: &mpsc::Sender<PodEvent>,
        stop: &CancellationToken,
        around: &mut Around,
    ) -> bool {
        let mut power = around.power.clone();
        let sandbox = match self.sandbox().await {
            Ok(sandbox) => sandbox,
            Err(why) => {
                tracing::error!(pod = %self.name, why, "no sandbox for a pod");
                problem(reports, "FailedCreatePodSandBox", why);
                return tokio::select! {
                    // Both cancel-safe.
                    () = stop.cancelled() => true,
                    _ = power.wait_for(|on| !on) => false,
                };
            }
        };
        let went_on = tokio::select! {
            // What runs in the sandbox ends with it, at once, as by a power cut.
            () = self.inhabit(&sandbox, reports, events, stop, around) => true,
            _ = power.wait_for(|on| !on) => false,
        };
        let has_ended = !stop.is_cancelled() && went_on;
        // What it wrote stays, and the address of one that has ended for good is the next pod's.
        self.tear_down(sandbox).await;
        if has_ended {
            reports.send_modify(|report| report.netns = None);
            let what = Happening::Vacated;
            // Nobody listens any more when the whole lab ends.
            let _ = events.send(PodEvent { pod: self.name.clone(), what }).await;
            stop.cancelled().await;
        }
        went_on
    }

    /// Runs the pod in its sandbox until its containers have ended for good, or it is told to stop.
    async fn inhabit(
        &self,
        sandbox: &Sandbox,
        reports: &watch::Sender<PodReport>,
        events: &mpsc::Sender<PodEvent>,
        stop: &CancellationToken,
        around: &mut Around,
    ) {
        let (ips, host_ips) = (self.ips(), self.host_ips());
        reports.send_modify(|report| {
            report.ips.clone_from(&ips);
            report.netns = sandbox.link.as_ref().map(|link| link.path.clone());
        });
        let surroundings = Surroundings {
            programs: &self.programs,
            ips: &ips,
            host_ips: &host_ips,
            config_maps: &self.config_maps,
        };
        let blueprint = match blueprint(&self.pod, &surroundings) {
            Ok(blueprint) => blueprint,
            Err(why) => {
                problem(reports, "CreateContainerConfigError", why);
                return stop.cancelled().await;
            }
        };
        if let Some(link) = &sandbox.link {
            tokio::select! {
                // Both cancel-safe.
                () = stop.cancelled() => return,
                () = self.admitted(link, reports, around) => {}
            }
        }
        let what = Happening::Open(sandbox.entrance(&blueprint));
        // Nobody listens any more when the whole lab ends.
        let _ = events.send(PodEvent { pod: self.name.clone(), what }).await;
        self.containers(sandbox, &blueprint, reports, stop).await;
    }

    /// Waits until nothing of the pod can get past the mesh: until the agent has taken this very network namespace in,
    /// where the pod belongs to the mesh. In a cluster the CNI plugin holds it up so.
    async fn admitted(&self, link: &PodLink, reports: &watch::Sender<PodReport>, around: &mut Around) {
        let cookie = match Netns::open(&link.path).and_then(|netns| netns.cookie()) {
            Ok(cookie) => cookie,
            Err(error) => {
                problem(reports, "FailedCreatePodSandBox", error.to_string());
                return std::future::pending().await;
            }
        };
        if !around.gate.borrow().is_open(cookie) {
            let node = &self.node.plan.name;
            let why = format!("waits for agent@{node} to take it into the mesh");
            problem(reports, "FailedCreatePodSandBox", why);
        }
        if around.gate.wait_for(|gate| gate.is_open(cookie)).await.is_err() {
            // The lab ends.
            return std::future::pending().await;
        }
        reports.send_modify(|report| report.problem = None);
    }

    async fn containers(
        &self,
        sandbox: &Sandbox,
        blueprint: &Blueprint,
        reports: &watch::Sender<PodReport>,
        stop: &CancellationToken,
    ) {
        let logs = self.place.pod_logs(&self.name.namespace, &self.name.name);
        let container = |(index, plan): (usize, &ContainerPlan)| Container {
            index,
            pod: sandbox.entry.clone(),
            cgroup: sandbox.cgroup.join(&plan.name),
            log: logs.join(format!("{}.log", plan.name)),
            node: self.node.netns.clone(),
            ip: self.ips().first().copied(),
            grace: blueprint.grace,
            plan: plan.clone(),
        };
        for init in blueprint.init.iter().enumerate().map(container) {
            if init.run(reports, stop).await != Some(0) {
                return;
            }
        }
        let main = blueprint.main.iter().enumerate();
        let main: Vec<Container> =
            main.map(|(n, plan)| container((blueprint.init.len() + n, plan))).collect();
        join_all(main.iter().map(|container| container.run(reports, stop))).await;
    }

    fn remove_files(&self) {
        let PodName { namespace, name, .. } = &self.name;
        for dir in [self.place.pod(namespace, name), self.place.pod_logs(namespace, name)] {
            match fs::remove_dir_all(dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => self.stays_behind(&error),
                _ => {}
            }
        }
    }
}

fn problem(reports: &watch::Sender<PodReport>, reason: &str, why: String) {
    reports.send_modify(|report| report.problem = Some((reason.to_owned(), why)));
}

/// Passes on the newest report, whenever there is a new one. Never ends.
async fn forward(pod: &PodName, mut reports: watch::Receiver<PodReport>, events: &mpsc::Sender<PodEvent>) {
    loop {
        let report = reports.borrow_and_update().clone();
        let event = PodEvent { pod: pod.clone(), what: Happening::Report(report) };
        if events.send(event).await.is_err() || reports.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}
