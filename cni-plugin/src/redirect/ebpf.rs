//! Redirection by eBPF: programs on `connect(2)` mark, routing in the pod loops back, a program on socket lookup
//! delivers.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::time::Instant;

use ebpf_loader::{GuardError, Instance, NsConfig, OwnAddresses, PodKey};
use net::Netns;
use telemetry::access::Chain;
use zds::Exemption;
use zds::agent::Redirection;

use super::{Mended, PastTheMesh, Prepared, RedirectError};
use crate::membership::Member;
use crate::older::{By, Older, Place};
use crate::routing::{self, Routing, SocketsError, Vigil, resolvers};

/// How seldom the devices of pods are listed for new ones, in looks.
const LIST_DEVICES_EVERY: u32 = 5;

/// The programs of one instance, and what is seen of the pods that they capture.
#[derive(Debug)]
pub struct Ebpf {
    instance: Instance,
    mark: u32,
    mask: u32,
    /// The connections of captured pods that are older than their enrolment.
    older: HashMap<PodKey, Older>,
    /// The pods whose questions loop to ztunnel.
    steered: HashSet<PodKey>,
    /// What watches the routing of captured pods.
    vigils: HashMap<PodKey, Vigil>,
    /// How often the pods were looked after.
    looks: u32,
    /// Whether it has been told that devices cannot be guarded here.
    is_unguarded: bool,
}

impl Ebpf {
    /// The redirection by this instance's programs.
    pub fn new(instance: Instance, mark: u32, mask: u32) -> Self {
        Self {
            instance,
            mark,
            mask,
            older: HashMap::new(),
            steered: HashSet::new(),
            vigils: HashMap::new(),
            looks: 0,
            is_unguarded: false,
        }
    }

    pub(super) fn for_ztunnel(&self) -> Result<Redirection, RedirectError> {
        let bypass = self.instance.bypass().try_clone_to_owned().map_err(RedirectError::Bypass)?;
        let exempt = Exemption::Storage(bypass.into());
        Ok(Redirection { mark: self.mark, mask: self.mask, exempt })
    }

    pub(super) fn found(&self) -> Result<Vec<(PodKey, bool)>, RedirectError> {
        let pods = self.instance.pins().pods().map_err(RedirectError::Pins)?;
        let found = pods.into_iter().map(|pod| {
            let captured = pod.steered_in.is_some() && self.instance.is_captured(&pod.key)?;
            Ok((pod.key, captured))
        });
        found.collect()
    }

    pub(super) async fn prepare(
        &mut self,
        key: &PodKey,
        member: &Member,
        netns: &Netns,
        answers_dns: Option<bool>,
    ) -> Result<Prepared, RedirectError> {
        let prepared = self.instance.prepare(key, own(member))?;
        routing::install(netns, &self.routing(Some(member))).await?;
        if prepared.captured {
            self.guard(key, member, netns)?;
            // With the addresses that it has now.
            self.instance.capture(key, self.config(member), netns)?;
            self.steer_questions(key, member, netns, answers_dns).await?;
        }
        Ok(Prepared { listeners: Some(prepared.listeners), captured: prepared.captured })
    }

    pub(super) fn capture(
        &mut self,
        key: &PodKey,
        member: &Member,
        netns: &Netns,
        now: Instant,
    ) -> Result<(), RedirectError> {
        self.guard(key, member, netns)?;
        self.instance.capture(key, self.config(member), netns)?;
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
        match (member.dns, answers_dns) {
            (true, Some(true)) => {
                resolvers::install(netns, &self.routing(Some(member))).await?;
                self.steered.insert(key.clone());
            }
            (true, None) => {}
            (false, _) | (true, Some(false)) => {
                self.steered.remove(key);
                resolvers::remove(netns, &self.routing(None)).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn release(&mut self, key: &PodKey, netns: Option<&Netns>) -> Result<(), RedirectError> {
        self.older.remove(key);
        self.steered.remove(key);
        let answered = match netns {
            Some(netns) => resolvers::remove(netns, &self.routing(None)).await,
            None => Ok(()),
        };
        // What can be let go of is, whatever became of the questions.
        self.instance.release(key)?;
        Ok(answered?)
    }

    pub(super) fn is_captured(&self, key: &PodKey) -> Result<bool, RedirectError> {
        Ok(self.instance.is_captured(key)?)
    }

    pub(super) fn connections(&self, netns: &Netns) -> Result<usize, RedirectError> {
        Ok(routing::marked_connections(netns, self.mark, self.mask)?)
    }

    pub(super) async fn tidy(&mut self, key: &PodKey, netns: Option<&Netns>) -> Result<(), RedirectError> {
        if let Some(netns) = netns {
            routing::remove(netns, &self.routing(None)).await?;
        }
        self.instance.forget(key)?;
        self.older.remove(key);
        self.vigils.remove(key);
        Ok(())
    }

    /// Guards the devices of a pod. Says whether a guard was missing that had been there.
    fn guard(&mut self, key: &PodKey, member: &Member, netns: &Netns) -> Result<bool, RedirectError> {
        let config = self.config(member);
        match netns.run(|| self.instance.guard(key, config))? {
            Err(error @ GuardError::Unsupported(_)) => {
                if !std::mem::replace(&mut self.is_unguarded, true) {
                    tracing::warn!(error = %Chain(&error), "where a pod's routing is damaged, captured packets leave it");
                }
                Ok(false)
            }
            other => Ok(other?),
        }
    }

    pub(super) fn mend(&mut self) -> Mended {
        self.looks = self.looks.wrapping_add(1);
        match self.instance.mend() {
            Ok(what) => Mended { what, failed: None },
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
        let is_guarded = self.instance.is_guarded(key).unwrap_or(false);
        if (!is_guarded || self.looks.is_multiple_of(LIST_DEVICES_EVERY))
            && !self.is_unguarded
            && self.guard(key, member, netns)?
        {
            mended.push("guard");
        }
        mended.extend(self.instance.mend_pod(key, self.config(member), netns)?);
        let routing = self.routing(Some(member));
        let vigil = match self.vigils.entry(key.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(free) => free.insert(Vigil::begin(netns)?),
        };
        vigil.mend(netns, &routing, self.steered.contains(key), mended).await
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
        let config = self.config(member);
        let place = Place { netns, config: &config, by: By::Storage(self.instance.bypass()) };
        match self.older.get_mut(key) {
            Some(older) => older.again(&place, member.existing, now),
            None => {
                let older = Older::begin(&place, member.existing, adopted, now)?;
                self.older.insert(key.clone(), older);
                Ok(())
            }
        }
    }

    pub(super) fn past_the_mesh(
        &mut self,
        key: &PodKey,
        member: &Member,
        netns: Option<&Netns>,
        now: Instant,
    ) -> PastTheMesh {
        let noted = self.note_older(key, member, netns, true, now).map_err(|error| Chain(&error).to_string());
        let counted = self.instance.bypassed(key).map_err(|error| Chain(&error).to_string());
        let older = self.older.get(key);
        let trouble = older.and_then(Older::trouble).map(str::to_owned);
        PastTheMesh {
            bypassed: counted.as_ref().ok().copied().flatten().unwrap_or_default().total(),
            older: older.map_or(0, Older::live),
            trouble: noted.err().or(counted.err()).or(trouble),
        }
    }

    fn config(&self, member: &Member) -> NsConfig {
        NsConfig { mark: self.mark, mask: self.mask, own: own(member) }
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

fn own(member: &Member) -> OwnAddresses {
    OwnAddresses::new(member.v4, member.v6)
}
