//! Which file holds which object: the pure half of the source.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::document::{Document, Unused, parse};
use crate::object::{Object, ObjectKey};
use crate::problem::{Position, Problem, Severity};

/// What was found where a file is or was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Its text.
    Text(String),
    /// Nothing any more.
    Gone,
    /// Something that cannot be read, and why.
    Unreadable(String),
}

/// All files and the objects that they hold.
#[derive(Debug, Default)]
pub struct Shelf {
    files: BTreeMap<Arc<str>, File>,
    holders: HashMap<ObjectKey, Held>,
    met: BTreeSet<(String, String)>,
}

#[derive(Debug, Default)]
struct File {
    /// The keys of what it holds.
    holds: Vec<ObjectKey>,
    /// What is wrong with it, conflicts left out.
    problems: Vec<Problem>,
    /// A usable content that is kept out by conflicts with other files.
    waiting: Option<Content>,
    conflicts: Vec<Problem>,
    /// Whether a content of it has been taken in.
    good: bool,
}

#[derive(Clone, Debug)]
struct Content(Vec<(ObjectKey, Held)>);

#[derive(Clone, Debug)]
struct Held {
    object: Arc<Object>,
    file: Arc<str>,
    at: Position,
}

/// What a number of readings changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// Objects that are new or different.
    pub upserts: Vec<Arc<Object>>,
    /// Objects that are gone.
    pub deletes: Vec<ObjectKey>,
    /// The first object of each unused kind that was not met before.
    pub unused: Vec<Unused>,
}

impl Shelf {
    /// Takes in what was found in files.
    pub fn take(&mut self, readings: impl IntoIterator<Item = (Arc<str>, Reading)>) -> Changes {
        let mut changes = Changes::default();
        let mut candidates: BTreeMap<Arc<str>, Content> = BTreeMap::new();
        let mut gone = Vec::new();
        for (path, reading) in readings {
            match reading {
                Reading::Gone => gone.extend(self.files.remove(&path)),
                Reading::Unreadable(reason) => {
                    let problem = Problem::error(&path, Position::START, reason);
                    self.refuse(path, vec![problem]);
                }
                Reading::Text(text) => {
                    if let Some(content) = self.read(&path, &text, &mut changes.unused) {
                        candidates.insert(path, content);
                    }
                }
            }
        }
        // What was kept out may fit now.
        for (path, file) in &self.files {
            if let Some(content) = &file.waiting
                && !candidates.contains_key(path)
            {
                candidates.insert(path.clone(), content.clone());
            }
        }
        self.install(candidates, gone, &mut changes);
        changes
    }

    /// All that is wrong now, in the order of the files.
    pub fn problems(&self) -> Vec<Problem> {
        self.files.values().flat_map(|file| file.problems.iter().chain(&file.conflicts)).cloned().collect()
    }

    /// The files of which nothing has been taken in since they appeared, in order.
    pub fn never_good(&self) -> impl Iterator<Item = &Arc<str>> {
        self.files.iter().filter(|(_, file)| !file.good).map(|(path, _)| path)
    }

    /// The names of all files.
    pub fn files(&self) -> impl Iterator<Item = &Arc<str>> {
        self.files.keys()
    }

    fn refuse(&mut self, path: Arc<str>, problems: Vec<Problem>) {
        let file = self.files.entry(path).or_default();
        (file.problems, file.waiting, file.conflicts) = (problems, None, Vec::new());
    }

    /// The content of a text, where it can be used.
    fn read(&mut self, path: &Arc<str>, text: &str, unused: &mut Vec<Unused>) -> Option<Content> {
        let mut parsed = parse(path, text);
        for one in std::mem::take(&mut parsed.unused) {
            if self.met.insert((one.group.clone(), one.kind.clone())) {
                unused.push(one);
            }
        }
        let mut content: Vec<(ObjectKey, Held)> = Vec::with_capacity(parsed.documents.len());
        let mut seen: HashMap<ObjectKey, Position> = HashMap::new();
        for Document { object, file, at } in std::mem::take(&mut parsed.documents) {
            let key = object.key();
            if let Some(first) = seen.insert(key.clone(), at) {
                let message = format!("{key} is here a second time, first on line {}", first.line);
                parsed.problems.push(Problem::error(path, at, message));
            }
            content.push((key, Held { object: Arc::new(object), file, at }));
        }
        if !parsed.is_usable() {
            self.refuse(path.clone(), parsed.problems);
            return None;
        }
        let file = self.files.entry(path.clone()).or_default();
        file.problems = parsed.problems.into_iter().filter(|p| p.severity != Severity::Error).collect();
        Some(Content(content))
    }

