//! A mesh of real processes in real namespaces, driven the way its users drive it: by `ambit lab`.
//!
//! Each [`Lab`] has a name of its own, so that tests run side by side, and is taken down when it is dropped, also by a
//! panic. A test without root cannot have one: [`Lab::up`] then says so in the words that `cargo xtask test` counts as
//! *ignored*, and returns nothing.

mod wire;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

pub use wire::Capture;

/// A running lab.
#[derive(Debug)]
pub struct Lab {
    name: String,
    files: TempDir,
}

/// What a command did.
#[derive(Debug)]
pub struct Output {
    /// Its exit status, or 128 and the signal that ended it.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

impl Output {
    /// Whether it exited with 0.
    pub fn ok(&self) -> bool {
        self.code == 0
    }

    /// What it printed, as JSON.
    ///
    /// # Panics
    /// Where it failed or printed something else: a test that asks for JSON has nothing to say without it.
    pub fn json(&self) -> Value {
        assert!(self.ok(), "{self}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {self}"))
    }

    /// The same, where success is taken for granted.
    ///
    /// # Panics
    /// Where the command failed.
    #[track_caller]
    pub fn expect_ok(self) -> Self {
        assert!(self.ok(), "{self}");
        self
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "exit {}\nstdout: {}\nstderr: {}",
            self.code,
            self.stdout.trim_end(),
            self.stderr.trim_end()
        )
    }
}

impl Lab {
    /// Brings up a lab of two nodes with these objects; nothing where the machine does not allow one.
    ///
    /// # Panics
    /// Where the lab does not come up although it could.
    pub fn up(manifests: &str) -> Option<Self> {
        Self::up_with(manifests, &[])
    }

    /// The same, with settings in the environment that the lab passes on to its parts.
    ///
    /// # Panics
    /// Where the lab does not come up although it could.
    pub fn up_with(manifests: &str, settings: &[(&str, &str)]) -> Option<Self> {
        Self::up_under(&[], manifests, settings)
    }

