//! What people want of the objects: applied, deleted, labelled. All is checked before anything is changed.

mod apply;
mod edit;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, PodSpec};
use manifest::{Document, Object, Problem};
use serde::{Deserialize, Serialize};

pub(crate) use apply::apply;
pub(crate) use edit::{LabelEdit, delete, label};

/// A file that somebody wants to be applied or deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Text {
    /// As it was named on the command line.
    pub(crate) file: String,
    pub(crate) text: String,
}

/// Objects read from files, and what is worth saying about them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reading {
    pub(crate) documents: Vec<Document>,
    pub(crate) notes: Vec<String>,
}

/// Reads files.
///
/// # Errors
/// All that is wrong with them.
pub(crate) fn read(texts: &[Text]) -> Result<Reading, Vec<Problem>> {
    let mut reading = Reading::default();
    let mut problems = Vec::new();
    let mut unused: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for Text { file, text } in texts {
        let parsed = manifest::parse(file, text);
        problems.extend(parsed.problems);
        for one in parsed.unused {
            let first = format!("{}:{}", one.file, one.line);
            unused.entry(one.kind).or_insert((0, first)).0 += 1;
        }
        reading.documents.extend(parsed.documents);
    }
    let mut seen = BTreeSet::new();
    for document in &reading.documents {
        let key = document.object.key();
        if !seen.insert(key.clone()) {
            problems.push(Problem::error(&document.file, document.at, format!("{key} is here twice")));
        }
    }
    reading.notes = unused
        .into_iter()
        .map(|(kind, (count, first))| match count {
            1 => format!("{kind} is known but not used yet ({first})"),
            _ => format!("{kind} is known but not used yet ({count} objects, the first in {first})"),
        })
        .collect();
    reading.notes.extend(reading.documents.iter().filter_map(volumes));
    reading.notes.extend(reading.documents.iter().filter_map(start_hooks));
    if problems.is_empty() { Ok(reading) } else { Err(problems) }
}

/// A lab's pods have the machine's files, and nothing is mounted for them.
fn volumes(document: &Document) -> Option<String> {
    let spec = pod_spec(&document.object)?;
    let mounts = spec.containers.iter().any(|c| c.volume_mounts.as_ref().is_some_and(|m| !m.is_empty()));
    mounts.then(|| {
        format!(
            "{}:{}: {}: volumes are not mounted; a lab's pods see the machine's files",
            document.file,
            document.at.line,
            document.object.key()
        )
    })
}

fn start_hooks(document: &Document) -> Option<String> {
    let spec = pod_spec(&document.object)?;
    let hooks = |c: &Container| c.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.post_start.is_some());
    spec.containers.iter().any(hooks).then(|| {
        format!(
            "{}:{}: {}: `postStart` hooks are not run; `preStop` hooks are",
            document.file,
            document.at.line,
            document.object.key()
        )
    })
}

fn pod_spec(object: &Object) -> Option<&PodSpec> {
    match object {
        Object::Pod(pod) => pod.spec.as_ref(),
        Object::Deployment(deployment) => deployment.spec.as_ref()?.template.spec.as_ref(),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
