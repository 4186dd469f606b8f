//! An agent with a BPF file system, a directory of objects, and a socket of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use cni_plugin::agent::{Agent, RunError, Settings};
use cni_plugin::choice::{Choice, Kind};
use cni_plugin::status::{PodStatus, Shown, Status};
use ebpf_loader::{DEFAULT_MARK, DEFAULT_MASK, InstanceName, Pins, cgroup2_root, mount_bpffs};
use nix::mount::{MntFlags, umount2};
use runtime::Readiness;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::town::Place;

/// How long an agent may take for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// A BPF file system, unmounted (and so emptied of pins) when the last that uses it goes.
struct Bpffs {
    folder: TempDir,
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        umount2(self.folder.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

pub(crate) struct Bench {
    pub(crate) pins: Pins,
    instance: InstanceName,
    folder: TempDir,
    bpffs: Rc<Bpffs>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let bpffs = Bpffs { folder: tempfile::tempdir().unwrap() };
        mount_bpffs(bpffs.folder.path()).unwrap();
        Self::on(Rc::new(bpffs), "bench")
    }

    /// Another instance on the same BPF file system.
    pub(crate) fn beside(&self, instance: &str) -> Self {
        Self::on(Rc::clone(&self.bpffs), instance)
    }

    fn on(bpffs: Rc<Bpffs>, instance: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("objects")).unwrap();
        let instance = instance.parse().unwrap();
        let pins = Pins::new(bpffs.folder.path(), &instance);
        let bench = Self { pins, instance, folder, bpffs };
        bench.label("");
        bench
    }

    pub(crate) fn bpffs(&self) -> &Path {
        self.bpffs.folder.path()
    }

    pub(crate) fn objects(&self) -> PathBuf {
        self.folder.path().join("objects")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("zds.sock")
    }

    fn write(&self, name: &str, text: &str) {
        let hidden = self.objects().join(format!(".{name}"));
        fs::write(&hidden, text).unwrap();
        fs::rename(hidden, self.objects().join(name)).unwrap();
    }

    /// Sets the namespace's labels.
    pub(crate) fn label(&self, labels: &str) {
        let text =
            format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{{labels}}}}}\n");
        self.write("namespace.yaml", &text);
    }

    pub(crate) fn label_ambient(&self) {
        self.label("istio.io/dataplane-mode: ambient");
    }

    /// Spoils the namespace's file.
    pub(crate) fn break_namespace(&self) {
        self.write("namespace.yaml", "apiVersion: v1\nkind: Namespac\nmetadata: {name: shop}\n");
    }

    /// Writes a pod that lives in a place.
    pub(crate) fn put_pod(&self, name: &str, place: &Place) {
        self.put_pod_at(name, place, &place.path());
    }

    /// Writes a pod that does not want to be in the mesh.
    pub(crate) fn put_pod_outside(&self, name: &str, place: &Place) {
        self.put(name, place, &place.path(), "istio.io/dataplane-mode: none");
    }

    /// Writes a pod that wants to be in the mesh whatever its namespace says.
    pub(crate) fn put_pod_ambient(&self, name: &str, place: &Place) {
        self.put(name, place, &place.path(), "istio.io/dataplane-mode: ambient");
    }

    pub(crate) fn put_pod_at(&self, name: &str, place: &Place, netns: &Path) {
        self.put(name, place, netns, "");
    }

    fn put(&self, name: &str, place: &Place, netns: &Path, labels: &str) {
        let ips = place.ips().map(|ip| format!("{{ip: '{ip}'}}")).join(", ");
        self.put_with(name, netns, labels, &ips);
    }

    /// Writes a pod that has the place's IPv4 address alone.
    pub(crate) fn put_pod_without_ipv6(&self, name: &str, place: &Place) {
        self.put_with(name, &place.path(), "", &format!("{{ip: {}}}", place.v4));
    }

    fn put_with(&self, name: &str, netns: &Path, labels: &str, ips: &str) {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: shop\n  uid: uid-{name}\n  labels: {{{labels}}}\n  \
             annotations: {{ambit.dev/netns: {}}}\n\
             spec: {{nodeName: node-1, serviceAccountName: {name}, containers: [{{name: app, image: app}}]}}\n\
             status: {{phase: Running, podIPs: [{ips}]}}\n",
            netns.display()
        );
        self.write(&format!("{name}.yaml"), &text);
    }

    /// Writes onto a pod that it was asked to end.
    pub(crate) fn end_pod(&self, name: &str) {
        let file = format!("{name}.yaml");
        let text = fs::read_to_string(self.objects().join(&file)).unwrap();
        let ending = text.replacen("metadata:", "metadata:\n  deletionTimestamp: 2026-01-01T00:00:00Z", 1);
        self.write(&file, &ending);
    }

    fn map<const N: usize>(&self, name: &str) -> HashMap<MapData, u64, [u8; N]> {
        Map::HashMap(MapData::from_pin(self.pins.root().join(name)).unwrap()).try_into().unwrap()
    }

    /// How many connections the pod in a place opened and accepted past the mesh.
    pub(crate) fn bypassed(&self, place: &Place) -> (u64, u64) {
        let counts = self.map::<16>("BYPASSED").get(&place.netns.cookie().unwrap(), 0).unwrap();
        let count = |at: usize| u64::from_ne_bytes(counts[at..at + 8].try_into().unwrap());
        (count(0), count(8))
    }

    /// How many of the kubelet's probes have not arrived yet.
    pub(crate) fn probes_on_their_way(&self) -> usize {
        let probes = MapData::from_pin(self.pins.root().join("PROBES")).unwrap();
        let probes: HashMap<_, [u8; 40], u64> = Map::LruHashMap(probes).try_into().unwrap();
        probes.keys().count()
    }

    /// Takes a place out of those whose connections are captured, behind the agent's back.
    pub(crate) fn uncapture(&self, place: &Place) {
        self.map::<32>("MESHED").remove(&place.netns.cookie().unwrap()).unwrap();
    }

    pub(crate) fn delete_pod(&self, name: &str) {
        fs::remove_file(self.objects().join(format!("{name}.yaml"))).unwrap();
    }

    pub(crate) fn start(&self) -> Running {
        self.start_with(None)
    }

    /// Starts the agent of the node whose own network namespace is this place's, and whose kubelet has this cgroup.
    pub(crate) fn start_on(&self, node: &Place, kubelet: Option<&Path>) -> Running {
        node.netns.run(|| self.start_with(kubelet)).unwrap()
    }

    fn start_with(&self, kubelet: Option<&Path>) -> Running {
        let settings = Settings {
            node: "node-1".to_owned(),
            redirection: Choice { redirection: Kind::Ebpf, reason: "the test says so".to_owned() },
            instance: self.instance.clone(),
            pins: self.pins.clone(),
            cgroup: cgroup2_root().unwrap(),
            kubelet_cgroup: kubelet.map(Path::to_owned),
            objects: self.objects(),
            zds_socket: self.socket(),
            mark: DEFAULT_MARK,
            mask: DEFAULT_MASK,
        };
        let (readiness, status) = (Readiness::default(), Status::default());
        let agent = Agent::start(settings, readiness.part("agent"), status.clone()).unwrap();
        Running { status, task: tokio::spawn(agent.run()) }
    }
}

