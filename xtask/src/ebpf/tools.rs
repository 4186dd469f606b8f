//! What building the objects needs beyond the pinned toolchain: the linker, and the sources of `core`.

use std::{
    env,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// The last that works with the LLVM of the pinned compiler.
pub(super) const BPF_LINKER: &str = "0.10.3";

/// The library's sources as Debian packs them, for the pinned compiler.
const DEBIAN_VERSION: &str = "1.95.0+dfsg1-2~bpo13+1";
const DEBIAN_SUITE: &str = "trixie-backports";
const DEBIAN_LIBRARY: &str = "usr/src/rustc-1.95.0/library";

/// The tools, ready for use.
pub(super) struct Tools {
    /// The workspace's target directory.
    pub(super) target_dir: PathBuf,
    /// The library's sources.
    pub(super) library: PathBuf,
    /// Set when the library's sources are not where the compiler looks for them.
    pub(super) source_root: Option<PathBuf>,
    cargo_home: PathBuf,
    bin: PathBuf,
}

/// Why the objects cannot be built here.
#[derive(Debug, thiserror::Error)]
pub(super) enum Missing {
    #[error("bpf-linker {BPF_LINKER} cannot be installed: {0}")]
    Linker(Failed),
    #[error("rust-src is neither to be had by rustup ({rustup}) nor as Debian's package ({debian})")]
    RustSrc { rustup: Failed, debian: Failed },
    #[error("the compiler does not say where it lies: {0}")]
    Sysroot(Failed),
}

/// A command that did not do its work.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    #[error("`{command}` cannot be run: {source}")]
    Run { command: String, source: io::Error },
    #[error("`{command}` failed: {said}")]
    Status { command: String, said: String },
    #[error("{path}: {source}", path = path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{path} is not there afterwards", path = .0.display())]
    Absent(PathBuf),
}

impl Tools {
    /// Finds the tools, and installs those that are missing below the target directory.
    pub(super) fn install(repo: &Path) -> Result<Self, Missing> {
        let target_dir = env::var_os("CARGO_TARGET_DIR").map_or_else(|| repo.join("target"), PathBuf::from);
        let root = target_dir.join("tools");
        let cargo_home = env::var_os("CARGO_HOME").map_or_else(
            || PathBuf::from(env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cargo"),
            PathBuf::from,
        );
        let bin = linker(&root).map_err(Missing::Linker)?;
        let (library, source_root) = rust_src(repo, &root)?;
        Ok(Self { target_dir, cargo_home, library, source_root, bin })
    }

    /// Where sources of dependencies are unpacked: one folder a registry, its name dependent on the registry's address.
    pub(super) fn registry_sources(&self) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(self.cargo_home.join("registry/src"))?.map(|entry| Ok(entry?.path())).collect()
    }

    /// `PATH` with the linker on it.
    pub(super) fn path(&self) -> Result<OsString, env::JoinPathsError> {
        let path = env::var_os("PATH").unwrap_or_default();
        env::join_paths([self.bin.clone()].into_iter().chain(env::split_paths(&path)))
    }
}

/// The folder that holds bpf-linker.
fn linker(root: &Path) -> Result<PathBuf, Failed> {
    let bin = root.join("bin");
    let version = output(Command::new(bin.join("bpf-linker")).arg("--version"));
    if version.is_ok_and(|said| said.split_whitespace().last() == Some(BPF_LINKER)) {
        return Ok(bin);
    }
    eprintln!("installing bpf-linker {BPF_LINKER} below {}", root.display());
    let mut install = Command::new("cargo");
    install
        .args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--force", "--root"])
        .arg(root);
    // A target directory given for this workspace would keep the linker's build beside ours for ever.
    install.env_remove("CARGO_TARGET_DIR");
    output(&mut install)?;
    Ok(bin)
}

/// Where the library's sources lie, and the root to name if the compiler would not find them.
fn rust_src(repo: &Path, root: &Path) -> Result<(PathBuf, Option<PathBuf>), Missing> {
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]).current_dir(repo))
        .map_err(Missing::Sysroot)?;
    let library = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library");
    if has_core(&library) {
        return Ok((library, None));
    }
    eprintln!("adding the toolchain's component rust-src");
    let rustup = match output(Command::new("rustup").args(["component", "add", "rust-src"]).current_dir(repo))
    {
        Ok(_) if has_core(&library) => return Ok((library, None)),
        Ok(_) => Failed::Absent(library),
        Err(failed) => failed,
    };
    eprintln!("rustup does not have it ({rustup}): unpacking Debian's package rust-src");
    match debian_package(&root.join("rust-src")) {
        Ok(library) => Ok((library.clone(), Some(library))),
        Err(debian) => Err(Missing::RustSrc { rustup, debian }),
    }
}

/// Unpacks Debian's package below `folder`; the system's own packages and sources lists stay as they are.
fn debian_package(folder: &Path) -> Result<PathBuf, Failed> {
    let library = folder.join(DEBIAN_LIBRARY);
    if has_core(&library) {
        return Ok(library);
    }
    for folder in [folder.join("lists/partial"), folder.join("cache/archives/partial")] {
        fs::create_dir_all(&folder).map_err(|source| Failed::File { path: folder, source })?;
    }
    let sources = folder.join("sources.list");
    let line = format!(
        "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
         http://deb.debian.org/debian {DEBIAN_SUITE} main\n"
    );
    fs::write(&sources, line).map_err(|source| Failed::File { path: sources.clone(), source })?;
    let apt = || {
        let mut apt = Command::new("apt-get");
        apt.current_dir(folder).args([
            "-q",
            "-o",
            "APT::Sandbox::User=root",
            "-o",
            "Dir::Etc::SourceParts=/dev/null",
        ]);
        for (option, path) in [
            ("Dir::Etc::SourceList", sources.clone()),
            ("Dir::State::Lists", folder.join("lists")),
            ("Dir::Cache", folder.join("cache")),
        ] {
            apt.arg("-o").arg(format!("{option}={}", path.display()));
        }
        apt
    };
    output(apt().arg("update"))?;
    output(apt().arg("download").arg(format!("rust-src={DEBIAN_VERSION}")))?;
    let package = fs::read_dir(folder)
        .map_err(|source| Failed::File { path: folder.to_owned(), source })?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .ok_or_else(|| Failed::Absent(folder.join("rust-src.deb")))?;
    output(Command::new("dpkg-deb").arg("-x").arg(&package).arg(folder))?;
    if has_core(&library) { Ok(library) } else { Err(Failed::Absent(library)) }
}

fn has_core(library: &Path) -> bool {
    library.join("core/src/lib.rs").is_file()
}

/// What the command says on its standard output.
fn output(command: &mut Command) -> Result<String, Failed> {
    let shown = || {
        let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy()).collect();
        format!("{} {}", command.get_program().to_string_lossy(), arguments.join(" "))
    };
    let name = shown();
    let output = command.output().map_err(|source| Failed::Run { command: name.clone(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no reason given");
    Err(Failed::Status { command: name, said: said.to_owned() })
}
