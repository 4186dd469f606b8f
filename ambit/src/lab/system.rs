//! The mesh's own processes: what runs where, with which arguments and rights.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use net::Netns;
use rand::RngCore as _;
use runtime::hardening::Program;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::address::{CONTROL, NodePlan, RESOLVER};
use super::place::Place;
use super::trust::TrustNames;
use crate::enter::Entry;

/// The programs of a mesh; they lie beside ambit's own.
pub(crate) const PROGRAMS: [&str; 3] = ["istiod-lite", "ztunnel", "ambit-agent"];

/// The cgroup of the supervisor, which is the kubelet of all nodes; nothing else runs in it.
pub(crate) const SUPERVISOR: &str = "supervisor";

/// The namespace of the mesh's own workloads.
pub(crate) const NAMESPACE: &str = "istio-system";
const ZTUNNEL_ACCOUNT: &str = "ztunnel";

/// Ports of the control plane.
const TLS_PORT: u16 = 15012;
pub(crate) const ISTIOD_HTTP: u16 = 15014;
/// Ports on a node.
pub(crate) const ZTUNNEL_READINESS: u16 = 15021;
pub(crate) const AGENT_HTTP: u16 = 15022;

/// Where the programs lie.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    dir: PathBuf,
}

impl Programs {
    /// The programs beside the one that runs.
    ///
    /// # Errors
    /// Those that are not there.
    pub(crate) fn beside_our_own() -> Result<Self, Vec<String>> {
        let own = std::env::current_exe().unwrap_or_default();
        let dir = own.parent().unwrap_or(Path::new("/")).to_owned();
        let missing: Vec<String> =
            PROGRAMS.iter().filter(|name| !dir.join(name).is_file()).map(|name| (*name).to_owned()).collect();
        if missing.is_empty() { Ok(Self { dir }) } else { Err(missing) }
    }

    /// Their folder; it comes first on a pod's path, so that workloads of ours are found by name.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// One of the mesh's processes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Part {
    Istiod,
    Agent(String),
    Ztunnel(String),
}

impl Part {
    fn program(&self) -> Program {
        match self {
            Self::Istiod => Program::Istiod,
            Self::Agent(_) => Program::Agent,
            Self::Ztunnel(_) => Program::Ztunnel,
        }
    }
}

/// The words of [`Part`]'s `Display`.
impl std::str::FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('@') {
            None if text == "istiod" => Ok(Self::Istiod),
            Some(("agent", node)) => Ok(Self::Agent(node.to_owned())),
            Some(("ztunnel", node)) => Ok(Self::Ztunnel(node.to_owned())),
            _ => Err(format!("`{text}` is no part of the mesh: name istiod, agent@NODE or ztunnel@NODE")),
        }
    }
}

/// `istiod`, `agent@node1`: what `logs` takes.
impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Istiod => f.write_str("istiod"),
            Self::Agent(node) => write!(f, "agent@{node}"),
            Self::Ztunnel(node) => write!(f, "ztunnel@{node}"),
        }
    }
}

/// The settings of `ambit lab up` itself that go on to all parts.
pub(crate) fn passed_on() -> Vec<(String, String)> {
    let set = |name: &&str| Some(((*name).to_owned(), std::env::var(name).ok()?));
    ["RUST_LOG", "AMBIT_SECCOMP", "AMBIT_REDIRECTION", "XDS_ON_DEMAND"].iter().filter_map(set).collect()
}

/// How a process is started.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) part: Part,
    pub(crate) entry: Entry,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) log: PathBuf,
    /// It is of no use before this file is there.
    pub(crate) needs: Option<PathBuf>,
    /// It hands over to a successor that runs beside it, as the agent in this namespace tells.
    pub(crate) hands_over: Option<Netns>,
    /// It is told the names of the trust domain as they are when it starts.
    pub(crate) trust: Option<watch::Receiver<TrustNames>>,
}

/// What the launches have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting<'a> {
    pub(crate) place: &'a Place,
    pub(crate) programs: &'a Programs,
    /// The mount point of cgroup2.
    pub(crate) cgroups: &'a Path,
    /// The supervisor's own settings that go on to all.
    pub(crate) passed_on: &'a [(String, String)],
}

