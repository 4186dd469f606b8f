//! From the source to the snapshots that proxies are served: when, and in which steps.

mod debounce;

use std::sync::Arc;
use std::time::Duration;

use manifest::source::{Batch, Directory};
use parking_lot::RwLock;
use runtime::Part;
use telemetry::metrics::{PilotMetrics, PushTrigger};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use xds::server::{Change, Entry, Feed, Snapshot};
use xds::{Defaults, Resource, ResourceKey};

pub use debounce::Debounce;

use crate::store::{ChangeSet, Store};
use crate::sync::SourceState;
use crate::world::{Delta, World};

/// What the control plane knows, for the pages and for the certificate authority. Written by [`Pusher`] alone.
#[derive(Clone, Debug, Default)]
pub struct Shared {
    /// The objects, as soon as they are read.
    pub store: Arc<RwLock<Store>>,
    /// What was made from them at the last push.
    pub world: Arc<RwLock<World>>,
    /// How the source stands.
    pub source: Arc<RwLock<SourceState>>,
}

impl Shared {
    /// Nothing known yet.
    pub fn new(store: Store) -> Self {
        Self { store: Arc::new(RwLock::new(store)), ..Self::default() }
    }
}

/// Reads batches, translates them, and publishes snapshots. Nothing is published before every file of the source has
/// been good once.
pub struct Pusher {
    shared: Shared,
    metrics: PilotMetrics,
    debounce: Debounce,
    pending: ChangeSet,
    revision: u64,
    snapshot: Arc<Snapshot>,
    feed: watch::Sender<Option<Arc<Snapshot>>>,
    /// Whether every file has been good once, or was removed before.
    released: bool,
    ready: Part,
}

impl Pusher {
    /// A pusher that has published nothing, and its feed. `ready` stands once the source has been read and published.
    pub fn new(shared: Shared, metrics: PilotMetrics, debounce: Debounce, ready: Part) -> (Self, Feed) {
        let (feed, receiver) = watch::channel(None);
        let pusher = Self {
            shared,
            metrics,
            debounce,
            pending: ChangeSet::default(),
            revision: 0,
            snapshot: Arc::default(),
            feed,
            released: false,
            ready,
        };
        (pusher, receiver)
    }

    /// Runs until told to stop. It ends before only where the source can watch no more.
    pub async fn run_until(self, source: Directory, stop: impl Future<Output = ()>) {
        tokio::select! {
            // A push that is cut off has published nothing.
            () = self.run(source) => {}
            () = stop => {}
        }
    }

    async fn run(mut self, mut source: Directory) {
        loop {
            let due = self.debounce.due();
            let wait = async {
                match due {
                    Some(due) => sleep_until(Instant::from_std(due)).await,
                    None => std::future::pending().await,
                }
            };
            // Both arms leave what they wait for where it is when the other comes first.
            tokio::select! {
                batch = source.next() => match batch {
                    Some(batch) => self.take(batch, Instant::now().into_std()),
                    None => return tracing::error!("the source ended"),
                },
                () = wait => self.push(Instant::now().into_std()),
            }
        }
    }

    /// Puts a batch into the store at once, and into a push when that is due.
    pub fn take(&mut self, batch: Batch, now: std::time::Instant) {
        for unused in &batch.unused {
            tracing::info!(
                kind = %unused.kind, group = %unused.group, file = %unused.file, line = unused.line,
                "known but not used"
            );
        }
        let changes = self.shared.store.write().apply(&batch.upserts, &batch.deletes);
        let fresh = self.shared.source.write().take(&batch);
        for problem in fresh {
            tracing::warn!(
                file = %problem.file, line = problem.line, column = problem.column,
                remedy = problem.remedy.as_deref(), problem = %problem.message,
                "the source has a problem"
            );
        }
        self.metrics.set_rejected_files(self.shared.source.read().rejected_files());
        if !batch.loaded {
            return;
        }
        self.release_once_known(&batch.never_good);
        let revision = batch.revision.unwrap_or(0);
        let first = self.feed.borrow().is_none();
        if changes.any || revision > self.revision || first {
            self.pending.merge(changes);
            self.revision = self.revision.max(revision);
            if self.released {
                self.debounce.changed(now);
            }
        }
    }

    /// At the start nothing is published while a file is refused: what it held when proxies were last told is not
    /// known, and without it they would be told that its policies are gone. They keep what they have instead. Once
    /// something has been published, a file that turns bad keeps what it held, and nothing waits for a new one.
    fn release_once_known(&mut self, never_good: &[Arc<str>]) {
        if self.released {
            return;
        }
        self.released = never_good.is_empty();
        let told = std::mem::replace(&mut self.shared.source.write().held_back_by, never_good.to_vec());
        if !self.released && told != never_good {
            tracing::warn!(
                files = never_good.join(", "),
                "nothing is published until these files can be used or are removed"
            );
        }
    }

