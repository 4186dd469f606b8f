//! Any sequence of updates comes to the same world as its outcome told at once, every look-up agrees with a search of
//! all there is, and a delta is exactly the difference.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use index::{Change, Update, World};
use model::policy::{Action, PolicyScope};
use model::{
    Health, Locality, NamespacedName, NetworkAddr, NetworkBlock, NetworkId, NetworkMode, Policy, PolicyKey,
    Service, ServiceKey, TrustDomain, TunnelProtocol, Uid, Visibility, Workload, WorkloadKind,
};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

const NAMESPACES: [&str; 2] = ["a", "b"];
const HOSTS: [&str; 3] = ["x.example", "y.example", "z.example"];
const IPS: [&str; 4] = ["10.0.0.1", "10.0.0.2", "::ffff:10.0.0.2", "fd00::1"];
const BLOCKS: [&str; 5] = ["10.0.0.0/30", "10.0.0.0/8", "0.0.0.0/0", "fd00::/64", "10.0.0.2/31"];
const POLICIES: [&str; 3] = ["p", "q", "r"];

/// The same facts without any index: every question is a search.
#[derive(Clone, Debug, Default)]
struct Naive {
    /// In the order in which they came to their addresses.
    workloads: Vec<Workload>,
    services: BTreeMap<ServiceKey, Service>,
    policies: BTreeMap<PolicyKey, Policy>,
}

impl Naive {
    fn apply(&mut self, updates: &[Update]) {
        let before = self.workloads.clone();
        for update in updates {
            match update {
                Update::Workload(w) => {
                    match self
                        .workloads
                        .iter_mut()
                        .find(|held| held.uid == w.uid && places(held) == places(w))
                    {
                        Some(held) => *held = (**w).clone(),
                        None => {
                            self.workloads.retain(|held| held.uid != w.uid);
                            self.workloads.push((**w).clone());
                        }
                    }
                }
                Update::Service(s) => drop(self.services.insert(s.key(), (**s).clone())),
                Update::Policy(p) => drop(self.policies.insert(p.key.clone(), (**p).clone())),
                Update::RemoveWorkload(uid) => self.workloads.retain(|w| w.uid != *uid),
                Update::RemoveService(key) => drop(self.services.remove(key)),
                Update::RemovePolicy(key) => drop(self.policies.remove(key)),
                Update::Narrowed(_) => {}
                Update::RemoveAddress(name) => {
                    self.workloads.retain(|w| w.uid.as_str() != &**name);
                    self.services.retain(|key, _| key.to_string() != **name);
                }
            }
        }
        // One that is where it was before these updates keeps its turn; the others come after all that do.
        let turn = |w: &Workload| {
            before.iter().position(|b| b.uid == w.uid && places(b) == places(w)).unwrap_or(usize::MAX)
        };
        self.workloads.sort_by_key(turn);
    }

    fn updates(&self) -> Vec<Update> {
        let services = self.services.values().cloned().map(Update::from);
        let policies = self.policies.values().cloned().map(Update::from);
        self.workloads.iter().cloned().map(Update::from).chain(services).chain(policies).collect()
    }

    /// The very address before any block, and the smallest block before all larger ones.
    fn at(&self, addr: &NetworkAddr, viewer: &str) -> Option<&Service> {
        let of_length = |length: u8| {
            let holds = |b: &NetworkBlock| {
                b.network == addr.network && b.block.prefix_len() == length && b.block.contains(&addr.ip)
            };
            self.preferred(|s| s.blocks.iter().any(holds), viewer)
        };
        let very = self.preferred(|s| s.addresses.contains(addr), viewer);
        very.or_else(|| (0..=128).rev().find_map(of_length))
    }

    fn holders(&self, addr: &NetworkAddr) -> Vec<&Workload> {
        let claims = |w: &&Workload| {
            w.network == addr.network && w.addresses.iter().any(|ip| ip.to_canonical() == addr.ip)
        };
        let mut holders: Vec<_> = self.workloads.iter().rev().filter(claims).collect();
        holders.sort_by_key(|w| w.network_mode == NetworkMode::HostNetwork);
        holders
    }

