//! Connections that stand when something changes: those now denied end within a second, all others go on.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use identity::SystemClock;
use testkit::lab::{Lab, Running, eventually};

use crate::papers::authority_of;
use crate::world::{authorization, meshed, peer_authentication};

/// What a change may take to end a connection, once both nodes have confirmed it.
const BOUND: Duration = Duration::from_secs(1);
/// What the machine may add to it: tests share two cores with builds.
const NOISE: Duration = Duration::from_millis(500);

const GREETER: &str = "greeter.app:7000";

fn now_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_millis()
}

/// A connection that a pod keeps.
pub(crate) struct Held {
    by: &'static str,
    running: Running,
}

/// What became of it.
pub(crate) struct Outcome {
    by: &'static str,
    how: String,
    at_ms: u128,
}

impl Held {
    /// Has a pod connect to the greeter and keep the connection, at most for so long.
    pub(crate) fn open(lab: &Lab, by: &'static str, seconds: u64) -> Self {
        let before = carried(lab);
        let seconds = seconds.to_string();
        let running = lab.start(by, &["ambit-echo", "hold", GREETER, "--seconds", &seconds]);
        eventually("the connection stands", || carried(lab) > before);
        Self { by, running }
    }

    pub(crate) fn outcome(self) -> Outcome {
        let output = self.running.wait().expect_ok();
        let line = output.stdout.lines().last().unwrap_or_default();
        let told: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{}: {error}: {output}", self.by));
        assert!(told["echoed"].as_u64() > Some(0), "{}: it never stood: {told}", self.by);
        Outcome {
            by: self.by,
            how: told["how"].as_str().expect("a word").to_owned(),
            at_ms: told["at_ms"].as_u64().expect("a time").into(),
        }
    }
}

impl Outcome {
    /// It was cut off, as it should be told, within the bound of a change that was confirmed then.
    #[track_caller]
    pub(crate) fn expect_reset(&self, began_ms: u128, confirmed_ms: u128) {
        let (after_begin, after_confirmed) =
            (self.at_ms.saturating_sub(began_ms), self.at_ms.saturating_sub(confirmed_ms));
        testkit::say(&format!(
            "{}: ended {after_begin} ms after the command began, {after_confirmed} ms after both nodes had confirmed",
            self.by
        ));
        assert_eq!(self.how, "reset", "{}", self.by);
        assert!(self.at_ms >= began_ms, "{}: it had ended before", self.by);
        assert!(after_confirmed <= (BOUND + NOISE).as_millis(), "{}: {after_confirmed} ms", self.by);
    }

    #[track_caller]
    pub(crate) fn expect_kept(&self) {
        assert_eq!(self.how, "kept", "{}", self.by);
    }
}

/// How many connections to the greeter its node carries.
fn carried(lab: &Lab) -> usize {
    let dump = lab.ztunnel("node2", 15000, "/connections");
    let listed: serde_json::Value = serde_json::from_str(&dump).expect("JSON");
    let destination = format!("{}:7000", lab.ip("app", "greeter"));
    let tunnel = format!("{}:15008", lab.ip("app", "greeter"));
    let text = listed.to_string();
    text.matches(&format!("\"{destination}\"")).count() + text.matches(&format!("\"{tunnel}\"")).count()
}

fn apply(lab: &Lab, yaml: &str) -> (u128, u128) {
    let began = now_ms();
    lab.apply(yaml).expect_ok();
    (began, now_ms())
}

#[test]
fn a_selector_policy_that_comes_ends_what_it_denies_within_a_second() {
    let Some(lab) = meshed() else { return };
    let client = Held::open(&lab, "app/client", 8);
    let other = Held::open(&lab, "app/other", 20);
    let plain = Held::open(&lab, "outside/stranger", 20);
    let only = "  selector: {matchLabels: {app: greeter}}\n  action: ALLOW\n  \
                rules: [{from: [{source: {principals: [cluster.local/ns/app/sa/client]}}]}]\n";
    let (began, confirmed) = apply(&lab, &authorization("only-client", "", only));
    other.outcome().expect_reset(began, confirmed);
    plain.outcome().expect_reset(began, confirmed);
    client.outcome().expect_kept();
    let log = lab.logs("ztunnel@node2");
    let told = log
        .lines()
        .any(|l| l.contains("ended by a change") && l.contains("app/only-client") && l.contains("sa/other"));
    assert!(told, "the record says which policy ended it: {log}");
    let failed = "istio_tcp_connections_failed_total";
    let denied = ["reporter=\"destination\"", "response_flags=\"DENY\""];
    eventually("both are counted", || lab.metric("node2", failed, &denied) >= 2.0);
    assert!(lab.metric("node2", "ambit_live_connections_ended_total", &["reason=\"policy\""]) >= 2.0);
}

