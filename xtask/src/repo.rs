//! Where things are.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The workspace's folder.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        // As cargo does: relative to where it was started.
        Some(dir) => env::current_dir().unwrap_or_else(|_| root().to_owned()).join(dir),
        None => root().join("target"),
    }
}

/// The root for `cargo install`, shared by all tools.
pub(crate) fn tools() -> PathBuf {
    target().join("tools")
}

/// `PATH` with our tools first and the system's administrative folders last, where they may be missing.
pub(crate) fn path() -> OsString {
    let inherited = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let all = [tools().join("bin")].into_iter().chain(env::split_paths(&inherited)).chain(system);
    // Fails only for a folder with a colon in its name; then the inherited path must do.
    env::join_paths(all).unwrap_or(inherited)
}

/// The file that a program's name stands for.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    env::split_paths(&path()).map(|dir| dir.join(program)).find(|file| file.is_file())
}
