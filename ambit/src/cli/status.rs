//! `status`.

use std::process::ExitCode;

use clap::ValueEnum;

use super::console::{Table, say};
use super::{call, foreign};
use crate::lab::api::{Reply, Request};
use crate::lab::place::Place;
use crate::lab::status::{NodeStatus, Redirection, Status};

/// Shows what runs.
#[derive(Debug, clap::Args)]
pub(super) struct Show {
    /// For scripts.
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Json,
}

impl Show {
    pub(super) fn run(&self, place: &Place) -> ExitCode {
        let status = match call(place, &Request::Status) {
            Ok(Reply::Status(status)) => status,
            Ok(other) => return foreign(&other),
            Err(code) => return code,
        };
        match self.output {
            Some(Format::Json) => say(serde_json::to_string_pretty(&status).unwrap_or_default()),
            None => table(place, &status).into_iter().for_each(say),
        }
        ExitCode::SUCCESS
    }
}

/// `4321`, and after it those that have handed over: `4321 (4300 leaves)`.
fn ztunnels(node: &NodeStatus) -> String {
    let serving = node.ztunnel_pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
    let leaving: Vec<String> = node.ztunnels_leaving.iter().map(ToString::to_string).collect();
    match leaving.len() {
        0 => serving,
        1 => format!("{serving} ({} leaves)", leaving[0]),
        _ => format!("{serving} ({} leave)", leaving.join(", ")),
    }
}

fn table(place: &Place, status: &Status) -> Vec<String> {
    let pid = |pid: Option<u32>| pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
    let by = match status.redirection {
        Redirection::Ebpf => "ebpf",
        Redirection::Nftables => "nftables",
    };
    let redirection = match &status.redirection_reason {
        Some(reason) => format!("{by} ({reason})"),
        None => by.to_owned(),
    };
    let mut lines = vec![
        format!(
            "lab `{}`: supervisor {}, istiod {}, redirection: {redirection}",
            place.name(),
            status.supervisor_pid,
            pid(status.istiod_pid)
        ),
        String::new(),
    ];
    let mut nodes = Table::with_header(&["NODE", "ZTUNNEL", "AGENT", "UPLINK", "NETNS"]);
    for node in &status.nodes {
        let netns = node.netns.display().to_string();
        nodes.row(vec![node.name.clone(), ztunnels(node), pid(node.agent_pid), node.uplink.clone(), netns]);
    }
    lines.extend(nodes.lines());
    if status.pods.is_empty() {
        return lines;
    }
    lines.push(String::new());
    let mut pods = Table::with_header(&[
        "NAMESPACE",
        "POD",
        "NODE",
        "IP",
        "READY",
        "MESH",
        "BYPASSED",
        "OLDER",
        "NETNS",
    ]);
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    for pod in &status.pods {
        pods.row(vec![
            pod.namespace.clone(),
            pod.name.clone(),
            or_none(&pod.node),
            or_none(&pod.ip),
            yes(pod.ready),
            yes(pod.enrolled),
            pod.bypassed.to_string(),
            pod.older_connections.to_string(),
            or_none(&pod.netns.as_ref().map(|path| path.display().to_string())),
        ]);
    }
    lines.extend(pods.lines());
    lines
}
