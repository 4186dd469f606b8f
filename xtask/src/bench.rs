//! `cargo xtask bench`: what the mesh costs, beside the same work without it.
//!
//! Two pods on two nodes of a lab do the same work directly and through the mesh, in the same namespaces, in turns:
//! joining and leaving is a label. Medians of interleaved runs are reported with their spread, CPU per unit of work beside
//! the rates, because times do not travel between machines and ratios of one run do. Every namespace uses reno for the
//! figures in the JSON: the pacing of BBR, where that is the host's default, would be measured instead of the mesh. One
//! run with the host's default stands beside them in the Markdown.

mod case;
mod load;
mod proxy;
mod report;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::Run;
use crate::lab::{Lab, Pod, Status};
use crate::{repo, setup, stage};
use case::{CASES, Case, Target};
use proxy::Proxies;
use report::{Mode, Samples};

pub(crate) use load::Load;

#[derive(Subcommand)]
pub(crate) enum Subject {
    /// The node proxy: TCP streams, requests, connections and memory, direct and through the mesh.
    L4(Options),
}

#[derive(Args)]
pub(crate) struct Options {
    /// Shorter and fewer runs: at most 5 minutes.
    #[arg(long)]
    quick: bool,
    /// Uses the programs of the dev profile: says whether the benchmark works, and nothing about the mesh.
    #[arg(long, hide = true)]
    dev: bool,
}

/// How much is run.
#[derive(Clone, Copy, Debug)]
struct Effort {
    rounds: usize,
    seconds: u32,
    idle_connections: u32,
}

const QUICK: Effort = Effort { rounds: 3, seconds: 3, idle_connections: 1000 };
const FULL: Effort = Effort { rounds: 5, seconds: 10, idle_connections: 4000 };

const RENO: &str = "reno";
const CONTROL: &str = "/proc/sys/net/ipv4/tcp_congestion_control";

const WORLD: &str = include_str!("bench/world.yaml");
const CLIENT: &str = "bench/client";
const SERVER: &str = "bench/server";
const HTTP: u16 = 8080;

pub(crate) fn run(subject: &Subject) -> anyhow::Result<ExitCode> {
    let Subject::L4(options) = subject;
    ensure!(nix::unistd::geteuid().is_root(), "the benchmark makes network namespaces: run it as root");
    let missing = stage::run("packages", || setup::packages(&[setup::LAB, setup::BENCH]));
    ensure!(missing.is_empty(), "the benchmark cannot do without {}", missing.join(", "));
    let (profile, folder) = if options.dev { ("dev", "debug") } else { ("release", "release") };
    stage::run("build", || {
        Run::cargo().args(["build", "--quiet", "--profile", profile, "--workspace", "--bins"]).check()
    })?;
    let effort = if options.quick { QUICK } else { FULL };
    let scratch = tempfile::tempdir()?;
    let world = scratch.path().join("world.yaml");
    fs::write(&world, WORLD)?;
    let programs = repo::target().join(folder);
    let lab = stage::run("lab up", || Lab::up(&programs, Some("bench"), &world.display().to_string()))?;
    lab.take_down_when_interrupted()?;

    let reno = stage::run("runs with reno", || {
        let mut samples = Samples::default();
        // Before the proxies have done anything: memory that work has left behind would hide what connections take.
        measure(&lab, RENO, |bench| bench.idle(effort.idle_connections, &mut samples))?;
        measure(&lab, RENO, |bench| bench.rounds(effort, &mut samples))?;
        anyhow::Ok(samples)
    })?;
    let default = fs::read_to_string(CONTROL).context(CONTROL)?.trim().to_owned();
    let beside = if default == RENO {
        None
    } else {
        let once = Effort { rounds: 1, ..effort };
        let samples = stage::run(&format!("one run with {default}"), || {
            let mut samples = Samples::default();
            measure(&lab, &default, |bench| bench.rounds(once, &mut samples))?;
            anyhow::Ok(samples)
        })?;
        Some((default, samples))
    };
    drop(lab);
    let markdown = report::markdown(
        &reno,
        beside.as_ref().map(|(name, samples)| (name.as_str(), samples)),
        effort.rounds,
    );
    let folder = results()?;
    fs::write(folder.join("l4.json"), serde_json::to_string_pretty(&report::json(&reno))? + "\n")?;
    fs::write(folder.join("l4.md"), &markdown)?;
    println!("{markdown}");
    eprintln!("written: {0}/l4.json {0}/l4.md", folder.display());
    Ok(ExitCode::SUCCESS)
}

