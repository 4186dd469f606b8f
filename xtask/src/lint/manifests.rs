//! Small rules that no other tool checks.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::repo;

pub(crate) fn check() -> anyhow::Result<()> {
    let mut found = Vec::new();
    for file in files(repo::root())? {
        let name = file.strip_prefix(repo::root()).unwrap_or(&file).display().to_string();
        let text = fs::read_to_string(&file).with_context(|| name.clone())?;
        let lines = if name.ends_with("Cargo.toml") { manifest(&text) } else { source(&text) };
        found.extend(lines.into_iter().map(|(line, why)| format!("{name}:{line}: {why}")));
    }
    if !found.is_empty() {
        bail!("\n  {}", found.join("\n  "));
    }
    Ok(())
}

/// Members' manifests and Rust sources of the workspace.
fn files(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() {
                let other = name.starts_with('.')
                    || name == "target"
                    || name == "fuzz"
                    || path.ends_with("ebpf/kern");
                if !other {
                    todo.push(path);
                }
            } else if (name == "Cargo.toml" && folder != root) || name.ends_with(".rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Dependencies are declared in the workspace's manifest and only named elsewhere.
fn manifest(text: &str) -> Vec<(usize, &'static str)> {
    let mut in_dependencies = false;
    let mut found = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('[') {
            in_dependencies = line.trim_end_matches(']').ends_with("dependencies");
        } else if in_dependencies
            && line.contains('=')
            && !line.starts_with('#')
            && !line.contains("workspace = true")
        {
            found.push((
                n + 1,
                "a dependency is declared in the workspace's manifest: write `.workspace = true`",
            ));
        }
    }
    found
}

fn source(text: &str) -> Vec<(usize, &'static str)> {
    // Written so that this file does not find itself.
    let ignore = concat!("#[", "ignore");
    let found = text.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with(ignore));
    found
        .map(|(n, _)| {
            (n + 1, "a test that cannot run prints `ignored: REASON` and returns; the attribute forgets why")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_of_its_own_is_found() {
        let text = "[package]\nname = \"a\"\n\n[dependencies]\nserde.workspace = true\nbytes = \"1\"\n\n[lib]\npath = \"x\"\n";
        let lines: Vec<_> = manifest(text).into_iter().map(|(line, _)| line).collect();
        assert_eq!(lines, [6]);
    }

    #[test]
    fn features_beside_the_workspace_are_fine() {
        assert!(
            manifest("[dev-dependencies]\ntokio = { workspace = true, features = [\"rt\"] }\n").is_empty()
        );
    }

    #[test]
    fn an_ignored_test_is_found() {
        let text = format!("#[test]\n#[{}]\nfn a() {{}}\n", "ignore = \"slow\"");
        assert_eq!(source(&text).len(), 1);
    }
}
