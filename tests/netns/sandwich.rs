//! A proxy in a pod of the mesh, behind the node's proxy: a waypoint that somebody brings, bound by labels and told who comes
//! by PROXY v2.

use testkit::lab::{Lab, eventually};

use crate::world::{Pod, authorization, curl, manifests};

/// Takes connections on the port that the Gateway names, on loopback alone, and answers requests with what the header before
/// them says. It reads the specification and none of our code.
const PROXY: &str = r#"
import socket, socketserver, struct
class Told(socketserver.StreamRequestHandler):
    def handle(self):
        fixed = self.rfile.read(16)
        if fixed[:12] != b'\r\n\r\n\0\r\nQUIT\n':
            return
        command, family, length = struct.unpack('!BBH', fixed[12:])
        body = self.rfile.read(length)
        if command != 0x21 or family != 0x11:
            return
        source, target, sport, tport = struct.unpack('!4s4sHH', body[:12])
        told, rest = {}, body[12:]
        while rest:
            kind, size = struct.unpack('!BH', rest[:3])
            told[kind] = rest[3:3 + size].decode()
            rest = rest[3 + size:]
        while self.rfile.readline().strip():
            pass
        words = [socket.inet_ntoa(source), f'{socket.inet_ntoa(target)}:{tport}', told.get(0xd0), told.get(0xd1)]
        text = ' '.join(map(str, words)) + '\n'
        self.wfile.write(f'HTTP/1.0 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}'.encode())
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
Server(('127.0.0.1', 15088), Told).serve_forever()
"#;

const GATEWAY: &str = "---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: gate
  namespace: app
  annotations: {ambient.istio.io/waypoint-inbound-binding: PROXY/15088}
spec:
  gatewayClassName: somebodys-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: v1
kind: Service
metadata: {name: gate, namespace: app}
spec: {selector: {app: gate}, ports: [{name: mesh, port: 15008}]}
";

/// A service of the pod `server`, with the waypoint before it or without.
fn guarded(by: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: guarded, namespace: app, labels: {{istio.io/use-waypoint: {by}}}}}
spec: {{selector: {{app: server}}, clusterIP: 10.96.77.7, ports: [{{name: http, port: 80, targetPort: 8080}}]}}
"
    )
}

const URL: &str = "http://10.96.77.7/";

fn lab() -> Option<Lab> {
    let proxy = Pod {
        namespace: "app",
        name: "gate",
        node: "node2",
        command: &["python3", "-c", PROXY],
        ready_on: None,
    };
    let proxy = proxy
        .manifest()
        .replace("labels: {app: gate}", "labels: {app: gate, gateway.networking.k8s.io/gateway-name: gate}");
    let lab = Lab::up(&(manifests() + &proxy + GATEWAY + &guarded("gate")))?;
    lab.join("app");
    Some(lab)
}

/// What the proxy was told, once it listens.
fn told(lab: &Lab, from: &str, url: &str) -> String {
    let mut told = String::new();
    eventually(&format!("the proxy answers {url}"), || {
        let answer = lab.exec(from, &curl(url));
        let answered = answer.ok();
        told = answer.stdout;
        answered
    });
    told.trim_end().to_owned()
}

#[test]
fn a_waypoint_in_a_pod_is_told_who_comes_and_for_which_service() {
    let Some(lab) = lab() else { return };
    let client = lab.ip("app", "client");
    let who = "spiffe://cluster.local/ns/app/sa/client";
    let through = format!("{client} 10.96.77.7:80 {who} guarded.app.svc.cluster.local");
    assert_eq!(told(&lab, "app/client", URL), through);
    let gate = lab.ip("app", "gate");
    let itself = format!("http://{gate}:8080/");
    assert_eq!(told(&lab, "app/client", &itself), format!("{client} {gate}:8080 {who} None"));
    // Without the word before it the pod answers itself.
    lab.apply(&guarded("none")).expect_ok();
    let direct = lab.exec("app/client", &curl(URL)).expect_ok().stdout;
    assert!(!direct.contains(who), "{direct}");
}

#[test]
fn policy_stands_before_the_proxy_in_the_pod() {
    let Some(lab) = lab() else { return };
    let other = "spiffe://cluster.local/ns/app/sa/other";
    assert!(told(&lab, "app/other", URL).contains(other));
    let only = "  selector: {matchLabels: {app: gate}}\n  action: ALLOW\n  \
                rules: [{from: [{source: {principals: [cluster.local/ns/app/sa/client]}}]}]\n";
    lab.apply(&authorization("only-client", "", only)).expect_ok();
    assert!(!lab.exec("app/other", &curl(URL)).ok());
    lab.exec("app/client", &curl(URL)).expect_ok();
    // And plaintext, which proves nothing, comes to no proxy.
    let gate = format!("http://{}:15088/", lab.ip("app", "gate"));
    assert!(!lab.exec("outside/stranger", &curl(&gate)).ok());
}
