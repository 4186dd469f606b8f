//! `ambit-agent`: the node agent.

#![expect(clippy::print_stderr, reason = "what is wrong before the log stands goes to stderr")]

mod options;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::Parser;
use cni_plugin::agent::Agent;
use cni_plugin::cleanup::cleanup;
use cni_plugin::status::Status;
use cni_plugin::ztunnels;
use options::{Cleanup, Cli, Command, Run};
use runtime::hardening::{Program, harden};
use runtime::{Env, Grace, Readiness, Tasks, admin, log_config};
use telemetry::access::Chain;
use telemetry::log::{LogHandle, LogOutput};
use telemetry::metrics::{Exposition, PageMetrics, Registry, register_build};

fn main() -> ExitCode {
    match begin(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ambit-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn begin(cli: Cli) -> anyhow::Result<()> {
    let mut env = Env::of_process();
    let log = log_config(&mut env, LogOutput::Stdout);
    let seccomp = runtime::seccomp(&mut env);
    env.finish()?;
    let log = telemetry::log::init(log)?;
    if cli.command.is_none() {
        mount(&cli.run.pins.bpffs)?;
    }
    harden(Program::Agent, seccomp)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("no runtime can be started")?;
    match cli.command {
        Some(Command::Cleanup(options)) => runtime.block_on(remove(options)),
        None => runtime.block_on(run(cli.run, log)),
    }
}

/// Before the agent gives up mounting.
fn mount(bpffs: &Path) -> anyhow::Result<()> {
    let mounted = ebpf_loader::mount_bpffs(bpffs)
        .with_context(|| format!("no BPF file system at {}", bpffs.display()))?;
    if mounted {
        tracing::info!(path = %bpffs.display(), "mounted a BPF file system");
    }
    Ok(())
}

async fn remove(options: Cleanup) -> anyhow::Result<()> {
    Ok(cleanup(&options.pins.pins(), options.mark.mark, options.mark.mask).await?)
}

async fn run(options: Run, log: LogHandle) -> anyhow::Result<()> {
    // Its reasons are clearer than those of the first thing that fails later.
    ebpf_loader::probe().context("this kernel cannot redirect by eBPF")?;

    // It holds the listeners of all pods.
    runtime::raise_descriptor_limit();
    let tasks = Tasks::default();
    let readiness = Readiness::default();
    let mut registry = Registry::default();
    register_build(&mut registry, "ambit-agent", env!("CARGO_PKG_VERSION"));
    let status = Status::register(&mut registry);
    let page_metrics = PageMetrics::register(&mut registry);
    let http = admin::bind(options.http)?;
    let pages = admin::readiness(readiness.clone())
        .merge(admin::metrics(Exposition::new(registry)))
        .merge(admin::control(log, tasks.clone()))
        .merge(status.pages());
    let agent = Agent::start(options.settings()?, readiness.part("agent"), status)?;
    let pages = pages.merge(ztunnels::pages(agent.ztunnels()));
    admin::serve(&tasks, "http", http, pages, &page_metrics)?;
    let stopping = tasks.draining();
    tasks.spawn_vital("agent", async move {
        tokio::select! {
            // Dropping the agent between two of its waits leaves the redirection as it is.
            ended = agent.run() => {
                if let Err(error) = ended {
                    tracing::error!(error = %Chain(&error), "the agent cannot go on");
                }
            }
            () = stopping => {}
        }
    });
    tasks.run_until_stopped(&readiness, Grace::default()).await.map_err(|error| anyhow!(error))
}
