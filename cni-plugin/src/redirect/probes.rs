//! The kubelet's probes where redirection is by packet filter: the node's own table, kept as the captured pods are.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::{fs, io};

use net::Netns;

use crate::nft::{Kubelet, NftError, NodePlan, Standing, Tables, Watched};

/// The node's table.
#[derive(Debug)]
pub(super) struct Probes {
    node: Netns,
    plan: NodePlan,
    table: Option<Watched>,
}

impl Probes {
    /// Tells the connections of a cgroup below `root`, of processes in the network namespace of the node.
    ///
    /// # Errors
    ///
    /// There is no such cgroup.
    pub(super) fn of(root: &Path, cgroup: &Path, node: Netns, mark: u32, mask: u32) -> io::Result<Self> {
        let below = cgroup.strip_prefix(root).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("it does not lie below {}", root.display()))
        })?;
        // The root itself is at level 0, where everybody is.
        let level = below.components().count() as u32;
        let kubelet = Kubelet { cgroup: fs::metadata(cgroup)?.ino(), level };
        Ok(Self { node, plan: NodePlan { kubelet, pods: BTreeSet::new(), mark, mask }, table: None })
    }

    /// Lets probes reach these addresses, and looks whether the table still stands. Says whether it was damaged.
    ///
    /// # Errors
    ///
    /// The table cannot be put in place.
    pub(super) fn keep(&mut self, tables: &Tables, pods: BTreeSet<IpAddr>) -> Result<bool, NftError> {
        let is_damaged = match &mut self.table {
            Some(table) => table.look()? == Standing::Damaged,
            None => false,
        };
        if is_damaged || self.table.is_none() || self.plan.pods != pods {
            let plan = NodePlan { pods, ..self.plan.clone() };
            self.table = Some(tables.install_on_node(&self.node, &plan)?);
            self.plan = plan;
        }
        Ok(is_damaged)
    }
}
