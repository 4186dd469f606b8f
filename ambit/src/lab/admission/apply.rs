//! Applying objects.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodSpec, Service};
use manifest::{Document, Kind, Object, ObjectKey, Problem, nearest};

use super::pod_spec;
use crate::lab::address::{FAMILIES, Families, RESOLVER, RESOLVER6, SERVICES, SERVICES6};
use crate::lab::control::services;
use crate::lab::store::{Applied, Mint, Store};

/// Puts objects in, or changes those that are there.
///
/// What was filled in before stays (virtual IPs, nodes, statuses), and so do labels that were put on by hand.
///
/// # Errors
/// All that speaks against it; then nothing is changed.
pub(crate) fn apply(
    store: &mut Store,
    documents: &[Document],
    mint: &mut Mint,
) -> Result<Vec<String>, Vec<Problem>> {
    let batch: BTreeSet<ObjectKey> = documents.iter().map(|document| document.object.key()).collect();
    let problems: Vec<Problem> =
        documents.iter().filter_map(|document| objection(store, &batch, document)).collect();
    if !problems.is_empty() {
        return Err(problems);
    }
    let mut lines = Vec::new();
    for document in documents {
        let key = document.object.key();
        let applied = Applied::of(document.object.metadata());
        let merged = match store.get(&key) {
            Some(known) => merge(known, store.applied(&key), document.object.clone()),
            None => document.object.clone(),
        };
        let is_new = store.get(&key).is_none();
        let verb = match store.put(merged, mint) {
            false => "unchanged",
            true if is_new => "created",
            true => "configured",
        };
        store.note_applied(key.clone(), applied);
        lines.push(format!("{key} {verb}"));
    }
    Ok(lines)
}

/// What speaks against an object.
fn objection(store: &Store, batch: &BTreeSet<ObjectKey>, document: &Document) -> Option<Problem> {
    let object = &document.object;
    let error = |message: String| Problem::error(&document.file, document.at, message);
    let names = |kind, namespace: &str| -> Vec<String> {
        let known =
            store.of_kind(kind).map(Object::key).chain(batch.iter().filter(|k| k.kind == kind).cloned());
        known.filter(|key| key.namespace == namespace).map(|key| key.name).collect()
    };
    let missing = |kind: Kind, namespace: &str, name: &str| {
        let known = names(kind, namespace);
        if known.iter().any(|known| known == name) {
            return None;
        }
        let problem = error(format!("{} is not there", ObjectKey::new(kind, namespace, name)));
        Some(match nearest(name, known.iter().map(String::as_str)) {
            Some(near) => problem.with_remedy(format!("did you mean `{near}`?")),
            None => problem,
        })
    };
    let namespace = object.namespace();
    if object.kind().is_namespaced() {
        if let Some(problem) = missing(Kind::Namespace, "", namespace) {
            return Some(problem);
        }
        let home = store.get(&ObjectKey::new(Kind::Namespace, "", namespace));
        if home.is_some_and(|home| home.metadata().deletion_timestamp.is_some()) {
            return Some(error(format!("namespace {namespace} is being deleted")));
        }
    }
    let account = pod_spec(object).and_then(|spec| spec.service_account_name.as_deref());
    if let Some(account) = account.filter(|account| !account.is_empty() && *account != "default")
        && let Some(problem) = missing(Kind::ServiceAccount, namespace, account)
    {
        return Some(problem);
    }
    let known = store.get(&object.key());
    if known.is_some_and(|known| known.metadata().deletion_timestamp.is_some()) {
        return Some(error(format!("{} is being deleted; wait until it is gone", object.key())));
    }
    if let Some(objection) = families_objection(object) {
        return Some(error(objection));
    }
    match (object, known) {
        (Object::Node(_), None) => {
            let nodes = names(Kind::Node, "").into_iter().filter(|name| name != object.name());
            let nodes = nodes.collect::<Vec<_>>().join(", ");
            let problem = error(format!("the lab has no node `{}`, only {nodes}", object.name()));
            Some(problem.with_remedy("the number of nodes is set by `ambit lab up --nodes`"))
        }
        (Object::Pod(new), Some(Object::Pod(old))) if spec_of(new, old) != old.spec => {
            let problem = error(format!("{} runs, and its `spec` cannot be changed", object.key()));
            Some(problem.with_remedy("delete it first, or use a Deployment"))
        }
        (Object::Service(service), _) => address_objection(store, service).map(error),
        _ => None,
    }
}

