//! A mesh whose trust domain changes its name.

use testkit::lab::{Lab, eventually};

use crate::world::{authorization, curl, meshed};

fn settings(own: &str, alias: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    \
         trustDomain: {own}\n    trustDomainAliases: [{alias}]\n"
    )
}

fn dump(lab: &Lab, node: &str) -> serde_json::Value {
    serde_json::from_str(&lab.ztunnel(node, 15000, "/config_dump")).unwrap_or_default()
}

#[test]
fn a_mesh_changes_its_trust_domain_and_every_call_goes_through() {
    let Some(lab) = meshed() else { return };
    // Of the mesh's own domain, whatever its name.
    let rule = "  selector: {matchLabels: {app: server}}\n  rules: [{from: [{source: {principals: [cluster.local/ns/app/sa/client]}}]}]\n";
    lab.apply(&authorization("client-alone", "", rule)).expect_ok();
    let calls = |which: &str| {
        for _ in 0..5 {
            for (from, to) in [("client", "server"), ("other", "local")] {
                let called = lab.exec(&format!("app/{from}"), &curl(&format!("http://{to}.app/")));
                assert!(called.ok(), "{which}: {from} to {to}: {called}");
            }
        }
        assert!(!lab.exec("app/other", &curl("http://server.app/")).ok(), "{which}");
    };
    calls("before");
    // Everybody has to know the name before anybody has it.
    lab.apply(&settings("cluster.local", "mesh.example")).expect_ok();
    for node in ["node1", "node2"] {
        eventually("the alias is known", || {
            dump(&lab, node)["config"]["trust_domain_aliases"][0] == "mesh.example"
        });
    }
    calls("with the alias");
    lab.apply(&settings("mesh.example", "cluster.local")).expect_ok();
    calls("under way");
    for node in ["node1", "node2"] {
        eventually("all pods have the name", || {
            let dump = dump(&lab, node);
            let ids = dump["certificates"].as_array().into_iter().flatten().filter_map(|c| c["id"].as_str());
            let new = |id: &str| id.starts_with("spiffe://mesh.example/");
            ids.clone().count() > 0 && ids.clone().all(new)
        });
    }
    calls("after");
}
