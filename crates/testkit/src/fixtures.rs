//! Workloads, services and policies in few words.
//!
//! Each starts as what a plain Kubernetes object would become and is changed by chained calls:
//!
//! ```
//! use testkit::fixtures::{deny, pod, service};
//!
//! let web = service("shop", "web").vip("10.96.0.1").port(80, 8080).build();
//! let backend = pod("shop", "web-0").ip("10.0.0.1").backs(&web).build();
//! let strict = deny("shop", "strict").rule(|m| m.not_principals = vec![model::policy::StringMatch::Presence]).build();
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use model::policy::{Action, Clause, Match, PolicyScope, Rule, StringMatch};
use model::{
    AppProtocol, GatewayAddress, GatewayDestination, Health, HealthPolicy, IpFamilies, LoadBalancing,
    LoadBalancingMode, Locality, NetworkAddr, NetworkId, NetworkMode, Policy, PolicyKey, PortMapping, Scope,
    Service, ServiceKey, SpiffeId, TrustDomain, TunnelProtocol, Uid, Visibility, WeightedWaypoint, Workload,
    WorkloadKind,
};

/// The cluster that everything belongs to.
pub const CLUSTER: &str = "Kubernetes";

/// An address from text.
pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The identity `spiffe://cluster.local/ns/<namespace>/sa/<account>`.
pub fn identity(namespace: &str, account: &str) -> SpiffeId {
    SpiffeId::new(TrustDomain::default(), namespace, account).expect("a valid identity")
}

/// The mesh's default network and an address in it.
pub fn addr(text: &str) -> NetworkAddr {
    NetworkAddr::new(NetworkId::default(), ip(text))
}

/// A port and the port behind it.
pub fn port(service_port: u16, target_port: impl Into<Option<u16>>) -> PortMapping {
    PortMapping { service_port, target_port: target_port.into(), app_protocol: AppProtocol::Unknown }
}

/// A waypoint that is named by its service.
pub fn waypoint_named(namespace: &str, hostname: &str) -> GatewayAddress {
    GatewayAddress {
        destination: GatewayDestination::Hostname(ServiceKey::new(namespace, hostname)),
        hbone_port: 15008,
    }
}

/// A waypoint that is named by address.
pub fn waypoint_at(text: &str) -> GatewayAddress {
    GatewayAddress { destination: GatewayDestination::Address(addr(text)), hbone_port: 15008 }
}

/// A healthy pod on `node1` that takes HBONE, with the service account of its name up to the last dash
/// (`catalog` for `catalog-0`). It has no address yet.
pub fn pod(namespace: &str, name: &str) -> WorkloadBuilder {
    let base = name.rsplit_once('-').map_or(name, |(base, _)| base);
    WorkloadBuilder(Workload {
        uid: Uid::new(format!("{CLUSTER}//Pod/{namespace}/{name}")),
        name: name.into(),
        namespace: namespace.into(),
        addresses: vec![],
        hostname: None,
        network: NetworkId::default(),
        tunnel: TunnelProtocol::Hbone,
        trust_domain: TrustDomain::default(),
        service_account: base.into(),
        waypoint: None,
        network_gateway: None,
        node: "node1".into(),
        canonical_name: base.into(),
        canonical_revision: "latest".into(),
        kind: WorkloadKind::Deployment,
        workload_name: base.into(),
        native_tunnel: false,
        application_tunnel: None,
        services: BTreeMap::new(),
        authorization_policies: vec![],
        health: Health::Healthy,
        cluster_id: CLUSTER.into(),
        locality: Locality::default(),
        network_mode: NetworkMode::Standard,
        capacity: 1,
    })
}

/// A workload in the making.
#[derive(Clone, Debug)]
pub struct WorkloadBuilder(Workload);

impl WorkloadBuilder {
    /// Gives it one more address.
    pub fn ip(mut self, text: &str) -> Self {
        self.0.addresses.push(ip(text));
        self
    }

    /// Leaves it outside of the mesh: it takes plain TCP.
    pub fn unmeshed(mut self) -> Self {
        self.0.tunnel = TunnelProtocol::None;
        self
    }

    /// Puts it on the node's own network.
    pub fn on_host_network(mut self) -> Self {
        self.0.network_mode = NetworkMode::HostNetwork;
        self
    }

    /// Puts it on a node.
    pub fn node(mut self, node: &str) -> Self {
        self.0.node = node.into();
        self
    }

    /// Puts it in a region and zone.
    pub fn zone(mut self, region: &str, zone: &str) -> Self {
        self.0.locality = Locality { region: region.into(), zone: zone.into(), subzone: "".into() };
        self
    }

    /// Gives it a service account.
    pub fn account(mut self, account: &str) -> Self {
        self.0.service_account = account.into();
        self
    }

    /// Makes it not ready.
    pub fn unhealthy(mut self) -> Self {
        self.0.health = Health::Unhealthy;
        self
    }

    /// Makes it about to end, and still serving.
    pub fn terminating(mut self) -> Self {
        self.0.health = Health::Terminating;
        self
    }

    /// Its weight among endpoints.
    pub fn capacity(mut self, capacity: u32) -> Self {
        self.0.capacity = capacity;
        self
    }

    /// Makes it an endpoint of a service, on the service's own target ports.
    pub fn backs(self, service: &Service) -> Self {
        self.backs_on(service, [])
    }

