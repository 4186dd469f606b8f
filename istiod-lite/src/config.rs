//! Flags and environment, checked: what the program runs on.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use identity::signer::ServingName;
use runtime::{ConfigError, Env, Span};
use telemetry::log::{LogConfig, LogOutput};

use crate::push::{DEBOUNCE_AFTER, DEBOUNCE_MAX};
use crate::store::Settings;

/// The control plane of an Ambit mesh, over a directory of Kubernetes YAML.
///
/// A file that cannot be used is logged once and listed under /debug/sync; what it last held stays in force. What it
/// held before a restart is not known: where a file is bad at the start, nothing is published and /ready says why,
/// until every file has been good once or was removed. Proxies keep what they have meanwhile, so no policy is lost.
#[derive(Clone, Debug, Parser)]
#[command(name = "istiod-lite", version)]
pub struct Flags {
    /// The directory of objects (*.yaml, *.yml, *.json at any depth), watched; it may appear later
    #[arg(long, value_name = "DIR")]
    pub source_dir: PathBuf,
    /// Where the CA's root is kept, or an intermediate is plugged in (ca-cert.pem ca-key.pem cert-chain.pem root-cert.pem)
    #[arg(long, value_name = "DIR")]
    pub ca_dir: PathBuf,
    /// Tokens that are accepted: a YAML or JSON list of {token_sha256, service_account, namespace, node}
    #[arg(long, value_name = "FILE")]
    pub token_file: PathBuf,
    /// xDS and certificates over TLS
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:15012")]
    pub tls_address: SocketAddr,
    /// xDS in plaintext; not served without
    #[arg(long, value_name = "ADDRESS")]
    pub plaintext_address: Option<SocketAddr>,
    /// /ready, /metrics, /debug/…
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:15014")]
    pub http_address: SocketAddr,
    /// The cluster's name, the first part of workloads' uids
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// The domain of services' host names
    #[arg(long, env = "CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// A name or address by which proxies reach this server; may be repeated
    #[arg(long = "dns-name", value_name = "NAME", value_parser = serving_name, default_values = ["istiod.istio-system.svc", "localhost", "127.0.0.1"])]
    pub dns_names: Vec<ServingName>,
}

fn serving_name(text: &str) -> Result<ServingName, String> {
    text.parse().map_err(|error: identity::signer::SignerError| error.to_string())
}

/// What the program runs on.
#[derive(Clone, Debug)]
pub struct Config {
    /// The flags.
    pub flags: Flags,
    /// How long changes are gathered (`PILOT_DEBOUNCE_AFTER`, 100 ms).
    pub debounce_after: Duration,
    /// How long a change waits at most (`PILOT_DEBOUNCE_MAX`, 10 s).
    pub debounce_max: Duration,
    /// Whether the program gives up system calls (`AMBIT_SECCOMP`).
    pub seccomp: bool,
    /// The log (`RUST_LOG`, `LOG_FORMAT`).
    pub log: LogConfig,
}

impl Config {
    /// Joins flags and environment.
    ///
    /// # Errors
    /// Every mistake in the environment.
    pub fn new(flags: Flags, mut env: Env) -> Result<Self, ConfigError> {
        let expected = "a duration such as 100ms";
        let debounce_after = env.or("PILOT_DEBOUNCE_AFTER", expected, Span(DEBOUNCE_AFTER)).0;
        let debounce_max = env.or("PILOT_DEBOUNCE_MAX", expected, Span(DEBOUNCE_MAX)).0;
        let seccomp = runtime::seccomp(&mut env);
        let log = runtime::log_config(&mut env, LogOutput::Stdout);
        env.finish()?;
        Ok(Self { flags, debounce_after, debounce_max, seccomp, log })
    }

    /// What the installation fixes for the store.
    pub fn settings(&self) -> Settings {
        Settings {
            cluster_id: self.flags.cluster_id.as_str().into(),
            cluster_domain: self.flags.cluster_domain.as_str().into(),
            ..Settings::default()
        }
    }
}
