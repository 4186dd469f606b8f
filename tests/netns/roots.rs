//! One root takes over from another, and no connection ends for it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use identity::SystemClock;
use identity::signer::{Signer, SignerSettings};
use testkit::lab::{Lab, eventually};

use crate::live::{Held, serial};
use crate::world::{Pod, curl, meshed};

/// Puts a file of the lab's authority in its place, whole.
fn put(lab: &Lab, name: &str, content: &str) {
    let path = lab.state_dir().join("ca").join(name);
    let mode = fs::metadata(&path).expect("the file that it replaces").permissions().mode();
    let aside = path.with_extension("aside");
    fs::write(&aside, content).expect("write a file");
    fs::set_permissions(&aside, Permissions::from_mode(mode)).expect("set its mode");
    fs::rename(&aside, &path).expect("put it in its place");
}

fn read(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).expect("a file of the authority")
}

/// Waits until both nodes have so many roots set up.
fn roots_are(lab: &Lab, count: u32) {
    for node in ["node1", "node2"] {
        eventually("the roots are set up", || {
            (lab.metric(node, "ambit_trust_roots", &[]) - f64::from(count)).abs() < 0.5
        });
    }
}

/// Has the control plane read its authority anew.
pub(crate) fn restart_control_plane(lab: &Lab) {
    let before = lab.status()["istiod_pid"].to_string();
    assert!(Command::new("kill").args(["-9", &before]).status().expect("kill").success());
    eventually("a new control plane", || {
        let now = lab.status()["istiod_pid"].to_string();
        now != "null" && now != before
    });
}

/// A client on node1 and a server on node2 that come late.
fn latecomers() -> String {
    let client = &["sleep", "infinity"][..];
    let server = &["ambit-echo", "http", "--port", "8080"][..];
    let pod = |name, node, command, ready_on| Pod { namespace: "app", name, node, command, ready_on };
    pod("late-client", "node1", client, None).manifest()
        + &pod("late-server", "node2", server, Some(8080)).manifest()
}

#[test]
fn one_root_takes_over_from_another_and_no_connection_ends() {
    let Some(lab) = meshed() else { return };
    let (ca, next) = (lab.state_dir().join("ca"), tempfile::tempdir().expect("a folder"));
    let next_dir = next.path().join("ca");
    Signer::open(&next_dir, SignerSettings::default(), Arc::new(SystemClock)).expect("another authority");
    let (old, new) = (read(&ca, "root-cert.pem"), read(&next_dir, "root-cert.pem"));
    let held = Held::open(&lab, "app/client", 60);

    // All believe both, before anybody shows a certificate of the new one.
    put(&lab, "root-cert.pem", &format!("{old}{new}"));
    roots_are(&lab, 2);
    put(&lab, "root-key.pem", &read(&next_dir, "root-key.pem"));
    put(&lab, "root-cert.pem", &format!("{new}{old}"));
    restart_control_plane(&lab);
    eventually("pods are taken again", || lab.apply(&latecomers()).ok());
    let late = lab.ip("app", "late-server");
    let late = format!("http://{late}:8080/");
    let calls =
        [("app/late-client", "http://server.app/"), ("app/client", &late), ("app/late-client", &late)];
    // The first may come before its pod's certificate; each waits for that.
    for (from, url) in calls {
        lab.exec(from, &curl(url)).expect_ok();
        lab.exec(from, &curl(url)).expect_ok();
    }
    let disbelieved = || {
        let of = |node| lab.metric(node, "ambit_live_connections_ended_total", &["reason=\"disbelieved\""]);
        of("node1") + of("node2")
    };
    assert!(disbelieved() < 0.5, "what stood goes on");

    // The old one is taken out. What rests on it is renewed at once, and the new one's stays.
    let serials = || (serial(&lab, "node1", "client"), serial(&lab, "node1", "late-client"));
    let before = serials();
    put(&lab, "root-cert.pem", &new);
    restart_control_plane(&lab);
    roots_are(&lab, 1);
    eventually("a certificate of the old root is renewed", || serials().0 != before.0);
    assert_eq!(serials().1, before.1);
    eventually("what rests on the old root ends", || disbelieved() > 0.5);
    for (from, url) in calls {
        eventually("all calls go through", || lab.exec(from, &curl(url)).ok());
    }
    drop(held);
}
