//! Nothing that the mesh writes or shows holds key material, at the highest level of detail.

mod scan;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use identity::SystemClock;
use identity::signer::{Signer, SignerSettings};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use testkit::lab::{Lab, eventually};

use crate::live::serial;
use crate::roots::restart_control_plane;
use crate::tls::certificate_of;
use crate::world::{curl, manifests};
use scan::Wanted;

/// All that was written so far, each log and page by itself.
fn collected(lab: &Lab) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    below(&lab.state_dir().join("logs"), &mut all);
    let mut page = |of: &str, text: String| all.push((of.to_owned(), text.into_bytes()));
    page("ambit lab status", lab.status().to_string());
    for node in ["node1", "node2"] {
        for (port, path) in
            [(15000, "/config_dump"), (15000, "/connections"), (15000, "/logging"), (15020, "/metrics")]
        {
            page(&format!("{node} {path}"), lab.ztunnel(node, port, path));
        }
        for path in ["/debug/pods", "/metrics", "/logging"] {
            page(&format!("agent of {node} {path}"), lab.ztunnel(node, 15022, path));
        }
    }
    let control = lab.status()["istiod_pid"].to_string();
    for path in ["sync", "proxies", "objects", "workloads", "services", "policies"] {
        let url = format!("http://127.0.0.1:15014/debug/{path}");
        let output =
            std::process::Command::new("nsenter").args(["-t", &control, "-n", "curl", "-sS", &url]).output();
        page(
            &format!("istiod {path}"),
            String::from_utf8_lossy(&output.expect("run curl").stdout).into_owned(),
        );
    }
    all
}

fn below(folder: &Path, all: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(folder).expect("a folder of logs").flatten() {
        match entry.path() {
            path if path.is_dir() => below(&path, all),
            path => all.push((path.display().to_string(), fs::read(&path).expect("a log"))),
        }
    }
}

/// The keys of all certificates that pods present now.
fn want_keys(lab: &Lab, wanted: &mut Wanted) {
    for name in ["client", "other", "server", "local", "digest", "greeter"] {
        wanted.key_of(&certificate_of(lab, "app", name));
    }
}

/// The key of an authority.
fn want_root(ca: &Path, wanted: &mut Wanted) {
    let pem = fs::read(ca.join("root-key.pem")).expect("the root's key");
    let key = PrivateKeyDer::from_pem_slice(&pem).expect("a key").secret_der().to_vec();
    // What stands before it is the same in every key.
    wanted.secret(&key[36..68]);
}

fn kill(pid: &serde_json::Value) {
    let pid = i32::try_from(pid.as_i64().expect("a pid")).expect("a pid");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).expect("kill");
}

#[test]
fn nothing_that_is_written_or_shown_holds_a_key_or_a_token() {
    let Some(lab) = Lab::up_with(&manifests(), &[("RUST_LOG", "trace")]) else { return };
    lab.join("app");
    let mut wanted = Wanted::default();
    let ca = lab.state_dir().join("ca");
    want_root(&ca, &mut wanted);
    for node in ["node1", "node2"] {
        let token = fs::read(lab.state_dir().join("nodes").join(node).join("token")).expect("a token");
        wanted.secret(token.trim_ascii());
    }
    let calls = || lab.exec("app/client", &curl("http://server.app/")).ok();
    eventually("calls go through", calls);
    want_keys(&lab, &mut wanted);

    // A proxy that is new has new keys for its pods.
    let before = lab.node("node1")["ztunnel_pid"].clone();
    kill(&before);
    eventually("another ztunnel", || {
        let now = lab.node("node1")["ztunnel_pid"].clone();
        now.is_number() && now != before
    });
    eventually("calls go through again", calls);
    want_keys(&lab, &mut wanted);

    // Trouble loosens tongues: a token that is refused, tokens and a root that cannot be read.
    let spoil = |path: &str, text: &[u8]| {
        let path = lab.state_dir().join(path);
        let was = fs::read(&path).expect("a file");
        fs::write(&path, text).expect("spoil it");
        (path, was)
    };
    let tokens = fs::read(lab.state_dir().join("tokens.json")).expect("the tokens");
    let half_a_key = fs::read(lab.state_dir().join("ca/root-key.pem")).expect("the root's key");
    let spoilt = [
        spoil("nodes/node2/token", b"not the token"),
        spoil("tokens.json", &tokens[..tokens.len() / 2]),
        spoil("ca/root-key.pem", &half_a_key[..half_a_key.len() / 2]),
    ];
    kill(&lab.status()["istiod_pid"]);
    eventually("the authority complains", || lab.logs("istiod").contains("certificate authority"));
    for (path, was) in spoilt {
        fs::write(path, was).expect("restore it");
    }

    // Another authority takes its place, so that every key is made anew.
    let before = serial(&lab, "node1", "client");
    let next = tempfile::tempdir().expect("a folder");
    let next = next.path().join("ca");
    Signer::open(&next, SignerSettings::default(), Arc::new(SystemClock)).expect("another authority");
    want_root(&next, &mut wanted);
    for file in ["root-key.pem", "root-cert.pem"] {
        fs::write(ca.join(file), fs::read(next.join(file)).expect("a file")).expect("put it in its place");
    }
    eventually("the control plane is back", || lab.status()["istiod_pid"].is_number());
    restart_control_plane(&lab);
    eventually("certificates are renewed", || serial(&lab, "node1", "client") != before);
    eventually("calls go through at last", calls);
    want_keys(&lab, &mut wanted);

    let (mut bytes, mut tried, mut found) = (0, 0, Vec::new());
    let all = collected(&lab);
    for (of, text) in &all {
        let findings = wanted.find(text);
        found.extend(findings.found.iter().map(|what| format!("{of}: {what}")));
        bytes += text.len();
        tried += findings.tried;
    }
    testkit::say(&format!("{} logs and pages, {bytes} bytes, {tried} byte strings tried as keys", all.len()));
    assert!(found.is_empty(), "{found:#?}");
    for part in ["ztunnel@node1", "ztunnel@node2", "agent@node1", "agent@node2", "istiod"] {
        assert!(lab.logs(part).contains("TRACE"), "the log of {part} is at trace level");
    }
}
