//! Whether a node redirects by eBPF or by packet filter: by what its kernel takes, found out by trying, and by what pods
//! are captured with already.

use clap::ValueEnum;
use ebpf_loader::Pins;
use net::Netns;
use serde::Serialize;
use telemetry::access::Chain;
use thiserror::Error;

use crate::namespaces;
use crate::nft::{self, Tables};

/// How a node redirects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// By programs on `connect(2)` and on socket lookup.
    Ebpf,
    /// By a table in each pod, and connection tracking.
    Nftables,
}

impl Kind {
    /// As settings, status pages and metrics have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Nftables => "nftables",
        }
    }
}

/// How a node is to redirect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Wanted {
    /// As pods are captured already; otherwise by eBPF if the kernel takes it, and by nftables if not.
    #[default]
    Auto,
    /// By eBPF or not at all.
    Ebpf,
    /// By nftables or not at all.
    Nftables,
}

/// What was chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// How the node redirects.
    pub redirection: Kind,
    /// Why so.
    pub reason: String,
}

/// Why a node cannot redirect.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ChoiceError {
    /// The kernel does not take what was asked for.
    #[error("this kernel cannot redirect by {}: {why}", by.name())]
    Refused {
        /// What was asked for.
        by: Kind,
        /// Why not.
        why: String,
    },
    /// The kernel takes neither.
    #[error("this kernel can redirect neither by eBPF ({ebpf}) nor by nftables ({nftables})")]
    Neither {
        /// Why not by eBPF.
        ebpf: String,
        /// Why not by nftables.
        nftables: String,
    },
    /// Pods are captured in another way, and would not be for a moment.
    #[error(
        "{pods} pods of this node are captured by {}, by an earlier agent, and would send plaintext while that is changed: \
         drain the node or run `ambit-agent cleanup` first, or leave the redirection as it is",
        by.name()
    )]
    Captured {
        /// In which way.
        by: Kind,
        /// How many.
        pods: usize,
    },
}

/// What there is to know.
#[derive(Debug)]
pub struct Facts<E, N> {
    /// How many pods an earlier agent captures by eBPF.
    pub pinned: usize,
    /// And by nftables.
    pub tables: usize,
    /// Whether the kernel takes the programs, or why not.
    pub ebpf: E,
    /// Whether it takes the tables, or why not.
    pub nftables: N,
}

/// Looks, and chooses. Needs CAP_SYS_ADMIN, and makes a namespace for a moment. `mounted` says whether programs can be
/// pinned.
///
/// # Errors
///
/// See [`ChoiceError`].
pub fn choose(
    wanted: Wanted,
    pins: &Pins,
    tables: &Tables,
    mounted: Result<(), String>,
) -> Result<Choice, ChoiceError> {
    let pinned = pins.pods().map_or(0, |pods| pods.iter().filter(|pod| pod.steered_in.is_some()).count());
    let has_table = |netns: &Netns| matches!(tables.find(netns), Ok(Some(found)) if found.captures);
    let found = namespaces::all().map_or(0, |all| all.filter(|(netns, _)| has_table(netns)).count());
    let facts = Facts {
        pinned,
        tables: found,
        ebpf: || mounted.and_then(|()| ebpf_loader::probe().map_err(|error| Chain(&error).to_string())),
        nftables: || nft::probe().map_err(|error| Chain(&error).to_string()),
    };
    decide(wanted, facts)
}

