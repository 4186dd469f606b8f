//! Pods with addresses of one family alone, beside those with both.

use serde_json::Value;
use testkit::lab::{Lab, eventually};

use crate::capture::{CANARY, v6};
use crate::world::{Pod, authorization, curl, manifests, peer_authentication};

const HTTP: &[&str] = &["ambit-echo", "http", "--port", "8080"];
const SLEEP: &[&str] = &["sleep", "infinity"];

/// The world, and in it `six` (node1) and `six-server` (node2) with IPv6 alone, `four` (node1) with IPv4 alone, and
/// `six-stranger` (node1) outside of the mesh, with IPv6 alone; services of IPv6: `six-server`, and one that is headless.
fn world() -> Option<Lab> {
    let pod = |namespace, name, node, command, ready_on, family: &str| {
        let manifest = Pod { namespace, name, node, command, ready_on }.manifest();
        let labels = format!("labels: {{app: {name}}}");
        manifest.replace(&labels, &format!("{labels}, annotations: {{lab.ambit.dev/ip-families: {family}}}"))
    };
    let service = |name: &str, cluster_ip: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: app}}\nspec: {{{cluster_ip}ipFamilies: [IPv6], selector: {{app: six-server}}, ports: [{{name: http, port: 8080}}]}}\n"
        )
    };
    let more = [
        pod("app", "six", "node1", SLEEP, None, "IPv6"),
        pod("app", "six-server", "node2", HTTP, Some(8080), "IPv6"),
        pod("app", "four", "node1", SLEEP, None, "IPv4"),
        pod("outside", "six-stranger", "node1", SLEEP, None, "IPv6"),
        service("six-server", ""),
        service("six-headless", "clusterIP: None, "),
    ];
    Lab::up(&(manifests() + &more.concat()))
}

fn client_seen(lab: &Lab, pod: &str, url: &str) -> Value {
    lab.exec(pod, &curl(url)).json()["client"].clone()
}

#[test]
fn a_pod_with_ipv6_alone_is_in_the_mesh_like_any_other() {
    let Some(lab) = world() else { return };
    let (six, server) = (lab.ip("app", "six"), lab.ip("app", "six-server"));
    assert!(six.contains(':') && server.contains(':'), "{six} {server}");
    let addresses = lab.exec("app/six", &["ip", "-4", "address", "show", "dev", "eth0"]).expect_ok().stdout;
    assert!(!addresses.contains("inet "), "{addresses}");

    let url = format!("http://[{server}]:8080/{CANARY}");
    let capture = lab.capture("node1");
    assert_eq!(client_seen(&lab, "app/six", &url), *six);
    assert!(capture.stop().contain(CANARY), "outside of the mesh it is readable");

    lab.join("app");
    let capture = lab.capture("node1");
    assert_eq!(client_seen(&lab, "app/six", &url), *six, "the application sees its client");
    for name in ["six-server", "six-server.app.svc.cluster.local", "six-headless"] {
        assert_eq!(client_seen(&lab, "app/six", &format!("http://{name}:8080/{CANARY}")), *six, "{name}");
    }
    let wire = capture.stop();
    assert!(!wire.contain(CANARY));
    assert!(wire.count(&format!("ip6 host {server} and tcp port 15008")) > 0);
    assert_eq!(wire.count(&format!("ip6 host {server} and tcp and not port 15008")), 0);
}

#[test]
fn policy_holds_for_pods_of_one_family() {
    let Some(lab) = world() else { return };
    lab.join("app");
    let server = lab.ip("app", "six-server");
    let url = format!("http://[{server}]:8080/");
    lab.exec("outside/six-stranger", &curl(&url)).expect_ok();
    lab.apply(&peer_authentication("STRICT", "")).expect_ok();
    assert!(!lab.exec("outside/six-stranger", &curl(&url)).ok(), "STRICT takes no plaintext");
    lab.exec("app/six", &curl(&url)).expect_ok();
    let from = |block: &str| {
        let rule = format!(
            "  selector: {{matchLabels: {{app: six-server}}}}\n  rules: [{{from: [{{source: {{ipBlocks: ['{block}']}}}}]}}]\n"
        );
        authorization("by-block", "", &rule)
    };
    lab.apply(&from("2001:db8::/32")).expect_ok();
    assert!(!lab.exec("app/six", &curl(&url)).ok());
    lab.apply(&from(&format!("{}/128", lab.ip("app", "six")))).expect_ok();
    lab.exec("app/six", &curl(&url)).expect_ok();
}

#[test]
fn pods_of_one_family_and_of_both_reach_each_other_by_what_they_share() {
    let Some(lab) = world() else { return };
    lab.join("app");
    // `server` has both families, and its service IPv4.
    assert_eq!(client_seen(&lab, "app/four", "http://server/"), lab.ip("app", "four"));
    let server = v6(&lab, "app", "server");
    assert_eq!(client_seen(&lab, "app/six", &format!("http://[{server}]:8080/")), *lab.ip("app", "six"));
    eventually("a pod with IPv6 alone leaves the mesh as it came", || {
        lab.leave("app");
        lab.exec("app/six", &curl(&format!("http://[{}]:8080/", lab.ip("app", "six-server")))).ok()
    });
}

#[test]
fn a_misspelt_family_is_refused_with_what_there_is() {
    let Some(lab) = world() else { return };
    let pod = Pod { namespace: "app", name: "odd", node: "node1", command: SLEEP, ready_on: None }.manifest();
    let odd = pod
        .replace("labels: {app: odd}", "labels: {app: odd}, annotations: {lab.ambit.dev/ip-families: ipv6}");
    let refused = lab.apply(&odd);
    assert!(refused.code == 1 && refused.stderr.contains("neither `IPv4` nor `IPv6`"), "{refused}");
}
