//! The settings, from the environment.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use model::{NetworkId, TrustDomain};
use runtime::{ConfigError, Env, Span};
use serde::Serialize;
use telemetry::log::{LogConfig, LogOutput};
use thiserror::Error;

use crate::quota;
use crate::relay::Patience;

const ISTIOD: &str = "https://istiod.istio-system.svc:15012";
const ROOT_CA: &str = "/var/run/secrets/istio/root-cert.pem";
const TOKEN: &str = "/var/run/secrets/tokens/istio-token";

/// What the proxy runs on. It holds no secret.
#[derive(Clone, Debug, Serialize)]
pub struct Config {
    /// Where workloads, services and policies come from.
    pub xds: Endpoint,
    /// Where certificates come from.
    pub ca: Endpoint,
    /// The file with the token that proves this proxy to both.
    pub token_path: PathBuf,
    /// Who this proxy is.
    pub node: Node,
    /// The trust domain of this node's pods.
    pub trust_domain: TrustDomain,
    /// Its other names, of which peers' identities may be.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// Where the node agent listens.
    pub agent_socket: PathBuf,
    /// Whether the control plane is asked for single addresses, and not for all.
    pub on_demand: bool,
    /// How long certificates are to hold.
    pub secret_ttl: Span,
    /// How long a tunnel connection takes streams; 0 for as long as its certificates hold.
    pub tunnel_age: Span,
    /// The file that names the resolvers of the node, as resolv.conf(5).
    pub resolv_conf: PathBuf,
    /// The file with the revocation lists.
    pub revocations: Option<PathBuf>,
    /// Threads that carry connections.
    pub shards: usize,
    /// Whether pods' IPv6 addresses are served.
    pub ipv6: bool,
    /// How long connections may go on after the signal to end.
    pub grace: Span,
    /// How much one pod may have of the proxy.
    pub quota: quota::Settings,
    /// How long a connection may stand without a byte; zero is for ever.
    pub idle_timeout: Span,
    /// The same once one half of it is closed.
    pub half_closed_timeout: Span,
    /// Where this proxy tells about itself.
    pub pages: Pages,
    /// Whether the program gives up system calls.
    pub seccomp: bool,
    /// How to log.
    #[serde(skip)]
    pub log: LogConfig,
}

/// One of the control plane's services.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// Its address, `https://host:port`.
    #[serde(serialize_with = "as_text")]
    pub address: Uri,
    /// The file with the roots that vouch for it.
    pub roots: PathBuf,
    /// A name that its certificate may carry beside the address's host.
    pub alternative_name: Option<String>,
}

/// Who this proxy is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    /// The node's name.
    pub name: Arc<str>,
    /// The cluster's.
    pub cluster_id: Arc<str>,
    /// The network's.
    pub network: NetworkId,
    /// The proxy's own pod, or what stands for it.
    pub pod_name: String,
    /// Its namespace.
    pub pod_namespace: String,
    /// Its address.
    pub instance_ip: IpAddr,
}

/// Where this proxy tells about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Pages {
    /// Admin; it can end the program, so it belongs on loopback.
    pub admin: SocketAddr,
    /// Metrics.
    pub metrics: SocketAddr,
    /// Readiness.
    pub readiness: SocketAddr,
}

