//! Looking after captured pods: what was damaged is put back, and what goes past the mesh is counted.

use std::collections::BTreeMap;
use std::time::Duration;

use ebpf_loader::PodKey;

use super::{Agent, now};
use crate::membership::Member;
use crate::redirect::Mended;
use crate::status::Seen;

/// How often. What is damaged is put back within a second, also on a machine that is slow for a while.
pub(super) const EVERY: Duration = Duration::from_millis(400);

impl Agent {
    /// Looks after the node and each pod that is captured.
    pub(super) async fn look(&mut self) {
        let mended = self.node.mend();
        for what in &mended.what {
            self.status.count_repair(what);
        }
        if let Some(happened) = news(&mended, &self.mended) {
            tracing::warn!(happened, "the redirection of the whole node was damaged");
        }
        let captured = self.roster.standings().filter(|pod| self.roster.is_captured(pod.key));
        let captured: Vec<(PodKey, Member)> =
            captured.filter_map(|pod| Some((pod.key.clone(), pod.member?.clone()))).collect();
        let mut seen = BTreeMap::new();
        for (key, member) in captured {
            let now = self.look_at(&key, &member, mended.failed.as_ref()).await;
            seen.insert(key, now);
        }
        self.seen = seen;
        self.mended = mended;
    }

    async fn look_at(&mut self, key: &PodKey, member: &Member, nodes_trouble: Option<&String>) -> Seen {
        let before = self.seen.remove(key).unwrap_or_default();
        let name = format!("{}/{}", member.namespace, member.name);
        let (uid, name) = (key.uid(), name.as_str());
        let mended = self.node.mend_pod(key, member).await;
        for what in &mended.what {
            self.status.count_repair(what);
        }
        if let Some(happened) = news(&mended, &before.mended) {
            tracing::warn!(uid, name, happened, "what captures a pod was damaged");
        }
        let past = self.node.past_the_mesh(key, member, now());
        if past.bypassed > before.past.bypassed {
            let count = past.bypassed;
            tracing::warn!(uid, name, count, "connections of an enrolled pod got past the mesh");
        }
        if let Some(trouble) = past.trouble.as_ref().filter(|_| past.trouble != before.past.trouble) {
            tracing::warn!(uid, name, trouble, "not all that goes past the mesh is known or ended");
        }
        let repairs = before.repairs + mended.what.len() as u64;
        let broken = mended.failed.clone().or_else(|| nodes_trouble.cloned());
        Seen { past, repairs, mended, broken }
    }
}

/// What is to be said of damage: once for each time that it happens, and not while it lasts.
fn news(now: &Mended, before: &Mended) -> Option<String> {
    if now == before {
        return None;
    }
    let put_back = (!now.what.is_empty()).then(|| format!("put back: {}", now.what.join(", ")));
    let told: Vec<String> = put_back.into_iter().chain(now.failed.clone()).collect();
    (!told.is_empty()).then(|| told.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mended(what: &[&'static str], failed: Option<&str>) -> Mended {
        Mended { what: what.to_vec(), failed: failed.map(str::to_owned) }
    }

    #[test]
    fn damage_is_told_once_and_its_end_is_not() {
        let whole = Mended::default();
        let routing = mended(&["routing"], None);
        let stuck = mended(&["steer"], Some("the map is full"));
        assert_eq!(news(&whole, &whole), None);
        assert_eq!(news(&routing, &whole).unwrap(), "put back: routing");
        assert_eq!(news(&whole, &routing), None);
        assert_eq!(news(&stuck, &whole).unwrap(), "put back: steer; the map is full");
        assert_eq!(news(&stuck, &stuck), None);
    }
}
