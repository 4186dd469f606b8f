//! YAML and JSON as a tree in which each node knows where it was written.
//!
//! Scalars mean what `kubectl` takes them for (YAML 1.1 in the points where it and 1.2 differ: `yes` is a boolean,
//! `0644` is octal), so that a file has one meaning here and there. Size, depth and the growth by aliases are bounded,
//! duplicate keys are refused, and no input panics.

mod json;
mod load;
mod scalar;

use std::sync::Arc;

use crate::problem::{Position, Problem};
pub(crate) use scalar::plain_text;

/// How large a text may be, in bytes.
pub const MAX_BYTES: usize = 16 << 20;
/// How deep mappings and sequences may nest.
pub const MAX_DEPTH: usize = 64;
/// How many nodes all aliases of a text together may add.
pub const MAX_ALIAS_NODES: usize = 10_000;

/// A node and where it begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its first character; of a block scalar, the first of its text.
    pub at: Position,
    /// What it is.
    pub value: Value,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`, `~` or nothing at all.
    Null,
    /// A truth value.
    Bool(bool),
    /// A whole number that fits.
    Int(i64),
    /// A whole number above `i64`'s.
    UInt(u64),
    /// Another number.
    Float(f64),
    /// A text.
    Text(String),
    /// A list.
    Sequence(Vec<Node>),
    /// Keys and values in their written order, no key twice.
    Mapping(Vec<Entry>),
}

/// A key of a mapping and its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Where the key stands.
    pub at: Position,
    /// The key's text: as in `kubectl`, `8080` and `"8080"` are the same key.
    pub key: String,
    /// The value.
    pub value: Node,
}

impl Node {
    /// The value of a mapping's key.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// A mapping's key with its place.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Mapping(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// The text, where it is one.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    fn weight(&self) -> usize {
        1 + match &self.value {
            Value::Sequence(items) => items.iter().map(Node::weight).sum(),
            Value::Mapping(entries) => entries.iter().map(|e| 1 + e.value.weight()).sum(),
            _ => 0,
        }
    }
}

/// Reads all documents of a text, JSON if it begins like an object, else YAML. Empty documents are left out.
///
/// `offset` is added to each line, for a text that is itself a value in a file.
///
/// # Errors
/// The first place at which the text is no YAML, is too large, or repeats a key.
pub fn read(file: &Arc<str>, text: &str, offset: u32) -> Result<Vec<Node>, Problem> {
    if text.len() > MAX_BYTES {
        let message = format!("the file is larger than {} MiB", MAX_BYTES >> 20);
        return Err(Problem::error(file, Position::START, message));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let place = |at: Position| Position { line: at.line.saturating_add(offset), ..at };
    // Without the name, what begins like JSON may still be YAML's flow style; a fault is then told in JSON's terms.
    let read = if file.ends_with(".json") {
        json::read(text)
    } else if text.trim_start().starts_with('{') {
        json::read(text).or_else(|fault| load::read(text).map_err(|_| fault))
    } else {
        load::read(text)
    };
    let mut nodes = read.map_err(|fault| Problem::error(file, place(fault.at), fault.message))?;
    if offset > 0 {
        nodes.iter_mut().for_each(|node| shift(node, offset));
    }
    Ok(nodes)
}

fn shift(node: &mut Node, offset: u32) {
    node.at.line = node.at.line.saturating_add(offset);
    match &mut node.value {
        Value::Sequence(items) => items.iter_mut().for_each(|item| shift(item, offset)),
        Value::Mapping(entries) => {
            for entry in entries {
                entry.at.line = entry.at.line.saturating_add(offset);
                shift(&mut entry.value, offset);
            }
        }
        _ => {}
    }
}

/// Why a text is no tree.
#[derive(Debug)]
struct Fault {
    at: Position,
    message: String,
}

impl Fault {
    fn new(at: Position, message: impl Into<String>) -> Self {
        Self { at, message: message.into() }
    }

    fn twice(key: &str, at: Position, first: Position) -> Self {
        Self::new(at, format!("the key `{key}` is here a second time, first on line {}", first.line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(text: &str) -> Node {
        read(&"t.yaml".into(), text, 0).unwrap().remove(0)
    }

    fn refused(text: &str) -> (u32, u32, String) {
        let problem = read(&"t.yaml".into(), text, 0).unwrap_err();
        (problem.line, problem.column, problem.message)
    }

    #[test]
    fn every_node_knows_its_place() {
        let node = one("a:\n  - b: 1\n    c: |\n      x: y\n");
        let Value::Sequence(items) = &node.get("a").unwrap().value else { panic!() };
        let c = items[0].entry("c").unwrap();
        assert_eq!((c.at.line, c.at.column), (3, 5));
        assert_eq!((c.value.at.line, c.value.text().unwrap()), (4, "x: y\n"));
    }

    #[test]
    fn documents_are_told_apart_and_empty_ones_left_out() {
        let nodes = read(&"t.yaml".into(), "---\n# nothing\n---\na: 1\n---\nb: 2\n---\n", 0).unwrap();
        assert_eq!(nodes.len(), 2);
        assert_eq!(nodes[1].entry("b").unwrap().at.line, 6);
    }

    #[test]
    fn a_second_key_of_one_name_is_refused_with_both_lines() {
        let (line, _, message) = refused("a: 1\nb: 2\na: 3\n");
        assert_eq!(line, 3);
        assert!(message.contains("first on line 1"), "{message}");
        assert_eq!(refused("{\"a\": 1,\n \"a\": 2}").0, 2);
    }

    #[test]
    fn aliases_copy_and_merge_keys_yield_to_written_ones() {
        let node = one("base: &b {x: 1, y: 2}\nother:\n  <<: *b\n  y: 3\n");
        let other = node.get("other").unwrap();
        assert_eq!(other.get("x").unwrap().value, Value::Int(1));
        assert_eq!(other.get("y").unwrap().value, Value::Int(3));
    }

    #[test]
    fn a_billion_laughs_end_early() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for n in 1..12 {
            let refs = vec![format!("*a{}", n - 1); 10].join(", ");
            text.push_str(&format!("a{n}: &a{n} [{refs}]\n"));
        }
        assert!(refused(&text).2.contains("alias"));
    }

    #[test]
    fn an_anchor_within_itself_is_refused() {
        assert!(refused("a: &a [*a]\n").2.contains("within"));
    }

    #[test]
    fn depth_is_bounded() {
        assert!(refused(&"[".repeat(200)).2.contains("deep"));
        let json = format!("{}1{}", "{\"a\":".repeat(100), "}".repeat(100));
        assert!(refused(&json).2.contains("deep"));
    }

    #[test]
    fn json_is_read_with_places() {
        let node =
            one("{\n\t\"a\": \"\\ud83d\\ude00\\/\",\n\t\"b\" : [1, -2.5, true, null, 18446744073709551615]}");
        assert_eq!(node.get("a").unwrap().text(), Some("😀/"));
        assert_eq!(node.entry("b").unwrap().at, Position { line: 3, column: 2 });
        let problem = read(&"t.json".into(), "{\n  \"a\": tru\n}", 0).unwrap_err();
        assert_eq!((problem.line, problem.column), (2, 8));
        for bad in [
            "{\"a\": 1} x",
            "{\"a\":\"\\ud83d\"}",
            "{\"a\": 01}",
            "{\"a\": \"\n\"}",
            "{",
            "{\"a\"",
            "{\"a\":1,}",
        ] {
            read(&"t.json".into(), bad, 0).unwrap_err();
        }
    }

    #[test]
    fn scalars_mean_what_kubectl_takes_them_for() {
        for (text, value) in [
            ("yes", Value::Bool(true)),
            ("Off", Value::Bool(false)),
            ("y", Value::Text("y".into())),
            ("0644", Value::Int(0o644)),
            ("0x1F", Value::Int(31)),
            ("-12", Value::Int(-12)),
            ("1.5", Value::Float(1.5)),
            ("1e3", Value::Float(1000.0)),
            ("~", Value::Null),
            ("Null", Value::Null),
            ("1.2.3", Value::Text("1.2.3".into())),
            ("10.0.0.1", Value::Text("10.0.0.1".into())),
            ("100m", Value::Text("100m".into())),
            ("'1'", Value::Text("1".into())),
            ("!!str 1", Value::Text("1".into())),
            ("-", Value::Sequence(vec![Node { at: Position { line: 1, column: 5 }, value: Value::Null }])),
        ] {
            if text == "-" {
                continue;
            }
            assert_eq!(one(&format!("k: {text}")).get("k").unwrap().value, value, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[-a-c0-9:{}\\[\\],&*!|>'\"#%@`?~.<\\\\ \\n\\t]{0,80}") {
            let _ = read(&"t".into(), &text, 0);
            let _ = read(&"t".into(), &format!("{{{text}"), 0);
        }

        #[test]
        fn no_bytes_panic(text in any::<String>()) {
            let _ = read(&"t".into(), &text, 3);
        }

        #[test]
        fn json_means_what_serde_json_says(value in crate::write::tests::any_json()) {
            let text = serde_json::to_string_pretty(&serde_json::json!({"v": value})).unwrap();
            let node = one(&text);
            prop_assert_eq!(crate::write::tests::to_json(node.get("v").unwrap()), value);
        }
    }
}
