//! `cargo xtask demo`: the mesh, shown and checked.
//!
//! A shop runs on two nodes. Calls between its pods carry a canary, and packets on the cable between the nodes tell who
//! else could have read it: before the shop joins the mesh, after it has joined, and once a policy turns a caller away.
//! Every line of the account is checked; the demo fails when anything is not as told.

mod call;
mod record;
mod table;

use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use clap::Args;

use crate::command::Run;
use crate::lab::{Lab, Status};
use crate::{repo, setup, stage};
use call::{Call, Expected, Phase, Told, Verdict, Wire};

#[derive(Args)]
pub(crate) struct Options {
    /// Leaves the lab up, and says what to try next.
    #[arg(long)]
    keep: bool,
    /// Prints one JSON object on standard output and the account on standard error.
    #[arg(long)]
    json: bool,
}

const SHOP: &str = "deploy/samples/shop";
const POLICY: &str = "deploy/samples/shop-policy";

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the demo makes network namespaces and loads eBPF: run it as root"
    );
    let missing = stage::run("packages", || setup::packages(&[setup::LAB]));
    ensure!(missing.is_empty(), "the demo cannot do without {}", missing.join(", "));
    stage::run("build", || Run::cargo().args(["build", "--quiet", "--workspace", "--bins"]).check())?;
    let tell = Tell { aloud: !options.json };
    tell.line("\nTwo nodes, one shop, and something that should stay between its parts.\n");
    let mut lab = stage::run("lab up", || Lab::up(&repo::target().join("debug"), None, SHOP))?;
    lab.take_down_when_interrupted()?;
    let story = Story { lab: &lab, tell: &tell, scratch: tempfile::tempdir()? };
    let (redirection, told) = story.tell()?;
    drop(story);
    let ok = told.iter().all(|t| t.problem.is_none()) && redirection == "ebpf";
    if options.json {
        println!("{}", table::json(ok, &redirection, &told));
    } else {
        println!("{}", table::text(&told));
    }
    for told in &told {
        if let Some(problem) = &told.problem {
            eprintln!("NOT AS TOLD: {}: {problem}", told.name);
        }
    }
    if options.keep {
        lab.keep();
        tell.line(&next(&lab));
    }
    drop(lab);
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Who reads the account, and where.
struct Tell {
    aloud: bool,
}

impl Tell {
    fn line(&self, text: &str) {
        if self.aloud {
            println!("{text}");
        } else {
            eprintln!("{text}");
        }
    }
}

struct Story<'a> {
    lab: &'a Lab,
    tell: &'a Tell,
    scratch: tempfile::TempDir,
}

impl Story<'_> {
    /// The three acts, and how connections are redirected.
    fn tell(&self) -> anyhow::Result<(String, Vec<Told>)> {
        let status = self.lab.status()?;
        let cast = Cast::of(&status)?;
        self.tell.line(&format!("redirection: {}", status.redirection));
        if status.redirection != "ebpf" {
            bail!("redirection is {}, and this demo is about ebpf", status.redirection);
        }
        let servers = self.servers(&cast)?;
        let mut told = Vec::new();

        self.tell.line("\n1. The shop is not in the mesh. Its calls cross the cable as they are written:");
        let plain = Expected { identity: None, wire: Wire::Plaintext, verdict: Verdict::Allowed };
        for call in cast.calls() {
            told.push(self.make(call, Phase::Before, plain.clone())?);
        }

        self.tell.line("\n2. `label ns shop istio.io/dataplane-mode=ambient`. Nothing is restarted:");
        self.lab.run(&["lab", "label", "ns", "shop", "istio.io/dataplane-mode=ambient"])?;
        for pod in self.lab.status()?.pods.iter().filter(|p| p.name.starts_with("shop/")) {
            ensure!(pod.enrolled, "{} is not enrolled, although the label holds", pod.name);
        }
        ensure!(self.servers(&cast)? == servers, "the servers are not the processes that they were");
        for call in cast.calls() {
            let expected = match &call.identity {
                None => plain.clone(),
                id => Expected { identity: id.clone(), wire: Wire::Tls, verdict: Verdict::Allowed },
            };
            told.push(self.make(call, Phase::Mesh, expected)?);
        }

        self.tell.line(&format!("\n3. `apply -f {POLICY}`. Only the frontend may reach the carts:"));
        self.lab.run(&["lab", "apply", "-f", POLICY])?;
        for call in cast.calls() {
            let expected = match (&call.identity, call.by_policy) {
                (None, verdict) => Expected { identity: None, wire: Wire::Plaintext, verdict },
                (id, verdict) => Expected { identity: id.clone(), wire: Wire::Tls, verdict },
            };
            told.push(self.make(call, Phase::Policy, expected)?);
        }
        Ok((status.redirection, told))
    }

    fn make(&self, call: Call, phase: Phase, expected: Expected) -> anyhow::Result<Told> {
        let told = call.make(self.lab, self.scratch.path(), phase, &expected)?;
        self.tell.line(&format!("   {}", told.line()));
        Ok(told)
    }

    /// What the servers call themselves: another process would have another name.
    fn servers(&self, cast: &Cast) -> anyhow::Result<Vec<String>> {
        let info = self.lab.exec(&cast.redis.pod, &["redis-cli", "INFO", "server"])?;
        let info = String::from_utf8_lossy(&info.stdout).into_owned();
        let lines = info.lines().filter(|l| l.starts_with("run_id:") || l.starts_with("process_id:"));
        let lines: Vec<_> = lines.map(|l| l.trim_end().to_owned()).collect();
        ensure!(!lines.is_empty(), "redis does not answer INFO");
        Ok(lines)
    }
}