    fn preferred(&self, is_meant: impl Fn(&Service) -> bool, viewer: &str) -> Option<&Service> {
        let seen = |s: &Service| s.visibility == Visibility::Public || &*s.namespace == viewer;
        let candidates = self.services.values().filter(|s| is_meant(s) && seen(s));
        let merit = |s: &&Service| (s.canonical, &*s.namespace == viewer, std::cmp::Reverse(s.key()));
        candidates.max_by_key(merit)
    }

    fn policies_for(&self, w: &Workload) -> BTreeSet<PolicyKey> {
        let in_force = |p: &&Policy| match p.scope {
            PolicyScope::Global => true,
            PolicyScope::Namespace => p.key.namespace == w.namespace,
            PolicyScope::WorkloadSelector => false,
        };
        let named = w.authorization_policies.iter().filter(|key| self.policies.contains_key(key)).cloned();
        self.policies.values().filter(in_force).map(|p| p.key.clone()).chain(named).collect()
    }
}

fn places(w: &Workload) -> (NetworkId, NetworkMode, BTreeSet<std::net::IpAddr>) {
    (w.network.clone(), w.network_mode, w.addresses.iter().copied().collect())
}

fn agree(world: &World, naive: &Naive) -> Result<(), TestCaseError> {
    let mut all: Vec<_> = world.workloads().map(|w| (**w).clone()).collect();
    all.sort_by(|a, b| a.uid.cmp(&b.uid));
    let mut expected = naive.workloads.clone();
    expected.sort_by(|a, b| a.uid.cmp(&b.uid));
    prop_assert_eq!(&all, &expected);
    prop_assert_eq!(world.workload_count(), expected.len());
    for w in &expected {
        prop_assert_eq!(world.workload(&w.uid).map(|w| &**w), Some(w));
        let name = NamespacedName::new(&w.namespace, &w.name);
        let named: Vec<_> = world.workloads_named(&name).iter().map(|w| &**w).collect();
        let same = |o: &&Workload| (&o.namespace, &o.name) == (&w.namespace, &w.name);
        prop_assert_eq!(named, expected.iter().filter(same).collect::<Vec<_>>());

        let set = world.policies_for(w);
        let in_force: BTreeSet<_> = set.policies().map(|p| p.key().clone()).collect();
        prop_assert_eq!(in_force, naive.policies_for(w));
        let unknown: Vec<_> =
            w.authorization_policies.iter().filter(|k| !naive.policies.contains_key(k)).collect();
        prop_assert_eq!(set.unknown(), unknown);
    }
    for network in ["", "n"] {
        for ip in IPS {
            let addr = NetworkAddr::new(NetworkId::new(network), ip.parse().unwrap());
            let holders: Vec<_> = world.workloads_at(&addr).map(|w| &**w).collect();
            prop_assert_eq!(holders, naive.holders(&addr));
            prop_assert_eq!(world.workload_at(&addr).map(|w| &**w), naive.holders(&addr).first().copied());
            for viewer in ["a", "b", "c", ""] {
                let found = world.service_at(&addr, viewer).map(|s| &**s);
                prop_assert_eq!(found, naive.at(&addr, viewer));
            }
        }
    }
    prop_assert_eq!(world.service_count(), naive.services.len());
    prop_assert_eq!(
        world.services().map(|s| s.key()).collect::<BTreeSet<_>>(),
        naive.services.keys().cloned().collect()
    );
    for hostname in HOSTS {
        for viewer in ["a", "b", "c", ""] {
            let found = world.service_named(hostname, viewer).map(|s| &**s);
            prop_assert_eq!(found, naive.preferred(|s| &*s.hostname == hostname, viewer));
        }
        for namespace in NAMESPACES {
            let key = ServiceKey::new(namespace, hostname);
            prop_assert_eq!(world.service(&key).map(|s| &**s), naive.services.get(&key));
            let endpoints: Vec<_> = world.endpoints(&key).iter().map(|w| &**w).collect();
            let joined: Vec<_> = expected.iter().filter(|w| w.services.contains_key(&key)).collect();
            prop_assert_eq!(endpoints, joined);
        }
    }
    prop_assert_eq!(
        world.policies().map(|p| p.key.clone()).collect::<BTreeSet<_>>(),
        naive.policies.keys().cloned().collect()
    );
    for (key, policy) in &naive.policies {
        prop_assert_eq!(world.policy(key).map(|p| &**p), Some(policy));
    }
    Ok(())
}

