//! The process that owns a lab: it keeps the objects, and brings the machine to what they say.
//!
//! One task ([`cluster::Cluster::run`]) owns all state. Everything else — pods' runners, the watchers of agents, callers — sends it
//! messages; after each batch of them the controllers work until nothing changes, the changes are written out as one
//! revision, and pods, service translation and names follow.

mod build;
mod calls;
mod cluster;
mod view;
mod waiting;

use std::io::Write as _;
use std::process::ExitCode;

use nix::fcntl::{Flock, FlockArg};
use telemetry::log::{LogConfig, LogFilter, LogOutput};

use super::place::Place;
use super::{precheck, system};

/// What the supervisor writes to its standard output once the lab can be talked to.
pub(crate) const STANDS: &str = "the lab stands";

/// Runs the supervisor until it is killed. Whoever started it reads one line: [`STANDS`], or what went wrong.
pub(crate) fn run(place: Place, nodes: u8) -> ExitCode {
    let why = match start(place, nodes) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    say(&format!("{why:#}"));
    ExitCode::FAILURE
}

fn start(place: Place, nodes: u8) -> anyhow::Result<std::convert::Infallible> {
    use anyhow::Context as _;
    // Away from the terminal. It fails only for the leader of a group, which is away already.
    let _ = nix::unistd::setsid();
    let lock = std::fs::File::create(place.lock()).context("cannot create the supervisor's lock")?;
    let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock);
    let _lock = lock.map_err(|_| anyhow::anyhow!("another supervisor of the lab `{}` runs", place.name()))?;
    let filter = std::env::var("RUST_LOG").ok().and_then(|filter| filter.parse::<LogFilter>().ok());
    let config =
        LogConfig { filter: filter.unwrap_or_default(), output: LogOutput::Stderr, ..LogConfig::default() };
    telemetry::log::init(config).context("cannot begin the log")?;
    let machine = precheck::machine().map_err(|lacks| {
        let lacks: Vec<String> = lacks.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("{}", lacks.join("\n"))
    })?;
    let group = machine.cgroups.join(place.cgroup()).join(system::SUPERVISOR);
    super::cgroup::create(&group)
        .and_then(|()| super::cgroup::join(&group))
        .with_context(|| format!("cannot enter the cgroup {}", group.display()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let lab = build::lab(&place, &machine, nodes).await?;
        say(STANDS);
        tracing::info!(lab = %place.name(), nodes, "the lab stands");
        lab.run().await
    })
}

/// Tells whoever started us; they may have gone away.
fn say(line: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
