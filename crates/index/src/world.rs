//! The snapshot and its look-ups.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;
use std::sync::Arc;

use authz::{CompiledPolicy, PolicySet};
use model::{
    NamespacedName, NetworkAddr, NetworkBlock, NetworkMode, Policy, PolicyKey, Service, ServiceKey, Uid,
    Visibility, Workload,
};

use crate::few::{Few, MultiMap, Order};
use crate::pmap::PMap;

/// All that the control plane has told of, at one moment. Cloning is cheap: the tables are shared.
#[derive(Clone, Debug, Default)]
pub struct World {
    pub(crate) workloads: PMap<Uid, Claim>,
    pub(crate) by_addr: MultiMap<NetworkAddr, Claim, ByClaim>,
    pub(crate) by_name: MultiMap<NamespacedName, Arc<Workload>, ByName>,
    pub(crate) services: PMap<ServiceKey, Arc<Service>>,
    pub(crate) by_vip: MultiMap<NetworkAddr, Arc<Service>, ByName>,
    pub(crate) by_block: MultiMap<NetworkBlock, Arc<Service>, ByName>,
    /// The lengths that blocks have, and how many have each: few, so that each can be tried.
    pub(crate) block_lengths: Arc<BTreeMap<u8, usize>>,
    pub(crate) by_hostname: MultiMap<Arc<str>, Arc<Service>, ByName>,
    pub(crate) endpoints: MultiMap<ServiceKey, Arc<Workload>, ByName>,
    pub(crate) policies: PMap<PolicyKey, Arc<CompiledPolicy>>,
    pub(crate) mesh_policies: Few<Arc<CompiledPolicy>>,
    pub(crate) namespace_policies: MultiMap<Arc<str>, Arc<CompiledPolicy>, ByName>,
    /// The workloads that name a policy, known or not.
    pub(crate) selected: MultiMap<PolicyKey, Uid, ByName>,
    /// Policies as they were when they still were about a namespace or the mesh, which they are for now.
    pub(crate) narrowing: PMap<PolicyKey, Arc<CompiledPolicy>>,
    /// How many claims to addresses there have been.
    pub(crate) claims: u64,
}

/// A workload and when it came to its addresses, counted in claims.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) workload: Arc<Workload>,
    pub(crate) since: u64,
}

/// Who has an address: first pods, whose addresses nobody can make up; then those that do not merely share the node's;
/// then who came last.
#[derive(Debug)]
pub(crate) enum ByClaim {}

impl Order<Claim> for ByClaim {
    fn compare(a: &Claim, b: &Claim) -> Ordering {
        let rank = |c: &Claim| {
            let w = &c.workload;
            (!is_pod(&w.uid), w.network_mode == NetworkMode::HostNetwork, Reverse(c.since))
        };
        rank(a).cmp(&rank(b)).then_with(|| a.workload.uid.cmp(&b.workload.uid))
    }
}

/// Whether the name is a Kubernetes pod's. Its parts hold no slash.
fn is_pod(uid: &Uid) -> bool {
    uid.as_str().contains("//Pod/")
}

/// By what names the thing.
#[derive(Debug)]
pub(crate) enum ByName {}

impl Order<Arc<Workload>> for ByName {
    fn compare(a: &Arc<Workload>, b: &Arc<Workload>) -> Ordering {
        a.uid.cmp(&b.uid)
    }
}

impl Order<Arc<Service>> for ByName {
    fn compare(a: &Arc<Service>, b: &Arc<Service>) -> Ordering {
        (&a.namespace, &a.hostname).cmp(&(&b.namespace, &b.hostname))
    }
}

impl Order<Arc<CompiledPolicy>> for ByName {
    fn compare(a: &Arc<CompiledPolicy>, b: &Arc<CompiledPolicy>) -> Ordering {
        a.key().cmp(b.key())
    }
}

impl Order<Uid> for ByName {
    fn compare(a: &Uid, b: &Uid) -> Ordering {
        a.cmp(b)
    }
}