fn difference<K: Ord + Clone, T: PartialEq + Clone>(
    before: &BTreeMap<K, T>,
    after: &BTreeMap<K, T>,
) -> BTreeMap<K, Change<T>> {
    let keys: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let change = |key: &K| match (before.get(key), after.get(key)) {
        (None, Some(after)) => Some(Change::Added(Arc::new(after.clone()))),
        (Some(before), None) => Some(Change::Removed(Arc::new(before.clone()))),
        (Some(before), Some(after)) if before != after => {
            Some(Change::Changed { before: Arc::new(before.clone()), after: Arc::new(after.clone()) })
        }
        _ => None,
    };
    keys.into_iter().filter_map(|key| change(key).map(|c| (key.clone(), c))).collect()
}

fn by_uid(naive: &Naive) -> BTreeMap<Uid, Workload> {
    naive.workloads.iter().map(|w| (w.uid.clone(), w.clone())).collect()
}

fn any_workload() -> impl Strategy<Value = Workload> {
    let addresses = subsequence(IPS.to_vec(), 0..=2);
    let services = btree_set((select(&NAMESPACES[..]), select(&HOSTS[..])), 0..3);
    let policies = subsequence(POLICIES.to_vec(), 0..=2);
    let flags = (any::<bool>(), prop::bool::weighted(0.3), select(vec!["", "n"]));
    (0..5u8, select(&NAMESPACES[..]), addresses, services, policies, flags).prop_map(
        |(id, namespace, addresses, services, policies, (healthy, host, network))| Workload {
            uid: Uid::new(format!("cluster//Pod/{id}")),
            name: format!("pod-{}", id % 3).into(),
            namespace: namespace.into(),
            addresses: addresses.into_iter().map(|ip| ip.parse().unwrap()).collect(),
            hostname: None,
            network: NetworkId::new(network),
            tunnel: TunnelProtocol::Hbone,
            trust_domain: TrustDomain::default(),
            service_account: "default".into(),
            waypoint: None,
            network_gateway: None,
            node: "node1".into(),
            canonical_name: "".into(),
            canonical_revision: "".into(),
            kind: WorkloadKind::Pod,
            workload_name: "".into(),
            native_tunnel: false,
            application_tunnel: None,
            services: services.into_iter().map(|(n, h)| (ServiceKey::new(n, h), vec![])).collect(),
            authorization_policies: policies.into_iter().map(|p| PolicyKey::new("a", p)).collect(),
            health: if healthy { Health::Healthy } else { Health::Unhealthy },
            cluster_id: "cluster".into(),
            locality: Locality::default(),
            network_mode: if host { NetworkMode::HostNetwork } else { NetworkMode::Standard },
            capacity: 1,
        },
    )
}

