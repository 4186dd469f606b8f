//! A file's text to its objects.

use std::sync::Arc;

use crate::kind::{Kind, Lookup};
use crate::object::Object;
use crate::problem::{Position, Problem, Severity};
use crate::suggest::did_you_mean;
use crate::validate::{self, Finding};
use crate::yaml::{self, Node, Value};

/// The namespace of objects that name none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// All that a text holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parsed {
    /// Its objects in their order, without those of which a problem of severity `Error` tells.
    pub documents: Vec<Document>,
    /// Objects of kinds that nothing is done with yet.
    pub unused: Vec<Unused>,
    /// All that is wrong.
    pub problems: Vec<Problem>,
}

impl Parsed {
    /// Whether the text can be used as a whole.
    pub fn is_usable(&self) -> bool {
        self.problems.iter().all(|problem| problem.severity != Severity::Error)
    }
}

/// An object and the place that it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// The object, its namespace filled in.
    pub object: Object,
    /// The file.
    pub file: Arc<str>,
    /// Where the object begins.
    pub at: Position,
}

/// An object of a kind that exists and that nothing is done with yet, or something that an object says and of which
/// that is true.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct Unused {
    /// The kind.
    pub kind: String,
    /// The API group, empty for the core.
    pub group: String,
    /// The object's name.
    pub name: String,
    /// The file.
    pub file: Arc<str>,
    /// Where the object begins.
    pub line: u32,
}

/// Reads, types and validates all objects of a text. `file` is only a name, for the problems.
///
/// ```
/// let parsed = manifest::parse("ns.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n");
/// assert_eq!(parsed.documents[0].object.key().to_string(), "Namespace shop");
/// ```
pub fn parse(file: impl AsRef<str>, text: &str) -> Parsed {
    let file: Arc<str> = file.as_ref().into();
    let mut parsed = Parsed::default();
    match yaml::read(&file, text, 0) {
        Ok(nodes) => nodes.iter().for_each(|node| take(&file, node, &mut parsed)),
        Err(problem) => parsed.problems.push(problem),
    }
    parsed.problems.sort_by_key(|problem| (problem.line, problem.column));
    parsed
}

/// Reads a text of a single YAML or JSON document that is no object, as strictly as objects are read: a program's own file.
///
/// # Errors
/// All that is wrong with it.
pub fn read_as<T: serde::de::DeserializeOwned>(file: impl AsRef<str>, text: &str) -> Result<T, Vec<Problem>> {
    let file: Arc<str> = file.as_ref().into();
    let mut nodes = yaml::read(&file, text, 0).map_err(|problem| vec![problem])?;
    match nodes.len() {
        1 => crate::de::from_node(&file, &nodes.remove(0)),
        0 => Err(vec![Problem::error(&file, Position::START, "the file is empty")]),
        _ => Err(vec![Problem::error(&file, nodes[1].at, "there is more than one document")]),
    }
}

fn take(file: &Arc<str>, node: &Node, parsed: &mut Parsed) {
    let header = match Header::read(file, node) {
        Ok(header) => header,
        Err(problem) => return parsed.problems.push(problem),
    };
    if header.kind == "List" && header.api_version == "v1" {
        return list(file, node, parsed);
    }
    let kind = match Kind::lookup(header.api_version, header.kind) {
        Lookup::Used(kind) => kind,
        Lookup::KnownUnused { group, kind } => {
            let name = node.get("metadata").and_then(|m| m.get("name")).and_then(Node::text);
            let name = name.unwrap_or_default().to_owned();
            return parsed.unused.push(Unused { kind, group, name, file: file.clone(), line: node.at.line });
        }
        Lookup::Unknown { message, remedy } => {
            let problem = Problem::error(file, header.kind_at, message);
            return parsed.problems.push(Problem { remedy, ..problem });
        }
    };
    let mut object = match Object::from_node(kind, file, node) {
        Ok(object) => object,
        Err(problems) => return parsed.problems.extend(problems),
    };
    parsed.unused.extend(crate::unused::entries(&object, file, node.at.line));
    let findings = validate::validate(&object);
    let usable = findings.iter().all(|finding| finding.severity != Severity::Error);
    parsed.problems.extend(findings.into_iter().map(|finding| place(file, node, finding)));
    if !usable {
        return;
    }
    let namespace = &mut object.metadata_mut().namespace;
    if !kind.is_namespaced() {
        *namespace = None;
    } else if namespace.as_ref().is_none_or(String::is_empty) {
        *namespace = Some(DEFAULT_NAMESPACE.to_owned());
    }
    parsed.documents.push(Document { object, file: file.clone(), at: node.at });
}

/// `kubectl get -o yaml` wraps several objects in a List.
fn list(file: &Arc<str>, node: &Node, parsed: &mut Parsed) {
    if let Value::Mapping(entries) = &node.value {
        const FIELDS: [&str; 4] = ["apiVersion", "kind", "metadata", "items"];
        for entry in entries.iter().filter(|entry| !FIELDS.contains(&entry.key.as_str())) {
            let problem = Problem::error(file, entry.at, format!("a List has no field `{}`", entry.key));
            parsed.problems.push(Problem { remedy: did_you_mean(&entry.key, FIELDS), ..problem });
        }
    }
    match node.get("items").map(|items| &items.value) {
        Some(Value::Sequence(items)) => {
            for item in items {
                if item.get("kind").and_then(Node::text) == Some("List") {
                    parsed.problems.push(Problem::error(file, item.at, "a List stands within a List"));
                } else {
                    take(file, item, parsed);
                }
            }
        }
        None | Some(Value::Null) => {}
        Some(_) => parsed.problems.push(Problem::error(file, node.at, "`items` is no list")),
    }
}

