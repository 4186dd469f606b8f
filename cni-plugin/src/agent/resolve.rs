//! From pods to network namespaces: under which key each member is known.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebpf_loader::PodKey;
use manifest::Outside;
use telemetry::access::Chain;

use crate::membership::{Lack, Member, Membership};
use crate::namespaces::{Forbidden, PodNamespace, PodNamespaceError};
use crate::node::Node;
use crate::roster::Roster;
use crate::status::PodStatus;

/// After how long a namespace that could not be opened is tried again; its path may appear after the pod's object.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

type Memberships = BTreeMap<Arc<str>, Membership>;

/// Opens the namespaces of pods, once each, and remembers what cannot be resolved.
#[derive(Debug)]
pub(super) struct Resolver {
    forbidden: Forbidden,
    opened: HashMap<Arc<str>, Opened>,
    unresolved: Vec<PodStatus>,
    again_at: Option<Instant>,
}

/// A namespace that was found to have a pod's addresses.
#[derive(Debug)]
struct Opened {
    namespace: PodNamespace,
    has: [Option<IpAddr>; 2],
}

/// Whether the pod with this key still runs, as far as the objects tell.
pub(super) fn is_there(memberships: &Memberships, key: &PodKey) -> bool {
    memberships
        .get(key.uid())
        .is_some_and(|membership| !matches!(membership, Membership::Outside { why: Outside::Finished, .. }))
}

impl Resolver {
    pub(super) fn new(forbidden: Forbidden) -> Self {
        Self { forbidden, opened: HashMap::new(), unresolved: Vec::new(), again_at: None }
    }

    /// When to resolve again though no object has changed.
    pub(super) fn again_at(&self) -> Option<Instant> {
        self.again_at
    }

    /// Pods that belong to the mesh and cannot be enrolled for what is unknown of them.
    pub(super) fn unresolved(&self) -> impl Iterator<Item = &PodStatus> {
        self.unresolved.iter()
    }

    /// The members under their keys.
    ///
    /// A member that is enrolled and of which something cannot be told at the moment stays what it was.
    pub(super) fn resolve(
        &mut self,
        memberships: &Memberships,
        roster: &Roster,
        node: &mut Node,
        now: Instant,
    ) -> BTreeMap<PodKey, Member> {
        self.opened.retain(|uid, _| memberships.contains_key(uid));
        self.unresolved.clear();
        self.again_at = None;
        let mut members = BTreeMap::new();
        let mut holders: HashMap<u64, Arc<str>> = HashMap::new();
        // Of two that name the same namespace the one that is enrolled in it keeps it: it was there first.
        let mut in_order: Vec<_> = memberships.iter().collect();
        in_order.sort_by_key(|(uid, _)| enrolled(roster, uid).is_none());
        for (uid, membership) in in_order {
            match membership {
                // One that an earlier process enrolled is let go in its namespace.
                Membership::Outside { netns: Some(path), .. } => {
                    for key in roster.keys_of(uid) {
                        if let Ok(found) = PodNamespace::open(path, &self.forbidden)
                            && found.cookie == key.cookie()
                        {
                            node.know(key, &found.netns);
                        }
                    }
                }
                Membership::Outside { netns: None, .. } => {}
                Membership::Member(member) => match self.key_of(member) {
                    Ok((key, namespace)) => {
                        if let Some(holder) = holders.insert(key.cookie(), uid.clone()) {
                            let reason = format!("its network namespace is also that of the pod {holder}");
                            self.unresolved.push(PodStatus::failed(member, reason));
                            holders.insert(key.cookie(), holder);
                            continue;
                        }
                        node.know(&key, &namespace.netns);
                        members.insert(key, member.clone());
                    }
                    Err(reason) => {
                        self.again_at = Some(now + AGAIN_AFTER);
                        match enrolled(roster, uid) {
                            Some(key) => drop(members.insert(key, member.clone())),
                            None => self.unresolved.push(PodStatus::failed(member, reason)),
                        }
                    }
                },
                Membership::Incomplete { namespace, name, lacks } => {
                    let known = enrolled(roster, uid)
                        .and_then(|key| roster.member(&key).cloned().map(|member| (key, member)));
                    match known {
                        Some((key, member)) => drop(members.insert(key, member)),
                        None => self.unresolved.push(pending(uid, namespace, name, lacks)),
                    }
                }
            }
        }
        members
    }

    fn key_of(&mut self, member: &Member) -> Result<(PodKey, PodNamespace), String> {
        let has = [member.v4.map(IpAddr::from), member.v6.map(IpAddr::from)];
        let namespace = match self.opened.get(&member.uid) {
            Some(opened) if opened.has == has && opened.namespace.is_at(&member.netns) => {
                opened.namespace.clone()
            }
            _ => {
                let namespace = self.open(member, has).map_err(|error| Chain(&error).to_string())?;
                self.opened.insert(member.uid.clone(), Opened { namespace: namespace.clone(), has });
                namespace
            }
        };
        let key = PodKey::new(namespace.cookie, &member.uid).map_err(|error| error.to_string())?;
        Ok((key, namespace))
    }

    fn open(&self, member: &Member, has: [Option<IpAddr>; 2]) -> Result<PodNamespace, PodNamespaceError> {
        let namespace = PodNamespace::open(&member.netns, &self.forbidden)?;
        namespace.check_holds(has.into_iter().flatten())?;
        Ok(namespace)
    }
}

/// The key under which a pod is captured, if it is.
fn enrolled(roster: &Roster, uid: &str) -> Option<PodKey> {
    roster.keys_of(uid).find(|key| roster.is_captured(key)).cloned()
}

fn pending(uid: &Arc<str>, namespace: &Arc<str>, name: &Arc<str>, lacks: &Lack) -> PodStatus {
    PodStatus {
        uid: uid.to_string(),
        namespace: namespace.to_string(),
        name: name.to_string(),
        ips: Vec::new(),
        netns: None,
        netns_cookie: None,
        state: crate::status::Shown::Pending,
        reason: Some(lacks.to_string()),
        bypassed: 0,
        older_connections: 0,
        repairs: 0,
    }
}
