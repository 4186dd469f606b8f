//! From one snapshot to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use authz::CompiledPolicy;
use model::policy::PolicyScope;
use model::{NamespacedName, NetworkBlock, Policy, PolicyKey, Service, ServiceKey, Uid, Workload};

use crate::few::Few;
use crate::world::{ByName, Claim};
use crate::{Change, Delta, Reach, Update, World};

impl World {
    /// The snapshot after these updates, and how it differs from this one.
    ///
    /// Costs about what the updates touch: a few small nodes a table, and the list of endpoints of each service that a
    /// changed workload belongs to. The updates of one call are seen at once or not at all.
    pub fn apply(&self, updates: impl IntoIterator<Item = Update>) -> (World, Delta) {
        let mut edit = Edit { world: self.clone(), ..Edit::default() };
        for update in updates {
            match update {
                Update::Workload(workload) => edit.put_workload(workload),
                Update::Service(service) => edit.put_service(service),
                Update::Policy(policy) => edit.put_policy(policy),
                Update::RemoveWorkload(uid) => edit.remove_workload(&uid),
                Update::RemoveService(key) => edit.remove_service(&key),
                Update::RemovePolicy(key) => edit.remove_policy(&key),
                Update::Narrowed(key) => edit.end_narrowing(&key),
                Update::RemoveAddress(name) => {
                    edit.remove_workload(&Uid::new(&name));
                    if let Some(key) = ServiceKey::parse(&name) {
                        edit.remove_service(&key);
                    }
                }
            }
        }
        edit.finish()
    }
}

/// The next snapshot in the making, and what everything touched was before.
#[derive(Default)]
struct Edit {
    world: World,
    workloads: BTreeMap<Uid, Option<Claim>>,
    services: BTreeMap<ServiceKey, Option<Arc<Service>>>,
    policies: BTreeMap<PolicyKey, Option<Arc<Policy>>>,
    /// Touched policies as they were about a namespace or the mesh.
    wide: BTreeMap<PolicyKey, Option<Arc<CompiledPolicy>>>,
    /// What policies no longer are about.
    released: Reach,
}

impl Edit {
    fn put_workload(&mut self, workload: Arc<Workload>) {
        let held = self.world.workloads.get(&workload.uid).cloned();
        if held.as_ref().is_some_and(|c| c.workload == workload) {
            return;
        }
        let at_first = self.workloads.get(&workload.uid).and_then(Option::as_ref);
        let kept =
            at_first.into_iter().chain(&held).find(|c| same_places(&c.workload, &workload)).map(|c| c.since);
        let since = kept.unwrap_or_else(|| {
            self.world.claims += 1;
            self.world.claims
        });
        self.remove_workload(&workload.uid);
        let claim = Claim { workload, since };
        let workload = &claim.workload;
        self.workloads.entry(workload.uid.clone()).or_insert(None);
        for addr in workload.network_addrs() {
            self.world.by_addr.insert(addr, claim.clone());
        }
        self.world.by_name.insert(name_of(workload), workload.clone());
        for service in workload.services.keys() {
            self.world.endpoints.insert(service.clone(), workload.clone());
        }
        for policy in &workload.authorization_policies {
            self.world.selected.insert(policy.clone(), workload.uid.clone());
        }
        self.world.workloads.insert(workload.uid.clone(), claim);
    }

    fn remove_workload(&mut self, uid: &Uid) {
        let Some(claim) = self.world.workloads.remove(uid) else { return };
        let workload = &claim.workload;
        self.workloads.entry(uid.clone()).or_insert_with(|| Some(claim.clone()));
        for addr in workload.network_addrs() {
            self.world.by_addr.remove(&addr, &claim);
        }
        self.world.by_name.remove(&name_of(workload), workload);
        for service in workload.services.keys() {
            self.world.endpoints.remove(service, workload);
        }
        for policy in &workload.authorization_policies {
            self.world.selected.remove(policy, uid);
        }
    }

    fn put_service(&mut self, service: Arc<Service>) {
        let key = service.key();
        if self.world.services.get(&key) == Some(&service) {
            return;
        }
        self.remove_service(&key);
        self.services.entry(key.clone()).or_insert(None);
        for vip in &service.addresses {
            self.world.by_vip.insert(vip.clone(), service.clone());
        }
        for block in blocks(&service) {
            *Arc::make_mut(&mut self.world.block_lengths).entry(block.block.prefix_len()).or_default() += 1;
            self.world.by_block.insert(block.clone(), service.clone());
        }
        self.world.by_hostname.insert(service.hostname.clone(), service.clone());
        self.world.services.insert(key, service);
    }

    fn remove_service(&mut self, key: &ServiceKey) {
        let Some(service) = self.world.services.remove(key) else { return };
        self.services.entry(key.clone()).or_insert_with(|| Some(service.clone()));
        for vip in &service.addresses {
            self.world.by_vip.remove(vip, &service);
        }
        for block in blocks(&service) {
            let lengths = Arc::make_mut(&mut self.world.block_lengths);
            let length = block.block.prefix_len();
            if let Some(count) = lengths.get_mut(&length) {
                *count -= 1;
                if *count == 0 {
                    lengths.remove(&length);
                }
            }
            self.world.by_block.remove(block, &service);
        }
        self.world.by_hostname.remove(&service.hostname, &service);
    }