impl Setting<'_> {
    /// The control plane, in the fabric.
    pub(crate) fn istiod(&self, netns: &Path) -> Launch {
        let place = self.place;
        let arguments: Vec<OsString> = vec![
            "--source-dir".into(),
            place.objects().into(),
            "--ca-dir".into(),
            place.ca().into(),
            "--tls-address".into(),
            format!("0.0.0.0:{TLS_PORT}").into(),
            "--http-address".into(),
            format!("0.0.0.0:{ISTIOD_HTTP}").into(),
            "--token-file".into(),
            place.token_file().into(),
            "--dns-name".into(),
            CONTROL.to_string().into(),
            "--dns-name".into(),
            format!("istiod.{NAMESPACE}.svc").into(),
        ];
        self.launch(Part::Istiod, "istiod-lite", netns, arguments, Vec::new())
    }

    /// A node's agent, the privileged part.
    pub(crate) fn agent(&self, node: &NodePlan, netns: &Path) -> Launch {
        let place = self.place;
        let arguments: Vec<OsString> = vec![
            "--node-name".into(),
            node.name.clone().into(),
            "--instance".into(),
            place.instance(&node.name).into(),
            "--objects".into(),
            place.objects().into(),
            "--zds-socket".into(),
            place.zds_socket(&node.name).into(),
            "--bpffs".into(),
            place.bpffs().into(),
            "--cgroup".into(),
            self.cgroups.into(),
            "--kubelet-cgroup".into(),
            self.cgroups.join(place.cgroup()).join(SUPERVISOR).into(),
            "--http".into(),
            format!("127.0.0.1:{AGENT_HTTP}").into(),
        ];
        self.launch(Part::Agent(node.name.clone()), "ambit-agent", netns, arguments, Vec::new())
    }

    /// A node's proxy.
    pub(crate) fn ztunnel(&self, node: &NodePlan, netns: &Path) -> Launch {
        let place = self.place;
        let path = |path: PathBuf| path.to_string_lossy().into_owned();
        let control = format!("https://{CONTROL}:{TLS_PORT}");
        let env = [
            ("XDS_ADDRESS", control.clone()),
            ("CA_ADDRESS", control),
            ("XDS_ROOT_CA", path(place.root_certificate())),
            ("CA_ROOT_CA", path(place.root_certificate())),
            ("CRL_PATH", path(place.revocation_lists())),
            ("NODE_NAME", node.name.clone()),
            ("POD_NAME", format!("{ZTUNNEL_ACCOUNT}-{}", node.name)),
            ("POD_NAMESPACE", NAMESPACE.to_owned()),
            ("INSTANCE_IP", node.uplink().v4.to_string()),
            ("INPOD_UDS", path(place.zds_socket(&node.name))),
            ("AMBIT_TOKEN_PATH", path(place.token(&node.name))),
            ("AMBIT_RESOLV_CONF", path(place.resolv_conf())),
        ];
        let env = env.map(|(key, value)| (key.to_owned(), value)).to_vec();
        let mut launch = self.launch(Part::Ztunnel(node.name.clone()), "ztunnel", netns, Vec::new(), env);
        launch.needs = Some(place.root_certificate());
        launch
    }

    fn launch(
        &self,
        part: Part,
        program: &str,
        netns: &Path,
        arguments: Vec<OsString>,
        mut env: Vec<(String, String)>,
    ) -> Launch {
        env.push((
            "PATH".to_owned(),
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        ));
        env.extend(self.passed_on.iter().cloned());
        let command = std::iter::once(self.programs.path(program).into()).chain(arguments).collect();
        let entry = Entry {
            net: Some(netns.to_owned()),
            cgroup: Some(self.cgroups.join(self.place.cgroup()).join("system").join(part.to_string())),
            // What it has in a cluster, and no more.
            caps: Some(part.program().capabilities().into()),
            session: true,
            command,
            ..Entry::default()
        };
        let log = self.place.part_log(&part.to_string());
        Launch { part, entry, env, log, needs: None, hands_over: None, trust: None }
    }
}

/// What the control plane is told of a token: enough to know it, not enough to show it.
#[derive(Debug, Serialize)]
struct KnownToken<'a> {
    token_sha256: String,
    service_account: &'a str,
    namespace: &'a str,
    node: &'a str,
}

/// Makes a token for each node's ztunnel and tells the control plane of them.
pub(crate) fn issue_tokens(place: &Place, nodes: &[NodePlan]) -> io::Result<()> {
    let mut known = Vec::new();
    for node in nodes {
        let mut secret = [0; 32];
        rand::rng().fill_bytes(&mut secret);
        let token = hex(&secret);
        fs::create_dir_all(place.node(&node.name))?;
        write_private(&place.token(&node.name), &token)?;
        known.push(KnownToken {
            token_sha256: hex(&Sha256::digest(&token)),
            service_account: ZTUNNEL_ACCOUNT,
            namespace: NAMESPACE,
            node: &node.name,
        });
    }
    fs::create_dir_all(place.ca())?;
    fs::set_permissions(place.ca(), fs::Permissions::from_mode(0o700))?;
    write_private(&place.token_file(), &serde_json::to_string_pretty(&known)?)
}

/// Tells the nodes' ztunnels who resolves names: not who does for the machine, whom nobody in the lab can reach.
pub(crate) fn name_the_resolver(place: &Place) -> io::Result<()> {
    fs::write(place.resolv_conf(), format!("nameserver {RESOLVER}\n"))
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    io::Write::write_all(&mut file, text.as_bytes())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::address;

    fn launches(place: &Place) -> [Launch; 3] {
        let programs = Programs { dir: "/opt/ambit".into() };
        let cgroups = Path::new("/sys/fs/cgroup");
        let passed_on = [("RUST_LOG".to_owned(), "debug".to_owned())];
        let setting = Setting { place, programs: &programs, cgroups, passed_on: &passed_on };
        let node = &address::nodes(1)[0];
        let netns = place.netns("node1");
        [setting.istiod(&place.netns("fabric")), setting.agent(node, &netns), setting.ztunnel(node, &netns)]
    }

    #[test]
    fn every_part_is_narrowed() {
        let kept =
            launches(&Place::of("lab".parse().unwrap())).map(|launch| launch.entry.caps.unwrap().to_string());
        assert_eq!(
            kept,
            ["none", "CAP_NET_ADMIN,CAP_SYS_ADMIN,CAP_SYS_PTRACE", "CAP_NET_ADMIN,CAP_SYS_ADMIN,CAP_NET_RAW"]
        );
    }

    #[test]
    fn both_ends_of_the_node_socket_agree() {
        let [_, agent, ztunnel] = launches(&Place::of("lab".parse().unwrap()));
        let socket = "/run/ambit/lab/lab/nodes/node1/ztunnel.sock";
        assert!(agent.entry.command.contains(&socket.into()));
        assert!(ztunnel.env.contains(&("INPOD_UDS".into(), socket.into())));
        assert!(ztunnel.env.contains(&("RUST_LOG".into(), "debug".into())));
    }

    #[test]
    fn a_token_is_secret_and_known_by_its_digest() {
        let digest = hex(&Sha256::digest("abc"));
        assert_eq!(digest, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