struct Header<'n> {
    api_version: &'n str,
    kind: &'n str,
    kind_at: Position,
}

impl<'n> Header<'n> {
    fn read(file: &Arc<str>, node: &'n Node) -> Result<Self, Problem> {
        let Value::Mapping(entries) = &node.value else {
            return Err(Problem::error(
                file,
                node.at,
                "no object: expected a mapping with `apiVersion` and `kind`",
            ));
        };
        let field = |name: &'static str| {
            let Some(entry) = node.entry(name) else {
                let problem = Problem::error(file, node.at, format!("the object has no `{name}`"));
                // A misspelt header field is worth its own line.
                let near = |e: &&yaml::Entry| {
                    !["apiVersion", "kind", "metadata", "spec", "status"].contains(&e.key.as_str())
                        && crate::suggest::nearest(&e.key, [name]).is_some()
                };
                return Err(match entries.iter().find(near) {
                    Some(entry) => Problem::error(file, entry.at, format!("the object has no `{name}`"))
                        .with_remedy(format!("`{}`: did you mean `{name}`?", entry.key)),
                    None => problem,
                });
            };
            let text = entry.value.text().filter(|text| !text.is_empty());
            text.map(|text| (text, entry.value.at))
                .ok_or_else(|| Problem::error(file, entry.value.at, format!("`{name}` must be a text")))
        };
        let (api_version, _) = field("apiVersion")?;
        let (kind, kind_at) = field("kind")?;
        Ok(Self { api_version, kind, kind_at })
    }
}

/// Puts a finding at the deepest node of its way that is there.
fn place(file: &Arc<str>, node: &Node, finding: Finding) -> Problem {
    let mut at = node.at;
    let mut current = Some(node);
    for segment in finding.path.segments() {
        let next = current.and_then(|node| match (segment, &node.value) {
            (validate::Segment::Field(name), Value::Mapping(_)) => {
                node.entry(name).map(|entry| (entry.at, &entry.value))
            }
            (validate::Segment::Index(index), Value::Sequence(items)) => items.get(*index).map(|n| (n.at, n)),
            _ => None,
        });
        let Some((place, node)) = next else { break };
        (at, current) = (place, Some(node));
    }
    // Within a text that holds YAML itself, a block, the finding knows better.
    let at = finding.within.map_or(at, |within| match current {
        Some(node) => {
            Position { line: node.at.line + within.line - 1, column: node.at.column + within.column - 1 }
        }
        None => at,
    });
    let message = match finding.path.segments().is_empty() || finding.within.is_some() {
        true => finding.message,
        false => format!("`{}`: {}", finding.path, finding.message),
    };
    Problem {
        file: file.clone(),
        line: at.line,
        column: at.column,
        message,
        remedy: finding.remedy,
        severity: finding.severity,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        parse("f.yaml", text).problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn several_documents_give_their_objects_in_order() {
        let parsed = parse(
            "f.yaml",
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n---\napiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: a\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\nspec: {whatever: 1}\n",
        );
        assert_eq!(parsed.problems, []);
        let keys: Vec<String> = parsed.documents.iter().map(|d| d.object.key().to_string()).collect();
        assert_eq!(keys, ["Namespace shop", "ServiceAccount default/a"]);
        assert_eq!(parsed.documents[1].at.line, 6);
        assert_eq!((parsed.unused[0].kind.as_str(), parsed.unused[0].line), ("HTTPRoute", 11));
    }

    #[test]
    fn a_list_is_its_items() {
        let parsed = parse(
            "f.json",
            r#"{"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": [
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}},
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "b"}}]}"#,
        );
        assert_eq!(parsed.problems, []);
        assert_eq!(parsed.documents.len(), 2);
    }

    #[test]
    fn one_bad_document_spoils_none_of_the_others_but_the_file() {
        let parsed = parse(
            "f.yaml",
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n---\napiVersion: v1\nkind: Namespce\n",
        );
        assert_eq!(parsed.documents.len(), 1);
        assert!(!parsed.is_usable());
        assert_eq!(
            parsed.problems[0].to_string(),
            "f.yaml:7:7: unknown kind `Namespce` in `v1` (did you mean `Namespace`?)"
        );
    }

    #[test]
    fn headers_are_checked() {
        assert_eq!(problems("kind: Pod\n"), ["f.yaml:1:1: the object has no `apiVersion`"]);
        assert_eq!(
            problems("apiversion: v1\nkind: Pod\n"),
            ["f.yaml:1:1: the object has no `apiVersion` (`apiversion`: did you mean `apiVersion`?)"]
        );
        assert_eq!(
            problems("just text"),
            ["f.yaml:1:1: no object: expected a mapping with `apiVersion` and `kind`"]
        );
        assert!(problems("a: [").len() == 1);
    }

    #[test]
    fn findings_of_the_mesh_settings_stand_on_their_own_line() {
        let text = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: istio\n  namespace: istio-system\ndata:\n  mesh: |\n    rootNamespace: istio-system\n    trustDomian: x\n";
        assert_eq!(
            problems(text),
            ["f.yaml:9:5: the object has no field `trustDomian` (did you mean `trustDomain`?)"]
        );
    }
}
