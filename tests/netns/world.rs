//! The small world that most tests happen in.

use std::fmt::Write as _;

use net::Netns;
use testkit::lab::Lab;

/// A pod's manifest, with a service account of its own name.
pub(crate) struct Pod<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) node: &'a str,
    pub(crate) command: &'a [&'a str],
    /// The port that must take connections before the pod counts as ready.
    pub(crate) ready_on: Option<u16>,
}

impl Pod<'_> {
    pub(crate) fn manifest(&self) -> String {
        let Self { namespace, name, node, command, ready_on } = self;
        let probe = ready_on.map_or_else(String::new, |port| {
            format!("\n    readinessProbe: {{periodSeconds: 1, tcpSocket: {{port: {port}}}}}")
        });
        format!(
            "---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: {name}, namespace: {namespace}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}
spec:
  serviceAccountName: {name}
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: none
    command: {command:?}
    env: [{{name: POD_NAME, value: {name}}}]{probe}
"
        )
    }
}

fn service(namespace: &str, name: &str, app: &str, port: u16, target: u16, headless: bool) -> String {
    let cluster_ip = if headless { "\n  clusterIP: None" } else { "" };
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec:{cluster_ip}
  selector: {{app: {app}}}
  ports: [{{name: tcp, port: {port}, targetPort: {target}}}]
"
    )
}

fn namespace(name: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
}

const SLEEP: &[&str] = &["sleep", "infinity"];
const HTTP: &[&str] = &["ambit-echo", "http", "--port", "8080"];

/// Two namespaces that may join the mesh and one that never does:
///
/// - `app`: `client` and `other` (node1), `server` (node2) and `local` (node1) which serve HTTP on 8080, `digest`
///   (node2, 7100) and `greeter` (node2, 7000), behind services of the same names (HTTP on port 80), and `server-headless`;
/// - `outside`: `stranger` (node1), and `plain` (node2), HTTP on 8080.
pub(crate) fn manifests() -> String {
    let mut yaml = namespace("app") + &namespace("outside");
    let pod = |namespace, name, node, command, ready_on| Pod { namespace, name, node, command, ready_on };
    for pod in [
        pod("app", "client", "node1", SLEEP, None),
        pod("app", "other", "node1", SLEEP, None),
        pod("app", "server", "node2", HTTP, Some(8080)),
        pod("app", "local", "node1", HTTP, Some(8080)),
        pod("app", "digest", "node2", &["ambit-echo", "digest", "--port", "7100"], Some(7100)),
        pod("app", "greeter", "node2", &["ambit-echo", "greet", "--port", "7000"], Some(7000)),
        pod("outside", "stranger", "node1", SLEEP, None),
        pod("outside", "plain", "node2", HTTP, Some(8080)),
    ] {
        yaml += &pod.manifest();
    }
    for (name, port, target) in
        [("server", 80, 8080), ("local", 80, 8080), ("digest", 7100, 7100), ("greeter", 7000, 7000)]
    {
        yaml += &service("app", name, name, port, target, false);
    }
    yaml += &service("app", "server-headless", "server", 8080, 8080, true);
    yaml += &service("outside", "plain", "plain", 80, 8080, false);
    yaml
}

/// The world, with `app` outside the mesh.
pub(crate) fn unmeshed() -> Option<Lab> {
    Lab::up(&manifests())
}

/// The world, with `app` in the mesh.
pub(crate) fn meshed() -> Option<Lab> {
    let lab = unmeshed()?;
    lab.join("app");
    Some(lab)
}

/// An `AuthorizationPolicy` of namespace `app`; `spec` is indented by two spaces.
pub(crate) fn authorization(name: &str, annotations: &str, spec: &str) -> String {
    let mut yaml = String::from("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n");
    let _ = writeln!(yaml, "metadata: {{name: {name}, namespace: app, annotations: {{{annotations}}}}}");
    yaml + "spec:\n" + spec
}

/// A `PeerAuthentication` of namespace `app`.
pub(crate) fn peer_authentication(mode: &str, rest: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default, namespace: app}}\n\
         spec:\n  mtls: {{mode: {mode}}}\n{rest}"
    )
}

/// curl's arguments for a request that ends within 5 seconds.
pub(crate) fn curl(url: &str) -> Vec<&str> {
    vec!["curl", "-sS", "-g", "-m", "5", "-f", url]
}

/// The network namespace of a pod.
pub(crate) fn netns(lab: &Lab, namespace: &str, name: &str) -> Netns {
    let path = lab.pod(namespace, name)["netns"].as_str().expect("a path").to_owned();
    Netns::open(path).expect("the pod's network namespace")
}

/// The world, with `app` in the mesh and a pod `outside/native` (node2) that speaks HBONE by itself, so that a test can be
/// it.
pub(crate) fn with_native_pod() -> Option<Lab> {
    let native = Pod { namespace: "outside", name: "native", node: "node2", command: SLEEP, ready_on: None };
    let labelled = native
        .manifest()
        .replace("labels: {app: native}", "labels: {app: native, networking.istio.io/tunnel: http}");
    let lab = Lab::up(&(manifests() + &labelled))?;
    lab.join("app");
    Some(lab)
}