    /// The same, where `launcher` is the command that starts it: all that the lab consists of inherits from that.
    ///
    /// # Panics
    /// Where the lab does not come up although it could.
    pub fn up_under(launcher: &[&str], manifests: &str, settings: &[(&str, &str)]) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            crate::ignore("needs root: namespaces and eBPF");
            return None;
        }
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Interface names hold 15 characters, so the name stays short.
        let name = format!("t{:x}{}", std::process::id() & 0xf_ffff, NEXT.fetch_add(1, Ordering::Relaxed));
        let files = TempDir::new().expect("a folder for manifests");
        let lab = Self { name, files };
        let file = lab.write("world.yaml", manifests);
        let ambit = program("ambit");
        let mut up = match launcher {
            [] => Command::new(ambit),
            [launcher, arguments @ ..] => {
                let mut up = Command::new(launcher);
                up.args(arguments).arg(ambit);
                up
            }
        };
        up.args(["lab", "up", "--nodes", "2", "--detach", "-f", &file]).env("AMBIT_LAB_NAME", &lab.name);
        run(up.envs(settings.iter().copied())).expect_ok();
        Some(lab)
    }

    /// Runs `ambit` for this lab.
    pub fn ambit<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Output {
        run(Command::new(program("ambit")).args(arguments).env("AMBIT_LAB_NAME", &self.name))
    }

    /// Runs any other command, as root of this machine.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Output {
        run(Command::new(program).args(arguments))
    }

    /// Whether connections are captured by nftables, as `AMBIT_REDIRECTION` has it for a whole run.
    pub fn is_by_nftables(&self) -> bool {
        self.status()["redirection"] == "nftables"
    }

    /// Runs a command in a pod, `namespace/name`.
    pub fn exec(&self, pod: &str, command: &[&str]) -> Output {
        self.ambit(["lab", "exec", pod, "--"].into_iter().chain(command.iter().copied()))
    }

    /// The same in the background.
    pub fn start(&self, pod: &str, command: &[&str]) -> Running {
        let mut exec = Command::new(program("ambit"));
        exec.args(["lab", "exec", pod, "--"]).args(command).env("AMBIT_LAB_NAME", &self.name);
        Running::start(exec)
    }

    /// Runs a command in a node's network namespace.
    pub fn on_node(&self, node: &str, command: &[&str]) -> Output {
        run(Command::new("nsenter")
            .arg(format!("--net={}", self.node(node)["netns"].as_str().unwrap_or_default()))
            .args(command))
    }

    /// Applies objects and returns when all proxies have them.
    pub fn apply(&self, manifests: &str) -> Output {
        let file = self.write("change.yaml", manifests);
        self.ambit(["lab", "apply", "-f", &file])
    }

    /// Deletes objects and returns when all proxies know.
    pub fn delete(&self, manifests: &str) -> Output {
        let file = self.write("change.yaml", manifests);
        self.ambit(["lab", "delete", "-f", &file])
    }

    /// Puts a namespace into the mesh.
    #[track_caller]
    pub fn join(&self, namespace: &str) {
        self.ambit(["lab", "label", "ns", namespace, "istio.io/dataplane-mode=ambient"]).expect_ok();
    }

    /// Takes a namespace out of the mesh.
    #[track_caller]
    pub fn leave(&self, namespace: &str) {
        self.ambit(["lab", "label", "ns", namespace, "istio.io/dataplane-mode-"]).expect_ok();
    }

    /// What `ambit lab status -o json` says.
    pub fn status(&self) -> Value {
        self.ambit(["lab", "status", "-o", "json"]).json()
    }

    /// A node's entry in the status.
    pub fn node(&self, name: &str) -> Value {
        self.entry("nodes", |node| node["name"] == name)
    }

    /// A pod's entry in the status.
    pub fn pod(&self, namespace: &str, name: &str) -> Value {
        self.entry("pods", |pod| pod["namespace"] == namespace && pod["name"] == name)
    }

    /// A pod's first address.
    pub fn ip(&self, namespace: &str, name: &str) -> String {
        self.pod(namespace, name)["ip"].as_str().expect("an address").to_owned()
    }

    fn entry(&self, list: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let status = self.status();
        let found = status[list].as_array().and_then(|all| all.iter().find(|entry| wanted(entry)));
        found.cloned().unwrap_or_else(|| panic!("not among the {list}: {status}"))
    }

    /// The log of a part: `NS/POD`, `ztunnel@NODE`, `agent@NODE`, `istiod`.
    pub fn logs(&self, of: &str) -> String {
        self.ambit(["lab", "logs", of]).expect_ok().stdout
    }

    /// A page of a node's ztunnel, by port and path.
    pub fn ztunnel(&self, node: &str, port: u16, path: &str) -> String {
        self.on_node(node, &["curl", "-sS", "-m", "5", &format!("http://127.0.0.1:{port}{path}")])
            .expect_ok()
            .stdout
    }

    /// The sum of a metric's samples whose label set contains all of `labels`, each written `name="value"`.
    pub fn metric(&self, node: &str, name: &str, labels: &[&str]) -> f64 {
        self.ztunnel(node, 15020, "/metrics")
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
            .filter(|line| labels.iter().all(|label| line.contains(label)))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Captures what passes a node's uplink until the capture is read.
    pub fn capture(&self, node: &str) -> Capture {
        let node = self.node(node);
        let file = self.files.path().join(format!("{}.pcap", node["name"].as_str().unwrap_or("node")));
        Capture::start(
            node["netns"].as_str().unwrap_or_default(),
            node["uplink"].as_str().unwrap_or_default(),
            file,
        )
    }

    /// The folder in which the lab keeps its state.
    pub fn state_dir(&self) -> PathBuf {
        Path::new("/run/ambit/lab").join(&self.name)
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.files.path().join(name);
        std::fs::write(&path, text).expect("write a manifest");
        path.to_str().expect("a path of plain letters").to_owned()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for part in ["istiod", "ztunnel@node1", "ztunnel@node2", "agent@node1", "agent@node2"] {
                let log = self.ambit(["lab", "logs", part]).stdout;
                let tail: Vec<_> = log.lines().rev().take(40).collect();
                crate::say(&format!("--- {part}"));
                tail.iter().rev().for_each(|line| crate::say(line));
            }
        }
        let down = self.ambit(["lab", "down"]);
        if !down.ok() {
            crate::say(&format!("ambit lab down: {down}"));
        }
    }
}

/// A command in the background, ended when it is dropped.
#[derive(Debug)]
pub struct Running(Option<Child>);

impl Running {
    fn start(mut command: Command) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Self(Some(child.unwrap_or_else(|error| panic!("{command:?}: {error}"))))
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Output {
        let child = self.0.take().expect("it was not waited for before");
        output(child.wait_with_output().expect("wait for a child"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // It may have ended by itself; either way it is waited for.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// Waits for something to become true, at most a minute.
///
/// # Panics
/// Where it does not.
#[track_caller]
#[expect(clippy::disallowed_methods, reason = "what is waited for shows itself only to who asks again")]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..600 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("not within a minute: {what}");
}

/// A program of the workspace, beside the test's own executable (`target/<profile>/`).
///
/// # Panics
/// Where it was not built.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    let found = test.ancestors().skip(1).take(3).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!(
            "`{name}` is not built: run `cargo build --workspace --bins`, or the tests by `cargo xtask test`"
        )
    })
}

fn run(command: &mut Command) -> Output {
    output(command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}")))
}

fn output(output: std::process::Output) -> Output {
    use std::os::unix::process::ExitStatusExt;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let code = output.status.code().or_else(|| output.status.signal().map(|s| 128 + s)).unwrap_or(-1);
    Output { code, stdout: text(&output.stdout), stderr: text(&output.stderr) }
}