    /// Translates what has gathered, and publishes it.
    pub fn push(&mut self, now: std::time::Instant) {
        let changes = std::mem::take(&mut self.pending);
        if let Some(waited) = self.debounce.fired(now) {
            self.metrics.debounced(waited);
        }
        let trigger = if changes.config { PushTrigger::Config } else { PushTrigger::Endpoint };
        let started = Instant::now();
        let delta = self.shared.world.write().translate(&self.shared.store.read(), changes);
        for note in &delta.notes {
            tracing::warn!(object = %note.object, note = %note.message, "an object is not taken as it is written");
        }
        if !delta.set.is_empty() || !delta.removed.is_empty() {
            self.metrics.triggered(trigger);
        }
        self.snapshot = Arc::new(self.snapshot.apply(self.revision, changes_of(&delta)));
        self.shared.source.write().observed_revision = self.revision;
        self.feed.send_replace(Some(self.snapshot.clone()));
        self.ready.ready();
        // Whoever reads it may count on all of the above.
        tracing::info!(
            revision = self.revision, translated = delta.translated, set = delta.set.len(),
            removed = delta.removed.len(), took = ?started.elapsed(), "push"
        );
    }

    /// When [`Pusher::push`] is due.
    pub fn due(&self) -> Option<std::time::Instant> {
        self.debounce.due()
    }
}

fn changes_of(delta: &Delta) -> Vec<Change> {
    // Not the mesh's own trust domain: proxies cannot know it, and fill in what everyone fills in.
    let defaults = Defaults::default();
    let removed =
        delta.removed.iter().map(|key: &ResourceKey| Change::Remove(key.type_url(), key.to_string().into()));
    let set = delta.set.iter().map(|resource: &Resource| Change::Set(Entry::new(resource, &defaults)));
    removed.chain(set).collect()
}

/// How long changes are gathered by default.
pub const DEBOUNCE_AFTER: Duration = Duration::from_millis(100);
/// How long a change waits at most by default.
pub const DEBOUNCE_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use manifest::source::{Reading, Shelf};
    use runtime::Readiness;
    use telemetry::metrics::Registry;

    /// A pusher over files that are given by hand.
    struct Hand {
        shelf: Shelf,
        pusher: Pusher,
        feed: Feed,
        readiness: Readiness,
    }

    impl Hand {
        fn new() -> Self {
            let readiness = Readiness::default();
            let metrics = PilotMetrics::register(&mut Registry::default(), "test");
            let debounce = Debounce::new(Duration::ZERO, Duration::ZERO);
            let (pusher, feed) = Pusher::new(Shared::default(), metrics, debounce, readiness.part("source"));
            Self { shelf: Shelf::default(), pusher, feed, readiness }
        }

        /// Takes in what files hold now, nothing where they are gone, and pushes where that is due.
        fn take(&mut self, files: &[(&str, &str)]) {
            let reading =
                |text: &str| if text.is_empty() { Reading::Gone } else { Reading::Text(text.to_owned()) };
            let changes = self.shelf.take(files.iter().map(|(file, text)| ((*file).into(), reading(text))));
            let batch = Batch {
                upserts: changes.upserts,
                deletes: changes.deletes,
                problems: self.shelf.problems(),
                never_good: self.shelf.never_good().cloned().collect(),
                loaded: true,
                ..Batch::default()
            };
            let now = Instant::now().into_std();
            self.pusher.take(batch, now);
            if self.pusher.due().is_some() {
                self.pusher.push(now);
            }
        }

        fn policies(&self) -> Option<usize> {
            self.feed.borrow().as_ref()?;
            // The one about plaintext is always there.
            Some(self.pusher.shared.world.read().policies().count() - 1)
        }

        fn held_back(&self) -> Vec<String> {
            self.pusher.shared.source.read().held_back()
        }
    }

    fn deny(name: &str) -> String {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{action: DENY, rules: [{{}}]}}\n"
        )
    }

    #[test]
    fn nothing_is_published_while_a_file_was_never_good() {
        let mut hand = Hand::new();
        hand.take(&[("a.yaml", &deny("a")), ("b.yaml", &deny("b").replace("DENY", "DENYY"))]);
        assert_eq!(hand.policies(), None);
        assert!(!hand.readiness.is_ready());
        let [reason] = &hand.held_back()[..] else { panic!("{:?}", hand.held_back()) };
        assert!(reason.starts_with("nothing is published before this is put right: b.yaml:4:"), "{reason}");
        hand.take(&[("c.yaml", &deny("c"))]);
        assert_eq!(hand.policies(), None);
        hand.take(&[("b.yaml", &deny("b"))]);
        assert_eq!(hand.policies(), Some(3), "all that came meanwhile");
        assert!(hand.readiness.is_ready());
        assert_eq!(hand.held_back(), [] as [&str; 0]);
    }

    #[test]
    fn a_file_that_was_never_good_and_is_removed_holds_nothing_back() {
        let mut hand = Hand::new();
        hand.take(&[("a.yaml", &deny("a")), ("b.yaml", "kind: Nonsense")]);
        assert_eq!(hand.policies(), None);
        hand.take(&[("b.yaml", "")]);
        assert_eq!(hand.policies(), Some(1));
    }

    #[test]
    fn a_bad_file_holds_nothing_back_once_something_has_been_published() {
        let mut hand = Hand::new();
        hand.take(&[("a.yaml", &deny("a"))]);
        hand.take(&[("a.yaml", "kind: Nonsense"), ("b.yaml", "kind: Nonsense")]);
        hand.take(&[("c.yaml", &deny("c"))]);
        assert_eq!(hand.policies(), Some(2));
        assert_eq!(hand.held_back(), [] as [&str; 0]);
        assert!(hand.readiness.is_ready());
    }
}
