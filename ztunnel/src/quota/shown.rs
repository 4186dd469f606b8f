//! How the quotas stand, for people.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use serde::Serialize;
use zds::PodUid;

use super::{Account, Lack, Quotas, Resource};

impl Quotas {
    /// How things stand.
    pub fn shown(&self) -> Shown {
        let node = &self.0;
        let accounts: Vec<_> =
            node.accounts.lock().iter().filter_map(|(uid, a)| Some((uid.clone(), a.upgrade()?))).collect();
        Shown {
            short_of_memory: node.pressed.load(Ordering::Relaxed),
            used: by_resource(|r| Some(node.used.get(r))),
            bound: by_resource(|r| Some(node.bounds.of(r).node).filter(|n| *n != u64::MAX)),
            pod_bound: by_resource(|r| Some(node.bounds.of(r).pod).filter(|n| *n != u64::MAX)),
            pods: accounts.into_iter().map(|(uid, account)| account.shown(uid)).collect(),
        }
    }
}

impl Account {
    fn shown(&self, uid: PodUid) -> ShownAccount {
        let bounds = &self.node.bounds;
        let is_full = |r: &Resource| bounds.of(*r).room(self.used.get(*r), self.node.used.get(*r)) == 0;
        let refused = Lack::ALL.into_iter().map(|l| (l, self.refused[l.place()].load(Ordering::Relaxed)));
        ShownAccount {
            uid,
            used: by_resource(|r| Some(self.used.get(r))),
            most: by_resource(|r| Some(self.most.get(r))),
            at_limit: Resource::ALL.iter().filter(|r| is_full(r)).map(|r| r.as_str()).collect(),
            refused: refused.filter(|(_, n)| *n > 0).map(|(l, n)| (l.as_str(), n)).collect(),
        }
    }
}

type ByResource = BTreeMap<&'static str, u64>;

fn by_resource(of: impl Fn(Resource) -> Option<u64>) -> ByResource {
    Resource::ALL.into_iter().filter_map(|r| Some((r.as_str(), of(r)?))).collect()
}

/// How the quotas stand.
#[derive(Clone, Debug, Serialize)]
pub struct Shown {
    /// The process has more memory than it should.
    pub short_of_memory: bool,
    /// What is held.
    pub used: ByResource,
    /// What there is.
    pub bound: ByResource,
    /// What a pod may have, however much is free.
    pub pod_bound: ByResource,
    /// The pods.
    pub pods: Vec<ShownAccount>,
}

/// How a pod's quotas stand.
#[derive(Clone, Debug, Serialize)]
pub struct ShownAccount {
    /// The pod.
    pub uid: PodUid,
    /// What it holds.
    pub used: ByResource,
    /// The most that it asked for or held at once.
    pub most: ByResource,
    /// Of what it can get no more.
    pub at_limit: Vec<&'static str>,
    /// What it was refused, by what was lacking.
    pub refused: ByResource,
}
