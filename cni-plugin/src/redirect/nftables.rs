//! Redirection by packet filter, where eBPF programs do not load: a table of nftables in the pod redirects, and connection
//! tracking knows where to. Replies to clients' addresses loop back by the same routing as with eBPF, and so do
//! questions.
//!
//! What a pod with CAP_NET_ADMIN does to its own table is put back, as with eBPF; but it can exempt its own sockets by
//! ztunnel's mark, which by eBPF it cannot.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Instant;

use ebpf_loader::{InstanceName, NsConfig, OwnAddresses, PodKey};
use net::Netns;
use telemetry::access::Chain;
use zds::Exemption;
use zds::agent::Redirection;

use super::probes::Probes;
use super::{Mended, PastTheMesh, Prepared, RedirectError};
use crate::membership::Member;
use crate::namespaces;
use crate::nft::{self, Plan, Standing, Tables, Watched};
use crate::older::{By, Older, Place};
use crate::routing::{self, Routing, SocketsError, Vigil, resolvers};

/// The tables of one instance, and what is seen of the pods that they capture.
#[derive(Debug)]
pub struct Nftables {
    tables: Tables,
    mark: u32,
    mask: u32,
    /// What tells probes, where they are told.
    probes: Option<Probes>,
    pods: HashMap<PodKey, Pod>,
    _claim: UnixDatagram,
}

/// A pod that has a table.
#[derive(Debug)]
struct Pod {
    addresses: Vec<IpAddr>,
    table: Watched,
    plan: Plan,
    vigil: Vigil,
    /// Connections that are older than its enrolment.
    older: Option<Older>,
    /// Those that were found to be past the mesh when its table was damaged, by their cookies.
    bypassed: BTreeSet<u64>,
}

impl Nftables {
    /// The redirection by this instance's tables.
    ///
    /// # Errors
    ///
    /// Another agent of this instance runs in this network namespace.
    pub fn open(instance: &InstanceName, mark: u32, mask: u32) -> Result<Self, RedirectError> {
        let claim = claim(instance)?;
        let tables = Tables::of(instance.as_str());
        Ok(Self { tables, mark, mask, probes: None, pods: HashMap::new(), _claim: claim })
    }

    /// Lets the connections of a cgroup below `root`, of processes in the node's network namespace, reach the applications
    /// of captured pods.
    ///
    /// # Errors
    ///
    /// There is no such cgroup, or the kernel does not tell connections by cgroup.
    pub fn let_probes_in(&mut self, root: &Path, cgroup: &Path, node: Netns) -> Result<(), RedirectError> {
        let failed = |source| RedirectError::Cgroup { path: cgroup.to_owned(), source };
        self.probes = Some(Probes::of(root, cgroup, node, self.mark, self.mask).map_err(failed)?);
        Ok(())
    }

    pub(super) fn for_ztunnel(&self) -> Redirection {
        Redirection { mark: self.mark, mask: self.mask, exempt: Exemption::Mark(nft::EXEMPT) }
    }

    pub(super) fn found(&self) -> Result<Vec<(PodKey, bool)>, RedirectError> {
        let mut found = Vec::new();
        for (netns, cookie) in namespaces::all().map_err(RedirectError::Namespaces)? {
            let Some(table) = self.tables.find(&netns)? else { continue };
            match PodKey::new(cookie, &table.uid) {
                Ok(key) => found.push((key, table.captures)),
                Err(error) => tracing::warn!(%error, "a table of this instance's name is nobody's"),
            }
        }
        Ok(found)
    }

    pub(super) async fn prepare(
        &mut self,
        key: &PodKey,
        member: &Member,
        netns: &Netns,
        answers_dns: Option<bool>,
    ) -> Result<Prepared, RedirectError> {
        routing::install(netns, &self.routing(Some(member))).await?;
        let found = self.tables.find(netns)?;
        let found = found.filter(|found| found.uid == key.uid() && found.captures);
        if let Some(found) = &found {
            self.install(key, member, netns, found.questions)?;
            self.steer_questions(key, member, netns, answers_dns).await?;
        }
        Ok(Prepared { listeners: None, captured: found.is_some() })
    }

    pub(super) fn capture(
        &mut self,
        key: &PodKey,
        member: &Member,
        netns: &Netns,
        now: Instant,
    ) -> Result<(), RedirectError> {
        let questions = self.pods.get(key).map(|pod| pod.plan.questions);
        self.install(key, member, netns, questions.unwrap_or_default())?;
        self.keep_probes()?;
        if let Err(error) = self.note_older(key, member, Some(netns), false, now) {
            // It is tried again when the pod is looked at.
            tracing::warn!(pod = key.uid(), error = %Chain(&error), "older connections cannot be listed");
        }
        Ok(())
    }

