//! The controllers that a cluster would bring. Each looks at the objects and says what should change; nothing here acts.

mod accounts;
mod deployment;
pub(crate) mod endpoints;
mod namespaces;
mod nodes;
mod pods;
mod schedule;
pub(crate) mod services;

use std::time::Duration;

use super::address::{NodePlan, VipCursor};
use super::store::{Mint, Store};

pub(crate) use endpoints::is_ready;
pub(crate) use nodes::objects as nodes;
pub(crate) use pods::{ContainerReport, ENROLLED, NETNS, Phase, PodReport, report};

/// What the controllers know beside the objects.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) nodes: &'a [NodePlan],
    pub(crate) has_v6: bool,
    pub(crate) vips: &'a mut VipCursor,
}

/// How long until the controllers have something to do though nothing has happened.
pub(crate) fn next_look(store: &Store, mint: &Mint) -> Option<Duration> {
    deployment::next_look(store, mint.now)
}

/// More rounds than any chain of causes is long (a deployment makes a pod, which is given a node, which …).
const ROUNDS: usize = 64;

/// Lets the controllers work until nothing changes any more.
pub(crate) fn settle(store: &mut Store, facts: &mut Facts<'_>, mint: &mut Mint) {
    for _ in 0..ROUNDS {
        let mut changes = namespaces::changes(store, mint);
        changes.extend(accounts::changes(store));
        changes.extend(deployment::changes(store, mint));
        changes.extend(schedule::changes(store, facts.nodes));
        changes.extend(services::changes(store, facts));
        changes.extend(endpoints::changes(store));
        let mut any = false;
        for change in changes {
            any |= store.make(change, mint);
        }
        if !any {
            return;
        }
    }
    tracing::error!("the controllers do not come to rest");
}
