//! PeerAuthentication.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Selector;

/// What a PeerAuthentication says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerAuthenticationSpec {
    /// The workloads it is about, all of the namespace without; all of the mesh in the root namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// What holds for all ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtls: Option<MutualTls>,
    /// What holds for single ports of the workload; only with a selector.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub port_level_mtls: BTreeMap<u32, MutualTls>,
}

impl PeerAuthenticationSpec {
    /// Whether it is about single workloads.
    pub fn is_selective(&self) -> bool {
        self.selector.as_ref().is_some_and(|s| !s.match_labels.is_empty())
    }

    /// What it says about all ports.
    pub fn mode(&self) -> MutualTlsMode {
        self.mtls.as_ref().map(MutualTls::mode).unwrap_or_default()
    }
}

/// A mode in the shape that YAML has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MutualTls {
    /// The mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<MutualTlsMode>,
}

impl MutualTls {
    /// The mode.
    pub fn mode(&self) -> MutualTlsMode {
        self.mode.unwrap_or_default()
    }
}

/// Whether plaintext is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum MutualTlsMode {
    /// As the wider policy says; permissive where none does.
    #[default]
    Unset,
    /// Plaintext only; to a node proxy, which serves HBONE in any case, the same as permissive.
    Disable,
    /// Both.
    Permissive,
    /// Mutual TLS only.
    Strict,
}
