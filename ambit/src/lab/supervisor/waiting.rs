//! Waiting until what was asked for is in effect.

use std::net::SocketAddr;
use std::time::Duration;

use net::Netns;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep};

use super::cluster::{Changed, Message};
use super::view::{NoEntrance, View};
use crate::lab::api::{Laggard, PodReference};
use crate::lab::keeper::Keeper;
use crate::lab::kubelet::Entrance;
use crate::lab::network::Node;
use crate::lab::place::Place;
use crate::lab::system::{AGENT_HTTP, ISTIOD_HTTP, ZTUNNEL_READINESS};
use crate::lab::{http, settled};

/// How long a change may take to be in effect everywhere.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked.
const STEP: Duration = Duration::from_millis(20);
/// How long a page may take.
const PAGE: Duration = Duration::from_secs(2);

/// Where to look.
#[derive(Clone, Debug)]
pub(super) struct Lookout {
    pub(super) messages: mpsc::Sender<Message>,
    pub(super) fabric: Netns,
    pub(super) nodes: Vec<Node>,
    /// Which table of services each node has.
    pub(super) installed: Vec<watch::Receiver<Installed>>,
    /// Who keeps the mesh's processes.
    pub(super) keeper: Keeper,
    pub(super) place: Place,
}

/// The service translation that a node has.
#[derive(Clone, Debug, Default)]
pub(super) struct Installed {
    pub(super) version: u64,
    /// Why it has no newer one.
    pub(super) failure: Option<String>,
}

/// What is waited for.
#[derive(Debug)]
pub(super) enum Awaited<'a> {
    /// A change is in effect everywhere; `revision` is the one that holds all that follows from it, once known.
    Change { changed: &'a Changed, revision: Option<u64> },
    /// Everything runs, and all that was changed is in effect.
    Everything,
}

/// The cluster's task is gone: the whole process is about to end.
pub(super) const ENDING: &str = "the lab is being taken down";

impl Lookout {
    /// Asks the cluster's task.
    pub(super) async fn ask<T>(
        &self,
        message: impl FnOnce(oneshot::Sender<T>) -> Message,
    ) -> Result<T, String> {
        let (to, answer) = oneshot::channel();
        self.messages.send(message(to)).await.map_err(|_| ENDING.to_owned())?;
        answer.await.map_err(|_| ENDING.to_owned())
    }

    /// The way into a pod. One that is about to run is waited for: an `apply` does not wait for it.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn entrance(&self, namespace: &str, pod: &PodReference) -> Result<Entrance, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (namespace, pod) = (namespace.to_owned(), pod.clone());
            match self.ask(|to| Message::Enter(namespace, pod, to)).await? {
                Ok(entrance) => return Ok(entrance),
                Err(NoEntrance::NotYet(_)) if Instant::now() < deadline => sleep(STEP).await,
                Err(NoEntrance::NotYet(why) | NoEntrance::Never(why)) => return Err(why),
            }
        }
    }

    /// Waits until what is awaited holds, and tells who is late whenever that changes.
    ///
    /// # Errors
    /// Who is late when the time is over.
    pub(super) async fn until(
        &self,
        mut awaited: Awaited<'_>,
        patience: Duration,
        mut progress: impl FnMut(&[Laggard]) + Send,
    ) -> Result<(), Vec<Laggard>> {
        let deadline = Instant::now() + patience;
        let mut told = Vec::new();
        loop {
            let view =
                self.ask(Message::View).await.map_err(|ending| vec![Laggard::new("supervisor", ending)])?;
            let late = self.late(&mut awaited, &view).await;
            if late.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(late);
            }
            if told != late {
                progress(&late);
                told = late;
            }
            sleep(STEP).await;
        }
    }

    async fn late(&self, awaited: &mut Awaited<'_>, view: &View) -> Vec<Laggard> {
        let mut late = Vec::new();
        let revision = match awaited {
            Awaited::Change { changed, revision } => {
                let there = changed.ending.iter().filter(|(key, uid)| view.uids.get(key) == Some(uid));
                late.extend(there.map(|(key, _)| Laggard::new(key.to_string(), "is not gone yet")));
                let ours =
                    view.enrolment.iter().filter(|difference| changed.turning.contains(&difference.uid));
                late.extend(ours.map(|difference| difference.laggard.clone()));
                if !late.is_empty() {
                    // What follows from it has revisions of its own.
                    *revision = None;
                    return late;
                }
                *revision.get_or_insert(view.revision)
            }
            Awaited::Everything => {
                late.extend(self.parts().await);
                late.extend(view.enrolment.iter().map(|difference| difference.laggard.clone()));
                late.extend(view.unready.iter().cloned());
                if !late.is_empty() {
                    return late;
                }
                view.revision
            }
        };
        self.laggards(revision, view.table).await
    }

    async fn laggards(&self, revision: u64, table: u64) -> Vec<Laggard> {
        let nodes = || self.nodes.iter().map(|node| node.plan.name.as_str());
        let mut late = match settled::ask(&self.fabric, PAGE).await {
            Ok(sync) => settled::laggards(&sync, revision, nodes()),
            Err(why) => vec![why],
        };
        for (node, installed) in nodes().zip(&self.installed) {
            let Installed { version, failure } = &*installed.borrow();
            if *version < table {
                let why = failure.as_deref().unwrap_or("services are not translated yet");
                late.push(Laggard::new(node, why));
            }
        }
        late
    }

    /// The mesh's processes that are not ready.
    async fn parts(&self) -> Vec<Laggard> {
        let mut pages = vec![("istiod".to_owned(), &self.fabric, ISTIOD_HTTP, "/ready")];
        for node in &self.nodes {
            let name = &node.plan.name;
            pages.push((format!("agent@{name}"), &node.netns, AGENT_HTTP, "/healthz/ready"));
            pages.push((format!("ztunnel@{name}"), &node.netns, ZTUNNEL_READINESS, "/healthz/ready"));
        }
        let asked = pages.into_iter().map(|(part, netns, port, path)| unready(part, netns, port, path));
        futures_util::future::join_all(asked).await.into_iter().flatten().collect()
    }
}

/// Asks a process whether it is ready; nothing where it is.
async fn unready(part: String, netns: &Netns, port: u16, path: &str) -> Option<Laggard> {
    let to = SocketAddr::from(([127, 0, 0, 1], port));
    let why = match http::get(netns, to, path, &[], PAGE).await {
        Ok((200, _)) => return None,
        Ok((status, body)) => {
            let body = String::from_utf8_lossy(&body);
            format!("is not ready: {status} {}", body.lines().next().unwrap_or_default())
        }
        Err(error) => format!("is not ready: {error}"),
    };
    Some(Laggard::new(part, why))
}