/// A pod with a part in the story.
#[derive(Clone, Debug)]
struct Player {
    pod: String,
    ip: String,
    node: String,
}

/// Who plays.
struct Cast {
    frontend: Player,
    /// The catalog's replica on the frontend's node, which calls, and the one on the other node, which is called.
    near_catalog: Player,
    far_catalog: Player,
    redis: Player,
    legacy: Player,
    /// The frontend's node, whose end of the cable is watched.
    cable: (String, String),
}

impl Cast {
    fn of(status: &Status) -> anyhow::Result<Self> {
        let player = |name: &str| {
            let pod = status.pods.iter().find(|p| p.name.starts_with(&format!("{name}-")));
            let pod = pod.with_context(|| format!("the shop has no {name}"))?;
            anyhow::Ok(Player { pod: pod.name.clone(), ip: pod.ip.clone(), node: pod.node.clone() })
        };
        let frontend = player("shop/frontend")?;
        let catalog = |near: bool| {
            let mut pods = status.pods.iter().filter(|p| p.name.starts_with("shop/catalog-"));
            let pod = pods.find(|p| (p.node == frontend.node) == near);
            let pod = pod.context("the catalog's replicas are not on both nodes")?;
            anyhow::Ok(Player { pod: pod.name.clone(), ip: pod.ip.clone(), node: pod.node.clone() })
        };
        let node = status.node(&frontend.node)?;
        let cast = Self {
            near_catalog: catalog(true)?,
            far_catalog: catalog(false)?,
            redis: player("shop/redis")?,
            legacy: player("legacy/client")?,
            cable: (node.netns.clone(), node.uplink.clone()),
            frontend,
        };
        ensure!(
            cast.redis.node != cast.frontend.node,
            "redis is on the frontend's node: nothing would cross the cable"
        );
        ensure!(cast.legacy.node != cast.redis.node, "the legacy client is on redis's node");
        Ok(cast)
    }

    /// The calls of each act: by HTTP and by redis's protocol, from inside the shop and from outside.
    fn calls(&self) -> [Call; 4] {
        let id = |account: &str| Some(format!("spiffe://cluster.local/ns/shop/sa/{account}"));
        let call = |name, from: &Player, to: &Player, identity, by_policy| Call {
            name,
            client: from.pod.clone(),
            client_ip: from.ip.clone(),
            server_node: to.node.clone(),
            server: to.pod.clone(),
            cable: self.cable.clone(),
            identity,
            by_policy,
        };
        [
            call("frontend -> catalog", &self.frontend, &self.far_catalog, id("frontend"), Verdict::Allowed),
            call("frontend -> redis", &self.frontend, &self.redis, id("frontend"), Verdict::Allowed),
            call("catalog -> redis", &self.near_catalog, &self.redis, id("catalog"), Verdict::Denied),
            call("legacy -> redis", &self.legacy, &self.redis, None, Verdict::Denied),
        ]
    }
}

fn next(lab: &Lab) -> String {
    let ambit = lab.shown();
    format!(
        "The lab is still up. Try:\n  \
         {ambit} lab status\n  \
         {ambit} lab exec shop/deploy/frontend -- curl -s http://catalog.shop:8080/\n  \
         {ambit} lab logs ztunnel@node2\n  \
         {ambit} lab delete -f {POLICY}\n  \
         {ambit} lab label ns shop istio.io/dataplane-mode-\n  \
         {ambit} lab down"
    )
}
