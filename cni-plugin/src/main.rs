//! `ambit-agent`: the node agent.

#![expect(clippy::print_stderr, reason = "what is wrong before the log stands goes to stderr")]

mod options;

use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::Parser;
use cni_plugin::agent::Agent;
use cni_plugin::choice::{self, Choice};
use cni_plugin::cleanup::cleanup;
use cni_plugin::nft::Tables;
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
    match cli.command {
        Some(Command::Cleanup(options)) => hardened(seccomp)?.block_on(remove(options)),
        None => {
            let chosen = choose(&cli.run)?;
            hardened(seccomp)?.block_on(run(cli.run, chosen, log))
        }
    }
}

/// Gives up what the agent does not need from here on, and has a runtime for the rest.
fn hardened(seccomp: bool) -> anyhow::Result<tokio::runtime::Runtime> {
    harden(Program::Agent, seccomp)?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("no runtime can be started")
}

/// Finds out how to redirect, before the agent gives up mounting and making namespaces.
fn choose(options: &Run) -> anyhow::Result<Choice> {
    let bpffs = &options.pins.bpffs;
    let mounted = match ebpf_loader::mount_bpffs(bpffs) {
        Ok(false) => Ok(()),
        Ok(true) => {
            tracing::info!(path = %bpffs.display(), "mounted a BPF file system");
            Ok(())
        }
        Err(error) => Err(format!("no BPF file system at {}: {error}", bpffs.display())),
    };
    let tables = Tables::of(options.pins.instance.as_str());
    let chosen = choice::choose(options.redirection, &options.pins.pins(), &tables, mounted)?;
    tracing::info!(
        redirection = chosen.redirection.name(),
        reason = chosen.reason,
        "how this node redirects"
    );
    Ok(chosen)
}

async fn remove(options: Cleanup) -> anyhow::Result<()> {
    let Cleanup { pins, mark } = options;
    Ok(cleanup(&pins.pins(), &pins.instance, mark.mark, mark.mask).await?)
}

async fn run(options: Run, chosen: Choice, log: LogHandle) -> anyhow::Result<()> {
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
    let agent = Agent::start(options.settings(chosen)?, readiness.part("agent"), status)?;
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
