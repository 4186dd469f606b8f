//! Compiles every `.proto` file of this folder with protox, so that no `protoc` is needed.

use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    println!("cargo::rerun-if-changed={}", root.display());
    let mut files: Vec<PathBuf> = Vec::new();
    collect(root, &mut files)?;
    files.sort();
    let set = protox::compile(&files, [root])?;
    // Ordered maps make an encoding a function of its message: equal resources have equal bytes, and so equal versions.
    tonic_prost_build::configure().bytes(".").btree_map(".").compile_fds(set)?;
    Ok(())
}

fn collect(dir: &Path, into: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, into)?;
        } else if path.extension().is_some_and(|e| e == "proto") {
            into.push(path);
        }
    }
    Ok(())
}
