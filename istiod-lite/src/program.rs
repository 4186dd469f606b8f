//! The program: parts made and joined, run until it is told to end.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use identity::SystemClock;
use identity::signer::{Signer, SignerSettings};
use manifest::source::Directory;
use runtime::{Readiness, Tasks, admin};
use telemetry::metrics::{Exposition, PageMetrics, PilotMetrics, Registry, register_build};
use tokio::net::TcpListener;
use xds::server::{AdsService, Authenticator, CaService, Listen, Observer, Services, Strangers, serve};

use crate::authority::Authority;
use crate::config::Config;
use crate::http::{self, Pages};
use crate::observe::Counts;
use crate::push::{Debounce, Pusher, Shared};
use crate::reviewer::StaticTokens;
use crate::store::Store;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A control plane that runs; its tasks are owned by the [`Tasks`] it was started on.
#[derive(Clone, Debug)]
pub struct Running {
    /// Where xDS and certificates are served over TLS.
    pub tls_address: SocketAddr,
    /// Where xDS is served in plaintext.
    pub plaintext_address: Option<SocketAddr>,
    /// Where the pages are.
    pub http_address: SocketAddr,
    /// What the pages show.
    pub pages: Pages,
}

/// Starts everything on the current runtime. Nothing runs before every port is bound and every file is read.
///
/// # Errors
/// A port, the CA, the tokens or the watch cannot be had.
pub async fn start(config: &Config, tasks: &Tasks, readiness: &Readiness) -> anyhow::Result<Running> {
    let flags = &config.flags;
    let tls = bind(flags.tls_address)?;
    let plaintext = flags.plaintext_address.map(bind).transpose()?;
    let pages = admin::bind(flags.http_address)?;
    let (tls_address, http_address) = (tls.local_addr()?, pages.local_addr()?);
    let plaintext_address = plaintext.as_ref().map(TcpListener::local_addr).transpose()?;

    let ca_dir = flags.ca_dir.clone();
    let open = move || Signer::open(&ca_dir, SignerSettings::default(), Arc::new(SystemClock));
    let signer = Arc::new(tokio::task::spawn_blocking(open).await?.context("the certificate authority")?);
    let serving = signer.serving_config(flags.dns_names.clone()).context("the serving certificate")?;
    let tokens: Arc<dyn Authenticator> = Arc::new(StaticTokens::open(&flags.token_file)?);

    let mut registry = Registry::default();
    register_build(&mut registry, "pilot", VERSION);
    let metrics = PilotMetrics::register(&mut registry, VERSION);
    let page_metrics = PageMetrics::register(&mut registry);
    let observer: Arc<dyn Observer> = Arc::new(Counts::new(metrics.clone()));

    let source = Directory::watch(&flags.source_dir)?;
    let shared = Shared::new(Store::new(config.settings()));
    let debounce = Debounce::new(config.debounce_after, config.debounce_max);
    let (pusher, feed) = Pusher::new(shared.clone(), metrics, debounce, readiness.part("source"));
    tasks.background().spawn_vital("source", pusher.run_until(source, tasks.stopping()));

    let authority = Arc::new(Authority::new(shared.store.clone(), signer));
    let ads = AdsService::new(feed, tokens.clone(), observer.clone(), tasks.drain_token().clone());
    let ca = CaService::new(authority, tokens, observer);
    let proxies = ads.registry();
    let secure = Listen { listener: tls, tls: Some(serving), strangers: Strangers::default() };
    let services = Services { ads: ads.clone(), ca: Some(ca) };
    listen("xds-tls", secure, services, tasks);
    if let Some(listener) = plaintext {
        // Certificates are asked for with a bearer token, which must not travel in plaintext.
        listen(
            "xds-plaintext",
            Listen { listener, tls: None, strangers: Strangers::default() },
            Services { ads, ca: None },
            tasks,
        );
    }
    let known = Pages { shared, registry: proxies, readiness: readiness.clone() };
    let router = http::router(known.clone())
        .merge(admin::readiness(readiness.clone()))
        .merge(admin::metrics(Exposition::new(registry)));
    admin::serve(tasks, "http", pages, router, &page_metrics)?;
    tracing::info!(
        version = VERSION, tls = %tls_address, plaintext = ?plaintext_address,
        http = %http_address, source = %flags.source_dir.display(), "control plane started"
    );
    Ok(Running { tls_address, plaintext_address, http_address, pages: known })
}

fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    Ok(TcpListener::from_std(admin::bind(address)?)?)
}

fn listen(name: &'static str, listen: Listen, services: Services, tasks: &Tasks) {
    let cancel = tasks.drain_token().clone();
    tasks.spawn_vital(name, async move {
        if let Err(error) = serve(listen, services, cancel).await {
            tracing::error!(%error, listener = name, "a listener failed");
        }
    });
}
