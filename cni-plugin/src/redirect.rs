//! How a pod's connections come to ztunnel. [`Node`](crate::node::Node) asks for it in these words, whatever does it.

mod ebpf;
mod nftables;
mod probes;

use std::os::fd::OwnedFd;
use std::time::Instant;

use ebpf_loader::PodKey;
use net::{Netns, NetnsError};
use telemetry::access::Chain;
use thiserror::Error;

use crate::membership::Member;
use crate::nft;
use crate::routing;
pub use ebpf::Ebpf;
pub use nftables::{Nftables, claim};

/// The redirection of a node. Dropping it leaves everything in place.
#[derive(Debug)]
pub enum Redirect {
    /// By programs on `connect(2)` and on socket lookup.
    Ebpf(Box<Ebpf>),
    /// By a packet filter in each pod.
    Nftables(Box<Nftables>),
}

/// A pod that can be captured.
#[derive(Debug)]
pub struct Prepared {
    /// What ztunnel publishes its listeners in.
    pub listeners: Option<OwnedFd>,
    /// Whether it is captured already, by an earlier process.
    pub captured: bool,
}

/// What was damaged, and what became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// What was put back.
    pub what: Vec<&'static str>,
    /// What could not be.
    pub failed: Option<String>,
}

/// What of a captured pod goes past the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PastTheMesh {
    /// Connections that were established past the mesh since the pod was enrolled.
    pub bypassed: u64,
    /// Connections that are older than its enrolment and still there.
    pub older: usize,
    /// What cannot be told, or cannot be done about it.
    pub trouble: Option<String>,
}

impl Redirect {
    /// What ztunnel is told of it.
    ///
    /// # Errors
    ///
    /// Out of descriptors.
    pub fn for_ztunnel(&self) -> Result<zds::agent::Redirection, RedirectError> {
        match self {
            Self::Ebpf(ebpf) => ebpf.for_ztunnel(),
            Self::Nftables(nftables) => Ok(nftables.for_ztunnel()),
        }
    }

    /// The pods that an earlier process has left something in, and whether each is captured.
    ///
    /// # Errors
    ///
    /// See [`RedirectError`].
    pub fn found(&self) -> Result<Vec<(PodKey, bool)>, RedirectError> {
        match self {
            Self::Ebpf(ebpf) => ebpf.found(),
            Self::Nftables(nftables) => nftables.found(),
        }
    }

    /// Makes ready for capture without capturing anything yet. Idempotent; a pod that is captured stays so, by what the
    /// member has now, and its questions as of [`Redirect::steer_questions`].
    ///
    /// # Errors
    ///
    /// See [`RedirectError`]; what was captured stays captured.
    pub async fn prepare(
        &mut self,
        key: &PodKey,
        member: &Member,
        netns: &Netns,
        answers_dns: Option<bool>,
    ) -> Result<Prepared, RedirectError> {
        match self {
            Self::Ebpf(ebpf) => ebpf.prepare(key, member, netns, answers_dns).await,
            Self::Nftables(nftables) => nftables.prepare(key, member, netns, answers_dns).await,
        }
    }

    /// Begins to capture a prepared pod. Established connections go on as they are. Idempotent.
    ///
    /// # Errors
    ///
    /// See [`RedirectError`]; then nothing is captured that was not before.
    pub fn capture(
        &mut self,
        key: &PodKey,
        member: &Member,
        netns: &Netns,
        now: Instant,
    ) -> Result<(), RedirectError> {
        match self {
            Self::Ebpf(ebpf) => ebpf.capture(key, member, netns, now),
            Self::Nftables(nftables) => nftables.capture(key, member, netns, now),
        }
    }

    /// Has what a captured pod asks resolvers answered by ztunnel, if ztunnel can and the pod wants it. Idempotent.
    ///
    /// While none is connected, of which `answers_dns` says nothing, it stays as it is: the one that comes may well go on
    /// where the last one left.
    ///
    /// # Errors
    ///
    /// See [`RedirectError`].
    pub async fn steer_questions(
        &mut self,
        key: &PodKey,
        member: &Member,
        netns: &Netns,
        answers_dns: Option<bool>,
    ) -> Result<(), RedirectError> {
        match self {
            Self::Ebpf(ebpf) => ebpf.steer_questions(key, member, netns, answers_dns).await,
            Self::Nftables(nftables) => nftables.steer_questions(key, member, netns, answers_dns).await,
        }
    }

    /// Ends the capture of a pod: when it returns no new connection and no question is captured; established connections
    /// go on. Idempotent. `netns` is nothing where the namespace is gone.
    ///
    /// # Errors
    ///
    /// See [`RedirectError`].
    pub async fn release(&mut self, key: &PodKey, netns: Option<&Netns>) -> Result<(), RedirectError> {
        match self {
            Self::Ebpf(ebpf) => ebpf.release(key, netns).await,
            Self::Nftables(nftables) => nftables.release(key, netns).await,
        }
    }

