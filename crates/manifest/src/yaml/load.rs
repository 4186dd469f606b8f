//! YAML events to a tree, with an explicit stack.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};

use super::{Entry, Fault, MAX_ALIAS_NODES, MAX_DEPTH, Node, Value, scalar};
use crate::problem::Position;

/// A collection that is still open.
struct Open {
    anchor: usize,
    at: Position,
    kind: Kind,
}

enum Kind {
    Sequence(Vec<Node>),
    Mapping { entries: Vec<Entry>, merges: Vec<Node>, key: Option<(Position, Key)> },
}

/// A key that waits for its value.
enum Key {
    Name(String),
    /// An unquoted `<<`.
    Merge,
}

#[derive(Default)]
struct Loader {
    stack: Vec<Open>,
    anchors: HashMap<usize, Node>,
    alias_nodes: usize,
    documents: Vec<Node>,
}

pub(super) fn read(text: &str) -> Result<Vec<Node>, Fault> {
    let mut loader = Loader::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| {
            Fault::new(
                Position::new(e.marker().line(), e.marker().col() + 1),
                format!("no YAML: {}", e.info()),
            )
        })?;
        loader.take(event, position(span))?;
    }
    Ok(loader.documents)
}

fn position(span: Span) -> Position {
    Position::new(span.start.line(), span.start.col() + 1)
}

impl Loader {
    fn take(&mut self, event: Event<'_>, at: Position) -> Result<(), Fault> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) => {
                self.anchors.clear();
                Ok(())
            }
            Event::Alias(id) => {
                let node = self.alias(id, at)?;
                self.place(node)
            }
            Event::Scalar(text, ScalarStyle::Plain, ..) if text == "<<" && self.awaits_key() => {
                self.set_key(at, Key::Merge);
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                let node = self.scalar(&text, style, tag.as_deref(), at)?;
                self.finish(node, anchor)
            }
            Event::SequenceStart(anchor, _) => self.open(anchor, at, Kind::Sequence(Vec::new())),
            Event::MappingStart(anchor, _) => {
                self.open(anchor, at, Kind::Mapping { entries: Vec::new(), merges: Vec::new(), key: None })
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
        }
    }

    fn awaits_key(&self) -> bool {
        matches!(self.stack.last(), Some(Open { kind: Kind::Mapping { key: None, .. }, .. }))
    }

    fn set_key(&mut self, at: Position, name: Key) {
        if let Some(Open { kind: Kind::Mapping { key, .. }, .. }) = self.stack.last_mut() {
            *key = Some((at, name));
        }
    }

    fn open(&mut self, anchor: usize, at: Position, kind: Kind) -> Result<(), Fault> {
        if self.awaits_key() {
            return Err(Fault::new(at, "a key must be a text, not a list or a mapping"));
        }
        if self.stack.len() >= MAX_DEPTH {
            return Err(Fault::new(at, format!("nested more than {MAX_DEPTH} deep")));
        }
        self.stack.push(Open { anchor, at, kind });
        Ok(())
    }

    fn close(&mut self) -> Result<(), Fault> {
        let Some(Open { anchor, at, kind }) = self.stack.pop() else { return Ok(()) };
        let value = match kind {
            Kind::Sequence(items) => Value::Sequence(items),
            Kind::Mapping { mut entries, merges, .. } => {
                merge(&mut entries, merges)?;
                Value::Mapping(entries)
            }
        };
        self.finish(Node { at, value }, anchor)
    }

    fn scalar(&self, text: &str, style: ScalarStyle, tag: Option<&Tag>, at: Position) -> Result<Node, Fault> {
        let tag = match tag {
            None => None,
            Some(tag) if tag.is_yaml_core_schema() => Some(tag.suffix.as_str()),
            Some(tag) => return Err(Fault::new(at, format!("the tag `{tag}` has no meaning here"))),
        };
        let value = match (tag, style) {
            (Some("str"), _) => Value::Text(text.to_owned()),
            (None, ScalarStyle::Plain) => scalar::plain(text),
            (None, _) => Value::Text(text.to_owned()),
            (Some(_), _) => scalar::plain(text),
        };
        Ok(Node { at, value })
    }

    fn alias(&mut self, id: usize, at: Position) -> Result<Node, Fault> {
        let Some(node) = self.anchors.get(&id) else {
            return Err(Fault::new(at, "an alias stands within what it refers to"));
        };
        self.alias_nodes += node.weight();
        if self.alias_nodes > MAX_ALIAS_NODES {
            return Err(Fault::new(at, format!("aliases add more than {MAX_ALIAS_NODES} nodes")));
        }
        let mut node = node.clone();
        if depth(&node) + self.stack.len() > MAX_DEPTH {
            return Err(Fault::new(at, format!("nested more than {MAX_DEPTH} deep")));
        }
        node.at = at;
        Ok(node)
    }

    /// A complete node: kept for aliases, then placed.
    fn finish(&mut self, node: Node, anchor: usize) -> Result<(), Fault> {
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
            self.alias_nodes += node.weight();
            if self.alias_nodes > MAX_ALIAS_NODES {
                return Err(Fault::new(node.at, format!("aliases add more than {MAX_ALIAS_NODES} nodes")));
            }
        }
        self.place(node)
    }

    fn place(&mut self, node: Node) -> Result<(), Fault> {
        let Some(open) = self.stack.last_mut() else {
            if node.value != Value::Null {
                self.documents.push(node);
            }
            return Ok(());
        };
        match &mut open.kind {
            Kind::Sequence(items) => items.push(node),
            Kind::Mapping { entries, merges, key } => match key.take() {
                None => *key = Some((node.at, Key::Name(key_text(node)?))),
                Some((_, Key::Merge)) => merges.push(node),
                Some((at, Key::Name(key))) => entries.push(Entry { at, key, value: node }),
            },
        }
        Ok(())
    }
}

fn key_text(node: Node) -> Result<String, Fault> {
    match node.value {
        Value::Text(text) => Ok(text),
        Value::Int(n) => Ok(n.to_string()),
        Value::UInt(n) => Ok(n.to_string()),
        Value::Bool(b) => Ok(b.to_string()),
        _ => Err(Fault::new(node.at, "a key must be a text")),
    }
}

fn depth(node: &Node) -> usize {
    match &node.value {
        Value::Sequence(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Mapping(entries) => 1 + entries.iter().map(|e| depth(&e.value)).max().unwrap_or(0),
        _ => 0,
    }
}

/// Refuses keys that are there twice, then fills in what `<<` brings.
fn merge(entries: &mut Vec<Entry>, merges: Vec<Node>) -> Result<(), Fault> {
    let mut seen: HashMap<String, Position> = HashMap::with_capacity(entries.len());
    for entry in entries.iter() {
        if let Some(first) = seen.insert(entry.key.clone(), entry.at) {
            return Err(Fault::twice(&entry.key, entry.at, first));
        }
    }
    for node in merges {
        let at = node.at;
        let sources = match node.value {
            Value::Sequence(items) => items,
            _ => vec![node],
        };
        for source in sources {
            let Value::Mapping(brought) = source.value else {
                return Err(Fault::new(at, "`<<` takes a mapping or a list of mappings"));
            };
            for entry in brought {
                if !seen.contains_key(&entry.key) {
                    seen.insert(entry.key.clone(), entry.at);
                    entries.push(entry);
                }
            }
        }
    }
    Ok(())
}