    fn put_policy(&mut self, policy: Arc<Policy>) {
        let key = policy.key.clone();
        if self.world.policies.get(&key).is_some_and(|p| *p.policy() == policy) {
            return;
        }
        let narrower = policy.scope == PolicyScope::WorkloadSelector;
        let wide = self.wide(&key).filter(|_| narrower);
        self.remove_policy(&key);
        self.policies.entry(key.clone()).or_insert(None);
        if let Some(wide) = wide {
            self.apply_widely(&wide);
            self.world.narrowing.insert(key.clone(), wide);
        }
        let compiled = Arc::new(CompiledPolicy::compile(policy));
        self.apply_widely(&compiled);
        self.world.policies.insert(key, compiled);
    }

    /// A policy as it was in force about a namespace or the mesh, for good or for now, before these updates. What it was in
    /// the middle of them has never been in force.
    fn wide(&mut self, key: &PolicyKey) -> Option<Arc<CompiledPolicy>> {
        let world = &self.world;
        let in_force = || {
            let held = world.policies.get(key).filter(|p| p.scope() != PolicyScope::WorkloadSelector);
            held.or_else(|| world.narrowing.get(key)).cloned()
        };
        self.wide.entry(key.clone()).or_insert_with(in_force).clone()
    }

    fn apply_widely(&mut self, compiled: &Arc<CompiledPolicy>) {
        match compiled.scope() {
            PolicyScope::Global => self.world.mesh_policies.insert::<ByName>(compiled.clone()),
            PolicyScope::Namespace => {
                let namespace = compiled.key().namespace.clone();
                self.world.namespace_policies.insert(namespace, compiled.clone());
            }
            PolicyScope::WorkloadSelector => {}
        }
    }

    fn apply_widely_no_more(&mut self, compiled: &Arc<CompiledPolicy>) {
        match compiled.scope() {
            PolicyScope::Global => Few::remove::<ByName>(&mut self.world.mesh_policies, compiled),
            PolicyScope::Namespace => {
                self.world.namespace_policies.remove(&compiled.key().namespace, compiled);
            }
            PolicyScope::WorkloadSelector => {}
        }
    }

    fn end_narrowing(&mut self, key: &PolicyKey) {
        if let Some(wide) = self.world.narrowing.remove(key) {
            self.apply_widely_no_more(&wide);
            self.released.add_policy(wide.policy(), &[]);
        }
    }

    fn remove_policy(&mut self, key: &PolicyKey) {
        self.wide(key);
        let Some(compiled) = self.world.policies.remove(key) else { return };
        self.policies.entry(key.clone()).or_insert_with(|| Some(compiled.policy().clone()));
        self.end_narrowing(key);
        self.apply_widely_no_more(&compiled);
    }

    fn finish(mut self) -> (World, Delta) {
        // There are hardly ever any.
        let named = |(key, _): &(&PolicyKey, _)| !self.world.selected.get(*key).is_empty();
        let arrived: Vec<_> = self.world.narrowing.iter().filter(named).map(|(key, _)| key.clone()).collect();
        arrived.iter().for_each(|key| self.end_narrowing(key));
        let Self { world, workloads, services, policies, released, .. } = self;
        let mut delta = Delta {
            workloads: changes(workloads.into_iter().map(|(k, c)| (k, c.map(|c| c.workload))), |k| {
                world.workload(k)
            }),
            services: changes(services, |key| world.service(key)),
            policies: changes(policies, |key| world.policy(key)),
            admission: released,
            ..Delta::default()
        };
        for (uid, change) in &delta.workloads {
            delta.endpoints.extend(change.sides().flat_map(|w| w.services.keys().cloned()));
            delta.admission.workloads.insert(uid.clone());
        }
        for (key, change) in &delta.policies {
            let selected = world.selected.get(key);
            change.sides().for_each(|p| delta.admission.add_policy(p, selected));
            delta.narrowed.extend(world.narrowing.get(key).map(|_| key.clone()));
        }
        (world, delta)
    }
}

fn changes<'a, K: Ord, T: PartialEq + 'a>(
    before: impl IntoIterator<Item = (K, Option<Arc<T>>)>,
    after: impl Fn(&K) -> Option<&'a Arc<T>>,
) -> BTreeMap<K, Change<T>> {
    let change = |(key, before)| {
        let after = after(&key).cloned();
        Change::between(before, after).map(|change| (key, change))
    };
    before.into_iter().filter_map(change).collect()
}

/// The blocks of a service, each once.
fn blocks(service: &Service) -> BTreeSet<&NetworkBlock> {
    service.blocks.iter().collect()
}

fn name_of(workload: &Workload) -> NamespacedName {
    NamespacedName { namespace: workload.namespace.clone(), name: workload.name.clone() }
}

/// Whether two states of a workload claim the same addresses with the same right.
fn same_places(a: &Workload, b: &Workload) -> bool {
    a.network == b.network
        && a.network_mode == b.network_mode
        && a.addresses.iter().all(|ip| b.addresses.contains(ip))
        && b.addresses.iter().all(|ip| a.addresses.contains(ip))
}
