//! `get`.

use std::process::ExitCode;

use clap::ValueEnum;
use jiff::Timestamp;
use serde_json::Value;

use super::console::{Table, complain, say};
use super::{call, foreign};
use crate::lab::api::{Reply, Request};
use crate::lab::place::Place;

/// Shows objects.
#[derive(Debug, clap::Args)]
pub(super) struct Get {
    /// `pods`, `svc`, `authorizationpolicy`, …
    kind: String,
    name: Option<String>,
    /// Only this namespace; all where none is named.
    #[arg(short, long)]
    namespace: Option<String>,
    #[arg(short, long, value_enum)]
    output: Option<Format>,
    /// All namespaces, as without `-n`; taken for habit's sake.
    #[arg(short = 'A', long, hide = true, conflicts_with = "namespace")]
    all_namespaces: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Yaml,
    Json,
    Wide,
}

impl Get {
    pub(super) fn run(&self, place: &Place) -> ExitCode {
        let request = Request::Get {
            kind: self.kind.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        };
        let objects = match call(place, &request) {
            Ok(Reply::Objects(objects)) => objects,
            Ok(Reply::Refused(why)) => {
                why.into_iter().for_each(complain);
                return ExitCode::FAILURE;
            }
            Ok(other) => return foreign(&other),
            Err(code) => return code,
        };
        if let (Some(name), true) = (&self.name, objects.is_empty()) {
            let place = self.namespace.as_ref().map(|n| format!(" in namespace `{n}`")).unwrap_or_default();
            complain(format!("there is no `{name}` of kind `{}`{place}", self.kind));
            return ExitCode::FAILURE;
        }
        match self.output {
            Some(Format::Yaml) => say(manifest::write::value_to_yaml(&self.document(objects)).trim_end()),
            Some(Format::Json) => say(format!("{:#}", self.document(objects))),
            format => {
                if objects.is_empty() {
                    complain("there are none");
                }
                table(&objects, format == Some(Format::Wide), Timestamp::now()).into_iter().for_each(say);
            }
        }
        ExitCode::SUCCESS
    }

    /// One object by itself where one was asked for, else a list, as kubectl does it.
    fn document(&self, mut objects: Vec<Value>) -> Value {
        match (&self.name, objects.len()) {
            (Some(_), 1) => objects.remove(0),
            _ => serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects}),
        }
    }
}

/// What a column shows of an object.
type Cell = fn(&Value) -> String;
/// Columns and their titles.
type Columns = &'static [(&'static str, Cell)];

/// The columns of a kind, beside name and age; the second list comes with `wide`.
fn columns(kind: &str) -> (Columns, Columns) {
    match kind {
        "Pod" => (
            &[("READY", pod_ready), ("STATUS", pod_status), ("RESTARTS", restarts)],
            &[("IP", |o| at(o, "/status/podIP")), ("NODE", |o| at(o, "/spec/nodeName"))],
        ),
        "Service" => (
            &[
                ("TYPE", |o| at(o, "/spec/type")),
                ("CLUSTER-IP", |o| at(o, "/spec/clusterIP")),
                ("PORTS", service_ports),
            ],
            &[("SELECTOR", |o| pairs(o.pointer("/spec/selector")))],
        ),
        "Deployment" => (&[("READY", deployment_ready)], &[]),
        "Namespace" => (&[("STATUS", |o| at(o, "/status/phase"))], &[]),
        "Node" => (
            &[("ADDRESS", |o| at(o, "/status/addresses/0/address"))],
            &[("PODS", |o| at(o, "/spec/podCIDR"))],
        ),
        "EndpointSlice" => (&[("ADDRESSES", endpoints)], &[]),
        "AuthorizationPolicy" => (&[("ACTION", |o| or(at(o, "/spec/action"), "ALLOW"))], &[]),
        "PeerAuthentication" => (&[("MODE", |o| or(at(o, "/spec/mtls/mode"), "UNSET"))], &[]),
        "ServiceEntry" => (
            &[("HOSTS", |o| list(o.pointer("/spec/hosts"))), ("RESOLUTION", |o| at(o, "/spec/resolution"))],
            &[],
        ),
        "WorkloadEntry" => (&[("ADDRESS", |o| at(o, "/spec/address"))], &[]),
        _ => (&[], &[]),
    }
}

