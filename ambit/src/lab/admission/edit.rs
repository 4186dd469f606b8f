//! Deleting and labelling objects.

use manifest::{Document, Kind, Object, ObjectKey, Problem, nearest};
use serde::{Deserialize, Serialize};

use crate::lab::store::{Mint, Store};

/// Takes objects away. Pods, and namespaces with what is in them, end in their own time.
///
/// # Errors
/// Those that are not there, unless that is to be ignored; then nothing is changed.
pub(crate) fn delete(
    store: &mut Store,
    documents: &[Document],
    ignore_missing: bool,
    mint: &mut Mint,
) -> Result<Vec<String>, Vec<Problem>> {
    let mut problems = Vec::new();
    for document in documents {
        let key = document.object.key();
        let error = |message: String| Problem::error(&document.file, document.at, message);
        if key.kind == Kind::Node {
            problems.push(error("a lab's nodes stay as long as the lab".to_owned()));
        } else if store.get(&key).is_none() && !ignore_missing {
            problems
                .push(error(format!("{key} is not there")).with_remedy("--ignore-not-found passes over it"));
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let mut lines = Vec::new();
    for document in documents {
        let key = document.object.key();
        let Some(mut object) = store.get(&key).cloned() else { continue };
        if matches!(key.kind, Kind::Pod | Kind::Namespace) {
            object.metadata_mut().deletion_timestamp.get_or_insert_with(|| mint.time());
            store.put(object, mint);
        } else {
            store.remove(&key);
        }
        lines.push(format!("{key} deleted"));
    }
    Ok(lines)
}

/// A label put on, or taken off where there is no value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LabelEdit {
    pub(crate) key: String,
    pub(crate) value: Option<String>,
}

impl std::str::FromStr for LabelEdit {
    type Err = String;

    /// `key=value`, or `key-`.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match (s.split_once('='), s.strip_suffix('-')) {
            (Some((key, value)), _) if !key.is_empty() => {
                Ok(Self { key: key.to_owned(), value: Some(value.to_owned()) })
            }
            (None, Some(key)) if !key.is_empty() => Ok(Self { key: key.to_owned(), value: None }),
            _ => Err(format!("`{s}` is neither KEY=VALUE nor KEY-")),
        }
    }
}

/// Changes an object's labels.
///
/// # Errors
/// A sentence about an object that is not there, or a label that cannot be.
pub(crate) fn label(
    store: &mut Store,
    key: &ObjectKey,
    edits: &[LabelEdit],
    mint: &mut Mint,
) -> Result<bool, String> {
    let Some(object) = store.get(key) else {
        let known: Vec<&str> =
            store.of_kind(key.kind).filter(|o| o.namespace() == key.namespace).map(Object::name).collect();
        let near = nearest(&key.name, known).map(|near| format!(" (did you mean `{near}`?)"));
        return Err(format!("{key} is not there{}", near.unwrap_or_default()));
    };
    let mut object = object.clone();
    let labels = object.metadata_mut().labels.get_or_insert_default();
    for edit in edits {
        match &edit.value {
            Some(value) => drop(labels.insert(edit.key.clone(), value.clone())),
            None => drop(labels.remove(&edit.key)),
        }
    }
    if let Some(finding) = manifest::validate(&object).first() {
        let remedy = finding.remedy.as_ref().map(|remedy| format!(" ({remedy})"));
        return Err(format!("{}: {}{}", finding.path, finding.message, remedy.unwrap_or_default()));
    }
    Ok(store.put(object, mint))
}
