//! What the nodes' ztunnels have counted.

use super::{Node, SimMesh};

impl SimMesh {
    /// How many connections the nodes' ztunnels have ended for a reason.
    pub(crate) fn ended(&self, reason: &str) -> u64 {
        self.counted(&format!("ambit_live_connections_ended_total{{reason=\"{reason}\"}}"))
    }

    /// What the nodes' ztunnels have counted on a series, by its name and labels.
    pub(crate) fn counted(&self, series: &str) -> u64 {
        let of_node = |node: &Node| {
            let text = node.families.render(None).body;
            let value = |l: &str| l.strip_prefix(series)?.trim().parse::<u64>().ok();
            text.lines().filter_map(value).sum::<u64>()
        };
        self.nodes.values().map(of_node).sum()
    }

    /// How many tunnel connections they have taken.
    pub(crate) fn taken(&self) -> u64 {
        self.counted("ambit_tunnel_connections_taken_total")
    }

    /// How many connections failed, by who tells of it and with which flag.
    pub(crate) fn tcp_failures(&self, reporter: &str, flag: &str) -> u64 {
        let of_node = |node: &Node| {
            let text = node.families.render(None).body;
            let meant = |l: &&str| {
                l.starts_with("istio_tcp_connections_failed_total")
                    && l.contains(&format!("reporter=\"{reporter}\""))
                    && l.contains(&format!("response_flags=\"{flag}\""))
            };
            let count = |l: &str| l.rsplit_once(' ')?.1.parse::<u64>().ok();
            text.lines().filter(meant).filter_map(count).sum::<u64>()
        };
        self.nodes.values().map(of_node).sum()
    }
}
