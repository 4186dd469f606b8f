//! The pages: readiness, and what the control plane knows.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use manifest::{Kind, Object};
use runtime::{Readiness, admin};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use xds::server::Registry;

use crate::push::Shared;
use crate::sync::SyncReport;
use crate::translate::Note;

/// In which annotation kubectl keeps the object as it was applied.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What the pages show.
#[derive(Clone, Debug)]
pub struct Pages {
    /// What is known.
    pub shared: Shared,
    /// The proxies.
    pub registry: Registry,
    /// Whether all stands.
    pub readiness: Readiness,
}

/// `/ready` for everybody and `/debug/{sync,objects,workloads,services,policies,proxies}` for callers over loopback, all JSON
/// but the first.
pub fn router(pages: Pages) -> Router {
    let debug = Router::new()
        .route("/debug/sync", get(sync))
        .route("/debug/proxies", get(proxies))
        .route("/debug/objects", get(objects))
        .route("/debug/workloads", get(workloads))
        .route("/debug/services", get(services))
        .route("/debug/policies", get(policies))
        .with_state(pages.clone());
    Router::new().route("/ready", get(ready)).with_state(pages).merge(admin::private(debug))
}

/// 200 once the source has been read and is served; before, what is lacking, and the mistakes for which nothing is.
async fn ready(State(pages): State<Pages>) -> Response {
    let pending = pages.readiness.pending();
    if pending.is_empty() {
        return "ready\n".into_response();
    }
    let lines: Vec<String> =
        pending.into_iter().map(str::to_owned).chain(pages.shared.source.read().held_back()).collect();
    (StatusCode::SERVICE_UNAVAILABLE, lines.join("\n") + "\n").into_response()
}

async fn sync(State(pages): State<Pages>) -> Json<SyncReport> {
    Json(SyncReport::of(&pages.shared.source.read(), pages.registry.proxies()))
}

#[derive(Serialize)]
struct ProxyPage {
    namespace: String,
    service_account: String,
    #[serde(flatten)]
    report: crate::sync::ProxyReport,
}

async fn proxies(State(pages): State<Pages>) -> Json<Vec<ProxyPage>> {
    let proxies = pages.registry.proxies().into_iter().map(|proxy| ProxyPage {
        namespace: proxy.peer.namespace.to_string(),
        service_account: proxy.peer.service_account.to_string(),
        report: proxy.into(),
    });
    Json(proxies.collect())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Filter {
    kind: Option<String>,
    namespace: Option<String>,
}

/// The objects that are in force: `?kind=pod&namespace=shop`. What may be secret is left out: a ConfigMap's data, the
/// values of containers' variables, and kubectl's copy of the whole object.
async fn objects(State(pages): State<Pages>, Query(filter): Query<Filter>) -> Response {
    let kinds = match filter.kind.as_deref().map(|word| (word, Kind::from_word(word))) {
        None => Kind::ALL.to_vec(),
        Some((_, Some(kind))) => vec![kind],
        Some((word, None)) => {
            return (StatusCode::BAD_REQUEST, format!("there is no kind `{word}`\n")).into_response();
        }
    };
    let mut objects: Vec<Arc<Object>> = {
        let store = pages.shared.store.read();
        let objects = kinds.into_iter().flat_map(|kind| store.objects(kind));
        objects
            .filter(|o| filter.namespace.as_deref().is_none_or(|ns| o.namespace() == ns))
            .cloned()
            .collect()
    };
    objects.sort_by_key(|object| object.key());
    let values: Vec<_> = objects.iter().map(|object| shown(object)).collect();
    Json(values).into_response()
}

fn shown(object: &Object) -> Value {
    let mut value = manifest::write::to_value(object);
    if object.kind() == Kind::ConfigMap
        && let Some(map) = value.as_object_mut()
    {
        map.remove("data");
        map.remove("binaryData");
    }
    // The copy holds all that is left out elsewhere.
    if let Some(annotations) = value.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(LAST_APPLIED);
    }
    match object.kind() {
        Kind::Pod => value.get_mut("spec").map(leave_out_variables),
        Kind::Deployment => value.pointer_mut("/spec/template/spec").map(leave_out_variables),
        _ => None,
    };
    value
}

/// Takes the values of containers' variables from a pod's specification; their names and what they refer to stay.
fn leave_out_variables(spec: &mut Value) {
    for containers in ["containers", "initContainers", "ephemeralContainers"] {
        let containers = spec.get_mut(containers).and_then(Value::as_array_mut).into_iter().flatten();
        let variables = containers.filter_map(|container| container.get_mut("env")?.as_array_mut()).flatten();
        for variable in variables.filter_map(Value::as_object_mut) {
            variable.remove("value");
        }
    }
}

async fn workloads(State(pages): State<Pages>) -> Response {
    let mut all: Vec<_> = pages.shared.world.read().workloads().cloned().collect();
    all.sort_by(|a, b| a.uid.cmp(&b.uid));
    Json(all.iter().map(|workload| &**workload).collect::<Vec<_>>()).into_response()
}

async fn services(State(pages): State<Pages>) -> Response {
    let mut all: Vec<_> = pages.shared.world.read().services().cloned().collect();
    all.sort_by_key(|service| service.key());
    Json(all.iter().map(|service| &**service).collect::<Vec<_>>()).into_response()
}

#[derive(Serialize)]
struct PolicyPage<'a> {
    policies: Vec<&'a model::Policy>,
    notes: Vec<Note>,
}

async fn policies(State(pages): State<Pages>) -> Response {
    let (mut all, notes) = {
        let world = pages.shared.world.read();
        (world.policies().cloned().collect::<Vec<_>>(), world.notes())
    };
    all.sort_by(|a, b| a.key.cmp(&b.key));
    Json(PolicyPage { policies: all.iter().map(|policy| &**policy).collect(), notes }).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_secret_is_not_shown() {
        let spec = "containers: [{name: c, image: i, env: [{name: PASSWORD, value: hush}, {name: REF, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]}], initContainers: [{name: i, image: i, env: [{name: TOKEN, value: hush}]}]";
        let head = |kind: &str, version: &str| {
            format!(
                "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x, namespace: shop, annotations: {{{LAST_APPLIED}: hush, note: kept}}}}\n"
            )
        };
        let texts = [
            format!("{}spec: {{{spec}}}\n", head("Pod", "v1")),
            format!(
                "{}spec: {{selector: {{matchLabels: {{app: x}}}}, template: {{metadata: {{labels: {{app: x}}}}, spec: {{{spec}}}}}}}\n",
                head("Deployment", "apps/v1")
            ),
            format!("{}data: {{password: hush}}\nbinaryData: {{key: aHVzaA==}}\n", head("ConfigMap", "v1")),
        ];
        for text in texts {
            let parsed = manifest::parse("t.yaml", &text);
            let object = &parsed.documents.first().unwrap_or_else(|| panic!("{:?}", parsed.problems)).object;
            let page = shown(object).to_string();
            assert!(!page.contains("hush") && !page.contains("aHVzaA"), "{page}");
            assert!(page.contains("kept"), "{page}");
            assert_eq!(page.contains("PASSWORD"), object.kind() != Kind::ConfigMap, "{page}");
            assert_eq!(page.contains("spec.nodeName"), object.kind() != Kind::ConfigMap, "{page}");
        }
    }
}
