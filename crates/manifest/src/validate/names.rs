//! Names, labels and annotations (RFC 1123 as Kubernetes reads it).

use std::collections::BTreeMap;

use super::{FieldPath, Findings};
use crate::kind::Kind;
use crate::membership::{EXISTING_CONNECTIONS, ExistingConnections};
use crate::object::Object;

/// Up to 63 of lower-case letters, digits and `-`, with a letter or digit at both ends.
pub(super) fn is_label(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// Labels joined by dots, up to 253 characters.
pub(super) fn is_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_label)
}

/// A label's value, or the name in its key: up to 63 of letters, digits, `-`, `_` and `.`, letters or digits at both ends.
fn is_qualified(name: &str) -> bool {
    let end = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let inner = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let bytes = name.as_bytes();
    bytes.len() <= 63 && bytes.iter().all(inner) && end(bytes.first()) && end(bytes.last())
}

fn is_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && is_qualified(name),
        None => is_qualified(key),
    }
}

/// The labels that a selector asks for.
pub(super) fn labels(labels: &BTreeMap<String, String>, path: &FieldPath, findings: &mut Findings) {
    for (key, value) in labels {
        if !is_key(key) {
            findings.error(&path.field(key), format!("`{key}` is no label key"));
        }
        if !value.is_empty() && !is_qualified(value) {
            findings
                .error(&path.field(key), format!("{value:?} is no label value"))
                .remedy("up to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends");
        }
    }
}

pub(super) fn metadata(object: &Object, findings: &mut Findings) {
    let metadata = object.metadata();
    let path = FieldPath::from("metadata");
    match metadata.name.as_deref().unwrap_or_default() {
        "" => {
            let finding = findings.error(&path, "the object has no name");
            if metadata.generate_name.is_some() {
                finding.remedy("`generateName` needs an API server; give it a `name`");
            }
        }
        name => {
            let short = matches!(object.kind(), Kind::Namespace | Kind::Service);
            if !(if short { is_label(name) } else { is_subdomain(name) }) {
                findings
                    .error(&path.field("name"), format!("`{name}` is no name (RFC 1123)"))
                    .remedy("lower-case letters, digits and '-', with a letter or digit at both ends");
            }
        }
    }
    if let Some(namespace) = metadata.namespace.as_deref()
        && !namespace.is_empty()
        && !is_label(namespace)
    {
        findings.error(&path.field("namespace"), format!("`{namespace}` is no namespace's name (RFC 1123)"));
    }
    let at = path.field("labels");
    labels(metadata.labels.as_ref().unwrap_or(&BTreeMap::new()), &at, findings);
    if matches!(object.kind(), Kind::Namespace | Kind::Pod)
        && let Some(mode) = object.label("istio.io/dataplane-mode")
        && !["ambient", "none"].contains(&mode)
    {
        findings
            .error(&at.field("istio.io/dataplane-mode"), format!("there is no mode `{mode}`"))
            .remedy("`ambient` or `none`");
    }
    existing_connections(object, &path, findings);
    let at = path.field("annotations");
    for key in metadata.annotations.iter().flat_map(BTreeMap::keys) {
        if !is_key(&key.to_lowercase()) {
            findings.error(&at.field(key), format!("`{key}` is no annotation key"));
        }
    }
}

fn existing_connections(object: &Object, path: &FieldPath, findings: &mut Findings) {
    if !matches!(object.kind(), Kind::Namespace | Kind::Pod) {
        return;
    }
    let said = [
        ("labels", object.label(EXISTING_CONNECTIONS)),
        ("annotations", object.annotation(EXISTING_CONNECTIONS)),
    ];
    for (field, word) in said {
        let Some(word) = word.filter(|word| !ExistingConnections::NAMES.contains(word)) else { continue };
        let at = path.field(field).field(EXISTING_CONNECTIONS);
        let finding = findings.error(&at, format!("`{word}` says nothing of existing connections"));
        finding.did_you_mean(word, ExistingConnections::NAMES);
        if finding.remedy.is_none() {
            finding.remedy("`keep` or `close`");
        }
    }
}
