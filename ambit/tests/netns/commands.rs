//! The commands: their exit statuses and what they print.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use testkit::lab::{Lab, eventually, program};

use crate::{SLEEP, lab, pod, service};

#[test]
fn exec_ends_as_the_command_does() {
    let Some(lab) = lab(&pod("one", "node1", SLEEP, "")) else { return };
    assert_eq!(lab.exec("x/one", &["sh", "-c", "exit 42"]).code, 42);
    assert_eq!(lab.exec("x/one", &["no-such-command"]).code, 127);
    assert_eq!(lab.exec("x/one", &["/etc/passwd"]).code, 126);
    assert_eq!(lab.exec("x/one", &["sh", "-c", "kill -KILL $$"]).code, 128 + 9);
    let nobody = lab.exec("x/oen", &["true"]);
    assert_eq!(nobody.code, 1);
    assert!(nobody.stderr.contains("did you mean `one`?"), "{nobody}");
}

#[test]
fn exec_is_in_the_pods_namespaces_and_cgroup_with_the_callers_input() {
    let Some(lab) = lab(&pod("one", "node1", SLEEP, "")) else { return };
    let pid = lab.exec("x/one", &["pgrep", "-xo", "-f", "sleep infinity"]).expect_ok();
    assert!(!pid.stdout.trim().is_empty(), "pods share the machine's processes");
    let inside = lab.exec("x/one", &["sh", "-c", "readlink /proc/self/ns/net; cat /proc/self/cgroup"]);
    let inside = inside.expect_ok().stdout;
    assert!(inside.contains("pods/x_one"), "{inside}");
    let name = lab.state_dir().file_name().unwrap().to_str().unwrap().to_owned();
    let mut exec = Command::new(program("ambit"))
        .args(["lab", "--name", &name, "exec", "x/one", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    exec.stdin.take().unwrap().write_all(b"through and through").unwrap();
    assert_eq!(exec.wait_with_output().unwrap().stdout, b"through and through");
}

#[test]
fn what_get_prints_can_be_applied() {
    let world = pod("one", "node1", SLEEP, "") + &service("web", "one", "");
    let Some(lab) = lab(&world) else { return };
    for kind in ["svc", "pods", "ns"] {
        let printed = lab.ambit(["lab", "get", kind, "-o", "yaml"]).expect_ok().stdout;
        let again = lab.apply(&printed).expect_ok().stdout;
        assert!(!again.contains("created") && !again.contains("configured"), "{kind}: {again}");
    }
    let table = lab.ambit(["lab", "get", "pods", "-o", "wide"]).expect_ok().stdout;
    assert!(table.contains("Running") && table.contains("node1"), "{table}");
    let unknown = lab.ambit(["lab", "get", "pdos"]);
    assert_eq!(unknown.code, 1);
    assert!(unknown.stderr.contains("did you mean `pods`?"), "{unknown}");
}

#[test]
fn a_label_can_be_put_on_taken_off_and_misspelt() {
    let Some(lab) = lab(&pod("one", "node1", SLEEP, "")) else { return };
    let label = |what: &str| lab.ambit(["lab", "label", "pod", "one", "-n", "x", what]);
    label("tier=back").expect_ok();
    label("tier=front").expect_ok();
    let labels =
        || lab.ambit(["lab", "get", "pod", "one", "-o", "json"]).json()["metadata"]["labels"].clone();
    assert_eq!(labels()["tier"], "front");
    label("tier-").expect_ok();
    assert!(labels()["tier"].is_null());
    assert_eq!(label("tier=not a value").code, 1);
    assert_eq!(lab.ambit(["lab", "label", "ns", "y", "a=b"]).code, 1);
}

#[test]
fn a_change_that_is_not_acknowledged_names_who_is_late() {
    let Some(lab) = lab("") else { return };
    let istiod = lab.status()["istiod_pid"].to_string();
    assert!(Command::new("kill").args(["-STOP", &istiod]).status().unwrap().success());
    let late = lab.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: y}\n");
    assert_eq!(late.code, 4, "{late}");
    assert!(late.stderr.contains("istiod"), "{late}");
    assert!(Command::new("kill").args(["-CONT", &istiod]).status().unwrap().success());
    lab.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: z}\n").expect_ok();
}

#[test]
fn ztunnel_has_its_three_capabilities_and_no_others() {
    let Some(lab) = lab("") else { return };
    let bound = |pid: &serde_json::Value| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let of = |set: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(set)).unwrap_or_default();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        ["CapBnd:", "CapPrm:", "CapEff:"].map(of)
    };
    // NET_ADMIN, NET_RAW, SYS_ADMIN by their numbers in capability.h.
    let three = 1 << 12 | 1 << 13 | 1 << 21;
    assert_eq!(bound(&lab.node("node1")["ztunnel_pid"]), [three; 3]);
    assert_ne!(bound(&lab.node("node1")["agent_pid"]), [three; 3]);
}

#[test]
fn logs_can_be_followed() {
    let count = "[sh, -c, \"i=0; while true; do echo line $i; i=$((i+1)); sleep 0.1; done\"]";
    let Some(lab) = lab(&pod("count", "node1", count, "")) else { return };
    let name = lab.state_dir().file_name().unwrap().to_str().unwrap().to_owned();
    let mut follow = Command::new(program("ambit"))
        .args(["lab", "--name", &name, "logs", "x/count", "-f"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(follow.stdout.take().unwrap()));
    let lines: Vec<String> = lines.map_while(Result::ok).take(8).collect();
    assert_eq!(lines[7], "line 7");
    lab.delete(&pod("count", "node1", count, "")).expect_ok();
    eventually("it ends with the pod", || follow.try_wait().unwrap().is_some());
}

#[test]
fn in_the_foreground_an_interrupt_takes_the_lab_down() {
    if lab("").is_none() {
        return;
    }
    let name = format!("fg{}", std::process::id());
    let mut up = Command::new(program("ambit"))
        .args(["lab", "up", "--nodes", "1", "--name", &name])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut out = std::io::BufReader::new(up.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    assert!(line.contains("Ctrl-C"), "{line}");
    assert!(Command::new("kill").args(["-INT", &up.id().to_string()]).status().unwrap().success());
    assert!(up.wait().unwrap().success());
    assert!(!Path::new("/run/ambit/lab").join(&name).exists());
}

#[test]
fn labs_side_by_side_do_not_meet() {
    let Some(first) = lab(&pod("one", "node1", SLEEP, "")) else { return };
    let Some(second) = lab(&pod("one", "node1", SLEEP, "")) else { return };
    assert_eq!(first.ip("x", "one"), second.ip("x", "one"), "each has a network of its own");
    first.join("x");
    let enrolled = |lab: &Lab| lab.pod("x", "one")["enrolled"].clone();
    assert_eq!((enrolled(&first), enrolled(&second)), (true.into(), false.into()));
    first.ambit(["lab", "down"]).expect_ok();
    second.exec("x/one", &["true"]).expect_ok();
}