/// A running agent. Dropping it is a SIGKILL.
pub(crate) struct Running {
    status: Status,
    task: JoinHandle<Result<(), RunError>>,
}

impl Running {
    /// Waits until a pod is shown so.
    pub(crate) async fn shows(&self, name: &str, state: Shown) -> PodStatus {
        self.shows_with(name, |pod| pod.state == state).await
    }

    pub(crate) async fn shows_with(&self, name: &str, wanted: impl Fn(&PodStatus) -> bool) -> PodStatus {
        let uid = format!("uid-{name}");
        let mut pods = self.status.pods();
        let is_shown = |pods: &Vec<PodStatus>| pods.iter().any(|pod| pod.uid == uid && wanted(pod));
        let Ok(shown) = timeout(PATIENCE, pods.wait_for(is_shown)).await else {
            panic!("{:?}", self.status.pods().borrow());
        };
        shown.unwrap().iter().find(|pod| pod.uid == uid).unwrap().clone()
    }

    /// Waits until so many pods are shown as enrolled.
    pub(crate) async fn shows_enrolled(&self, count: usize) {
        let mut pods = self.status.pods();
        let all =
            |pods: &Vec<PodStatus>| pods.iter().filter(|pod| pod.state == Shown::Enrolled).count() == count;
        timeout(PATIENCE, pods.wait_for(all)).await.unwrap().unwrap();
    }

    /// Waits until any pod is shown so.
    pub(crate) async fn shows_any(&self, wanted: impl Fn(&PodStatus) -> bool) -> PodStatus {
        let mut pods = self.status.pods();
        let shown = pods.wait_for(|pods| pods.iter().any(&wanted)).await.unwrap();
        shown.iter().find(|pod| wanted(pod)).unwrap().clone()
    }

    /// Waits until no pod is shown.
    pub(crate) async fn shows_none(&self) {
        timeout(PATIENCE, self.status.pods().wait_for(Vec::is_empty)).await.unwrap().unwrap();
    }

    /// Ends it and waits until it has let go of everything that it held.
    pub(crate) async fn kill(mut self) {
        self.task.abort();
        assert!((&mut self.task).await.is_err_and(|error| error.is_cancelled()));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}
