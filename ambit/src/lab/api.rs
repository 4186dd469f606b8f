//! What the command line and the supervisor say to each other: a line of JSON each, over a Unix socket that is root's alone.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::admission::{LabelEdit, Text};
use super::kubelet::Entrance;
use super::status::Status;

/// The longest line that is read.
pub(crate) const MAX_LINE: usize = 64 << 20;

/// What the command line wants.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Status,
    /// Wait until everything runs.
    Await {
        seconds: u64,
    },
    /// Returns when it is in effect, or as soon as it is written where `wait` is false.
    Apply {
        files: Vec<Text>,
        wait: bool,
    },
    Delete {
        files: Vec<Text>,
        ignore_missing: bool,
    },
    Label {
        kind: String,
        namespace: Option<String>,
        name: String,
        edits: Vec<LabelEdit>,
    },
    Get {
        kind: String,
        namespace: Option<String>,
        name: Option<String>,
    },
    /// Put another process in the place of a part's.
    Restart {
        part: String,
    },
    /// Cut a node's power, and switch it on again.
    Reboot {
        node: String,
    },
    /// How to run a command in a pod.
    Enter {
        namespace: String,
        pod: PodReference,
    },
}

/// Somebody for whom a change is not in effect yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Laggard {
    /// `ztunnel@node1`, `pod shop/redis-0`, …
    pub(crate) who: String,
    pub(crate) why: String,
}

impl Laggard {
    pub(crate) fn new(who: impl Into<String>, why: impl Into<String>) -> Self {
        Self { who: who.into(), why: why.into() }
    }
}

impl fmt::Display for Laggard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.who, self.why)
    }
}

/// Which pod of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PodReference {
    Pod(String),
    /// Any pod of the deployment, a ready one if there is.
    Deployment(String),
}

/// What the supervisor answers: any number of `Progress`, then one of the others.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Progress(String),
    /// Done, and in effect.
    Done {
        lines: Vec<String>,
        notes: Vec<String>,
    },
    /// Not done, and why.
    Refused(Vec<String>),
    /// Done, but not in effect everywhere in time: who is late.
    Late {
        lines: Vec<String>,
        notes: Vec<String>,
        waiting: Vec<Laggard>,
    },
    Status(Box<Status>),
    Objects(Vec<serde_json::Value>),
    Entrance(Entrance),
}