/// Results always lie in the workspace, wherever cargo builds.
fn results() -> anyhow::Result<PathBuf> {
    let folder = repo::root().join("target/bench");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Ok(folder)
}

/// Does work with servers whose sockets, like all others of the path, use one congestion control.
fn measure(
    lab: &Lab,
    control: &str,
    work: impl FnOnce(&mut Bench<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let status = lab.status()?;
    let (client, server) = (status.pod(CLIENT)?, status.pod(SERVER)?);
    // Before any socket is made that counts: those of servers here, those of proxies when the pods are enrolled.
    for netns in [&client.netns, &server.netns].into_iter().chain(status.nodes.iter().map(|n| &n.netns)) {
        set_congestion_control(netns, control)?;
    }
    let mut bench = Bench::start(lab, &status, server)?;
    work(&mut bench)?;
    bench.enter(Mode::Direct)
}

fn set_congestion_control(netns: &str, control: &str) -> anyhow::Result<()> {
    // The file shows the namespace of whoever opens it.
    let write = format!("echo {control} > {CONTROL}");
    Run::new("nsenter").args([&format!("--net={netns}"), "sh", "-c", &write]).check()
}

/// A program in a pod, ended when this is dropped.
struct Running(Child);

impl Drop for Running {
    /// By SIGTERM, so that nginx takes its worker along.
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.0.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = self.0.wait();
    }
}

struct Bench<'a> {
    lab: &'a Lab,
    target: Target,
    proxies: Proxies,
    mode: Mode,
    _servers: Vec<Running>,
    _scratch: tempfile::TempDir,
}

impl<'a> Bench<'a> {
    fn start(lab: &'a Lab, status: &Status, server: &Pod) -> anyhow::Result<Self> {
        let scratch = tempfile::tempdir()?;
        let folder = scratch.path().display();
        let conf = scratch.path().join("nginx.conf");
        fs::write(&conf, case::nginx(HTTP, &folder.to_string()))?;
        let script = scratch.path().join("wrk.lua");
        fs::write(&script, case::WRK_SCRIPT)?;
        // As many connections as the system lets a process have; nginx may not raise the limit above that itself.
        let program = repo::which("nginx").context("nginx is not installed")?;
        let nginx =
            format!("ulimit -n $(ulimit -Hn); exec {} -p {folder} -c {}", program.display(), conf.display());
        let mut servers = Vec::new();
        for command in [["sh", "-c", &nginx].as_slice(), &["iperf3", "-s"]] {
            let mut command = lab.exec_command(SERVER, command);
            servers.push(Running(command.stdout(Stdio::null()).spawn().context("cannot run ambit")?));
        }
        let node = |pod: &str| anyhow::Ok(status.node(&status.pod(pod)?.node)?.clone());
        let proxies = Proxies::new(node(CLIENT)?.ztunnel, node(SERVER)?.ztunnel);
        let bench = Self {
            lab,
            target: Target {
                server: server.ip.clone(),
                http: HTTP,
                wrk_script: script.display().to_string(),
                own: lab.program("xtask"),
            },
            proxies,
            mode: Mode::Direct,
            _servers: servers,
            _scratch: scratch,
        };
        bench.until_answered()?;
        Ok(bench)
    }

