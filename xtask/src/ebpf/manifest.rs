//! What the committed objects were built from.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use sha2::{Digest, Sha256};

use super::{RUSTFLAGS, tools::BPF_LINKER};

/// The manifest's name, beside the objects.
pub(super) const FILE: &str = "MANIFEST";

/// Hashes of the sources (with the tools' versions) and of what they gave.
pub(super) struct Manifest {
    sources: String,
    objects: BTreeMap<String, String>,
}

impl Manifest {
    /// The manifest of `objects` (file name to bytes) as built from the sources as they are now.
    pub(super) fn of(repo: &Path, objects: &BTreeMap<String, Vec<u8>>) -> anyhow::Result<Self> {
        let objects =
            objects.iter().map(|(name, bytes)| (name.clone(), hex(&Sha256::digest(bytes)))).collect();
        Ok(Self { sources: sources(repo)?, objects })
    }
}

impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# SHA-256. Written by `cargo xtask ebpf`; not to be edited.")?;
        writeln!(f, "sources {}", self.sources)?;
        self.objects.iter().try_for_each(|(name, hash)| writeln!(f, "{name} {hash}"))
    }
}

/// The hash of all that determines the objects: sources, lock file, compiler, linker, flags.
fn sources(repo: &Path) -> anyhow::Result<String> {
    let mut files: Vec<PathBuf> =
        ["ebpf/kern/Cargo.toml", "ebpf/kern/Cargo.lock", "ebpf/abi/Cargo.toml", "rust-toolchain.toml"]
            .iter()
            .map(|file| repo.join(file))
            .collect();
    for folder in ["ebpf/kern/src", "ebpf/abi/src"] {
        collect(&repo.join(folder), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    hash.update(format!("bpf-linker {BPF_LINKER}\n{RUSTFLAGS:?}\n"));
    for file in files {
        let text = fs::read(&file).with_context(|| file.display().to_string())?;
        let name = file.strip_prefix(repo)?.display().to_string();
        hash.update(format!("{name} {}\n", text.len()));
        hash.update(text);
    }
    Ok(hex(&hash.finalize()))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ebpf::{OBJECTS, repository};

    #[test]
    fn committed_objects_are_those_of_the_sources() {
        let repo = repository();
        let folder = repo.join("ebpf/loader/objects");
        let committed = OBJECTS
            .iter()
            .map(|name| {
                let file = format!("{name}.o");
                let bytes = fs::read(folder.join(&file)).unwrap();
                (file, bytes)
            })
            .collect();
        let expected = Manifest::of(&repo, &committed).unwrap().to_string();
        let listed = fs::read_to_string(folder.join(FILE)).unwrap();
        assert_eq!(listed, expected, "ebpf/kern or ebpf/abi changed since: run `cargo xtask ebpf`");
    }

    #[test]
    fn committed_objects_carry_btf_and_no_debug_sections() {
        for name in OBJECTS {
            let bytes = fs::read(repository().join(format!("ebpf/loader/objects/{name}.o"))).unwrap();
            let elf = object::build::elf::Builder::read(bytes.as_slice()).unwrap();
            let sections: Vec<String> = elf
                .sections
                .iter()
                .map(|section| String::from_utf8_lossy(&section.name).into_owned())
                .collect();
            assert!(sections.iter().any(|section| section == ".BTF"), "{name}: {sections:?}");
            assert!(!sections.iter().any(|section| section.contains(".debug_")), "{name}: {sections:?}");
        }
    }
}