fn table(objects: &[Value], wide: bool, now: Timestamp) -> Vec<String> {
    let Some(first) = objects.first() else { return Vec::new() };
    let (narrow, more) = columns(first["kind"].as_str().unwrap_or_default());
    let columns: Vec<&(&str, Cell)> = narrow.iter().chain(more.iter().filter(|_| wide)).collect();
    let namespaced = objects.iter().any(|object| object.pointer("/metadata/namespace").is_some());
    let mut header: Vec<&str> = if namespaced { vec!["NAMESPACE"] } else { Vec::new() };
    header.push("NAME");
    header.extend(columns.iter().map(|(title, _)| *title));
    header.push("AGE");
    if wide {
        header.push("LABELS");
    }
    let mut table = Table::with_header(&header);
    for object in objects {
        let mut row = Vec::new();
        if namespaced {
            row.push(at(object, "/metadata/namespace"));
        }
        row.push(at(object, "/metadata/name"));
        row.extend(columns.iter().map(|(_, cell)| cell(object)));
        row.push(age(object, now));
        if wide {
            row.push(pairs(object.pointer("/metadata/labels")));
        }
        table.row(row.into_iter().map(|cell| or(cell, "-")).collect());
    }
    table.lines()
}

/// A scalar of an object; empty where there is none.
fn at(object: &Value, pointer: &str) -> String {
    match object.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    }
}

fn or(text: String, otherwise: &str) -> String {
    if text.is_empty() { otherwise.to_owned() } else { text }
}

fn list(value: Option<&Value>) -> String {
    let items = value.and_then(Value::as_array).into_iter().flatten();
    items.filter_map(Value::as_str).collect::<Vec<_>>().join(",")
}

fn pairs(value: Option<&Value>) -> String {
    let pairs = value.and_then(Value::as_object).into_iter().flatten();
    pairs
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect::<Vec<_>>()
        .join(",")
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    pod.pointer("/status/containerStatuses").and_then(Value::as_array).into_iter().flatten()
}

fn pod_ready(pod: &Value) -> String {
    let ready = containers(pod).filter(|container| container["ready"] == true).count();
    let all = pod.pointer("/spec/containers").and_then(Value::as_array).map_or(0, Vec::len);
    format!("{ready}/{all}")
}

fn pod_status(pod: &Value) -> String {
    if pod.pointer("/metadata/deletionTimestamp").is_some() {
        return "Terminating".to_owned();
    }
    let waiting = containers(pod).find_map(|c| c.pointer("/state/waiting/reason")?.as_str());
    let reason = pod.pointer("/status/reason").and_then(Value::as_str);
    match reason.or(waiting) {
        Some(reason) => reason.to_owned(),
        None => or(at(pod, "/status/phase"), "Pending"),
    }
}

fn restarts(pod: &Value) -> String {
    containers(pod).filter_map(|container| container["restartCount"].as_u64()).sum::<u64>().to_string()
}

fn deployment_ready(deployment: &Value) -> String {
    let ready = or(at(deployment, "/status/readyReplicas"), "0");
    format!("{ready}/{}", or(at(deployment, "/spec/replicas"), "1"))
}

fn service_ports(service: &Value) -> String {
    let ports = service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten();
    let ports = ports.map(|port| format!("{}/{}", port["port"], or(at(port, "/protocol"), "TCP")));
    ports.collect::<Vec<_>>().join(",")
}

fn endpoints(slice: &Value) -> String {
    let endpoints = slice["endpoints"].as_array().into_iter().flatten();
    let ready =
        endpoints.filter(|endpoint| endpoint.pointer("/conditions/ready") != Some(&Value::Bool(false)));
    ready.map(|endpoint| list(endpoint.get("addresses"))).collect::<Vec<_>>().join(",")
}

fn age(object: &Value, now: Timestamp) -> String {
    let born = at(object, "/metadata/creationTimestamp").parse::<Timestamp>();
    let Ok(born) = born else { return String::new() };
    let seconds = now.as_second().saturating_sub(born.as_second()).max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Value {
        serde_json::json!({
            "kind": "Pod",
            "metadata": {"namespace": "shop", "name": "redis-0", "creationTimestamp": "1970-01-01T00:00:00Z"},
            "spec": {"nodeName": "node2", "containers": [{"name": "main"}]},
            "status": {"phase": "Running", "podIP": "10.244.2.2",
                "containerStatuses": [{"ready": true, "restartCount": 2, "state": {"running": {}}}]},
        })
    }

    #[test]
    fn a_table_has_the_columns_of_its_kind() {
        let now = Timestamp::from_second(90).unwrap();
        assert_eq!(
            table(&[pod()], false, now),
            [
                "NAMESPACE  NAME     READY  STATUS   RESTARTS  AGE",
                "shop       redis-0  1/1    Running  2         90s"
            ]
        );
        assert!(table(&[pod()], true, now)[1].contains("10.244.2.2  node2"));
        assert_eq!(table(&[], false, now), [""; 0]);
    }

    #[test]
    fn a_pod_that_waits_says_why() {
        let mut pod = pod();
        pod["status"]["containerStatuses"][0]["state"] =
            serde_json::json!({"waiting": {"reason": "CrashLoopBackOff"}});
        assert_eq!(pod_status(&pod), "CrashLoopBackOff");
        pod["metadata"]["deletionTimestamp"] = "1970-01-01T00:00:00Z".into();
        assert_eq!(pod_status(&pod), "Terminating");
    }
}
