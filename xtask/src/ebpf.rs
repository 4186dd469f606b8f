//! Builds the BPF objects that `ebpf-loader` embeds, and checks the committed ones.
//!
//! The objects are committed, so that an ordinary build needs neither LLVM nor the standard library's sources. Two
//! checks keep them honest: a unit test compares the hash of their sources with the one in `MANIFEST` (always), and
//! `cargo xtask ebpf --check` builds them again and compares bytes (where the tools can be had).

mod manifest;
mod strip;
mod tools;

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};

use manifest::Manifest;
use tools::Tools;

/// The objects, by the name of their binary in `ebpf/kern`.
const OBJECTS: [&str; 5] = ["connect", "guard", "kubelet", "steer", "watch"];

const TARGET: &str = "bpfel-unknown-none";

/// Flags of the build; part of what the committed objects are checked against.
const RUSTFLAGS: [&str; 3] = ["--cfg=bpf_target_arch=\"x86_64\"", "-Cdebuginfo=2", "-Clink-arg=--btf"];

/// What came of a build.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The committed objects are what the sources give.
    Unchanged,
    /// These objects were written.
    Written(Vec<String>),
    /// A tool could not be had, so nothing was built.
    Skipped {
        /// Which, and why.
        reason: String,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unchanged => write!(f, "ebpf: the committed objects are what the sources give"),
            Self::Written(names) => write!(f, "ebpf: wrote {}", names.join(", ")),
            Self::Skipped { reason } => write!(f, "ebpf: SKIPPED, the objects were not rebuilt: {reason}"),
        }
    }
}

/// Builds the objects and writes them, or with `check` compares them with the committed ones, and says what came of it.
///
/// # Errors
///
/// The build fails, the committed objects differ, or, without `check`, a tool cannot be had.
pub(crate) fn run(check: bool) -> anyhow::Result<()> {
    let outcome = build(check)?;
    if let (false, Outcome::Skipped { reason }) = (check, &outcome) {
        bail!("the objects cannot be built here: {reason}");
    }
    println!("{outcome}");
    Ok(())
}

/// As [`run`], with the outcome for the caller to report.
///
/// # Errors
///
/// The build fails, or with `check` the committed objects differ.
pub(crate) fn build(check: bool) -> anyhow::Result<Outcome> {
    let repo = repository();
    let tools = match Tools::install(&repo) {
        Ok(tools) => tools,
        Err(missing) => return Ok(Outcome::Skipped { reason: missing.to_string() }),
    };
    let built = compile(&repo, &tools)?;
    let manifest = Manifest::of(&repo, &built)?;
    let committed = repo.join("ebpf/loader/objects");
    let mut differing = Vec::new();
    for (name, object) in &built {
        if fs::read(committed.join(name)).ok().as_ref() != Some(object) {
            differing.push(name.clone());
        }
    }
    let listed = manifest.to_string();
    if fs::read_to_string(committed.join(manifest::FILE)).ok().as_ref() != Some(&listed) {
        differing.push(manifest::FILE.to_owned());
    }
    if differing.is_empty() {
        return Ok(Outcome::Unchanged);
    }
    if check {
        bail!(
            "in ebpf/loader/objects, {} differ from a rebuild; run `cargo xtask ebpf`",
            differing.join(", ")
        );
    }
    fs::create_dir_all(&committed)?;
    for (name, object) in &built {
        fs::write(committed.join(name), object)?;
    }
    fs::write(committed.join(manifest::FILE), listed)?;
    Ok(Outcome::Written(differing))
}

/// Builds and strips the objects; their file names and bytes.
fn compile(repo: &Path, tools: &Tools) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let kern = repo.join("ebpf/kern");
    let target_dir = tools.target_dir.join("ebpf");
    let fetched = Command::new("cargo").args(["fetch", "--locked"]).current_dir(&kern).status();
    if !fetched.context("cargo cannot be run")?.success() {
        bail!("the dependencies of ebpf/kern cannot be fetched");
    }
    let mut flags: Vec<String> = RUSTFLAGS.iter().map(ToString::to_string).collect();
    // Paths end up in the objects; these take the machine out of them.
    let ours = [(repo.join("ebpf"), "/ambit/ebpf"), (tools.library.clone(), "/rust/library")];
    let registries = tools.registry_sources()?.into_iter().map(|registry| (registry, "/cargo"));
    for (from, to) in ours.into_iter().chain(registries) {
        flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    }
    let mut cargo = Command::new("cargo");
    cargo
        .args(["build", "--release", "--locked", "--bins", "-Zbuild-std=core", "--target", TARGET])
        .arg("--target-dir")
        .arg(&target_dir)
        .current_dir(&kern)
        .env("PATH", tools.path()?)
        .env("RUSTC_BOOTSTRAP", "1")
        // Incremental builds cut the code into other units, and give other objects from the same source.
        .env("CARGO_INCREMENTAL", "0")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    if let Some(root) = &tools.source_root {
        cargo.env("__CARGO_TESTS_ONLY_SRC_ROOT", root);
    }
    let status = cargo.status().context("cargo cannot be run")?;
    if !status.success() {
        bail!("building ebpf/kern failed: {status}");
    }
    let release = target_dir.join(TARGET).join("release");
    OBJECTS
        .iter()
        .map(|name| {
            let built = fs::read(release.join(name)).with_context(|| format!("the build left no {name}"))?;
            let stripped = strip::debug_sections(&built).with_context(|| format!("stripping {name}"))?;
            Ok((format!("{name}.o"), stripped))
        })
        .collect()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository").to_owned()
}
