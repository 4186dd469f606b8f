//! Layers point down: each manifest names its own in `package.metadata.ambit.layer`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, bail};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};

use crate::repo;

/// Crates that a pure decision must not reach, directly or through others.
const IMPURE: [&str; 7] = ["tokio", "hyper", "prost", "rustls", "kube", "tonic", "h2"];

/// The package that may import programs.
const TESTS: &str = "ambit-tests";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Layer {
    /// Words and wire formats.
    L0,
    /// Pure decisions.
    L1,
    /// What touches the world.
    L2,
    /// Test support.
    L3,
    /// Programs.
    L4,
}

impl Layer {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "L0" => Self::L0,
            "L1" => Self::L1,
            "L2" => Self::L2,
            "L3" => Self::L3,
            "L4" => Self::L4,
            _ => return None,
        })
    }
}

/// A member of the workspace, with what it uses of the others, and whether for tests alone.
#[derive(Debug)]
struct Member {
    layer: Layer,
    uses: Vec<(String, bool)>,
    /// Everything outside the workspace that it reaches, tests apart.
    reaches: BTreeSet<String>,
}

pub(crate) fn check() -> anyhow::Result<()> {
    let metadata = MetadataCommand::new()
        .current_dir(repo::root())
        .other_options(["--locked".to_owned()])
        .exec()
        .context("cannot read the workspace")?;
    let violations = violations(&members(&metadata)?);
    if !violations.is_empty() {
        bail!("\n  {}", violations.join("\n  "));
    }
    Ok(())
}

fn members(metadata: &Metadata) -> anyhow::Result<BTreeMap<String, Member>> {
    let graph = Graph::of(metadata)?;
    let mut members = BTreeMap::new();
    let mut unlabelled = Vec::new();
    for package in metadata.workspace_packages() {
        let layer = package.metadata["ambit"]["layer"].as_str().and_then(Layer::parse);
        let Some(layer) = layer else {
            unlabelled.push(package.name.to_string());
            continue;
        };
        let uses = package
            .dependencies
            .iter()
            .filter(|d| d.path.is_some())
            .map(|d| (d.name.clone(), d.kind == DependencyKind::Development))
            .collect();
        let reaches = graph.reached_from(&package.id);
        members.insert(package.name.to_string(), Member { layer, uses, reaches });
    }
    if !unlabelled.is_empty() {
        bail!("no layer (L0 to L4) in `package.metadata.ambit`: {}", unlabelled.join(", "));
    }
    Ok(members)
}

fn violations(members: &BTreeMap<String, Member>) -> Vec<String> {
    let mut found = Vec::new();
    for (name, member) in members {
        for (used, for_tests) in &member.uses {
            let Some(other) = members.get(used) else { continue };
            if let Some(why) = refusal(name, member.layer, other.layer, *for_tests) {
                found.push(format!("{name} ({:?}) uses {used} ({:?}): {why}", member.layer, other.layer));
            }
        }
        if member.layer == Layer::L1 {
            for reached in IMPURE.iter().filter(|impure| member.reaches.contains(**impure)) {
                found.push(format!("{name} (L1) reaches {reached}: a pure decision does without"));
            }
        }
    }
    found
}

/// Why a member of one layer may not use one of another.
fn refusal(name: &str, user: Layer, used: Layer, for_tests: bool) -> Option<&'static str> {
    use Layer::{L1, L2, L3, L4};
    match (user, used) {
        _ if name == TESTS => None,
        (_, L4) => Some("programs are not imported, only tests/ may"),
        (L3, L3) => None,
        (_, L3) => (!for_tests).then_some("test support is a dev-dependency"),
        // Test support may be tested with, or lean on, anything below it.
        _ if for_tests && used <= L2 => None,
        (L1, L1) | (L2, L2) => None,
        _ if used < user => None,
        _ => Some("layers point down"),
    }
}

/// Who depends on whom, by id, dev-dependencies left out.
struct Graph<'a> {
    edges: BTreeMap<&'a PackageId, Vec<&'a PackageId>>,
    names: BTreeMap<&'a PackageId, &'a str>,
}

impl<'a> Graph<'a> {
    fn of(metadata: &'a Metadata) -> anyhow::Result<Self> {
        let resolve = metadata.resolve.as_ref().context("cargo metadata gives no graph")?;
        let edges = resolve.nodes.iter().map(|node| {
            let normal =
                node.deps.iter().filter(|d| d.dep_kinds.iter().any(|k| k.kind == DependencyKind::Normal));
            (&node.id, normal.map(|d| &d.pkg).collect())
        });
        let names = metadata.packages.iter().map(|p| (&p.id, p.name.as_str()));
        Ok(Self { edges: edges.collect(), names: names.collect() })
    }

    fn reached_from(&self, start: &PackageId) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        let mut todo = vec![start];
        while let Some(id) = todo.pop() {
            for next in self.edges.get(id).into_iter().flatten() {
                if seen.insert(*next) {
                    todo.push(next);
                }
            }
        }
        seen.into_iter().filter_map(|id| self.names.get(id)).map(|name| (*name).to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(layer: Layer, uses: &[(&str, bool)], reaches: &[&str]) -> Member {
        Member {
            layer,
            uses: uses.iter().map(|(name, dev)| ((*name).to_owned(), *dev)).collect(),
            reaches: reaches.iter().map(|r| (*r).to_owned()).collect(),
        }
    }

    fn found(of: Member) -> Vec<String> {
        let others = [
            ("model", member(Layer::L0, &[], &[])),
            ("index", member(Layer::L1, &[], &[])),
            ("net", member(Layer::L2, &[], &[])),
            ("testkit", member(Layer::L3, &[], &[])),
            ("ztunnel", member(Layer::L4, &[], &[])),
        ];
        let mut members: BTreeMap<_, _> = others.map(|(n, m)| (n.to_owned(), m)).into();
        members.insert("it".to_owned(), of);
        violations(&members)
    }

    #[test]
    fn what_points_down_is_fine() {
        assert!(found(member(Layer::L1, &[("model", false), ("index", false)], &["serde"])).is_empty());
        assert!(
            found(member(Layer::L2, &[("index", false), ("net", false), ("testkit", true)], &["tokio"]))
                .is_empty()
        );
        assert!(found(member(Layer::L4, &[("net", false), ("testkit", true)], &["tokio"])).is_empty());
    }

    #[test]
    fn what_points_up_is_not() {
        assert_eq!(found(member(Layer::L0, &[("index", false)], &[])).len(), 1);
        assert_eq!(found(member(Layer::L1, &[("net", false)], &[])).len(), 1);
        assert_eq!(found(member(Layer::L2, &[("testkit", false)], &[])).len(), 1);
    }

    #[test]
    fn programs_are_imported_by_tests_alone() {
        assert_eq!(found(member(Layer::L4, &[("ztunnel", false)], &[])).len(), 1);
        assert_eq!(found(member(Layer::L4, &[("ztunnel", true)], &[])).len(), 1);
        let members = [
            (TESTS.to_owned(), member(Layer::L4, &[("ztunnel", false)], &[])),
            ("ztunnel".to_owned(), member(Layer::L4, &[], &[])),
        ];
        assert!(violations(&members.into()).is_empty());
    }

    #[test]
    fn a_pure_crate_reaches_no_runtime_even_through_others() {
        assert_eq!(found(member(Layer::L1, &[("model", false)], &["bytes", "tokio"])).len(), 1);
    }
}
