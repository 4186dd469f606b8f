//! What the proxy tells about itself, beside what every program does.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use identity::SvidStore;
use identity::store::SvidStatus;
use model::{Policy, Service, Workload};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;
use xds::client::{DemandCounts, Report, State as XdsState};

use crate::config::Config;
use crate::connections::Shown as ShownConnection;
use crate::mesh::Mesh;
use crate::pod::registry::{Shown, ShownPod};
use crate::quota::{Quotas, Shown as ShownQuotas};
use crate::shard::Shards;

/// How many connections of each shard are shown.
const CONNECTIONS_SHOWN: usize = 1000;

/// Where the pages look.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The settings.
    pub config: Arc<Config>,
    /// What the control plane has told.
    pub mesh: Mesh,
    /// Where the stream to it stands.
    pub xds: watch::Receiver<XdsState>,
    /// The certificates.
    pub svids: SvidStore,
    /// The pods.
    pub pods: Shown,
    /// The shards.
    pub shards: Shards,
    /// The quotas.
    pub quotas: Quotas,
}

/// `/config_dump`: all that the proxy runs on, without keys and tokens. `/connections`: the live ones. `/quotas`: what
/// pods hold of the proxy, which of them are at a limit, and what they were refused. `/debug/pprof/…`:
/// how else to make a profile.
pub fn pages(sources: Sources) -> Router {
    Router::new()
        .route("/config_dump", get(config_dump))
        .route("/connections", get(connections))
        .route("/quotas", get(quotas))
        .with_state(sources)
        .route("/debug/pprof/{*profile}", get(no_profile))
}

async fn no_profile() -> (StatusCode, &'static str) {
    let how = "This program does not profile itself. From outside: perf record -g -p $(pidof ztunnel)\n";
    (StatusCode::NOT_IMPLEMENTED, how)
}

#[derive(Serialize)]
struct Dump {
    version: &'static str,
    config: Arc<Config>,
    pods: Vec<ShownPod>,
    certificates: Vec<SvidStatus>,
    xds: Report,
    /// What is asked for, where it is not everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    on_demand: Option<DemandCounts>,
    /// Live connections, shard by shard.
    connections: Vec<usize>,
    quotas: ShownQuotas,
    synced: bool,
    workloads: Vec<Arc<Workload>>,
    services: Vec<Arc<Service>>,
    policies: BTreeMap<String, Arc<Policy>>,
}

async fn config_dump(State(sources): State<Sources>) -> Response {
    let world = sources.mesh.load();
    let mut workloads: Vec<_> = world.workloads().cloned().collect();
    workloads.sort_by(|a, b| a.uid.cmp(&b.uid));
    let mut services: Vec<_> = world.services().cloned().collect();
    services.sort_by_key(|s| s.key());
    let dump = Dump {
        version: env!("CARGO_PKG_VERSION"),
        config: sources.config.clone(),
        pods: sources.pods.all(),
        certificates: sources.svids.snapshot(),
        on_demand: sources.mesh.needs().map(|needs| needs.demand().counts()),
        xds: sources.xds.borrow().report(Instant::now().into_std()),
        connections: sources.shards.connections().map(|c| c.count()).collect(),
        quotas: sources.quotas.shown(),
        synced: sources.mesh.is_synced(),
        workloads,
        services,
        policies: world.policies().map(|p| (p.key.to_string(), p.clone())).collect(),
    };
    drop(world);
    json(&dump)
}

async fn connections(State(sources): State<Sources>) -> Response {
    let shown: Vec<ShownConnection> =
        sources.shards.connections().flat_map(|c| c.shown(CONNECTIONS_SHOWN)).collect();
    json(&shown)
}

async fn quotas(State(sources): State<Sources>) -> Response {
    json(&sources.quotas.shown())
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec_pretty(value) {
        Ok(body) => ([(CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