impl World {
    /// The workload of this name.
    pub fn workload(&self, uid: &Uid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid).map(|c| &c.workload)
    }

    /// The workload that has an address.
    ///
    /// Several may claim one. A pod beats what is written by hand (a WorkloadEntry, a ServiceEntry's endpoint), or anyone
    /// who may write those in a namespace of theirs could say how pods of others are reached. A pod with an address of
    /// its own beats one on the node's network, whose address says nothing about who it is. Among equals the one that came to the address last has it: addresses are used again,
    /// and the news that the former holder is gone may arrive after the news of the next. When the holder goes, the
    /// one before it has the address again. A change that leaves a workload's addresses as they are is no new claim.
    pub fn workload_at(&self, addr: &NetworkAddr) -> Option<&Arc<Workload>> {
        self.by_addr.get(addr).first().map(|c| &c.workload)
    }

    /// All workloads that claim an address, its holder first.
    pub fn workloads_at(&self, addr: &NetworkAddr) -> impl Iterator<Item = &Arc<Workload>> {
        self.by_addr.get(addr).iter().map(|c| &c.workload)
    }

    /// The pod whose own address this is, whatever is written about it elsewhere. Not one on its node's network, where
    /// the address is the node's, and a Service may well be reached by it.
    pub fn pod_at(&self, addr: &NetworkAddr) -> Option<&Arc<Workload>> {
        self.workload_at(addr).filter(|w| is_pod(&w.uid) && w.network_mode == NetworkMode::Standard)
    }

    /// The workloads with this namespace and name, by uid: one in each cluster, and of each kind.
    pub fn workloads_named(&self, name: &NamespacedName) -> &[Arc<Workload>] {
        self.by_name.get(name)
    }

    /// A number that changes whenever a workload comes to its addresses anew. With the workload's name it tells one holder
    /// of an address from the next, also where a pod gave way to another of the same name.
    pub fn tenancy(&self, uid: &Uid) -> Option<u64> {
        self.workloads.get(uid).map(|c| c.since)
    }

    /// All workloads, in no order that means anything.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.iter().map(|(_, c)| &c.workload)
    }

    /// How many workloads there are.
    pub fn workload_count(&self) -> usize {
        self.workloads.len()
    }

    /// The service of this name.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// The service that a client in namespace `viewer` means by a virtual address.
    ///
    /// Of the services that it may see: the canonical ones, if any; among those that remain its own namespace's, else
    /// the first by namespace and host name. An empty `viewer` sees public services only. Where none has the very address,
    /// the smallest block that it is in counts, of those with a service that the viewer may see.
    pub fn service_at(&self, vip: &NetworkAddr, viewer: &str) -> Option<&Arc<Service>> {
        preferred(self.by_vip.get(vip), viewer).or_else(|| {
            let around =
                self.block_lengths.keys().rev().filter_map(|length| NetworkBlock::around(vip, *length));
            around.into_iter().find_map(|block| preferred(self.by_block.get(&block), viewer))
        })
    }

    /// The service that a client in namespace `viewer` means by a host name, preferred as for [`World::service_at`].
    pub fn service_named(&self, hostname: &str, viewer: &str) -> Option<&Arc<Service>> {
        preferred(self.by_hostname.get(hostname), viewer)
    }

    /// All services of a host name, whoever may see them, by namespace.
    pub fn services_named(&self, hostname: &str) -> &[Arc<Service>] {
        self.by_hostname.get(hostname)
    }

    /// All services, in no order that means anything.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.iter().map(|(_, s)| s)
    }

    /// How many services there are.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// The workloads that say they are endpoints of a service, by uid, whether or not the service is known.
    /// [`crate::target_port`] tells the port on each.
    pub fn endpoints(&self, service: &ServiceKey) -> &[Arc<Workload>] {
        self.endpoints.get(service)
    }

    /// The policy of this name.
    pub fn policy(&self, key: &PolicyKey) -> Option<&Arc<Policy>> {
        self.policies.get(key).map(|p| p.policy())
    }

    /// All policies, in no order that means anything.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.iter().map(|(_, p)| p.policy())
    }

    /// How many policies there are.
    pub fn policy_count(&self) -> usize {
        self.policies.len()
    }

    /// The policies in force for a workload: the mesh's, its namespace's, and those that it names.
    pub fn policies_for<'a>(&'a self, workload: &'a Workload) -> PolicySet<'a> {
        PolicySet::new(
            self.mesh_policies.as_slice(),
            self.namespace_policies.get(&workload.namespace),
            &workload.authorization_policies,
            |key| self.policies.get(key),
        )
    }
}

fn preferred<'a>(services: &'a [Arc<Service>], viewer: &str) -> Option<&'a Arc<Service>> {
    let own = |s: &Service| &*s.namespace == viewer;
    let visible = services.iter().filter(|s| s.visibility == Visibility::Public || own(s));
    visible.min_by_key(|s| (!s.canonical, !own(s)))
}
