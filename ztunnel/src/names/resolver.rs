//! Names by the resolvers of the node.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolveHosts, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::system_conf::parse_resolv_conf;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::{Looking, Lookup, LookupError};

/// How seldom it is looked whether the node's settings are others.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How many answers are kept.
const ANSWERS: u64 = 4096;
/// How long an answer is kept at most, whatever it says.
const LONGEST: Duration = Duration::from_secs(3600);
/// How long it is remembered that there is no answer.
const NO_ANSWER: Duration = Duration::from_secs(10);

/// Asks the resolvers that a file names, in the form of resolv.conf(5). Its search domains are not used: the names are
/// whole ones.
#[derive(Clone, Debug)]
pub struct Resolver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    /// Where the work is done, so that what is kept open outlives whoever asked first.
    runtime: Handle,
    current: Mutex<Option<Current>>,
}

struct Current {
    looked: Instant,
    /// What the file held.
    text: String,
    resolver: Result<TokioResolver, LookupError>,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").field("text", &self.text).finish_non_exhaustive()
    }
}

impl Resolver {
    /// By the file of this path, and on this runtime.
    pub fn new(path: &Path, runtime: Handle) -> Self {
        Self(Arc::new(Inner { path: path.to_owned(), runtime, current: Mutex::default() }))
    }

    fn current(&self) -> Result<TokioResolver, LookupError> {
        let now = Instant::now();
        let current = &mut *self.0.current.lock();
        if let Some(known) = current.as_mut().filter(|known| now - known.looked < LOOK_EVERY) {
            return known.resolver.clone();
        }
        let path = self.0.path.display();
        // A few lines: not worth a thread.
        let text = std::fs::read_to_string(&self.0.path)
            .map_err(|error| LookupError::Failed(format!("cannot read {path}: {error}")))?;
        if let Some(known) = current.as_mut().filter(|known| known.text == text) {
            known.looked = now;
            return known.resolver.clone();
        }
        let resolver = resolver(&text).map_err(|error| LookupError::Failed(format!("{path}: {error}")));
        *current = Some(Current { looked: now, text, resolver: resolver.clone() });
        resolver
    }
}

fn resolver(text: &str) -> Result<TokioResolver, NetError> {
    let (config, told) = parse_resolv_conf(text)?;
    let options = options(told);
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options).build()
}

fn options(told: ResolverOpts) -> ResolverOpts {
    let mut options = told;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.use_hosts_file = ResolveHosts::Never;
    options.cache_size = ANSWERS;
    options.positive_max_ttl = Some(LONGEST);
    options.negative_max_ttl = Some(NO_ANSWER);
    options
}

impl Lookup for Resolver {
    fn look_up(&self, host: Arc<str>) -> Looking {
        let resolver = self.clone();
        let looking = self.0.runtime.spawn(async move {
            let resolver = resolver.current()?;
            match resolver.lookup_ip(format!("{host}.")).await {
                Ok(found) => Ok(found.iter().map(|ip| ip.to_canonical()).collect::<Vec<IpAddr>>()),
                Err(error) if error.is_nx_domain() => Err(LookupError::NoSuchName),
                Err(error) if error.is_no_records_found() => Err(LookupError::NoAddress),
                Err(error) => Err(LookupError::Failed(error.to_string())),
            }
        });
        // It is only given up when the program ends.
        Box::pin(async move { looking.await.unwrap_or(Err(LookupError::Nobody)) })
    }
}