impl Config {
    /// Reads the environment.
    ///
    /// # Errors
    /// With every mistake in it.
    pub fn read(mut env: Env) -> Result<Self, ConfigError> {
        let env = &mut env;
        let node_name = env.required::<String>("NODE_NAME", "the node's name");
        let xds_address = env.or("XDS_ADDRESS", "https://host:port or http://host:port", Address::default());
        let xds = Endpoint {
            roots: env.or("XDS_ROOT_CA", "a path", ROOT_CA.into()),
            alternative_name: env.optional("ALT_XDS_HOSTNAME", "a host name"),
            address: xds_address.0.clone(),
        };
        let ca = Endpoint {
            address: env.or("CA_ADDRESS", "https://host:port or http://host:port", xds_address).0,
            roots: env.or("CA_ROOT_CA", "a path", ROOT_CA.into()),
            alternative_name: env.optional("ALT_CA_HOSTNAME", "a host name"),
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let shards = env.or("ZTUNNEL_WORKER_THREADS", "a number of threads, 1 to 512", Shards(cores)).0;
        let pages = Pages {
            admin: env.or("ADMIN_ADDR", "an address and port", (Ipv4Addr::LOCALHOST, 15000).into()),
            metrics: env.or("STATS_ADDR", "an address and port", any(15020)),
            readiness: env.or("READINESS_ADDR", "an address and port", any(15021)),
        };
        let pod_name = env.optional::<String>("POD_NAME", "the name of the proxy's pod");
        let cluster_id: String = env.or("CLUSTER_ID", "the cluster's name", "Kubernetes".to_owned());
        let network: String = env.or("NETWORK", "the network's name", String::new());
        let trust_domain: TrustDomainSetting =
            env.or("TRUST_DOMAIN", "a trust domain such as cluster.local", TrustDomainSetting::default());
        let aliases =
            env.or("AMBIT_TRUST_DOMAIN_ALIASES", "trust domains with commas between", Aliases::default());
        let pod_namespace =
            env.or("POD_NAMESPACE", "the namespace of the proxy's pod", "istio-system".to_owned());
        let instance_ip = env.or("INSTANCE_IP", "the proxy's address", Ipv4Addr::UNSPECIFIED.into());
        let token_path = env.or("AMBIT_TOKEN_PATH", "a path", TOKEN.into());
        let agent_socket = env.or("INPOD_UDS", "a path", zds::DEFAULT_PATH.into());
        let secret_ttl = env.or("SECRET_TTL", "a duration such as 24h", Span::hours(24));
        let tunnel_age = env.or("AMBIT_MAX_TUNNEL_AGE", "a duration such as 24h, or 0", Span::hours(24));
        let revocations = env.optional("CRL_PATH", "a path");
        let resolv_conf = env.or("AMBIT_RESOLV_CONF", "a path", "/etc/resolv.conf".into());
        let on_demand = env.switch("XDS_ON_DEMAND", false);
        let ipv6 = env.switch("IPV6_ENABLED", true);
        let grace = env.or("TERMINATION_GRACE_PERIOD", "a duration such as 5s", Span(Duration::from_secs(5)));
        let seccomp = runtime::seccomp(env);
        let quota = quota::Settings::read(env);
        let patience = Patience::default();
        let idle_timeout =
            env.or("AMBIT_IDLE_TIMEOUT", "a duration such as 1h, or 0 for none", Span(patience.idle));
        let half_closed_timeout = env.or(
            "AMBIT_HALF_CLOSED_TIMEOUT",
            "a duration such as 5m, or 0 for none",
            Span(patience.half_closed),
        );
        let log = runtime::log_config(env, LogOutput::Stdout);
        refuse_unsupported(env);
        let checked = std::mem::replace(env, Env::of::<String, String>([])).finish()?;
        let name = node_name.value(&checked);
        let node = Node {
            pod_name: pod_name.unwrap_or_else(|| format!("ztunnel-{name}")),
            name: name.into(),
            cluster_id: cluster_id.into(),
            network: NetworkId::new(network),
            pod_namespace,
            instance_ip,
        };
        Ok(Self {
            xds,
            ca,
            token_path,
            node,
            trust_domain: trust_domain.0,
            trust_domain_aliases: aliases.0,
            agent_socket,
            on_demand,
            secret_ttl,
            tunnel_age,
            resolv_conf,
            revocations,
            shards,
            ipv6,
            grace,
            quota,
            idle_timeout,
            half_closed_timeout,
            pages,
            seccomp,
            log,
        })
    }
}

/// Settings that peers know and this proxy would not obey: better no start than one that seems to.
fn refuse_unsupported(env: &mut Env) {
    env.optional::<Only<Shared>>("PROXY_MODE", "`shared`, the only mode there is");
    env.optional::<Only<ClusterLocal>>("CLUSTER_DOMAIN", "cluster.local, the only one there is yet");
    env.optional::<Only<Nothing>>("LOCAL_XDS_PATH", "left unset: there is no static configuration yet");
}

fn any(port: u16) -> SocketAddr {
    (std::net::Ipv6Addr::UNSPECIFIED, port).into()
}

fn as_text<S: serde::Serializer>(uri: &Uri, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(uri)
}

/// An address with a scheme and a host.
#[derive(Clone, Debug)]
struct Address(Uri);

impl Default for Address {
    fn default() -> Self {
        Self(Uri::from_static(ISTIOD))
    }
}

#[derive(Debug, Error)]
#[error("write https://host:port")]
struct NoAddress;

impl FromStr for Address {
    type Err = NoAddress;

