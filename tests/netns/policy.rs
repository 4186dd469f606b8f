//! Who may talk to whom, asked of real callers.

use testkit::lab::{Lab, eventually};

use crate::world::{authorization, curl, meshed, peer_authentication};

fn reaches(lab: &Lab, from: &str) -> bool {
    lab.exec(from, &curl("http://server.app/")).ok()
}

const CLIENT_ONLY: &str = "  selector: {matchLabels: {app: server}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/app/sa/client]}}]}]
";

#[test]
fn allow_lets_in_whom_it_names_and_nobody_else() {
    let Some(lab) = meshed() else { return };
    assert!(reaches(&lab, "app/other"));
    lab.apply(&authorization("only-client", "", CLIENT_ONLY)).expect_ok();
    assert!(reaches(&lab, "app/client"));
    assert!(!reaches(&lab, "app/other"));
    assert!(!reaches(&lab, "outside/stranger"), "who has no identity is nobody that it names");
    lab.delete(&authorization("only-client", "", CLIENT_ONLY)).expect_ok();
    assert!(reaches(&lab, "app/other"));
}

#[test]
fn deny_beats_allow_and_says_which_policy_did() {
    let Some(lab) = meshed() else { return };
    let deny = "  action: DENY\n  rules: [{from: [{source: {serviceAccounts: [other]}}]}]\n";
    let both =
        authorization("only-client", "", "  rules: [{}]\n") + "---\n" + &authorization("not-other", "", deny);
    lab.apply(&both).expect_ok();
    assert!(reaches(&lab, "app/client"));
    assert!(!reaches(&lab, "app/other"));
    let log = lab.logs("ztunnel@node2");
    assert!(log.lines().any(|line| line.contains("app/not-other") && line.contains("sa/other")), "{log}");
    eventually("the refusal is counted at the destination", || {
        lab.metric(
            "node2",
            "istio_tcp_connections_failed_total",
            &["reporter=\"destination\"", "response_flags=\"DENY\""],
        ) >= 1.0
    });
}

#[test]
fn a_dry_run_denies_nobody_and_is_reported() {
    let Some(lab) = meshed() else { return };
    let deny = authorization("rehearsal", "istio.io/dry-run: \"true\"", "  action: DENY\n  rules: [{}]\n");
    lab.apply(&deny).expect_ok();
    assert!(reaches(&lab, "app/client"));
    let log = lab.logs("ztunnel@node2");
    assert!(log.contains("app/rehearsal"), "what it would have done is in the log: {log}");
}

#[test]
fn ports_and_addresses_are_matched() {
    let Some(lab) = meshed() else { return };
    let deny = "  action: DENY\n  rules: [{to: [{operation: {ports: [\"7000\"]}}]}]\n";
    lab.apply(&authorization("no-greetings", "", deny)).expect_ok();
    assert!(reaches(&lab, "app/client"));
    let greeting =
        lab.exec("app/client", &["timeout", "5", "bash", "-c", "head -n1 < /dev/tcp/greeter.app/7000"]);
    assert!(!greeting.stdout.contains("hello"), "{greeting}");
    let block = format!(
        "  action: DENY\n  rules: [{{from: [{{source: {{ipBlocks: [{}/32]}}}}]}}]\n",
        lab.ip("app", "client")
    );
    lab.apply(&authorization("not-from-there", "", &block)).expect_ok();
    assert!(!reaches(&lab, "app/client"));
    assert!(reaches(&lab, "app/other"));
}

#[test]
fn strict_refuses_plaintext_and_permissive_takes_it() {
    let Some(lab) = meshed() else { return };
    assert!(reaches(&lab, "outside/stranger"));
    lab.apply(&peer_authentication("STRICT", "")).expect_ok();
    assert!(!reaches(&lab, "outside/stranger"));
    assert!(reaches(&lab, "app/client"));
    // By the pod's address the answer is the same.
    let direct = format!("http://{}:8080/", lab.ip("app", "server"));
    assert!(!lab.exec("outside/stranger", &curl(&direct)).ok());
    lab.apply(&peer_authentication("PERMISSIVE", "")).expect_ok();
    assert!(reaches(&lab, "outside/stranger"));
}

#[test]
fn one_port_may_be_permissive_under_strict() {
    let Some(lab) = meshed() else { return };
    let rest = "  selector: {matchLabels: {app: server}}\n  portLevelMtls: {8080: {mode: PERMISSIVE}}\n";
    lab.apply(&peer_authentication("STRICT", "")).expect_ok();
    assert!(!reaches(&lab, "outside/stranger"));
    lab.apply(&peer_authentication("STRICT", rest)).expect_ok();
    assert!(reaches(&lab, "outside/stranger"));
}

#[test]
fn a_deny_that_only_l7_could_enforce_is_refused_with_the_remedy() {
    let Some(lab) = meshed() else { return };
    let deny = "  action: DENY\n  rules: [{to: [{operation: {methods: [DELETE]}}]}]\n";
    let refusal = lab.apply(&authorization("no-deletes", "", deny));
    assert_eq!(refusal.code, 1, "{refusal}");
    assert!(refusal.stderr.contains("change.yaml:"), "{refusal}");
    assert!(refusal.stderr.contains("waypoint") && refusal.stderr.contains("targetRefs"), "{refusal}");
    assert!(reaches(&lab, "app/client"), "a refusal changes nothing");
}

#[test]
fn an_allow_with_l7_attributes_never_matches_at_the_node() {
    let Some(lab) = meshed() else { return };
    let allow = "  rules: [{to: [{operation: {methods: [GET]}}]}]\n";
    lab.apply(&authorization("gets", "", allow)).expect_ok();
    assert!(!reaches(&lab, "app/client"));
}
