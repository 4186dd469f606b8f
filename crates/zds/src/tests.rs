//! Both sides against each other: first as cores on a wire that can be cut anywhere, then over a real socket.

mod cut;
mod socket;
mod turns;

use std::collections::{BTreeMap, BTreeSet};

use net::Netns;

use crate::agent::Workload;
use crate::ztunnel::Event;
use crate::{Kept, PodInfo, PodUid, Stage, Turn};

fn pod(uid: &str, account: &str) -> Workload {
    Workload {
        uid: PodUid::new(uid),
        info: PodInfo { name: uid.into(), namespace: "shop".into(), service_account: account.into() },
        netns: Some(Netns::current().unwrap()),
        listener_map: None,
        dns: true,
    }
}

/// What a ztunnel does with events: the pods that it serves, by their accounts.
#[derive(Debug, Default)]
struct Registry {
    pods: BTreeMap<PodUid, String>,
    complete: bool,
    ending: Vec<(PodUid, Stage)>,
    refuse: BTreeSet<PodUid>,
    turn: Option<Turn>,
    /// It is not ready to take over.
    unready: bool,
    /// How often it had to say so.
    times_unready: usize,
    /// What it hands over with every pod.
    kept: Kept,
    /// The pods that came with listeners.
    with_listeners: BTreeSet<PodUid>,
}

impl Registry {
    fn apply(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Redirection { .. } => {}
            Event::Add { uid, .. } if self.refuse.contains(&uid) => return Err("no room".to_owned()),
            Event::Turn(Turn::TakeOver) if self.unready => {
                self.times_unready += 1;
                return Err("not yet".to_owned());
            }
            Event::Turn(turn) => self.turn = Some(turn),
            Event::Add { uid, info, kept, .. } => {
                if !kept.is_empty() {
                    self.with_listeners.insert(uid.clone());
                }
                self.pods.insert(uid, info.service_account.to_string());
            }
            Event::Keep(uid) if !self.pods.contains_key(&uid) => return Err("no such pod".to_owned()),
            Event::Keep(_) => {}
            Event::State(state) if !self.pods.contains_key(&state.uid) => {
                return Err("no such pod".to_owned());
            }
            Event::State(state) => self.ending.push((state.uid, state.stage)),
            Event::Del(uid) => {
                self.pods.remove(&uid);
            }
            Event::SnapshotSent { named } => {
                self.pods.retain(|uid, _| named.contains(uid));
                self.complete = true;
            }
        }
        Ok(())
    }

    fn has(&self, expected: &[(&str, &str)]) -> bool {
        self.pods.iter().map(|(uid, account)| (uid.as_str(), account.as_str())).eq(expected.iter().copied())
    }
}