    /// Puts new contents in the place of old ones, each where none of its objects is another file's.
    fn install(&mut self, candidates: BTreeMap<Arc<str>, Content>, gone: Vec<File>, changes: &mut Changes) {
        // Everything that may move is lifted off first, so that an object can pass from one file to another.
        let mut before: BTreeMap<ObjectKey, Arc<Object>> = BTreeMap::new();
        let mut lifted: HashMap<Arc<str>, Vec<(ObjectKey, Held)>> = HashMap::new();
        let from_candidates: Vec<Arc<str>> = candidates.keys().cloned().collect();
        for key in gone.into_iter().flat_map(|file| file.holds) {
            if let Some(held) = self.holders.remove(&key) {
                before.insert(key, held.object);
            }
        }
        for path in from_candidates {
            let Some(file) = self.files.get_mut(&path) else { continue };
            for key in std::mem::take(&mut file.holds) {
                if let Some(held) = self.holders.remove(&key) {
                    before.insert(key.clone(), held.object.clone());
                    lifted.entry(path.clone()).or_default().push((key, held));
                }
            }
        }
        // Files that hold something already come before newcomers.
        let (standing, new): (Vec<_>, Vec<_>) =
            candidates.into_iter().partition(|(path, _)| lifted.contains_key(path));
        let mut touched: BTreeSet<ObjectKey> = before.keys().cloned().collect();
        let mut kept_out = Vec::new();
        for (path, content) in standing.into_iter().chain(new) {
            let conflicts = self.conflicts(&path, &content);
            let Some(file) = self.files.get_mut(&path) else { continue };
            if conflicts.is_empty() {
                (file.waiting, file.conflicts, file.good) = (None, Vec::new(), true);
                for (key, held) in content.0 {
                    touched.insert(key.clone());
                    file.holds.push(key.clone());
                    self.holders.insert(key, held);
                }
            } else {
                (file.waiting, file.conflicts) = (Some(content), conflicts);
                kept_out.push(path);
            }
        }
        // A file that is kept out holds on to what it had, as far as nobody else has it now.
        for path in kept_out {
            for (key, held) in lifted.remove(&path).unwrap_or_default() {
                if !self.holders.contains_key(&key)
                    && let Some(file) = self.files.get_mut(&path)
                {
                    file.holds.push(key.clone());
                    self.holders.insert(key, held);
                }
            }
        }
        for key in touched {
            match (before.remove(&key), self.holders.get(&key)) {
                (Some(old), Some(now)) if *old == *now.object => {}
                (_, Some(now)) => changes.upserts.push(now.object.clone()),
                (Some(_), None) => changes.deletes.push(key),
                (None, None) => {}
            }
        }
    }

