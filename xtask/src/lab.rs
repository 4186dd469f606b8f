//! `ambit lab`, driven the way a person would.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

use anyhow::{Context as _, bail};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use crate::repo;

/// A running lab, taken down when it is dropped.
#[derive(Debug)]
pub(crate) struct Lab {
    ambit: PathBuf,
    name: Option<&'static str>,
    keep: bool,
}

/// A pod, as `status` describes it.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    /// `namespace/name`.
    pub(crate) name: String,
    pub(crate) ip: String,
    pub(crate) node: String,
    pub(crate) netns: String,
    pub(crate) enrolled: bool,
}

/// A node, as `status` describes it.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) netns: String,
    pub(crate) uplink: String,
    pub(crate) ztunnel: i32,
}

/// What `status -o json` says.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    pub(crate) redirection: String,
    pub(crate) nodes: Vec<Node>,
    pub(crate) pods: Vec<Pod>,
}

impl Lab {
    /// Brings a lab of two nodes up with the programs in `programs`, as `name` or under the default name.
    ///
    /// # Errors
    /// If one is up already, or it does not come up.
    pub(crate) fn up(programs: &Path, name: Option<&'static str>, objects: &str) -> anyhow::Result<Self> {
        // One that is up already is not ours to take down.
        let mut lab = Self { ambit: programs.join("ambit"), name, keep: true };
        if lab.command(&["lab", "status"]).output().context("cannot run ambit")?.status.success() {
            bail!("a lab is up already: take it down with `{} lab down`", lab.ambit.display());
        }
        lab.keep = false;
        lab.run(&["lab", "up", "--nodes", "2", "--detach", "-f", objects])?;
        Ok(lab)
    }

    /// Leaves it up when this is dropped.
    pub(crate) fn keep(&mut self) {
        self.keep = true;
    }

    /// Takes the lab down, too, when this program is interrupted. By handlers and not by blocked signals, which commands
    /// that it starts would inherit.
    pub(crate) fn take_down_when_interrupted(&self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (mut int, mut term) = {
            let _inside = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        let mut down = self.command(&["lab", "down"]);
        thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    // Both are cancel-safe, and one is enough.
                    _ = int.recv() => {}
                    _ = term.recv() => {}
                }
            });
            eprintln!("interrupted: taking the lab down");
            let _ = down.status();
            std::process::exit(130);
        });
        Ok(())
    }

    /// The path of a program that was built with the lab's.
    pub(crate) fn program(&self, name: &str) -> String {
        self.ambit.with_file_name(name).display().to_string()
    }

    /// The path of `ambit`, as a person would type it.
    pub(crate) fn shown(&self) -> String {
        self.ambit.strip_prefix(repo::root()).unwrap_or(&self.ambit).display().to_string()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.ambit);
        command.args(args).current_dir(repo::root()).env("PATH", repo::path()).stdin(Stdio::null());
        if let Some(name) = self.name {
            command.env("AMBIT_LAB_NAME", name);
        }
        command
    }

    /// Runs `ambit`; anything but success is an error with what it said.
    pub(crate) fn run(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.command(args).output().context("cannot run ambit")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        if !output.status.success() {
            bail!("`ambit {}` failed ({}): {}", args.join(" "), output.status, text(&output.stderr));
        }
        Ok(text(&output.stdout))
    }

    /// Runs a command in a pod, whatever it comes to.
    pub(crate) fn exec(&self, pod: &str, command: &[&str]) -> anyhow::Result<Output> {
        let args = [&["lab", "exec", pod, "--"], command].concat();
        self.command(&args).output().context("cannot run ambit")
    }

    /// The command itself, to be run in the background.
    pub(crate) fn exec_command(&self, pod: &str, command: &[&str]) -> Command {
        self.command(&[&["lab", "exec", pod, "--"], command].concat())
    }

    pub(crate) fn status(&self) -> anyhow::Result<Status> {
        let text = self.run(&["lab", "status", "-o", "json"])?;
        let json: Value =
            serde_json::from_str(&text).context("`ambit lab status -o json` printed no JSON")?;
        Status::read(&json).context("`ambit lab status -o json` lacks something")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = self.run(&["lab", "down"])
        {
            eprintln!("{error:#}");
        }
    }
}

impl Status {
    fn read(json: &Value) -> Option<Self> {
        let text = |v: &Value| v.as_str().map(str::to_owned);
        let nodes = json["nodes"].as_array()?.iter().map(|n| {
            Some(Node {
                name: text(&n["name"])?,
                netns: text(&n["netns"])?,
                uplink: text(&n["uplink"])?,
                ztunnel: n["ztunnel_pid"].as_i64().and_then(|pid| pid.try_into().ok()).unwrap_or(0),
            })
        });
        let pods = json["pods"].as_array()?.iter().map(|p| {
            Some(Pod {
                name: format!("{}/{}", p["namespace"].as_str()?, p["name"].as_str()?),
                ip: text(&p["ip"])?,
                node: text(&p["node"])?,
                netns: text(&p["netns"])?,
                enrolled: p["enrolled"].as_bool()?,
            })
        });
        Some(Self {
            redirection: text(&json["redirection"])?,
            nodes: nodes.collect::<Option<_>>()?,
            pods: pods.collect::<Option<_>>()?,
        })
    }

    /// The pod of that name.
    pub(crate) fn pod(&self, name: &str) -> anyhow::Result<&Pod> {
        self.pods.iter().find(|p| p.name == name).with_context(|| format!("there is no pod {name}"))
    }

    /// The node of that name.
    pub(crate) fn node(&self, name: &str) -> anyhow::Result<&Node> {
        self.nodes.iter().find(|n| n.name == name).with_context(|| format!("there is no node {name}"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_is_read_as_the_interface_says() {
        let json = json!({
            "redirection": "ebpf", "supervisor_pid": 1, "istiod_pid": 2,
            "nodes": [{"name": "node1", "netns": "/proc/3/ns/net", "uplink": "uplink0", "ztunnel_pid": 4, "agent_pid": 5}],
            "pods": [{"namespace": "shop", "name": "redis-0", "ip": "10.1.2.3", "node": "node1",
                      "netns": "/proc/6/ns/net", "ready": true, "enrolled": false}],
            "waypoints": [],
        });
        let status = Status::read(&json).unwrap();
        assert_eq!(status.pod("shop/redis-0").unwrap().node, "node1");
        assert_eq!(status.node("node1").unwrap().ztunnel, 4);
        assert!(status.pod("shop/redis").is_err());
    }
}