/// Chooses by what is known.
///
/// # Errors
///
/// See [`ChoiceError`].
pub fn decide(
    wanted: Wanted,
    facts: Facts<impl FnOnce() -> Result<(), String>, impl FnOnce() -> Result<(), String>>,
) -> Result<Choice, ChoiceError> {
    let Facts { pinned, tables, ebpf, nftables } = facts;
    let chosen = |redirection, reason: &str| Ok(Choice { redirection, reason: reason.to_owned() });
    let refused = |by| move |why| ChoiceError::Refused { by, why };
    match wanted {
        Wanted::Ebpf if tables > 0 => Err(ChoiceError::Captured { by: Kind::Nftables, pods: tables }),
        Wanted::Nftables if pinned > 0 => Err(ChoiceError::Captured { by: Kind::Ebpf, pods: pinned }),
        Wanted::Ebpf => {
            ebpf().map_err(refused(Kind::Ebpf))?;
            chosen(Kind::Ebpf, "it was asked for")
        }
        Wanted::Nftables => {
            nftables().map_err(refused(Kind::Nftables))?;
            chosen(Kind::Nftables, "it was asked for")
        }
        Wanted::Auto if tables > 0 => {
            nftables().map_err(refused(Kind::Nftables))?;
            chosen(Kind::Nftables, &format!("{tables} pods are captured so already"))
        }
        Wanted::Auto => match ebpf() {
            Ok(()) => chosen(Kind::Ebpf, "this kernel takes the programs"),
            Err(_) if pinned > 0 => Err(ChoiceError::Captured { by: Kind::Ebpf, pods: pinned }),
            Err(ebpf) => match nftables() {
                Ok(()) => {
                    let reason = format!("this kernel does not take the eBPF programs: {ebpf}");
                    chosen(Kind::Nftables, &reason)
                }
                Err(nftables) => Err(ChoiceError::Neither { ebpf, nftables }),
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is chosen, on a kernel that takes these.
    fn chosen(wanted: Wanted, captured: [usize; 2], takes: [bool; 2]) -> Result<Kind, ChoiceError> {
        let [pinned, tables] = captured;
        let [ebpf, nftables] = takes.map(|takes| {
            move || match takes {
                true => Ok(()),
                false => Err("no".to_owned()),
            }
        });
        decide(wanted, Facts { pinned, tables, ebpf, nftables }).map(|choice| choice.redirection)
    }

    #[test]
    fn by_itself_it_takes_ebpf_and_falls_back() {
        assert_eq!(chosen(Wanted::Auto, [0, 0], [true, true]), Ok(Kind::Ebpf));
        assert_eq!(chosen(Wanted::Auto, [0, 0], [false, true]), Ok(Kind::Nftables));
        let neither = ChoiceError::Neither { ebpf: "no".to_owned(), nftables: "no".to_owned() };
        assert_eq!(chosen(Wanted::Auto, [0, 0], [false, false]), Err(neither));
    }

    #[test]
    fn captured_pods_never_change_their_redirection() {
        assert_eq!(chosen(Wanted::Auto, [0, 3], [true, true]), Ok(Kind::Nftables));
        assert_eq!(chosen(Wanted::Auto, [3, 0], [true, true]), Ok(Kind::Ebpf));
        let by = |by| Err(ChoiceError::Captured { by, pods: 3 });
        assert_eq!(chosen(Wanted::Auto, [3, 0], [false, true]), by(Kind::Ebpf));
        assert_eq!(chosen(Wanted::Ebpf, [0, 3], [true, true]), by(Kind::Nftables));
        assert_eq!(chosen(Wanted::Nftables, [3, 0], [true, true]), by(Kind::Ebpf));
    }

    #[test]
    fn what_is_asked_for_is_done_or_refused() {
        let refused = |by| Err(ChoiceError::Refused { by, why: "no".to_owned() });
        assert_eq!(chosen(Wanted::Ebpf, [0, 0], [true, false]), Ok(Kind::Ebpf));
        assert_eq!(chosen(Wanted::Ebpf, [0, 0], [false, true]), refused(Kind::Ebpf));
        assert_eq!(chosen(Wanted::Nftables, [0, 0], [true, true]), Ok(Kind::Nftables));
        assert_eq!(chosen(Wanted::Nftables, [0, 0], [true, false]), refused(Kind::Nftables));
    }
}
