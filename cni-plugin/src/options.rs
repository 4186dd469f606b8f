//! The command line.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use cni_plugin::agent::Settings;
use cni_plugin::choice::{Choice, Wanted};
use ebpf_loader::{DEFAULT_MARK, DEFAULT_MASK, InstanceName, Pins};

/// Enrols the pods of a node into the mesh.
///
/// SIGTERM ends the agent and leaves every pod as it is: captured pods stay captured, and the next agent of the same
/// instance adopts them. `cleanup` removes an instance altogether.
///
/// Where a file of objects cannot be used at the start, the agent enrols pods but lets none go that was enrolled
/// before, and is not ready, until every file has been good once or was removed.
#[derive(Debug, Parser)]
#[command(
    name = "ambit-agent",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) run: Run,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Removes an instance's pins, attachments, and routing in pods. No agent may be running for it.
    Cleanup(Cleanup),
}

#[derive(Debug, Args)]
pub(crate) struct Cleanup {
    #[command(flatten)]
    pub(crate) pins: PinOptions,
    #[command(flatten)]
    pub(crate) mark: MarkOptions,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The node whose pods are enrolled, as their `spec.nodeName` has it.
    #[arg(long, env = "NODE_NAME")]
    node_name: Option<String>,
    /// The directory of Kubernetes objects.
    #[arg(long, value_name = "DIR")]
    objects: Option<PathBuf>,
    /// The Unix socket on which ztunnel is told which pods it serves.
    #[arg(long, value_name = "PATH", default_value = zds::DEFAULT_PATH)]
    zds_socket: PathBuf,
    /// Where the cgroup2 tree is mounted; found by itself where not given.
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// The kubelet's own cgroup, below that tree or in full: its probes then reach pods that take mutual TLS alone. Without it
    /// they are taken for anybody's connections.
    #[arg(long, value_name = "PATH", env = "KUBELET_CGROUP")]
    kubelet_cgroup: Option<PathBuf>,
    /// Where /healthz/ready, /metrics and /debug/pods are served.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15022")]
    pub(crate) http: SocketAddr,
    /// How connections are captured.
    #[arg(long, value_enum, value_name = "HOW", env = "AMBIT_REDIRECTION", default_value = "auto")]
    pub(crate) redirection: Wanted,
    #[command(flatten)]
    pub(crate) pins: PinOptions,
    #[command(flatten)]
    mark: MarkOptions,
}

#[derive(Debug, Args)]
pub(crate) struct PinOptions {
    /// The agent's instance: agents of different instances do not touch each other's pods.
    #[arg(long, value_name = "NAME", default_value = "node")]
    pub(crate) instance: InstanceName,
    /// The BPF file system; mounted there if none is.
    #[arg(long, value_name = "PATH", default_value = "/sys/fs/bpf")]
    pub(crate) bpffs: PathBuf,
}

impl PinOptions {
    pub(crate) fn pins(&self) -> Pins {
        Pins::new(&self.bpffs, &self.instance)
    }
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct MarkOptions {
    /// The packet mark of captured connections.
    #[arg(long, value_parser = bits, default_value_t = DEFAULT_MARK)]
    pub(crate) mark: u32,
    /// The bits in which the mark is set and compared.
    #[arg(long, value_parser = bits, default_value_t = DEFAULT_MASK)]
    pub(crate) mask: u32,
}

impl MarkOptions {
    fn check(self) -> anyhow::Result<Self> {
        let Self { mark, mask } = self;
        anyhow::ensure!(mark != 0, "--mark is 0, which every socket has");
        anyhow::ensure!(mark & !mask == 0, "--mark {mark:#x} has bits outside --mask {mask:#x}");
        Ok(self)
    }
}

/// A number, hexadecimal with `0x`.
fn bits(text: &str) -> Result<u32, std::num::ParseIntError> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    }
}

/// A cgroup as `/proc/<pid>/cgroup` names it, or as a path of the file system.
fn below(root: &Path, cgroup: &Path) -> PathBuf {
    if cgroup.starts_with(root) {
        return cgroup.to_owned();
    }
    root.join(cgroup.strip_prefix("/").unwrap_or(cgroup))
}

impl Run {
    pub(crate) fn settings(&self, redirection: Choice) -> anyhow::Result<Settings> {
        let node = self.node_name.clone().context("--node-name is missing")?;
        let objects = self.objects.clone().context("--objects is missing")?;
        let MarkOptions { mark, mask } = self.mark.check()?;
        let cgroup = match &self.cgroup {
            Some(path) => path.clone(),
            None => ebpf_loader::cgroup2_root().context("the cgroup2 tree is not found; give --cgroup")?,
        };
        let kubelet_cgroup = self.kubelet_cgroup.as_deref().map(|path| below(&cgroup, path));
        Ok(Settings {
            node,
            redirection,
            instance: self.pins.instance.clone(),
            pins: self.pins.pins(),
            cgroup,
            kubelet_cgroup,
            objects,
            zds_socket: self.zds_socket.clone(),
            mark,
            mask,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn marks_are_written_in_hexadecimal_or_decimal() {
        assert_eq!(bits("0x0a000000"), Ok(DEFAULT_MARK));
        assert_eq!(bits("16"), Ok(16));
        assert!(bits("0xzz").is_err());
    }

    #[test]
    fn a_mark_outside_its_mask_is_refused() {
        let marks = |mark, mask| MarkOptions { mark, mask }.check().is_ok();
        assert!(marks(DEFAULT_MARK, DEFAULT_MASK));
        assert!(!marks(0, DEFAULT_MASK));
        assert!(!marks(1, DEFAULT_MASK));
    }

    #[test]
    fn the_kubelets_cgroup_is_named_as_the_kernel_or_the_file_system_does() {
        let root = Path::new("/sys/fs/cgroup");
        for name in ["/sys/fs/cgroup/system.slice/kubelet", "/system.slice/kubelet", "system.slice/kubelet"] {
            assert_eq!(below(root, Path::new(name)), root.join("system.slice/kubelet"));
        }
    }

    #[test]
    fn cleanup_needs_no_node() {
        let cli = Cli::try_parse_from(["ambit-agent", "cleanup", "--instance", "lab-1"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Cleanup(_))));
    }
}