fn any_service() -> impl Strategy<Value = Service> {
    let vips = (subsequence(IPS.to_vec(), 0..=2), subsequence(BLOCKS.to_vec(), 0..=2));
    (select(&NAMESPACES[..]), select(&HOSTS[..]), vips, any::<bool>(), any::<bool>()).prop_map(
        |(namespace, hostname, (vips, blocks), canonical, public)| Service {
            name: hostname.into(),
            namespace: namespace.into(),
            hostname: hostname.into(),
            addresses: vips
                .into_iter()
                .map(|ip| NetworkAddr::new(NetworkId::default(), ip.parse().unwrap()))
                .collect(),
            blocks: blocks
                .into_iter()
                .map(|block| NetworkBlock::new(NetworkId::default(), block.parse().unwrap()))
                .collect(),
            ports: vec![],
            subject_alt_names: vec![],
            waypoint: None,
            load_balancing: Default::default(),
            ip_families: Default::default(),
            canonical,
            ingress_use_waypoint: false,
            weighted_waypoints: vec![],
            visibility: if public { Visibility::Public } else { Visibility::Namespace },
        },
    )
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let scopes = vec![PolicyScope::Global, PolicyScope::Namespace, PolicyScope::WorkloadSelector];
    (select(&POLICIES[..]), select(scopes), any::<bool>()).prop_map(|(name, scope, dry_run)| Policy {
        key: PolicyKey::new("a", name),
        scope,
        action: Action::Deny,
        rules: vec![],
        dry_run,
    })
}

fn any_update() -> impl Strategy<Value = Update> {
    let key = || (select(&NAMESPACES[..]), select(&HOSTS[..]));
    prop_oneof![
        4 => any_workload().prop_map(Update::from),
        3 => any_service().prop_map(Update::from),
        2 => any_policy().prop_map(Update::from),
        2 => (0..5u8).prop_map(|id| Update::RemoveWorkload(Uid::new(format!("cluster//Pod/{id}")))),
        1 => key().prop_map(|(n, h)| Update::RemoveService(ServiceKey::new(n, h))),
        1 => select(&POLICIES[..]).prop_map(|p| Update::RemovePolicy(PolicyKey::new("a", p))),
        1 => (0..5u8).prop_map(|id| Update::RemoveAddress(format!("cluster//Pod/{id}").into())),
        1 => key().prop_map(|(n, h)| Update::RemoveAddress(format!("{n}/{h}").into())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn updates_come_to_the_same_as_a_rebuild(batches in vec(vec(any_update(), 0..6), 1..10)) {
        let (mut world, mut naive) = (World::default(), Naive::default());
        let mut history = vec![];
        for batch in batches {
            let before = naive.clone();
            naive.apply(&batch);
            let (next, delta) = world.apply(batch);
            // What is narrower now applies as before until nobody is waited for.
            let (next, later) = next.apply(delta.narrowed.iter().cloned().map(Update::Narrowed));
            prop_assert_eq!(later.is_empty(), delta.narrowed.is_empty());
            prop_assert!(later.policies.is_empty() && later.narrowed.is_empty());
            history.push((world, before.clone()));
            world = next;
            agree(&world, &naive)?;

            let rebuilt = World::default().apply(naive.updates()).0;
            agree(&rebuilt, &naive)?;

            prop_assert_eq!(&delta.workloads, &difference(&by_uid(&before), &by_uid(&naive)));
            prop_assert_eq!(&delta.services, &difference(&before.services, &naive.services));
            prop_assert_eq!(&delta.policies, &difference(&before.policies, &naive.policies));
            let changed = delta.workloads.values().flat_map(|c| c.before().into_iter().chain(c.after()));
            let endpoints: BTreeSet<_> = changed.flat_map(|w| w.services.keys().cloned()).collect();
            prop_assert_eq!(&delta.endpoints, &endpoints);

            // Whoever meets other policies than before is told of.
            for w in &naive.workloads {
                let met = |n: &Naive| n.policies_for(w).into_iter().map(|k| n.policies[&k].clone()).collect::<Vec<_>>();
                if met(&before) != met(&naive) || !before.workloads.contains(w) {
                    prop_assert!(delta.admission.includes(w), "{:?}", w.uid);
                }
            }
        }
        // No later update reached back into an earlier snapshot.
        for (world, naive) in history {
            agree(&world, &naive)?;
        }
    }
}