    /// Waits until both servers answer, by the path that is in force.
    fn until_answered(&self) -> anyhow::Result<()> {
        let url = format!("http://{}:{HTTP}/", self.target.server);
        let retry =
            ["curl", "-sS", "--fail", "--retry", "20", "--retry-connrefused", "--retry-delay", "1", &url];
        let output = self.lab.exec(CLIENT, &retry)?;
        if !output.status.success() {
            bail!("nginx does not answer: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let output = self.lab.exec(CLIENT, &["iperf3", "-c", &self.target.server, "-n", "1M"])?;
        ensure!(
            output.status.success(),
            "iperf3 does not answer: {}",
            String::from_utf8_lossy(&output.stdout).trim()
        );
        Ok(())
    }

    /// Joins or leaves the mesh.
    fn enter(&mut self, mode: Mode) -> anyhow::Result<()> {
        if self.mode != mode {
            let label = match mode {
                Mode::Direct => "istio.io/dataplane-mode-",
                Mode::Mesh => "istio.io/dataplane-mode=ambient",
            };
            self.lab.run(&["lab", "label", "ns", "bench", label])?;
            self.mode = mode;
            self.until_answered()?;
        }
        Ok(())
    }

    /// Direct and through the mesh in turns: direct, mesh; mesh, direct; …
    fn rounds(&mut self, effort: Effort, samples: &mut Samples) -> anyhow::Result<()> {
        for round in 0..effort.rounds {
            let modes = if round % 2 == 0 { [Mode::Direct, Mode::Mesh] } else { [Mode::Mesh, Mode::Direct] };
            for mode in modes {
                self.enter(mode)?;
                for case in CASES {
                    self.run(case, mode, effort.seconds, samples)?;
                }
            }
        }
        Ok(())
    }

    fn run(&self, case: Case, mode: Mode, seconds: u32, samples: &mut Samples) -> anyhow::Result<()> {
        let command = case.command(&self.target, seconds);
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let before = self.proxies.cpu()?;
        let output = self.lab.exec(CLIENT, &words)?;
        let used = self.proxies.cpu()? - before;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "{}: `{}` failed: {}{text}",
            case.name(),
            words.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        let outcome = case.read(&text).with_context(|| format!("{}: {text}", case.name()))?;
        // A direct run that a proxy worked for was not direct, and a run through the mesh that none worked for was.
        let worked = used.source + used.destination;
        let limit = Duration::from_millis(u64::from(seconds) * 50);
        ensure!(
            mode == Mode::Mesh || worked < limit,
            "{}: proxies used {worked:?} in a direct run",
            case.name()
        );
        ensure!(
            mode == Mode::Direct || !worked.is_zero(),
            "{}: no proxy worked in a run through the mesh",
            case.name()
        );
        eprintln!("{} {}: {}", mode.as_str(), case.name(), outcome.summary());
        samples.take(case, mode, &outcome, used);
        Ok(())
    }

    /// Memory of the proxies: with two pods and nothing to do, and with connections that do nothing.
    fn idle(&mut self, connections: u32, samples: &mut Samples) -> anyhow::Result<()> {
        self.enter(Mode::Mesh)?;
        let before = self.proxies.memory()?;
        samples.idle_rss(before);
        let target = format!("{}:{HTTP}", self.target.server);
        let command = [&self.target.own, "load", "hold", &target, "--connections", &connections.to_string()];
        let mut holder = self.lab.exec_command(CLIENT, &command);
        holder.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = Running(holder.spawn().context("cannot run ambit")?);
        load::wait_until_held(&mut holder.0)?;
        let after = self.proxies.memory()?;
        let grown = |before: u64, after: u64| after.saturating_sub(before) / u64::from(connections);
        samples.idle_connection([
            grown(before.source, after.source),
            grown(before.destination, after.destination),
        ]);
        Ok(())
    }
}
