//! Quotas: how much of the proxy one pod may have.
//!
//! Every socket of the data path, every tunnel, and every byte that a peer was allowed to send before somebody reads it is
//! held by a [`Permit`] of a pod's [`Account`]. Whether there is one is decided by [`Bound::room`]: there are limits of
//! a pod's own, and a share of what is free on the node. What has none is refused, told and counted; it never waits.
//!
//! The process's real memory is watched beside that ([`watch`]), because not all of it can be foreseen: while it is over
//! the bound, pods that have no less than the average get no more connections.

mod bounds;
mod machine;
mod shown;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use thiserror::Error;
use zds::PodUid;

pub use bounds::{Amount, Bound, Bounds, Machine, Resource, Settings, WINDOW_LEAST, window};
pub use machine::watch;
pub use shown::{Shown, ShownAccount};

use crate::metrics::Metrics;

/// The quotas of the node. Cloning is cheap and shares them.
#[derive(Clone, Debug)]
pub struct Quotas(Arc<Node>);

#[derive(Debug)]
struct Node {
    bounds: Bounds,
    used: Used,
    /// The process has more memory than it should.
    pressed: AtomicBool,
    accounts: Mutex<BTreeMap<PodUid, Weak<Account>>>,
    metrics: Metrics,
}

/// What is held at the moment.
#[derive(Debug, Default)]
struct Used([AtomicU64; 4]);

impl Used {
    fn add(&self, resource: Resource, n: u64) -> u64 {
        self.0[resource as usize].fetch_add(n, Ordering::Relaxed)
    }

    fn take(&self, resource: Resource, n: u64) {
        self.0[resource as usize].fetch_sub(n, Ordering::Relaxed);
    }

    fn get(&self, resource: Resource) -> u64 {
        self.0[resource as usize].load(Ordering::Relaxed)
    }
}

/// What a pod holds. Shared by the shards.
#[derive(Debug)]
pub struct Account {
    node: Arc<Node>,
    used: Used,
    most: Used,
    refused: [AtomicU64; Lack::ALL.len()],
    /// The pod's buffers are at their bound, so that new ones are to be small.
    scarce: AtomicBool,
}

/// What was lacking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// The pod has as much of it as it may.
    Of(Resource),
    /// Too many handshakes with the pod were under way, and this one was the oldest of the peer that had the most.
    Handshakes,
}

impl Lack {
    /// All of them, in the order of their places.
    pub const ALL: [Self; 5] = [
        Self::Of(Resource::Connections),
        Self::Of(Resource::Streams),
        Self::Of(Resource::Descriptors),
        Self::Of(Resource::Memory),
        Self::Handshakes,
    ];

    fn place(self) -> usize {
        match self {
            Self::Of(resource) => resource as usize,
            Self::Handshakes => Resource::ALL.len(),
        }
    }

    /// The word on pages and in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Of(resource) => resource.as_str(),
            Self::Handshakes => "handshakes",
        }
    }
}

/// A pod is at its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Excess {
    /// It has as much as it may.
    #[error("the pod is at its quota of {} on this node: it has {held} and may have {most}", resource.as_str())]
    Quota {
        /// Of what.
        resource: Resource,
        /// How much it has.
        held: u64,
        /// How much it could have at this moment.
        most: u64,
    },
    /// The proxy's memory is short, and the pod has no less than others.
    #[error("the proxy's memory is short, and the pod has no less than its part of the connections")]
    Pressed,
    /// There were too many handshakes with the pod, and the peer had the most and younger ones.
    #[error(
        "too many handshakes with the pod are under way, and this was the slowest of the peer that has the most"
    )]
    Handshakes,
}

impl Excess {
    /// What was lacking.
    pub fn lack(&self) -> Lack {
        match self {
            Self::Quota { resource, .. } => Lack::Of(*resource),
            Self::Pressed => Lack::Of(Resource::Memory),
            Self::Handshakes => Lack::Handshakes,
        }
    }
}

impl Quotas {
    /// Quotas that count on these metrics.
    pub fn new(bounds: Bounds, metrics: Metrics) -> Self {
        for resource in Resource::ALL {
            metrics.quota_bound(resource, bounds.of(resource).node);
        }
        let (used, pressed) = (Used::default(), AtomicBool::new(false));
        Self(Arc::new(Node { bounds, used, pressed, accounts: Mutex::default(), metrics }))
    }

    /// The pod's account: one for all shards, and as long as any of them serves it.
    pub fn account(&self, pod: &PodUid) -> Arc<Account> {
        let accounts = &mut *self.0.accounts.lock();
        if let Some(account) = accounts.get(pod).and_then(Weak::upgrade) {
            return account;
        }
        accounts.retain(|_, account| account.strong_count() > 0);
        let account = Arc::new(Account {
            node: self.0.clone(),
            used: Used::default(),
            most: Used::default(),
            refused: Default::default(),
            scarce: AtomicBool::new(false),
        });
        accounts.insert(pod.clone(), Arc::downgrade(&account));
        account
    }

    /// The bound of a resource.
    pub fn bound(&self, resource: Resource) -> &Bound {
        self.0.bounds.of(resource)
    }

    /// Says whether the process has more memory than it should.
    pub fn press(&self, pressed: bool) {
        self.0.pressed.store(pressed, Ordering::Relaxed);
    }

