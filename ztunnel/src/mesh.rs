//! What the control plane has told, as all of the proxy sees it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use index::{Delta, Update, World};
use model::{NamespacedName, PolicyKey};
use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

use crate::connections::Pods;
use crate::departures::Departures;
use crate::needs::Needs;

/// Beyond so many names, what is touched is taken to be everyone: the list must not grow while nobody takes it.
const NAMES: usize = 4096;

/// The newest snapshot of the mesh. Cloning is cheap and shares it; reading takes no lock.
#[derive(Clone, Debug)]
pub struct Mesh(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    world: ArcSwap<World>,
    synced: AtomicBool,
    news: watch::Sender<()>,
    departures: Departures,
    needs: Option<Needs>,
    touched: Mutex<Touched>,
    touching: Notify,
    /// Held while a snapshot is made from the one before.
    folding: Mutex<()>,
}

/// What changes have touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Touched {
    /// The pods to which connections may be admitted otherwise than before.
    pub(crate) pods: Pods,
    /// The policies that apply as before until a workload names them.
    pub(crate) narrowed: BTreeSet<PolicyKey>,
}

/// The one who folds news into the snapshot. There is one a mesh.
#[derive(Debug)]
pub struct Folder(Mesh);

/// An answer that a snapshot gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// It stands.
    Final(T),
    /// The next snapshot may well say otherwise: wait a moment for it.
    Provisional(T),
    /// There is none before the control plane has answered to what was asked of it.
    Untold,
}

/// The control plane has not told what a decision rests on, so nothing can be decided: a service of the mesh would look
/// like any stranger, and no policy like no restriction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotSynced {
    /// It has told nothing.
    #[error("the control plane has not told of the mesh yet")]
    Mesh,
    /// It was asked for what is needed, and has not answered.
    #[error("the control plane has not told of the destination yet")]
    Destination,
}

impl Mesh {
    /// A mesh of which nothing is known.
    pub fn unknown() -> (Self, Folder) {
        Self::needing(None)
    }

    /// A mesh of which nothing is known, and of which only that will be told that is asked for.
    pub fn on_demand(needs: Needs) -> (Self, Folder) {
        Self::needing(Some(needs))
    }

    fn needing(needs: Option<Needs>) -> (Self, Folder) {
        let shared = Shared {
            world: ArcSwap::default(),
            synced: AtomicBool::new(false),
            news: watch::Sender::new(()),
            departures: Departures::default(),
            needs,
            touched: Mutex::default(),
            touching: Notify::new(),
            folding: Mutex::default(),
        };
        let mesh = Self(Arc::new(shared));
        (mesh.clone(), Folder(mesh))
    }

    /// The newest snapshot. Do not hold it across an await.
    pub fn load(&self) -> arc_swap::Guard<Arc<World>> {
        self.0.world.load()
    }

    /// The pods of this node that are about to end, which the agent tells before the control plane does.
    pub fn departures(&self) -> &Departures {
        &self.0.departures
    }

    /// What is asked for; nothing where all is told anyway.
    pub fn needs(&self) -> Option<&Needs> {
        self.0.needs.as_ref()
    }

    /// Whether the control plane has told everything at least once, or all that was asked for at first.
    pub fn is_synced(&self) -> bool {
        self.0.synced.load(Ordering::Acquire)
    }

    /// Notifies of each new snapshot.
    pub fn news(&self) -> watch::Receiver<()> {
        self.0.news.subscribe()
    }

    /// Waits until a change has touched something, and tells what; the change is in force by then. Cancel-safe. Each
    /// change is told once, to one who waits.
    pub(crate) async fn touched(&self) -> Touched {
        loop {
            let touching = self.0.touching.notified();
            let touched = std::mem::take(&mut *self.0.touched.lock());
            if touched != Touched::default() {
                return touched;
            }
            touching.await;
        }
    }

    /// Waits no longer for workloads that name a policy.
    pub(crate) fn narrow(&self, policy: PolicyKey) {
        self.0.fold(vec![Update::Narrowed(policy)]);
    }

    /// Asks a question of the newest snapshot, and again of later ones for at most `patience` while the mesh is not known
    /// or the answer is provisional. Then the last answer counts.
    ///
    /// # Errors
    /// If the mesh was not known in time.
    pub async fn settle<T>(
        &self,
        patience: Duration,
        mut ask: impl FnMut(&World) -> Answer<T>,
    ) -> Result<T, NotSynced> {
        if self.is_synced()
            && let Answer::Final(answer) = ask(&self.load())
        {
            return Ok(answer);
        }
        let until = Instant::now() + patience;
        let mut news = self.news();
        let mut told = self.needs().map(|needs| needs.demand().answers());
        loop {
            news.mark_unchanged();
            if let Some(told) = &mut told {
                told.mark_unchanged();
            }
            let answer = if self.is_synced() { Some(ask(&self.load())) } else { None };
            if let Some(Answer::Final(answer)) = answer {
                return Ok(answer);
            }
            let more = async {
                tokio::select! {
                    _ = news.changed() => {}
                    () = changed(told.as_mut()) => {}
                }
            };
            // The senders live in `self`, so only the deadline can end the wait without news.
            if timeout_at(until, more).await.is_err() {
                return match answer {
                    Some(Answer::Final(answer) | Answer::Provisional(answer)) => Ok(answer),
                    Some(Answer::Untold) => Err(NotSynced::Destination),
                    None => Err(NotSynced::Mesh),
                };
            }
        }
    }
}