#[test]
fn plaintext_ends_within_a_second_when_strict_comes() {
    let Some(lab) = meshed() else { return };
    lab.apply(&peer_authentication("PERMISSIVE", "")).expect_ok();
    let client = Held::open(&lab, "app/client", 6);
    let plain = Held::open(&lab, "outside/stranger", 20);
    let (began, confirmed) = apply(&lab, &peer_authentication("STRICT", ""));
    plain.outcome().expect_reset(began, confirmed);
    client.outcome().expect_kept();
}

/// The serial number of the certificate that a node has for an account of `app`.
pub(crate) fn serial(lab: &Lab, node: &str, account: &str) -> String {
    let dump: serde_json::Value =
        serde_json::from_str(&lab.ztunnel(node, 15000, "/config_dump")).expect("JSON");
    let id = format!("spiffe://cluster.local/ns/app/sa/{account}");
    let all = dump["certificates"].as_array().expect("certificates");
    let own = all.iter().find(|c| c["id"] == id.as_str()).expect("a certificate of the account");
    own["serial"].as_str().expect("a serial number").to_owned()
}

/// Has both nodes revoke certificates of the mesh's authority, and no others.
fn revoke(lab: &Lab, serials: &[&str]) -> u128 {
    let signer = authority_of(lab, Arc::new(SystemClock));
    let list = signer.revocation_list(serials, Duration::from_secs(3600)).expect("a list");
    let (aside, file) = (lab.state_dir().join("crl.new"), lab.state_dir().join("crl.pem"));
    std::fs::write(&aside, list).expect("write the list");
    let began = now_ms();
    std::fs::rename(&aside, &file).expect("put the list in its place");
    began
}

/// How many tunnel connections stand to the greeter, as its node sees them.
fn tunnels(lab: &Lab, from: &str) -> usize {
    let (from, to) = (lab.ip("app", from), lab.ip("app", "greeter"));
    let shown = lab.exec("app/greeter", &["ss", "-Htn", "state", "established"]).expect_ok();
    // As addresses of IPv6 they stand in brackets.
    let shown = shown.stdout.replace(']', "");
    let meant = |line: &&str| line.contains(&format!("{to}:15008")) && line.contains(&format!("{from}:"));
    shown.lines().filter(meant).count()
}

#[test]
fn what_a_revoked_certificate_carries_ends_within_a_second() {
    let Some(lab) = meshed() else { return };
    let client = Held::open(&lab, "app/client", 20);
    let other = Held::open(&lab, "app/other", 20);
    let local = Held::open(&lab, "app/local", 20);
    assert_eq!([tunnels(&lab, "client"), tunnels(&lab, "other")], [1, 1]);
    let of_client = serial(&lab, "node1", "client");
    let began = revoke(&lab, &[&of_client]);
    client.outcome().expect_reset(began, began);
    eventually("no tunnel of the client is left", || tunnels(&lab, "client") == 0);
    assert_eq!(tunnels(&lab, "other"), 1);
    assert!(lab.metric("node2", "ambit_live_connections_ended_total", &["reason=\"revoked\""]) >= 1.0);
    let flagged = ["reporter=\"destination\"", "response_flags=\"CERT_REVOKED\""];
    assert!(lab.metric("node2", "istio_tcp_connections_failed_total", &flagged) >= 1.0);
    // What cannot be used changes nothing.
    std::fs::write(lab.state_dir().join("crl.pem"), "rubbish").expect("spoil the list");
    eventually("that is told", || lab.metric("node2", "ambit_revocation_file_unusable", &[]) >= 1.0);
    let refused = lab.exec("app/client", &["ambit-echo", "hold", GREETER, "--seconds", "1"]);
    assert!(!refused.stdout.contains("kept"), "{refused}");
    // Now the server's: its clients end what they have opened to it.
    let of_greeter = serial(&lab, "node2", "greeter");
    let began = revoke(&lab, &[&of_client, &of_greeter]);
    other.outcome().expect_reset(began, began);
    local.outcome().expect_reset(began, began);
    eventually("no tunnel to the greeter is left", || tunnels(&lab, "other") == 0);
    assert!(lab.metric("node1", "ambit_live_connections_ended_total", &["reason=\"revoked\""]) >= 2.0);
}
