//! Does what the [roster](crate::roster) says: to the kernel, inside pods, and towards ztunnel.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use ebpf_loader::PodKey;
use net::Netns;
use telemetry::access::Chain;
use zds::agent::{RemoveError, Server, Workload};
use zds::{PodInfo, PodUid};

use crate::membership::Member;
use crate::namespaces;
use crate::redirect::{Mended, PastTheMesh, Prepared, Redirect, RedirectError};
use crate::roster::{Outcome, Step};

/// The node: its redirection, the namespaces of its pods, and what ztunnel was told.
#[derive(Debug)]
pub struct Node {
    redirect: Redirect,
    ztunnel: Server,
    namespaces: HashMap<PodKey, Netns>,
    /// Under which key ztunnel knows a pod.
    told: HashMap<String, PodKey>,
}

impl Node {
    /// The node whose redirection this is, and whose ztunnel is told by `ztunnel`.
    pub fn new(redirect: Redirect, ztunnel: Server) -> Self {
        Self { redirect, ztunnel, namespaces: HashMap::new(), told: HashMap::new() }
    }

    /// Remembers the network namespace of a pod until it is tidied.
    pub fn know(&mut self, key: &PodKey, netns: &Netns) {
        self.namespaces.entry(key.clone()).or_insert_with(|| netns.clone());
    }

    /// Does a step, but for [`Step::Withdraw`]. `member` is who the pod is, where it belongs to the mesh.
    pub async fn perform(&mut self, step: &Step, member: Option<&Member>, now: Instant) -> Outcome {
        match (step, member) {
            (Step::Prepare(key), Some(member)) => self.prepare(key, member).await,
            (Step::Capture(key), Some(member)) => self.capture(key, member, now).await,
            (Step::Release(key), _) => self.release(key).await,
            (Step::CountConnections(key), _) => self.count_connections(key),
            (Step::Tidy(key), _) => self.tidy(key).await,
            // A pod that belongs to the mesh no more is neither prepared nor captured.
            (Step::Prepare(_) | Step::Capture(_), None) | (Step::Withdraw(_), _) => Outcome::Done,
        }
    }

