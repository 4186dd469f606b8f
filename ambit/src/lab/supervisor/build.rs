//! Building a lab: network, files, the mesh's processes.

use std::convert::Infallible;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use anyhow::Context as _;
use nix::mount::{MsFlags, mount};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::calls;
use super::cluster::{Cluster, Message, Outside, Tables};
use super::waiting::{Installed, Lookout};
use crate::lab::address::{self, RESOLVER, RESOLVER6};
use crate::lab::dns::{self, Zone};
use crate::lab::keeper::Keeper;
use crate::lab::kubelet::Kubelet;
use crate::lab::network::{Fabric, Node};
use crate::lab::objects::Directory;
use crate::lab::place::Place;
use crate::lab::precheck::{Machine, find_program};
use crate::lab::system::{self, Launch, Setting};
use crate::lab::trust::TrustNames;
use crate::lab::{enrolment, logs, translation};

/// How many messages may wait; senders wait then.
const QUEUE: usize = 256;

/// A lab whose network and processes are there.
pub(super) struct Lab {
    cluster: Cluster,
    messages: mpsc::Receiver<Message>,
    listener: UnixListener,
    lookout: Lookout,
    tasks: TaskTracker,
}

/// Makes everything; what it makes is found and removed by name when this fails half-way.
pub(super) async fn lab(place: &Place, machine: &Machine, count: u8) -> anyhow::Result<Lab> {
    let plans = address::nodes(count);
    fs::create_dir_all(place.bpffs())?;
    mount(Some("bpf"), &place.bpffs(), Some("bpf"), MsFlags::empty(), None::<&str>)
        .context("cannot mount a file system for BPF objects")?;
    let fabric = Fabric::create(place.netns("fabric")).await.context("the link between the nodes")?;
    let mut nodes: Vec<Node> = Vec::new();
    for plan in &plans {
        let path = place.netns(&plan.name);
        let node = fabric.join(plan.clone(), path, &nodes).await;
        nodes.push(node.with_context(|| format!("the network of {}", plan.name))?);
    }
    system::issue_tokens(place, &plans).context("the tokens of the nodes")?;
    system::name_the_resolver(place).context("the resolver of the nodes")?;
    let directory = Directory::create(place.objects()).context("the objects' directory")?;

    let (sender, messages) = mpsc::channel(QUEUE);
    let tasks = TaskTracker::new();
    let (busy, is_busy) = watch::channel(true);
    let (tables, tables_seen) = watch::channel(Tables::default());
    let installed = install_tables(&nodes, &tables_seen, &tasks)?;
    let (zone, zone_seen) = watch::channel(Arc::new(Zone::default()));
    let resolvers = std::iter::once(IpAddr::from(RESOLVER)).chain(fabric.has_v6.then_some(RESOLVER6.into()));
    for resolver in resolvers {
        let sockets = dns::Sockets::open(&fabric.netns, SocketAddr::from((resolver, 53)));
        tasks.spawn(dns::serve(sockets.context("the resolver")?, zone_seen.clone()));
    }
    follow_agents(&nodes, &sender, &is_busy, &tasks);
    tasks.spawn(logs::keep_short(place.logs()));

    let cgroups = machine.cgroups.join(place.cgroup());
    let (pod_events, events) = mpsc::channel(QUEUE);
    tasks.spawn(pass(events, sender.clone(), Message::Pod));
    let programs = machine.programs.dir().to_owned();
    let kubelet = Kubelet::new(place.clone(), programs, cgroups.join("pods"), nodes.clone(), pod_events);

    // Callers come in before the processes run: what they ask for is then waited for.
    let listener = UnixListener::bind(place.socket()).context("the supervisor's socket")?;
    fs::set_permissions(place.socket(), fs::Permissions::from_mode(0o600))?;
    let keeper = Keeper::new(CancellationToken::new());
    let passed_on = system::passed_on();
    let (trust, names) = watch::channel(TrustNames::of(None));
    let setting =
        Setting { place, programs: &machine.programs, cgroups: &machine.cgroups, passed_on: &passed_on };
    keeper.keep(setting.istiod(&fabric.path));
    for node in &nodes {
        keeper.keep(setting.agent(&node.plan, &node.path));
        let ztunnel = setting.ztunnel(&node.plan, &node.path);
        let (hands_over, trust) = (Some(node.netns.clone()), Some(names.clone()));
        keeper.keep(Launch { hands_over, trust, ..ztunnel });
    }
    let lookout = Lookout {
        messages: sender,
        fabric: fabric.netns.clone(),
        nodes: nodes.clone(),
        installed,
        keeper: keeper.clone(),
        place: place.clone(),
    };
    let outside = Outside { nodes, kubelet, directory, keeper, tables, zone, trust, busy };
    let cluster = Cluster::new(outside, plans, fabric.has_v6);
    Ok(Lab { cluster, messages, listener, lookout, tasks })
}

impl Lab {
    /// Serves until the process is killed; fails where its own task ends.
    pub(super) async fn run(self) -> anyhow::Result<Infallible> {
        let Self { cluster, messages, listener, lookout, tasks } = self;
        tasks.spawn(calls::accept(listener, lookout));
        let ended = tokio::spawn(cluster.run(messages)).await;
        anyhow::bail!("the lab's own task ended: {ended:?}")
    }
}

/// Keeps each node's service translation at the newest table. Gives what is installed, node by node.
fn install_tables(
    nodes: &[Node],
    tables: &watch::Receiver<Tables>,
    tasks: &TaskTracker,
) -> anyhow::Result<Vec<watch::Receiver<Installed>>> {
    let nft = find_program("nft").context("the program `nft` is not there (Debian package nftables)")?;
    let mut installed = Vec::new();
    for node in nodes {
        let (done, seen) = watch::channel(Installed::default());
        installed.push(seen);
        let (node, nft, mut tables) = (node.clone(), nft.clone(), tables.clone());
        tasks.spawn(async move {
            while tables.changed().await.is_ok() {
                let table = tables.borrow_and_update().clone();
                let Some(ruleset) = table.rulesets.get(&node.plan.name) else { continue };
                let result = translation::install(&node.netns, &nft, ruleset).await;
                if let Err(error) = &result {
                    tracing::error!(node = node.plan.name, %error, "services are not translated");
                }
                done.send_modify(|installed| match result {
                    Ok(()) => *installed = Installed { version: table.version, failure: None },
                    Err(error) => installed.failure = Some(error.to_string()),
                });
            }
        });
    }
    Ok(installed)
}

fn follow_agents(
    nodes: &[Node],
    messages: &mpsc::Sender<Message>,
    busy: &watch::Receiver<bool>,
    tasks: &TaskTracker,
) {
    let (said, heard) = mpsc::channel(QUEUE);
    for node in nodes {
        let name = node.plan.name.clone();
        tasks.spawn(enrolment::follow(name, node.netns.clone(), said.clone(), busy.clone()));
    }
    tasks.spawn(pass(heard, messages.clone(), Message::Agent));
}

/// Passes news of one kind on as messages.
async fn pass<T>(mut from: mpsc::Receiver<T>, to: mpsc::Sender<Message>, wrap: impl Fn(T) -> Message) {
    while let Some(news) = from.recv().await {
        if to.send(wrap(news)).await.is_err() {
            return;
        }
    }
}