    fn from_str(s: &str) -> Result<Self, NoAddress> {
        let uri: Uri = s.parse().map_err(|_| NoAddress)?;
        let known = matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some();
        if known { Ok(Self(uri)) } else { Err(NoAddress) }
    }
}

struct Shards(usize);

#[derive(Debug, Error)]
#[error("write a number from 1 to 512")]
struct NoShards;

impl FromStr for Shards {
    type Err = NoShards;

    fn from_str(s: &str) -> Result<Self, NoShards> {
        s.parse().ok().filter(|n| (1..=512).contains(n)).map(Self).ok_or(NoShards)
    }
}

#[derive(Default)]
struct TrustDomainSetting(TrustDomain);

impl FromStr for TrustDomainSetting {
    type Err = model::ParseSpiffeIdError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        TrustDomain::new(s).map(Self)
    }
}

/// The trust domain's other names.
#[derive(Default)]
struct Aliases(Vec<TrustDomain>);

impl FromStr for Aliases {
    type Err = model::ParseSpiffeIdError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let names = s.split(',').map(str::trim).filter(|name| !name.is_empty());
        names.map(TrustDomain::new).collect::<Result<_, _>>().map(Self)
    }
}

/// A setting of which one value is known.
struct Only<W>(std::marker::PhantomData<W>);

trait Word {
    const ACCEPTED: Option<&'static str>;
}

struct Shared;
struct ClusterLocal;
struct Nothing;

impl Word for Shared {
    const ACCEPTED: Option<&'static str> = Some("shared");
}

impl Word for ClusterLocal {
    const ACCEPTED: Option<&'static str> = Some("cluster.local");
}

impl Word for Nothing {
    const ACCEPTED: Option<&'static str> = None;
}

#[derive(Debug, Error)]
#[error("this is not supported")]
struct Unsupported;

impl<W: Word> FromStr for Only<W> {
    type Err = Unsupported;

    fn from_str(s: &str) -> Result<Self, Unsupported> {
        let same = W::ACCEPTED.is_some_and(|word| s.eq_ignore_ascii_case(word));
        if same { Ok(Self(std::marker::PhantomData)) } else { Err(Unsupported) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::read(Env::of(vars.iter().copied()))
    }

    #[test]
    fn the_nodes_name_is_all_that_must_be_set() {
        let config = read(&[("NODE_NAME", "node1")]).unwrap();
        assert_eq!(config.xds.address, ISTIOD);
        assert_eq!(config.ca.address, config.xds.address);
        assert_eq!(config.node.pod_name, "ztunnel-node1");
        assert_eq!(config.pages.admin, "127.0.0.1:15000".parse().unwrap());
        assert_eq!(config.secret_ttl, Span::hours(24));
        assert!(config.shards >= 1 && config.ipv6);
    }

    #[test]
    fn the_ca_is_the_control_plane_unless_told_otherwise() {
        let config = read(&[("NODE_NAME", "n"), ("XDS_ADDRESS", "https://10.0.0.1:15012")]).unwrap();
        assert_eq!(config.ca.address, "https://10.0.0.1:15012");
    }

    #[test]
    fn mistakes_are_told_all_at_once() {
        let error = read(&[
            ("XDS_ADDRESS", "istiod:15012"),
            ("ZTUNNEL_WORKER_THREADS", "0"),
            ("PROXY_MODE", "dedicated"),
            ("CLUSTER_DOMAIN", "example.internal"),
            ("TRUST_DOMAIN", "Not A Domain"),
            ("NETWRK", "n1"),
        ])
        .unwrap_err();
        let text = error.to_string();
        for told in [
            "NODE_NAME",
            "XDS_ADDRESS",
            "WORKER_THREADS",
            "PROXY_MODE",
            "CLUSTER_DOMAIN",
            "TRUST_DOMAIN",
            "NETWORK",
        ] {
            assert!(text.contains(told), "{told} in {text}");
        }
    }

    #[test]
    fn what_peers_set_to_its_only_value_is_accepted() {
        let only = [("PROXY_MODE", "Shared"), ("CLUSTER_DOMAIN", "cluster.local")];
        read(&[&[("NODE_NAME", "n")], &only[..]].concat()).unwrap();
    }
}
