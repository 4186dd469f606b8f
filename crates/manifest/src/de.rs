//! Typed reading of a tree, all mistakes at once.
//!
//! serde stops at the first error. So a tree is read again after each one with the node at fault left out, until a
//! reading ends without a new mistake. Unknown fields do not stop a reading: `deserialize_struct` names all fields that
//! a type has, and what is not among them is noted beside.

mod error;
mod fields;
mod path;
mod reader;

use std::cell::RefCell;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::problem::{Position, Problem};
use crate::yaml::Node;
use path::Path;
use reader::NodeReader;

/// How many mistakes of one document are told; more than that is another kind of file.
const MAX_PROBLEMS: usize = 50;

/// Reads a tree as a `T`.
///
/// # Errors
/// Every unknown or misplaced field and every value of a wrong type, in the order of the text.
pub(crate) fn from_node<T: DeserializeOwned>(file: &Arc<str>, node: &Node) -> Result<T, Vec<Problem>> {
    let notes = Notes::default();
    loop {
        let reader = NodeReader { node, path: Path::Root, notes: &notes };
        let fault = match T::deserialize(reader) {
            Ok(value) if notes.mistakes.borrow().is_empty() => return Ok(value),
            Ok(_) => break,
            Err(fault) => fault,
        };
        if fault.is_absence && !notes.left_out.borrow().is_empty() {
            break;
        }
        let (culprit, at) = fault.node.unwrap_or((std::ptr::from_ref(node).addr(), node.at));
        notes.add(at, fault.message, fault.remedy);
        let fresh = notes.left_out.borrow_mut().insert(culprit);
        if !fresh || culprit == std::ptr::from_ref(node).addr() || notes.full() {
            break;
        }
    }
    let mistakes = notes.mistakes.into_inner();
    Err(mistakes
        .into_iter()
        .map(|m| Problem { remedy: m.remedy, ..Problem::error(file, m.at, m.message) })
        .collect())
}

/// What readings of one tree share.
#[derive(Default)]
struct Notes {
    mistakes: RefCell<BTreeSet<Mistake>>,
    /// Nodes, by their address, that the next reading goes around.
    left_out: RefCell<HashSet<usize>>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Mistake {
    at: Position,
    message: String,
    remedy: Option<String>,
}

impl Notes {
    fn add(&self, at: Position, message: String, remedy: Option<String>) {
        if !self.full() {
            self.mistakes.borrow_mut().insert(Mistake { at, message, remedy });
        }
    }

    fn full(&self) -> bool {
        self.mistakes.borrow().len() >= MAX_PROBLEMS
    }

    fn leaves_out(&self, node: &Node) -> bool {
        self.left_out.borrow().contains(&std::ptr::from_ref(node).addr())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{Pod, Service};
    use serde::Deserialize;

    fn read<T: DeserializeOwned>(text: &str) -> Result<T, Vec<String>> {
        let file = "f.yaml".into();
        let node = crate::yaml::read(&file, text, 0).unwrap().remove(0);
        from_node(&file, &node).map_err(|problems| problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_service_is_read() {
        let service: Service = read(
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports:\n  - {port: 80, targetPort: http}\n  - port: 81\n    targetPort: 8080\n  selector: null\n",
        )
        .unwrap();
        assert_eq!(service.spec.unwrap().ports.unwrap().len(), 2);
    }

    #[test]
    fn all_mistakes_are_told_at_once_with_place_and_remedy() {
        let problems = read::<Service>(
            "apiVersion: v1\nkind: Service\nmetadata:\n  nmae: a\n  labels: {v: 1.0, w: yes}\nspec:\n  ports:\n  - port: http\n    targtPort: 1\n  - port: 99999999999\n  selctor: {}\n",
        )
        .unwrap_err();
        let expected = [
            "f.yaml:4:3: `metadata` has no field `nmae` (did you mean `name`?)",
            "f.yaml:5:15: `metadata.labels.v`: expected a text, found the number 1 (put it in quotes)",
            "f.yaml:5:23: `metadata.labels.w`: expected a text, found what YAML reads as true (put it in quotes)",
            "f.yaml:8:11: `spec.ports[0].port`: expected a whole number, found the text \"http\"",
            "f.yaml:9:5: `spec.ports[0]` has no field `targtPort` (did you mean `targetPort`?)",
            "f.yaml:10:11: `spec.ports[1].port`: 99999999999 is out of range (expected i32)",
            "f.yaml:11:3: `spec` has no field `selctor` (did you mean `selector`?)",
        ];
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
        for (problem, expected) in problems.iter().zip(expected) {
            assert_eq!(problem, expected);
        }
    }

    #[test]
    fn a_mapping_where_a_list_belongs_is_told() {
        let problems =
            read::<Service>("apiVersion: v1\nkind: Service\nspec:\n  ports: {port: 80}\n").unwrap_err();
        assert_eq!(problems, ["f.yaml:4:10: `spec.ports`: expected a list, found a mapping"]);
    }

    #[test]
    fn fields_of_a_later_kubernetes_are_passed_over() {
        read::<Pod>("apiVersion: v1\nkind: Pod\nspec: {hostnameOverride: x, containers: []}\n").unwrap();
    }

    #[test]
    fn an_unknown_word_of_an_enumeration_is_told() {
        #[derive(Debug, Deserialize)]
        struct Holder {
            #[serde(rename = "action")]
            _action: Word,
        }
        #[derive(Debug, Deserialize)]
        #[serde(rename_all = "UPPERCASE")]
        enum Word {
            Allow,
            Deny,
        }
        read::<Holder>("action: DENY").unwrap();
        let problems = read::<Holder>("action: ALOW").unwrap_err();
        assert_eq!(
            problems,
            ["f.yaml:1:9: `action`: `ALOW` is none of `ALLOW`, `DENY` (did you mean `ALLOW`?)"]
        );
        assert!(read::<Holder>("action: 1").unwrap_err()[0].contains("expected one of"));
        assert!(matches!(Word::Allow, Word::Allow));
    }

    #[test]
    fn mistakes_without_end_are_cut_off() {
        let labels: String = (0..1000).map(|n| format!("  k{n}: {n}\n")).collect();
        let problems = read::<Pod>(&format!("metadata:\n labels:\n{labels}")).unwrap_err();
        assert_eq!(problems.len(), MAX_PROBLEMS);
    }
}