    fn conflicts(&self, path: &Arc<str>, content: &Content) -> Vec<Problem> {
        let other = |(key, held): &(ObjectKey, Held)| {
            let holder = self.holders.get(key)?;
            let message = format!("{key} is already in {} on line {}", holder.file, holder.at.line);
            Some(Problem::error(path, held.at, message).with_remedy("remove it from one of the two"))
        };
        content.0.iter().filter_map(other).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(name: &str, label: &str) -> String {
        format!(
            "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: n, labels: {{v: {label}}}}}\n---\n"
        )
    }

    fn take(shelf: &mut Shelf, readings: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
        let reading = |text: &str| match text {
            "gone" => Reading::Gone,
            text => Reading::Text(text.to_owned()),
        };
        let changes = shelf.take(readings.iter().map(|(path, text)| ((*path).into(), reading(text))));
        let label = |o: &Arc<Object>| format!("{}={}", o.name(), o.label("v").unwrap_or_default());
        (
            changes.upserts.iter().map(label).collect(),
            changes.deletes.iter().map(|k| k.name.clone()).collect(),
        )
    }

    fn problems(shelf: &Shelf) -> Vec<String> {
        shelf.problems().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_what_differs_is_told() {
        let mut shelf = Shelf::default();
        let (a, b) = (account("a", "x"), account("b", "x"));
        assert_eq!(take(&mut shelf, &[("f", &format!("{a}{b}"))]).0, ["a=x", "b=x"]);
        assert_eq!(
            take(&mut shelf, &[("f", &format!("{b}{}", account("a", "z")))]),
            (vec!["a=z".into()], vec![])
        );
        assert_eq!(take(&mut shelf, &[("f", &b)]), (vec![], vec!["a".into()]));
        assert_eq!(take(&mut shelf, &[("f", "gone")]), (vec![], vec!["b".into()]));
        assert_eq!(take(&mut shelf, &[("f", "gone")]), (vec![], vec![]));
    }

    #[test]
    fn a_bad_file_keeps_what_it_held() {
        let mut shelf = Shelf::default();
        take(&mut shelf, &[("f", &account("a", "x"))]);
        let bad =
            format!("{}apiVersion: v1\nkind: ServiceAccont\nmetadata: {{name: b}}\n", account("a", "z"));
        assert_eq!(take(&mut shelf, &[("f", &bad)]), (vec![], vec![]));
        assert_eq!(
            problems(&shelf),
            ["f:6:7: unknown kind `ServiceAccont` in `v1` (did you mean `ServiceAccount`?)"]
        );
        assert_eq!(take(&mut shelf, &[("f", &account("a", "z"))]).0, ["a=z"]);
        assert_eq!(problems(&shelf), [] as [&str; 0]);
    }

    #[test]
    fn the_same_object_in_two_files_is_told_with_both() {
        let mut shelf = Shelf::default();
        take(&mut shelf, &[("g", &account("a", "x"))]);
        assert_eq!(take(&mut shelf, &[("f", &account("a", "z"))]), (vec![], vec![]));
        assert_eq!(
            problems(&shelf),
            ["f:1:1: ServiceAccount n/a is already in g on line 1 (remove it from one of the two)"]
        );
        // Once the first lets go of it, the second gets it.
        assert_eq!(take(&mut shelf, &[("g", "gone")]).0, ["a=z"]);
        assert_eq!(problems(&shelf), [] as [&str; 0]);
    }

    #[test]
    fn the_same_object_twice_in_one_file_is_told() {
        let mut shelf = Shelf::default();
        let text = format!("{}{}", account("a", "x"), account("a", "z"));
        assert_eq!(take(&mut shelf, &[("f", &text)]).0, [] as [&str; 0]);
        assert!(problems(&shelf)[0].contains("a second time, first on line 1"));
    }

    #[test]
    fn objects_move_between_files_without_being_gone() {
        let mut shelf = Shelf::default();
        let (a, b) = (account("a", "x"), account("b", "x"));
        take(&mut shelf, &[("f", &a), ("g", &b)]);
        assert_eq!(take(&mut shelf, &[("f", &b), ("g", &a)]), (vec![], vec![]));
        assert_eq!(take(&mut shelf, &[("f", "gone"), ("h", &b)]), (vec![], vec![]));
        assert_eq!(problems(&shelf), [] as [&str; 0]);
    }

    #[test]
    fn a_file_kept_out_by_another_keeps_what_it_held() {
        let mut shelf = Shelf::default();
        take(&mut shelf, &[("f", &account("a", "x")), ("g", &account("b", "x"))]);
        let both = format!("{}{}", account("b", "z"), account("a", "z"));
        assert_eq!(take(&mut shelf, &[("f", &both)]), (vec![], vec![]));
        assert_eq!(take(&mut shelf, &[("g", "gone")]).0, ["a=z", "b=z"]);
    }

    #[test]
    fn a_file_was_good_once_its_content_was_taken_in() {
        let mut shelf = Shelf::default();
        let never_good = |shelf: &Shelf| shelf.never_good().map(ToString::to_string).collect::<Vec<_>>();
        take(&mut shelf, &[("f", &account("a", "x")), ("g", &account("a", "x")), ("h", "kind: Nonsense")]);
        assert_eq!(never_good(&shelf), ["g", "h"], "neither what is in conflict nor what is a mistake");
        take(&mut shelf, &[("f", "gone"), ("h", &account("b", "x"))]);
        assert_eq!(never_good(&shelf), [] as [&str; 0]);
        take(&mut shelf, &[("h", "kind: Nonsense")]);
        assert_eq!(never_good(&shelf), [] as [&str; 0], "what it last held is known");
        take(&mut shelf, &[("i", "kind: Nonsense")]);
        assert_eq!(never_good(&shelf), ["i"]);
        take(&mut shelf, &[("i", "gone")]);
        assert_eq!(never_good(&shelf), [] as [&str; 0]);
    }

    #[test]
    fn an_unused_kind_is_told_once() {
        let mut shelf = Shelf::default();
        let text = "apiVersion: batch/v1\nkind: Job\nmetadata: {name: j}\nspec: {}\n".to_owned();
        let readings = |path: &str| [(Arc::from(path), Reading::Text(text.clone()))];
        assert_eq!(shelf.take(readings("f")).unused.len(), 1);
        assert_eq!(shelf.take(readings("g")).unused.len(), 0);
    }
}