async fn changed(told: Option<&mut watch::Receiver<()>>) {
    match told {
        Some(told) => drop(told.changed().await),
        None => std::future::pending().await,
    }
}

impl Folder {
    /// Puts updates in force.
    pub fn fold(&mut self, updates: Vec<Update>) -> Delta {
        self.0.0.fold(updates)
    }

    /// Says that everything was told once. It never becomes unsaid: while the control plane is away, the last that it
    /// told counts.
    pub fn set_synced(mesh: &Mesh) {
        mesh.0.synced.store(true, Ordering::Release);
        mesh.0.news.send_replace(());
    }
}

impl Shared {
    fn fold(&self, updates: Vec<Update>) -> Delta {
        let _one_by_one = self.folding.lock();
        let (world, delta) = self.world.load().apply(updates);
        if !delta.is_empty() {
            let world = Arc::new(world);
            self.world.store(world.clone());
            self.news.send_replace(());
            self.touch(&delta, &world);
        }
        delta
    }

    fn touch(&self, delta: &Delta, world: &World) {
        let reach = &delta.admission;
        if reach.is_empty() && delta.narrowed.is_empty() {
            return;
        }
        {
            let Touched { pods: touched, narrowed } = &mut *self.touched.lock();
            narrowed.extend(delta.narrowed.iter().cloned());
            touched.everyone |= reach.everyone;
            touched.namespaces.extend(reach.namespaces.iter().cloned());
            for uid in &reach.workloads {
                // Of a workload that is called otherwise now, both names.
                let before = delta.workloads.get(uid).and_then(|change| change.before());
                let both = before.into_iter().chain(world.workload(uid));
                touched.names.extend(both.map(|w| NamespacedName::new(&w.namespace, &w.name)));
            }
            if touched.names.len() > NAMES {
                *touched = Pods { everyone: true, ..Pods::default() };
            }
        }
        self.touching.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use testkit::fixtures::pod;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn count(world: &World) -> Answer<usize> {
        match world.workload_count() {
            0 => Answer::Provisional(0),
            n => Answer::Final(n),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_decided_before_the_mesh_is_known() {
        let (mesh, mut folder) = Mesh::unknown();
        folder.fold(vec![pod("shop", "a").ip("10.0.0.1").build().into()]);
        assert_eq!(mesh.settle(PATIENCE, count).await, Err(NotSynced::Mesh));
        Folder::set_synced(&mesh);
        assert_eq!(mesh.settle(PATIENCE, count).await, Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_provisional_answer_waits_for_the_next_snapshot() {
        let (mesh, mut folder) = Mesh::unknown();
        Folder::set_synced(&mesh);
        let asked = mesh.settle(PATIENCE, count);
        let told = async {
            tokio::task::yield_now().await;
            folder.fold(vec![pod("shop", "a").ip("10.0.0.1").build().into()]);
        };
        assert_eq!(tokio::join!(asked, told).0, Ok(1));
    }

    #[tokio::test]
    async fn a_change_touches_those_whom_it_is_about_and_nobody_twice() {
        let (mesh, mut folder) = Mesh::unknown();
        let named = |name: &str| NamespacedName::new("shop", name);
        folder.fold(vec![pod("shop", "a").build().into(), pod("shop", "b").build().into()]);
        let both = Pods { names: [named("a"), named("b")].into(), ..Pods::default() };
        assert_eq!(mesh.touched().await.pods, both);

        let selecting = testkit::fixtures::deny("shop", "p").for_selected().from_everyone().build();
        folder.fold(vec![selecting.into()]);
        folder.fold(vec![pod("shop", "a").selected_by("p").build().into()]);
        folder.fold(vec![testkit::fixtures::strict("bar").into()]);
        let later =
            Pods { names: [named("a")].into(), namespaces: [Arc::from("bar")].into(), ..Pods::default() };
        assert_eq!(mesh.touched().await.pods, later);
        folder.fold(vec![
            pod("shop", "c").build().into(),
            Update::RemoveWorkload(pod("shop", "c").build().uid),
        ]);
        let nothing = tokio::time::timeout(Duration::from_millis(1), mesh.touched()).await;
        assert!(nothing.is_err(), "nothing has changed: {nothing:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_provisional_answer_counts_in_the_end() {
        let (mesh, _folder) = Mesh::unknown();
        Folder::set_synced(&mesh);
        assert_eq!(mesh.settle(PATIENCE, count).await, Ok(0));
    }
}
