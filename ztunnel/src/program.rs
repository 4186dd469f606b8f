//! The program: what runs, and in which order it starts and ends.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use identity::{LiveBundle, SvidStore, SystemClock, TrustDomains};
use runtime::{Grace, Readiness, StopError, Tasks, admin};
use telemetry::log::LogHandle;
use telemetry::metrics::{Exposition, PageMetrics, Registry as MetricsRegistry};
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use xds::client::{AdsClient, Demand};
use zds::ztunnel::Client;

use crate::admin::{Sources, pages};
use crate::config::Config;
use crate::control::{Authority, Counting, ads_config, follow};
use crate::limits::Limits;
use crate::mesh::Mesh;
use crate::metrics::Metrics;
use crate::names::{Names, Resolver};
use crate::needs::Needs;
use crate::pod::registry::{Parts, Registry};
use crate::proxy::Proxy;
use crate::quota::{Bounds, Machine, Quotas, watch};
use crate::redirection::Redirection;
use crate::relay::Patience;
use crate::review::Reviewer;
use crate::shard::Shards;
use crate::trust::{ListsError, RevocationFile, RevocationMetrics, RootFile, RootMetrics, RootsError};

/// Why the program does not start, or did not end as it should.
#[derive(Debug, Error)]
pub enum ProgramError {
    /// A page's port cannot be had.
    #[error(transparent)]
    Page(#[from] admin::BindError),
    /// There are no roots to believe peers by.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// The revocation lists cannot be used.
    #[error(transparent)]
    Revocations(#[from] ListsError),
    /// The system lacks something that every program needs.
    #[error("the system gives no thread or runtime")]
    System(#[from] io::Error),
    /// It did not end as it should.
    #[error(transparent)]
    Stop(#[from] StopError),
}

/// Runs the proxy until it is told to end.
///
/// # Errors
/// See [`ProgramError`].
pub fn run(config: Config, log: LogHandle) -> Result<(), ProgramError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().thread_name("control").build()?;
    runtime.block_on(Box::pin(serve(config, log)))
}

async fn serve(config: Config, log: LogHandle) -> Result<(), ProgramError> {
    let config = Arc::new(config);
    let machine = Machine::here(runtime::raise_descriptor_limit());
    // What can fail for want of a port or a file does so before anything runs.
    let ports = Ports {
        admin: admin::bind_beside(config.pages.admin)?,
        metrics: admin::bind_beside(config.pages.metrics)?,
        readiness: admin::bind_beside(config.pages.readiness)?,
    };
    let mut families = MetricsRegistry::default();
    let roots = RootFile::wait(config.ca.roots.clone(), RootMetrics::register(&mut families)).await?;
    let bundle = roots.bundle().clone();
    let revocations = revocations(&config, &bundle, &mut families).await?;

    let (tasks, readiness) = (Tasks::default(), Readiness::default());
    let demand = config.on_demand.then(Demand::default);
    let (mesh, mut folder) = match demand.clone().map(Needs::new) {
        Some(needs) => Mesh::on_demand(needs),
        None => Mesh::unknown(),
    };
    let tunnel_age = Some(config.tunnel_age.into()).filter(|age: &Duration| !age.is_zero());
    let relay = Patience { idle: config.idle_timeout.into(), half_closed: config.half_closed_timeout.into() };
    let limits = Limits { tunnel_age, relay, ..Limits::default() };
    let metrics = Metrics::register(&mut families);
    let page_metrics = PageMetrics::register(&mut families);
    let quotas = Quotas::new(Bounds::derive(&config.quota, machine), metrics.clone());
    let proxy = Arc::new(Proxy {
        mesh: mesh.clone(),
        metrics: metrics.clone(),
        names: Names::by(Resolver::new(&config.resolv_conf, tokio::runtime::Handle::current())),
        quotas: quotas.clone(),
        redirection: Redirection::default(),
        hbone: limits.tunnels(),
        limits,
        turn: CancellationToken::new(),
        drain: tasks.drain_token().clone(),
    });
    let turn = proxy.turn.clone();
    let shards = Shards::start(config.shards, &proxy, &tasks)?;

    let names = std::iter::once(&config.trust_domain).chain(&config.trust_domain_aliases);
    let mut store = identity::StoreSettings::accepting(TrustDomains::of(names.cloned()));
    store.ttl = config.secret_ttl.into();
    let authority = Arc::new(Authority::new(&config));
    let here = tokio::runtime::Handle::current();
    let svids = SvidStore::new(authority, store, bundle.clone(), Arc::new(SystemClock), here);

    let of_shards = shards.connections().cloned().collect();
    let reviewer = Reviewer::new(mesh.clone(), proxy.metrics.clone(), proxy.limits.mesh, of_shards, &bundle);
    let counting = Arc::new(Counting(proxy.metrics.xds.clone()));
    let fold = move |updates| {
        folder.fold(updates);
    };
    let xds = AdsClient::new(ads_config(&config, demand), fold, counting);
    let background = tasks.background();
    let state = xds.state();
    background.spawn("mesh", {
        let following = follow(state.clone(), mesh.clone(), svids.clone(), readiness.part("mesh"));
        let stopping = tasks.stopping();
        async move {
            tokio::select! {
                // It only passes news on.
                () = following => {}
                () = stopping => {}
            }
        }
    });
    if let Some(needs) = mesh.needs().cloned() {
        let (mesh, stopping) = (mesh.clone(), tasks.stopping());
        background.spawn("needs", async move {
            tokio::select! {
                // It only asks.
                () = needs.follow(&mesh) => {}
                () = stopping => {}
            }
        });
    }
    background.spawn("review", {
        let stopping = tasks.stopping();
        async move {
            tokio::select! {
                // What it has ended by then has ended; at the stop all else does.
                () = reviewer.run() => {}
                () = stopping => {}
            }
        }
    });
    background.spawn("roots", {
        let stopping = tasks.stopping();
        async move {
            tokio::select! {
                // What it has set up stays so.
                () = roots.follow() => {}
                () = stopping => {}
            }
        }
    });
    background.spawn("memory", {
        let (watching, stopping) = (watch(quotas.clone(), metrics), tasks.stopping());
        async move {
            tokio::select! {
                // It only looks.
                () = watching => {}
                () = stopping => {}
            }
        }
    });
    if let Some(file) = revocations {
        let stopping = tasks.stopping();
        background.spawn("revocations", async move {
            tokio::select! {
                // What it has put in force stays so.
                () = file.follow() => {}
                () = stopping => {}
            }
        });
    }
    background.spawn("xds", xds.run(tasks.stop_token().clone()));

    let (registry, pods) = Registry::new(Parts {
        proxy,
        shards: shards.clone(),
        svids: svids.clone(),
        node: config.node.clone(),
        trust_domain: config.trust_domain.clone(),
        ipv6: config.ipv6,
        snapshot: readiness.part("pods"),
        readiness: readiness.clone(),
        handover: tasks.handover_token().clone(),
    });
    tasks.spawn_vital("pods", registry.run(Client::new(&config.agent_socket)));

    let sources =
        Sources { config: config.clone(), mesh, xds: state, svids: svids.clone(), pods, shards, quotas };
    let pages = Pages {
        admin: admin::control(log, tasks.clone()).merge(pages(sources)),
        metrics: admin::metrics(Exposition::new(families)),
        readiness: admin::readiness(readiness.clone()),
    };
    if ports.wait() {
        tracing::info!("another ztunnel has the pages: they are served when it is this one's turn");
        let owner = background.clone();
        background.spawn_vital("pages", async move {
            tokio::select! {
                // Both cancel-safe.
                () = turn.cancelled() => {}
                () = owner.stopping() => return,
            }
            match show(&owner, ports, pages, &page_metrics) {
                Ok(()) => owner.stopping().await,
                Err(error) => tracing::error!(%error, "the pages cannot be served"),
            }
        });
    } else {
        show(&tasks, ports, pages, &page_metrics)?;
    }
    tracing::info!(node = %config.node.name, shards = config.shards, version = env!("CARGO_PKG_VERSION"), "ztunnel runs");

    let grace = Grace { drain: config.grace.into(), ..Grace::default() };
    let ended = tasks.run_until_stopped(&readiness, grace).await;
    svids.shutdown().await;
    Ok(ended?)
}

/// Where ztunnel shows itself.
struct Ports {
    admin: admin::Port,
    metrics: admin::Port,
    readiness: admin::Port,
}

/// And what.
struct Pages {
    admin: Router,
    metrics: Router,
    readiness: Router,
}

impl Ports {
    /// Whether another ztunnel listens on some of them.
    fn wait(&self) -> bool {
        self.admin.waits() || self.metrics.waits() || self.readiness.waits()
    }
}

fn show(tasks: &Tasks, ports: Ports, pages: Pages, metrics: &PageMetrics) -> io::Result<()> {
    admin::serve(tasks, "admin", ports.admin.listen()?, pages.admin, metrics)?;
    admin::serve(tasks, "metrics", ports.metrics.listen()?, pages.metrics, metrics)?;
    admin::serve(tasks, "readiness", ports.readiness.listen()?, pages.readiness, metrics)
}

async fn revocations(
    config: &Config,
    bundle: &LiveBundle,
    families: &mut MetricsRegistry,
) -> Result<Option<RevocationFile>, ListsError> {
    let Some(path) = config.revocations.clone() else { return Ok(None) };
    let metrics = RevocationMetrics::register(families);
    RevocationFile::open(path, bundle.clone(), metrics, Arc::new(SystemClock)).await.map(Some)
}