/// Address families that no pod can have.
fn families_objection(object: &Object) -> Option<String> {
    let metadata = match object {
        Object::Pod(pod) => &pod.metadata,
        Object::Deployment(deployment) => deployment.spec.as_ref()?.template.metadata.as_ref()?,
        _ => return None,
    };
    Families::objection(manifest::annotation(metadata, FAMILIES)?)
}

/// A virtual IP that cannot be had.
fn address_objection(store: &Store, service: &Service) -> Option<String> {
    let key = |service: &Service| (service.metadata.namespace.clone(), service.metadata.name.clone());
    let wanted = services::addresses(service);
    let outside = wanted.iter().find(|ip| match ip {
        IpAddr::V4(ip) => !SERVICES.contains(ip),
        IpAddr::V6(ip) => !SERVICES6.contains(ip),
    });
    if let Some(ip) = outside {
        return Some(format!("{ip} is not in the range of virtual IPs, {SERVICES} and {SERVICES6}"));
    }
    let resolvers = [IpAddr::from(RESOLVER), RESOLVER6.into()];
    if let Some(ip) = wanted.iter().find(|ip| resolvers.contains(ip)) {
        return Some(format!("{ip} is the resolver's"));
    }
    let others = store.services().filter(|other| key(other) != key(service));
    others
        .flat_map(services::addresses)
        .find(|ip| wanted.contains(ip))
        .map(|ip| format!("another service has the virtual IP {ip}"))
}

/// A pod's new specification with what was filled into the old one.
fn spec_of(new: &Pod, old: &Pod) -> Option<PodSpec> {
    let mut spec = new.spec.clone()?;
    if spec.node_name.as_ref().is_none_or(String::is_empty) {
        spec.node_name = old.spec.as_ref().and_then(|spec| spec.node_name.clone());
    }
    Some(spec)
}

/// The new object with what the old one has beyond what was applied.
fn merge(old: &Object, applied: Option<&Applied>, mut new: Object) -> Object {
    let none = Applied::default();
    let applied = applied.unwrap_or(&none);
    let keep = |old: &Option<BTreeMap<String, String>>,
                new: &mut Option<BTreeMap<String, String>>,
                ours: &BTreeSet<String>| {
        for (key, value) in old.iter().flatten().filter(|(key, _)| !ours.contains(*key)) {
            new.get_or_insert_default().entry(key.clone()).or_insert_with(|| value.clone());
        }
    };
    let (before, after) = (old.metadata().clone(), new.metadata_mut());
    keep(&before.labels, &mut after.labels, &applied.labels);
    keep(&before.annotations, &mut after.annotations, &applied.annotations);
    after.owner_references = before.owner_references;
    match (&mut new, old) {
        (Object::Pod(new), Object::Pod(old)) => {
            new.spec = old.spec.clone();
            new.status = old.status.clone();
        }
        (Object::Service(new), Object::Service(old)) => keep_addresses(new, old),
        (Object::Deployment(new), Object::Deployment(old)) => new.status = old.status.clone(),
        (Object::Namespace(new), Object::Namespace(old)) => new.status = old.status.clone(),
        (Object::Node(new), Object::Node(old)) => {
            new.spec = old.spec.clone();
            new.status = old.status.clone();
        }
        _ => {}
    }
    new
}

fn keep_addresses(new: &mut Service, old: &Service) {
    new.status = old.status.clone();
    let (Some(new), Some(old)) = (&mut new.spec, &old.spec) else { return };
    let has_kept = old.cluster_ip.as_deref().is_some_and(|ip| ip != "None");
    if new.cluster_ip.is_none() && has_kept && new.type_.as_deref() != Some("ExternalName") {
        new.cluster_ip.clone_from(&old.cluster_ip);
        new.cluster_ips.clone_from(&old.cluster_ips);
        if new.ip_families.is_none() && new.ip_family_policy == old.ip_family_policy {
            new.ip_families.clone_from(&old.ip_families);
        }
    }
}