    pub(super) async fn steer_questions(
        &mut self,
        key: &PodKey,
        member: &Member,
        netns: &Netns,
        answers_dns: Option<bool>,
    ) -> Result<(), RedirectError> {
        let steered = match (member.dns, answers_dns) {
            (true, Some(true)) => [member.v4.is_some(), member.v6.is_some()],
            (true, None) => return Ok(()),
            (false, _) | (true, Some(false)) => [false; 2],
        };
        if steered.contains(&true) {
            self.change(key, netns, |plan| plan.questions = steered)?;
            resolvers::install(netns, &self.routing(Some(member))).await?;
        } else {
            resolvers::remove(netns, &self.routing(None)).await?;
            self.change(key, netns, |plan| plan.questions = steered)?;
        }
        Ok(())
    }

    pub(super) async fn release(&mut self, key: &PodKey, netns: Option<&Netns>) -> Result<(), RedirectError> {
        let Some(netns) = netns else {
            self.pods.remove(key);
            return Ok(());
        };
        let answered = resolvers::remove(netns, &self.routing(None)).await;
        // What can be let go of is, whatever became of the questions.
        let plan = Plan { captures: false, ..self.plan(key) };
        match self.pods.entry(key.clone()) {
            Entry::Occupied(mut pod) => {
                let pod = pod.get_mut();
                pod.table = self.tables.install(netns, &plan)?;
                (pod.plan, pod.older) = (plan, None);
            }
            Entry::Vacant(free) => {
                // An earlier process captured it, if anybody did.
                if self.tables.find(netns)?.is_some() {
                    free.insert(Pod::begin(self.tables.install(netns, &plan)?, plan, netns)?);
                }
            }
        }
        self.keep_probes()?;
        Ok(answered?)
    }

    pub(super) fn is_captured(&self, key: &PodKey) -> Result<bool, RedirectError> {
        if let Some(pod) = self.pods.get(key) {
            return Ok(pod.plan.captures);
        }
        let netns = namespaces::locate(key.cookie()).map_err(RedirectError::Namespaces)?;
        let found = netns.map(|netns| self.tables.find(&netns)).transpose()?.flatten();
        Ok(found.is_some_and(|found| found.uid == key.uid() && found.captures))
    }

    pub(super) fn connections(&self, netns: &Netns) -> Result<usize, RedirectError> {
        let marked = routing::marked_connections(netns, self.mark, self.mask)?;
        // Those that were redirected are translated as long as the table is there.
        Ok(marked + routing::connections_at(netns, &[nft::OUTBOUND, nft::INBOUND])?)
    }

    pub(super) async fn tidy(&mut self, key: &PodKey, netns: Option<&Netns>) -> Result<(), RedirectError> {
        if let Some(netns) = netns {
            self.tables.remove(netns)?;
            routing::remove(netns, &self.routing(None)).await?;
        }
        self.pods.remove(key);
        Ok(())
    }

    pub(super) fn mend(&mut self) -> Mended {
        match self.keep_probes() {
            Ok(true) => Mended { what: vec!["probes"], failed: None },
            Ok(false) => Mended::default(),
            Err(error) => Mended { what: Vec::new(), failed: Some(Chain(&error).to_string()) },
        }
    }

    pub(super) async fn mend_pod(
        &mut self,
        key: &PodKey,
        member: &Member,
        netns: &Netns,
        mended: &mut Vec<&'static str>,
    ) -> Result<(), RedirectError> {
        let routing = self.routing(Some(member));
        let place = Place { netns, config: &self.config(member), by: By::Ports };
        let Some(pod) = self.pods.get_mut(key) else { return Ok(()) };
        if pod.table.look()? == Standing::Damaged {
            pod.table = self.tables.install(netns, &pod.plan)?;
            mended.push("table");
            pod.count_bypassed(&place)?;
        }
        let steered = pod.plan.questions.contains(&true);
        pod.vigil.mend(netns, &routing, steered, mended).await
    }

    pub(super) fn past_the_mesh(
        &mut self,
        key: &PodKey,
        member: &Member,
        netns: Option<&Netns>,
        now: Instant,
    ) -> PastTheMesh {
        let noted = self.note_older(key, member, netns, true, now).map_err(|error| Chain(&error).to_string());
        let Some(pod) = self.pods.get_mut(key) else { return PastTheMesh::default() };
        let older = pod.older.as_ref();
        let trouble = older.and_then(Older::trouble).map(str::to_owned);
        let dropped = match pod.table.dropped() {
            Ok(0) => None,
            Ok(packets) => Some(format!(
                "{packets} packets that would have left past the mesh were dropped: somebody's rules or routes come first"
            )),
            Err(error) => Some(Chain(&error).to_string()),
        };
        PastTheMesh {
            bypassed: pod.bypassed.len() as u64,
            older: older.map_or(0, Older::live),
            trouble: noted.err().or(trouble).or(dropped),
        }
    }