    /// Whether a pod's connections are captured.
    ///
    /// # Errors
    ///
    /// See [`RedirectError`].
    pub fn is_captured(&self, key: &PodKey) -> Result<bool, RedirectError> {
        match self {
            Self::Ebpf(ebpf) => ebpf.is_captured(key),
            Self::Nftables(nftables) => nftables.is_captured(key),
        }
    }

    /// How many connections in a namespace need what [`Redirect::prepare`] has put there.
    ///
    /// # Errors
    ///
    /// See [`RedirectError`].
    pub fn connections(&self, netns: &Netns) -> Result<usize, RedirectError> {
        match self {
            Self::Ebpf(ebpf) => ebpf.connections(netns),
            Self::Nftables(nftables) => nftables.connections(netns),
        }
    }

    /// Removes what is left of a pod after [`Redirect::release`]. Idempotent. `netns` is nothing where the namespace is
    /// gone.
    ///
    /// # Errors
    ///
    /// See [`RedirectError`].
    pub async fn tidy(&mut self, key: &PodKey, netns: Option<&Netns>) -> Result<(), RedirectError> {
        match self {
            Self::Ebpf(ebpf) => ebpf.tidy(key, netns).await,
            Self::Nftables(nftables) => nftables.tidy(key, netns).await,
        }
    }

    /// Looks whether what captures for the whole node still stands, and puts it back.
    pub fn mend(&mut self) -> Mended {
        match self {
            Self::Ebpf(ebpf) => ebpf.mend(),
            Self::Nftables(nftables) => nftables.mend(),
        }
    }

    /// Looks whether what captures a pod still stands, and puts it back.
    pub async fn mend_pod(&mut self, key: &PodKey, member: &Member, netns: &Netns) -> Mended {
        let mut what = Vec::new();
        let mended = match self {
            Self::Ebpf(ebpf) => ebpf.mend_pod(key, member, netns, &mut what).await,
            Self::Nftables(nftables) => nftables.mend_pod(key, member, netns, &mut what).await,
        };
        Mended { what, failed: mended.err().map(|error| Chain(&error).to_string()) }
    }

    /// Looks how much of a captured pod goes past the mesh. `netns` is nothing where the namespace is gone.
    pub fn past_the_mesh(
        &mut self,
        key: &PodKey,
        member: &Member,
        netns: Option<&Netns>,
        now: Instant,
    ) -> PastTheMesh {
        match self {
            Self::Ebpf(ebpf) => ebpf.past_the_mesh(key, member, netns, now),
            Self::Nftables(nftables) => nftables.past_the_mesh(key, member, netns, now),
        }
    }
}

/// Why a pod's redirection is not as it should be; to be tried again.
#[derive(Debug, Error)]
pub enum RedirectError {
    /// The programs or their maps.
    #[error(transparent)]
    Capture(#[from] ebpf_loader::CaptureError),
    /// Capture cannot be ended.
    #[error(transparent)]
    Release(#[from] ebpf_loader::ReleaseError),
    /// What is captured cannot be read.
    #[error("what is captured cannot be read")]
    Captured(#[from] ebpf_loader::MapError),
    /// The pins of pods cannot be listed.
    #[error("the pins of pods cannot be listed")]
    Pins(#[source] std::io::Error),
    /// The table in the pod.
    #[error(transparent)]
    Table(#[from] nft::NftError),
    /// Another agent has it.
    #[error("another agent of the instance {instance} runs on this node")]
    InUse {
        /// Which.
        instance: String,
        /// What the kernel says.
        #[source]
        source: std::io::Error,
    },
    /// The kubelet's cgroup.
    #[error("the kubelet's cgroup {} cannot be used", path.display())]
    Cgroup {
        /// Which.
        path: std::path::PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The namespaces of pods cannot be searched.
    #[error("network namespaces cannot be searched")]
    Namespaces(#[source] std::io::Error),
    /// Out of descriptors.
    #[error("the bypass storage's descriptor cannot be duplicated")]
    Bypass(#[source] std::io::Error),
    /// Rules and routes in the pod.
    #[error(transparent)]
    Routing(#[from] routing::RoutingError),
    /// Connections cannot be counted.
    #[error(transparent)]
    Sockets(#[from] routing::SocketsError),
    /// The pod's namespace.
    #[error("its network namespace cannot be entered")]
    Netns(#[from] NetnsError),
    /// The guard at the pod's devices.
    #[error(transparent)]
    Guard(#[from] ebpf_loader::GuardError),
    /// What was damaged.
    #[error(transparent)]
    Mend(#[from] ebpf_loader::MendError),
    /// Whether the routing is damaged cannot be told.
    #[error(transparent)]
    Vigil(#[from] routing::VigilError),
    /// Somebody else's rules or routes.
    #[error("its {0} does not do what it is for, though it is in place: somebody else's comes first")]
    Overridden(&'static str),
}
