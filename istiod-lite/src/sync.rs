//! How far the world has got, for `/debug/sync`: what was read, what each proxy has acknowledged, what was refused.

use std::collections::BTreeSet;
use std::sync::Arc;

use manifest::source::Batch;
use manifest::{Problem, Severity};
use serde::Serialize;
use xds::TypeUrl;
use xds::server::{Nack, Proxy};

/// How the source stands.
#[derive(Clone, Debug, Default)]
pub struct SourceState {
    /// The highest revision that is part of what proxies are served.
    pub observed_revision: u64,
    /// All that is wrong with the source now.
    pub problems: Vec<Problem>,
    /// The files for which nothing is published: refused, and never good since the start.
    pub held_back_by: Vec<Arc<str>>,
}

impl SourceState {
    /// Takes a batch's word; the result is what was not wrong before.
    pub fn take(&mut self, batch: &Batch) -> Vec<Problem> {
        let mut fresh: Vec<Problem> = Vec::new();
        for problem in &batch.problems {
            if !self.problems.contains(problem) && !fresh.contains(problem) {
                fresh.push(problem.clone());
            }
        }
        self.problems.clone_from(&batch.problems);
        fresh
    }

    /// Why nothing is published, a line for each mistake; empty where that is not for the files.
    pub fn held_back(&self) -> Vec<String> {
        let mistakes = self.rejected().filter(|problem| self.held_back_by.contains(&problem.file));
        mistakes.map(|problem| format!("nothing is published before this is put right: {problem}")).collect()
    }

    /// How many files are not in force as they are written.
    pub fn rejected_files(&self) -> usize {
        self.rejected().map(|problem| &problem.file).collect::<BTreeSet<_>>().len()
    }

    fn rejected(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter().filter(|problem| problem.severity == Severity::Error)
    }
}

/// The page `/debug/sync`.
#[derive(Debug, Serialize)]
pub struct SyncReport {
    /// The highest revision of the source that is part of what proxies are served.
    pub observed_revision: u64,
    /// The proxies that are connected, or were until lately.
    pub proxies: Vec<ProxyReport>,
    /// What keeps files of the source out of force.
    pub rejected: Vec<Rejected>,
    /// The files for which nothing is published yet: refused, and never good since the start.
    pub held_back_by: Vec<Arc<str>>,
}

/// A proxy on the page.
#[derive(Debug, Serialize)]
pub struct ProxyReport {
    /// What it calls itself.
    pub node_id: Arc<str>,
    /// The node that it serves.
    pub node: Arc<str>,
    /// Whether its stream stands.
    pub connected: bool,
    /// The highest revision up to which it has acknowledged all that concerns it.
    pub acked_revision: u64,
    /// The types in which it is owed something.
    pub pending: Vec<TypeUrl>,
    /// What it refused.
    pub nacks: Vec<Nack>,
}

/// A mistake in a file that keeps it out of force.
#[derive(Debug, Serialize)]
pub struct Rejected {
    /// The file, relative to the source's directory.
    pub file: Arc<str>,
    /// The line.
    pub line: u32,
    /// What is wrong, and what to do instead.
    pub message: String,
}

impl SyncReport {
    /// The report of a moment.
    pub fn of(source: &SourceState, proxies: Vec<Proxy>) -> Self {
        Self {
            observed_revision: source.observed_revision,
            proxies: proxies.into_iter().map(ProxyReport::from).collect(),
            rejected: source.rejected().map(Rejected::of).collect(),
            held_back_by: source.held_back_by.clone(),
        }
    }
}

impl From<Proxy> for ProxyReport {
    fn from(proxy: Proxy) -> Self {
        let status = proxy.status;
        // A token that is bound to a node is worth more than what the proxy says of itself.
        let node = proxy.peer.node.unwrap_or_else(|| status.node.node.clone());
        Self {
            node_id: status.node.id,
            node,
            connected: proxy.connected,
            acked_revision: status.acked_revision,
            pending: status.pending,
            nacks: status.nacks,
        }
    }
}

impl Rejected {
    fn of(problem: &Problem) -> Self {
        let message = match &problem.remedy {
            Some(remedy) => format!("{} ({remedy})", problem.message),
            None => problem.message.clone(),
        };
        Self { file: problem.file.clone(), line: problem.line, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use manifest::Position;

    fn batch(messages: &[&str]) -> Batch {
        let problem = |message: &&str| Problem::error(&"a.yaml".into(), Position::START, *message);
        Batch { problems: messages.iter().map(problem).collect(), ..Batch::default() }
    }

    #[test]
    fn a_mistake_is_new_once() {
        let mut source = SourceState::default();
        let mut fresh = |messages: &[&str]| {
            source.take(&batch(messages)).into_iter().map(|problem| problem.message).collect::<Vec<_>>()
        };
        assert_eq!(fresh(&["x", "x"]), ["x"]);
        assert_eq!(fresh(&["x", "y"]), ["y"]);
        assert_eq!(fresh(&["x"]), [] as [&str; 0]);
        assert_eq!(fresh(&["y"]), ["y"], "it was put right in between");
    }
}