    fn note_older(
        &mut self,
        key: &PodKey,
        member: &Member,
        netns: Option<&Netns>,
        adopted: bool,
        now: Instant,
    ) -> Result<(), SocketsError> {
        let Some(netns) = netns else { return Ok(()) };
        let place = Place { netns, config: &self.config(member), by: By::Ports };
        let Some(pod) = self.pods.get_mut(key) else { return Ok(()) };
        match &mut pod.older {
            Some(older) => older.again(&place, member.existing, now),
            None => {
                pod.older = Some(Older::begin(&place, member.existing, adopted, now)?);
                Ok(())
            }
        }
    }

    /// Puts the table of a captured pod in place, in whatever state it was.
    fn install(
        &mut self,
        key: &PodKey,
        member: &Member,
        netns: &Netns,
        questions: [bool; 2],
    ) -> Result<(), RedirectError> {
        let plan = Plan { questions, ..self.plan(key) };
        let table = self.tables.install(netns, &plan)?;
        let pod = match self.pods.entry(key.clone()) {
            Entry::Occupied(pod) => {
                let pod = pod.into_mut();
                (pod.table, pod.plan) = (table, plan);
                pod
            }
            Entry::Vacant(free) => free.insert(Pod::begin(table, plan, netns)?),
        };
        pod.addresses = member.addresses().collect();
        Ok(())
    }

    /// Lets probes reach the pods that are captured now. Says whether what does so was damaged.
    fn keep_probes(&mut self) -> Result<bool, RedirectError> {
        let Some(probes) = &mut self.probes else { return Ok(false) };
        let captured = self.pods.values().filter(|pod| pod.plan.captures);
        Ok(probes.keep(&self.tables, captured.flat_map(|pod| pod.addresses.iter().copied()).collect())?)
    }

    fn plan(&self, key: &PodKey) -> Plan {
        Plan {
            uid: key.uid().to_owned(),
            captures: true,
            questions: [false; 2],
            probes: self.probes.is_some(),
            mark: self.mark,
            mask: self.mask,
        }
    }

    /// Changes what the table of a captured pod does, if that is news.
    fn change(
        &mut self,
        key: &PodKey,
        netns: &Netns,
        with: impl FnOnce(&mut Plan),
    ) -> Result<(), RedirectError> {
        let Some(pod) = self.pods.get_mut(key) else { return Ok(()) };
        let mut plan = pod.plan.clone();
        with(&mut plan);
        if plan != pod.plan {
            pod.table = self.tables.install(netns, &plan)?;
            pod.plan = plan;
        }
        Ok(())
    }

    fn config(&self, member: &Member) -> NsConfig {
        NsConfig { mark: self.mark, mask: self.mask, own: OwnAddresses::new(member.v4, member.v6) }
    }

    fn routing(&self, member: Option<&Member>) -> Routing {
        Routing {
            mark: self.mark,
            mask: self.mask,
            v4: member.and_then(|member| member.v4),
            v6: member.and_then(|member| member.v6),
        }
    }
}

/// Claims the instance for this process: two agents would undo each other's tables.
///
/// # Errors
///
/// It is another process's.
pub fn claim(instance: &InstanceName) -> Result<UnixDatagram, RedirectError> {
    let name = format!("ambit-agent-{}", instance.as_str());
    let claimed = SocketAddr::from_abstract_name(&name).and_then(|name| UnixDatagram::bind_addr(&name));
    claimed.map_err(|source| RedirectError::InUse { instance: instance.as_str().to_owned(), source })
}

impl Pod {
    fn begin(table: Watched, plan: Plan, netns: &Netns) -> Result<Self, RedirectError> {
        Ok(Self {
            addresses: Vec::new(),
            table,
            plan,
            vigil: Vigil::begin(netns)?,
            older: None,
            bypassed: BTreeSet::new(),
        })
    }

    /// Takes note of what got past the mesh while the table was not there.
    fn count_bypassed(&mut self, place: &Place<'_>) -> Result<(), SocketsError> {
        let is_older = |cookie| self.older.as_ref().is_some_and(|older| older.holds(cookie));
        let found = place.past_the_mesh()?.into_iter().filter(|connection| connection.is_live);
        let news: Vec<u64> =
            found.map(|connection| connection.cookie()).filter(|cookie| !is_older(*cookie)).collect();
        self.bypassed.extend(news);
        Ok(())
    }
}