    fn count(&self) {
        for resource in Resource::ALL {
            self.0.metrics.quota_used(resource, self.0.used.get(resource));
        }
    }
}

impl Default for Quotas {
    fn default() -> Self {
        Self::new(Bounds::NONE, Metrics::default())
    }
}

impl Account {
    /// Takes so much, until the permit is dropped.
    ///
    /// # Errors
    /// If the pod is at a limit; that is counted.
    pub fn admit(self: &Arc<Self>, amount: Amount) -> Result<Permit, Excess> {
        self.take(amount).inspect_err(|excess| self.refuse(*excess))
    }

    /// Counts a refusal that was decided elsewhere.
    pub fn refuse(&self, excess: Excess) {
        let lack = excess.lack();
        self.refused[lack.place()].fetch_add(1, Ordering::Relaxed);
        self.node.metrics.quota_refused(lack);
    }

    /// Takes so much whatever the limits are: what must be there for the pod to be served at all.
    pub fn force(self: &Arc<Self>, amount: Amount) -> Permit {
        let mut permit = self.nothing();
        for resource in Resource::ALL {
            permit.add(resource, amount.get(resource));
        }
        permit
    }

    /// A window for a new tunnel connection, `most` bytes at most, and the permit for the bytes that may lie in it.
    ///
    /// # Errors
    /// If there is no room, not even for the smallest.
    pub fn window(self: &Arc<Self>, most: u32) -> Result<(u32, Permit), Excess> {
        let (own, all) = (self.used.get(Resource::Memory), self.node.used.get(Resource::Memory));
        let bound = self.node.bounds.of(Resource::Memory);
        let size = window(bound.room(own, all), bound.room(0, 0), most);
        let permit = self.admit(Amount::of(Resource::Memory, size.into()))?;
        Ok((size, permit))
    }

    /// Whether the pod's buffers are at their bound, so that new ones are to be small.
    pub fn is_scarce(&self) -> bool {
        self.scarce.load(Ordering::Relaxed)
    }

    /// Bytes wait for a slow reader.
    pub(crate) fn hold(&self, bytes: u64) {
        let own = self.used.add(Resource::Memory, bytes);
        let all = self.node.used.add(Resource::Memory, bytes);
        self.most.0[Resource::Memory as usize].fetch_max(own + bytes, Ordering::Relaxed);
        if self.node.bounds.of(Resource::Memory).room(own, all) < bytes {
            self.scarce.store(true, Ordering::Relaxed);
        }
    }

    /// They wait no more.
    pub(crate) fn let_go(&self, bytes: u64) {
        self.used.take(Resource::Memory, bytes);
        self.node.used.take(Resource::Memory, bytes);
        if self.is_scarce() {
            let (own, all) = (self.used.get(Resource::Memory), self.node.used.get(Resource::Memory));
            let still = self.node.bounds.of(Resource::Memory).room(own, all) == 0;
            self.scarce.store(still, Ordering::Relaxed);
        }
    }

    /// How much of a resource the pod holds.
    pub fn used(&self, resource: Resource) -> u64 {
        self.used.get(resource)
    }

    fn nothing(self: &Arc<Self>) -> Permit {
        Permit { account: self.clone(), amount: Amount::default() }
    }

    fn take(self: &Arc<Self>, amount: Amount) -> Result<Permit, Excess> {
        let is_new = amount.get(Resource::Connections) + amount.get(Resource::Streams) > 0;
        if is_new && self.node.pressed.load(Ordering::Relaxed) && self.has_its_part() {
            return Err(Excess::Pressed);
        }
        // What was taken before the refusal is given back with the permit.
        let mut permit = self.nothing();
        for resource in Resource::ALL {
            let n = amount.get(resource);
            if n == 0 {
                continue;
            }
            let (held, all) = permit.add(resource, n);
            let room = self.node.bounds.of(resource).room(held, all);
            if room < n {
                return Err(Excess::Quota { resource, held, most: held + room });
            }
        }
        Ok(permit)
    }

    /// Whether the pod has no less than the average of the connections and tunnels.
    fn has_its_part(&self) -> bool {
        let sum = |used: &Used| used.get(Resource::Connections) + used.get(Resource::Streams);
        let pods = self.node.accounts.lock().values().filter(|a| a.strong_count() > 0).count() as u64;
        sum(&self.used) * pods >= sum(&self.node.used)
    }
}

/// The right to what a pod holds, given back on drop.
#[derive(Debug)]
#[must_use = "dropping it gives back what it is for"]
pub struct Permit {
    account: Arc<Account>,
    amount: Amount,
}

impl Permit {
    /// Takes more, and tells what the pod and all pods had before.
    fn add(&mut self, resource: Resource, n: u64) -> (u64, u64) {
        self.amount.0[resource as usize] += n;
        let own = self.account.used.add(resource, n);
        self.account.most.0[resource as usize].fetch_max(own + n, Ordering::Relaxed);
        (own, self.account.node.used.add(resource, n))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        for resource in Resource::ALL {
            let n = self.amount.get(resource);
            if n > 0 {
                self.account.used.take(resource, n);
                self.account.node.used.take(resource, n);
            }
        }
    }
}

#[cfg(test)]
mod tests;
