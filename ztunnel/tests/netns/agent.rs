//! The node agent that a test plays: redirection by the real programs, and the node protocol.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use ebpf_loader::{
    DEFAULT_MARK, DEFAULT_MASK, Instance, NsConfig, OwnAddresses, Pins, PodKey, cgroup2_root, mount_bpffs,
};
use net::Netns;
use net::seqpacket::SeqPacketListener;
use nix::mount::{MntFlags, umount2};
use tempfile::TempDir;
use zds::agent::{Redirection, Server, Workload};
use zds::{Exemption, PodInfo, PodUid};

use crate::node::Pod;
use crate::plane::Plane;

pub(crate) struct Agent {
    instance: Instance,
    pins: Pins,
    server: Server,
    bpffs: TempDir,
}

impl Agent {
    pub(crate) fn start(plane: &Plane, socket: &Path) -> Self {
        let bpffs = TempDir::new().unwrap();
        mount_bpffs(bpffs.path()).unwrap();
        let pins = Pins::new(bpffs.path(), &"ztunnel-test".parse().unwrap());
        let instance = Instance::open(pins.clone(), &cgroup2_root().unwrap()).unwrap();
        let bypass = Arc::new(instance.bypass().try_clone_to_owned().unwrap());
        let exempt = Exemption::Storage(bypass);
        let server = Server::new(Some(Redirection { mark: DEFAULT_MARK, mask: DEFAULT_MASK, exempt }));
        server.set_complete();
        let socket = socket.to_owned();
        let serving = server.clone();
        plane.spawn(async move { serving.serve(SeqPacketListener::bind(socket).unwrap()).await });
        Self { instance, pins, server, bpffs }
    }

    pub(crate) fn enrol(&mut self, plane: &Plane, pod: &Pod) {
        let own = OwnAddresses::new(Some(pod.v4), pod.v6);
        let key = key(pod);
        let prepared = self.instance.prepare(&key, own).unwrap();
        let workload = Workload {
            uid: PodUid::new(&pod.uid),
            info: PodInfo {
                name: pod.name.as_str().into(),
                namespace: pod.namespace.as_str().into(),
                service_account: pod.name.as_str().into(),
            },
            netns: Some(pod.netns.clone()),
            listener_map: Some(Arc::new(prepared.listeners)),
            dns: true,
        };
        plane.block_on(self.server.add(workload)).unwrap();
        route(pod, true);
        let config = NsConfig { mark: DEFAULT_MARK, mask: DEFAULT_MASK, own };
        self.instance.capture(&key, config, &pod.netns).unwrap();
    }

    pub(crate) fn release(&mut self, plane: &Plane, pod: &Pod) {
        self.instance.release(&key(pod)).unwrap();
        plane.block_on(self.server.remove(&PodUid::new(&pod.uid))).unwrap();
        route(pod, false);
        self.instance.forget(&key(pod)).unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let removed = self.pins.remove();
        umount2(self.bpffs.path(), MntFlags::MNT_DETACH).unwrap();
        removed.unwrap();
    }
}

fn key(pod: &Pod) -> PodKey {
    PodKey::new(pod.netns.cookie().unwrap(), &pod.uid).unwrap()
}

/// The rules and routes of one pod.
fn route(pod: &Pod, wanted: bool) {
    let mark = format!("{DEFAULT_MARK:#x}/{DEFAULT_MASK:#x}");
    let families = [Some(("-4", pod.v4.to_string())), pod.v6.map(|ip| ("-6", ip.to_string()))];
    for (family, source) in families.into_iter().flatten() {
        let steps = if wanted {
            vec![
                format!("{family} route replace local default dev lo table 100 src {source} congctl reno"),
                format!("{family} rule add pref 50 fwmark {mark} lookup 100"),
                format!("{family} rule add pref 100 lookup local"),
                format!("{family} rule del pref 0"),
            ]
        } else {
            vec![
                format!("{family} rule add pref 0 lookup local"),
                format!("{family} rule del pref 100"),
                format!("{family} rule del pref 50"),
                format!("{family} route flush table 100"),
            ]
        };
        steps.iter().for_each(|step| drop(ip(&pod.netns, step)));
    }
    let accept = if wanted { "1" } else { "0" };
    let write = || std::fs::write("/proc/sys/net/ipv4/tcp_fwmark_accept", accept);
    pod.netns.run(write).unwrap().unwrap();
}

/// Runs `ip` in a namespace.
pub(crate) fn ip(netns: &Netns, arguments: &str) -> String {
    let output = netns.run(|| Command::new("ip").args(arguments.split(' ')).output()).unwrap().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}
