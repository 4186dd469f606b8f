//! The lab itself, asked from outside: what a cluster would bring, and the commands.
//!
//! That the mesh works in it is what `tests/netns` is about; here nothing is meshed unless a test says so.

mod commands;
mod network;
mod workloads;

use testkit::lab::{Lab, Output};

/// A namespace `x` and whatever else a test wants in it.
fn lab(more: &str) -> Option<Lab> {
    Lab::up(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: x}}\n{more}"))
}

/// A pod of namespace `x`; `more` goes into its container, in flow style.
fn pod(name: &str, node: &str, command: &str, more: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: x, labels: {{app: {name}}}}}\n\
         spec: {{nodeName: {node}, terminationGracePeriodSeconds: 1, containers: [{{name: main, command: {command}{more}}}]}}\n"
    )
}

const SLEEP: &str = "[sleep, infinity]";
const HTTP: &str = "[ambit-echo, http, --port, \"8080\"]";
const READY: &str = ", env: [{name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}], \
                     readinessProbe: {periodSeconds: 1, httpGet: {path: /ready, port: 8080}}";

fn deployment(name: &str, replicas: u8, command: &str, more: &str) -> String {
    format!(
        "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}, namespace: x}}\n\
         spec: {{replicas: {replicas}, selector: {{matchLabels: {{app: {name}}}}}, template: {{metadata: {{labels: {{app: {name}}}}}, \
         spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: main, command: {command}{more}}}]}}}}}}\n"
    )
}

fn service(name: &str, app: &str, more: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: x}}\n\
         spec: {{selector: {{app: {app}}}, ports: [{{name: http, port: 80, targetPort: 8080}}]{more}}}\n"
    )
}

fn get(lab: &Lab, pod: &str, url: &str) -> Output {
    lab.exec(pod, &["curl", "-sS", "-g", "-m", "5", "-f", url])
}