    /// Tells ztunnel that a pod leaves. The future ends when it has answered or nobody is there to answer; it need
    /// not borrow the node.
    pub fn withdraw(&mut self, key: &PodKey) -> impl Future<Output = PodKey> + Send + 'static {
        let told = self.untell(key);
        let (ztunnel, key) = (self.ztunnel.clone(), key.clone());
        async move {
            if told {
                match ztunnel.remove(&PodUid::new(key.uid())).await {
                    Ok(()) | Err(RemoveError::NotConnected) => {}
                    Err(error) => tracing::warn!(pod = key.uid(), %error, "ztunnel does not let a pod go"),
                }
            }
            key
        }
    }

    /// Whether ztunnel knows the pod under this key, which it does not any more afterwards.
    fn untell(&mut self, key: &PodKey) -> bool {
        let told = self.told.get(key.uid()) == Some(key);
        if told {
            self.told.remove(key.uid());
        }
        told
    }

    async fn prepare(&mut self, key: &PodKey, member: &Member) -> Outcome {
        let prepared = match self.netns(key) {
            Some(netns) => {
                match self.redirect.prepare(key, member, &netns, self.ztunnel.answers_dns()).await {
                    Ok(prepared) => Ok((netns, prepared)),
                    Err(error) => Err(StepError::from(error)),
                }
            }
            None => Err(StepError::NoNetns),
        };
        match prepared {
            Ok((netns, Prepared { listeners, captured })) => {
                self.tell(key, member, Some((netns, listeners)));
                if captured { Outcome::AlreadyCaptured } else { Outcome::Done }
            }
            Err(error) => {
                let untold = !self.told.contains_key(key.uid());
                if untold && self.redirect.is_captured(key).unwrap_or(true) {
                    // An earlier process told it: ztunnel is to keep what it has rather than to think the pod gone.
                    self.tell(key, member, None);
                }
                failed(&error)
            }
        }
    }

    async fn capture(&mut self, key: &PodKey, member: &Member, now: Instant) -> Outcome {
        let Some(netns) = self.netns(key) else { return failed(&StepError::NoNetns) };
        let captured = match self.redirect.capture(key, member, &netns, now) {
            Ok(()) => self.redirect.steer_questions(key, member, &netns, self.ztunnel.answers_dns()).await,
            Err(error) => Err(error),
        };
        done(captured)
    }

    async fn release(&mut self, key: &PodKey) -> Outcome {
        let netns = self.netns(key);
        done(self.redirect.release(key, netns.as_ref()).await)
    }

    /// Looks whether what captures for the whole node still stands, and puts it back.
    pub fn mend(&mut self) -> Mended {
        self.redirect.mend()
    }

    /// Looks whether what captures a pod still stands, and puts it back.
    pub async fn mend_pod(&mut self, key: &PodKey, member: &Member) -> Mended {
        match self.netns(key) {
            Some(netns) => self.redirect.mend_pod(key, member, &netns).await,
            None => Mended { what: Vec::new(), failed: Some(StepError::NoNetns.to_string()) },
        }
    }

    /// Looks how much of a captured pod goes past the mesh.
    pub fn past_the_mesh(&mut self, key: &PodKey, member: &Member, now: Instant) -> PastTheMesh {
        let netns = self.netns(key);
        self.redirect.past_the_mesh(key, member, netns.as_ref(), now)
    }

    fn count_connections(&mut self, key: &PodKey) -> Outcome {
        // With the namespace, its connections are gone.
        let Some(netns) = self.netns(key) else { return Outcome::Connections(0) };
        match self.redirect.connections(&netns) {
            Ok(count) => Outcome::Connections(count),
            Err(error) => failed(&error),
        }
    }

    async fn tidy(&mut self, key: &PodKey) -> Outcome {
        let netns = self.netns(key);
        if let Err(error) = self.redirect.tidy(key, netns.as_ref()).await {
            return failed(&error);
        }
        self.namespaces.remove(key);
        if self.untell(key) {
            // Of a pod whose preparation never succeeded; nobody waits for the answer.
            let ztunnel = self.ztunnel.clone();
            let uid = PodUid::new(key.uid());
            tokio::spawn(async move { ztunnel.remove(&uid).await });
        }
        Outcome::Done
    }

    /// Tells ztunnel of a pod: with what it needs to serve it, or only that it is still there.
    fn tell(&mut self, key: &PodKey, member: &Member, with: Option<(Netns, Option<OwnedFd>)>) {
        let (netns, listeners) = with.unzip();
        let listener_map = listeners.flatten().map(Arc::new);
        let info = PodInfo {
            name: member.name.clone(),
            namespace: member.namespace.clone(),
            service_account: member.service_account.clone(),
        };
        self.told.insert(key.uid().to_owned(), key.clone());
        let dns = member.dns;
        self.ztunnel.put(Workload { uid: PodUid::new(key.uid()), info, netns, listener_map, dns });
    }

    /// The pod's namespace, searched for if it is not known.
    fn netns(&mut self, key: &PodKey) -> Option<Netns> {
        if let Some(netns) = self.namespaces.get(key) {
            return Some(netns.clone());
        }
        match namespaces::locate(key.cookie()) {
            Ok(found) => found.inspect(|netns| self.know(key, netns)),
            Err(error) => {
                tracing::warn!(%error, "network namespaces cannot be searched");
                None
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error("its network namespace cannot be found")]
    NoNetns,
    #[error(transparent)]
    Redirect(#[from] RedirectError),
}

fn done<E: std::error::Error + 'static>(result: Result<(), E>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(error) => failed(&error),
    }
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Outcome {
    Outcome::Failed(Chain(error).to_string())
}