    /// Makes it an endpoint of a service, on ports of its own.
    pub fn backs_on(mut self, service: &Service, ports: impl IntoIterator<Item = PortMapping>) -> Self {
        self.0.services.insert(service.key(), ports.into_iter().collect());
        self
    }

    /// Makes it be selected by a policy of its namespace.
    pub fn selected_by(mut self, policy: &str) -> Self {
        self.0.authorization_policies.push(PolicyKey::new(&self.0.namespace, policy));
        self
    }

    /// Puts a waypoint before it.
    pub fn waypoint(mut self, waypoint: GatewayAddress) -> Self {
        self.0.waypoint = Some(waypoint);
        self
    }

    /// Anything else.
    pub fn with(mut self, change: impl FnOnce(&mut Workload)) -> Self {
        change(&mut self.0);
        self
    }

    /// The workload.
    pub fn build(self) -> Workload {
        self.0
    }
}

/// A public service with the host name `<name>.<namespace>.svc.cluster.local`. It has neither address nor port yet.
pub fn service(namespace: &str, name: &str) -> ServiceBuilder {
    ServiceBuilder(Service {
        name: name.into(),
        namespace: namespace.into(),
        hostname: format!("{name}.{namespace}.svc.cluster.local").into(),
        addresses: vec![],
        blocks: vec![],
        ports: vec![],
        subject_alt_names: vec![],
        waypoint: None,
        load_balancing: LoadBalancing::default(),
        ip_families: IpFamilies::Automatic,
        canonical: true,
        ingress_use_waypoint: false,
        weighted_waypoints: vec![],
        visibility: Visibility::Public,
    })
}

/// A service in the making.
#[derive(Clone, Debug)]
pub struct ServiceBuilder(Service);

impl ServiceBuilder {
    /// Gives it one more virtual address.
    pub fn vip(mut self, text: &str) -> Self {
        self.0.addresses.push(addr(text));
        self
    }

    /// Gives it one more port; without a target where that is named.
    pub fn port(mut self, service_port: u16, target_port: impl Into<Option<u16>>) -> Self {
        self.0.ports.push(port(service_port, target_port));
        self
    }

    /// Sends all its endpoints, ready or not.
    pub fn ready_or_not(mut self) -> Self {
        self.0.load_balancing.health_policy = HealthPolicy::AllowAll;
        self
    }

    /// Prefers some endpoints.
    pub fn prefers(mut self, mode: LoadBalancingMode, scopes: impl Into<Vec<Scope>>) -> Self {
        self.0.load_balancing.mode = mode;
        self.0.load_balancing.routing_preference = scopes.into();
        self
    }

    /// Puts a waypoint before it.
    pub fn waypoint(mut self, waypoint: GatewayAddress) -> Self {
        self.0.waypoint = Some(waypoint);
        self
    }

    /// Puts one more of several waypoints before it.
    pub fn weighted_waypoint(mut self, destination: GatewayAddress, weight: u32) -> Self {
        self.0.weighted_waypoints.push(WeightedWaypoint { destination, weight });
        self
    }

    /// Anything else.
    pub fn with(mut self, change: impl FnOnce(&mut Service)) -> Self {
        change(&mut self.0);
        self
    }

    /// The service.
    pub fn build(self) -> Service {
        self.0
    }
}

/// An ALLOW policy for a namespace. It allows nobody yet.
pub fn allow(namespace: &str, name: &str) -> PolicyBuilder {
    policy(namespace, name, Action::Allow)
}

/// A DENY policy for a namespace. It denies nobody yet.
pub fn deny(namespace: &str, name: &str) -> PolicyBuilder {
    policy(namespace, name, Action::Deny)
}

/// What PeerAuthentication STRICT becomes: plaintext is denied.
pub fn strict(namespace: &str) -> Policy {
    let no_identity = |m: &mut Match| m.not_principals = vec![StringMatch::Presence];
    deny(namespace, "istio_converted_static_strict").rule(no_identity).build()
}

fn policy(namespace: &str, name: &str, action: Action) -> PolicyBuilder {
    let key = PolicyKey::new(namespace, name);
    PolicyBuilder(Policy { key, scope: PolicyScope::Namespace, action, rules: vec![], dry_run: false })
}

/// A policy in the making.
#[derive(Clone, Debug)]
pub struct PolicyBuilder(Policy);

impl PolicyBuilder {
    /// Adds a rule of one match.
    pub fn rule(mut self, change: impl FnOnce(&mut Match)) -> Self {
        let mut m = Match::default();
        change(&mut m);
        self.0.rules.push(Rule { clauses: vec![Clause { matches: vec![m] }] });
        self
    }

    /// Adds a rule that matches one service account.
    pub fn from(self, namespace: &str, account: &str) -> Self {
        let principal: Arc<str> = identity(namespace, account).principal().into();
        self.rule(|m| m.principals = vec![StringMatch::Exact(principal)])
    }

    /// Adds a rule that matches everyone.
    pub fn from_everyone(mut self) -> Self {
        self.0.rules.push(Rule::default());
        self
    }

    /// Makes it about all of the mesh.
    pub fn for_mesh(mut self) -> Self {
        self.0.scope = PolicyScope::Global;
        self
    }

    /// Makes it about those that name it.
    pub fn for_selected(mut self) -> Self {
        self.0.scope = PolicyScope::WorkloadSelector;
        self
    }

    /// Only reports it.
    pub fn dry_run(mut self) -> Self {
        self.0.dry_run = true;
        self
    }

    /// The policy.
    pub fn build(self) -> Policy {
        self.0
    }
}
