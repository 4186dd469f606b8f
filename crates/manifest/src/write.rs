//! Objects back to text.

use serde::Serialize;
use serde_json::Value;

use crate::object::Object;
use crate::yaml::plain_text;

/// An object as YAML, as `kubectl get -o yaml` would show it: block style, two spaces, quotes only where needed.
///
/// Reading the text gives the same object.
pub fn to_yaml(object: &Object) -> String {
    value_to_yaml(&to_value(object))
}

/// An object as indented JSON.
pub fn to_json(object: &Object) -> String {
    format!("{:#}", to_value(object))
}

/// An object as a JSON value.
pub fn to_value(object: &Object) -> Value {
    tree(object)
}

/// Anything that serde can write, as YAML.
pub fn value_to_yaml(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => mapping(map, 0, &mut out),
        Value::Array(items) if !items.is_empty() => sequence(items, 0, &mut out),
        other => {
            scalar(other, 0, &mut out);
            out.push('\n');
        }
    }
    out
}

fn tree(object: &impl Serialize) -> Value {
    // The kinds' types serialise to objects with text keys, which cannot fail.
    serde_json::to_value(object).unwrap_or(Value::Null)
}

fn indent(depth: usize, out: &mut String) {
    (0..depth).for_each(|_| out.push_str("  "));
}

fn mapping(map: &serde_json::Map<String, Value>, depth: usize, out: &mut String) {
    for (n, (key, value)) in map.iter().enumerate() {
        if n > 0 {
            indent(depth, out);
        }
        text(key, out);
        out.push(':');
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                out.push('\n');
                indent(depth + 1, out);
                mapping(inner, depth + 1, out);
            }
            Value::Array(items) if !items.is_empty() => {
                out.push('\n');
                indent(depth, out);
                sequence(items, depth, out);
            }
            other => {
                out.push(' ');
                scalar(other, depth, out);
                out.push('\n');
            }
        }
    }
}

fn sequence(items: &[Value], depth: usize, out: &mut String) {
    for (n, item) in items.iter().enumerate() {
        if n > 0 {
            indent(depth, out);
        }
        out.push_str("- ");
        match item {
            Value::Object(inner) if !inner.is_empty() => mapping(inner, depth + 1, out),
            Value::Array(inner) if !inner.is_empty() => sequence(inner, depth + 1, out),
            other => {
                scalar(other, depth, out);
                out.push('\n');
            }
        }
    }
}

fn scalar(value: &Value, depth: usize, out: &mut String) {
    match value {
        Value::String(s) if is_block(s) => block(s, depth, out),
        Value::String(s) => text(s, out),
        Value::Object(_) => out.push_str("{}"),
        Value::Array(_) => out.push_str("[]"),
        other => out.push_str(&other.to_string()),
    }
}

/// Whether a text is better read line by line.
fn is_block(s: &str) -> bool {
    let plain =
        |c: char| c == '\n' || (!c.is_control() && !matches!(c, '\u{feff}' | '\u{2028}' | '\u{2029}'));
    let lines_ok = s.lines().all(|line| !line.ends_with(' ') && !line.starts_with(' ') || line.trim() != "");
    s.trim_end_matches('\n').contains('\n')
        && !s.starts_with([' ', '\n'])
        && !s.ends_with("\n\n")
        && s.chars().all(plain)
        && lines_ok
}

fn block(s: &str, depth: usize, out: &mut String) {
    out.push_str(if s.ends_with('\n') { "|" } else { "|-" });
    for line in s.lines() {
        out.push('\n');
        if !line.is_empty() {
            indent(depth + 1, out);
            out.push_str(line);
        }
    }
}

fn text(s: &str, out: &mut String) {
    if plain_text(s) {
        out.push_str(s);
    } else {
        // JSON's quoting is YAML's, but for what YAML takes for the end of a line or the beginning of a file.
        for c in Value::from(s).to_string().chars() {
            match c {
                '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                    out.push_str(&format!("\\u{:04x}", u32::from(c)));
                }
                _ => out.push(c),
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::yaml::{self, Node};
    use proptest::prelude::*;

    pub(crate) fn to_json(node: &Node) -> Value {
        match &node.value {
            yaml::Value::Null => Value::Null,
            yaml::Value::Bool(b) => (*b).into(),
            yaml::Value::Int(n) => (*n).into(),
            yaml::Value::UInt(n) => (*n).into(),
            yaml::Value::Float(n) => (*n).into(),
            yaml::Value::Text(s) => s.as_str().into(),
            yaml::Value::Sequence(items) => items.iter().map(to_json).collect(),
            yaml::Value::Mapping(entries) => entries
                .iter()
                .map(|e| (e.key.clone(), to_json(&e.value)))
                .collect::<serde_json::Map<_, _>>()
                .into(),
        }
    }

    pub(crate) fn any_json() -> impl Strategy<Value = Value> {
        let text = prop_oneof![
            "[ -~\n]{0,12}",
            any::<String>(),
            "(yes|no|null|1e3|0x1|-|~|a: b|# c|\\[|'|\"|- x| x|x |a\nb|a\n|a\n\n| a\nb|\\*x|&x|!x|%x|@x|\\?|:|---|<<)",
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (-1000i32..1000).prop_map(|n| Value::from(f64::from(n) / 8.0 + 0.0625)),
            text.clone().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, move |inner| {
            let map = prop::collection::vec((text.clone(), inner.clone()), 0..4);
            prop_oneof![
                prop::collection::vec(inner, 0..4).prop_map(Value::from),
                map.prop_map(|entries| Value::Object(entries.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(value in any_json()) {
            let wrapped = serde_json::json!({"v": value});
            let text = value_to_yaml(&wrapped);
            let nodes = yaml::read(&"t".into(), &text, 0);
            let nodes = nodes.map_err(|p| TestCaseError::fail(format!("{p}\n{text}")))?;
            prop_assert_eq!(to_json(&nodes[0]), wrapped, "{}", text);
        }
    }

    #[test]
    fn an_object_comes_back_as_it_was() {
        let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: p\n  namespace: shop\n  labels:\n    version: \"1\"\nspec:\n  action: DENY\n  rules:\n  - from:\n    - source:\n        principals:\n        - cluster.local/ns/shop/sa/legacy\n    to:\n    - operation:\n        ports:\n        - \"80\"\n";
        let parsed = crate::parse("f.yaml", text);
        let object = &parsed.documents[0].object;
        let written = to_yaml(object);
        assert_eq!(crate::parse("f.yaml", &written).documents[0].object, *object, "{written}");
        for line in ["version: \"1\"", "- from:", "    - operation:", "        - \"80\"", "  action: DENY"] {
            assert!(written.lines().any(|l| l.trim() == line.trim()), "{written}");
        }
        assert_eq!(crate::parse("f.json", &to_json_text(object)).documents[0].object, *object);
    }

    fn to_json_text(object: &Object) -> String {
        super::to_json(object)
    }

    #[test]
    fn long_texts_are_blocks() {
        let value = serde_json::json!({"mesh": "a: 1\n  b: 2\n", "x": [{"z": "1\n2"}], "e": {}, "l": []});
        assert_eq!(
            value_to_yaml(&value),
            "mesh: |\n  a: 1\n    b: 2\nx:\n- z: |-\n    1\n    2\ne: {}\nl: []\n"
        );
    }
}
