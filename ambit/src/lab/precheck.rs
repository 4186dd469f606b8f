//! What a lab needs of the machine, and what to do where it is not there.

use std::fs;
use std::path::{Path, PathBuf};

use super::cgroup;
use super::system::Programs;

/// Something that is missing, and its remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lack {
    what: String,
    remedy: String,
}

impl std::fmt::Display for Lack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.what, self.remedy)
    }
}

/// What is found out about the machine.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// The programs of the mesh.
    pub(crate) programs: Programs,
    /// The mount point of cgroup2.
    pub(crate) cgroups: PathBuf,
}

/// Looks at the machine.
///
/// # Errors
/// All that is missing.
pub(crate) fn machine() -> Result<Machine, Vec<Lack>> {
    let mut lacks = Vec::new();
    let mut lack = |what: &str, remedy: &str| {
        lacks.push(Lack { what: what.to_owned(), remedy: remedy.to_owned() });
    };
    if !nix::unistd::geteuid().is_root() {
        lack("you are not root", "a lab makes namespaces and loads eBPF programs; run it with sudo");
    }
    let cgroups = cgroup::root();
    if cgroups.is_none() {
        lack("no cgroup2 is mounted", "mount -t cgroup2 none /sys/fs/cgroup/unified, or boot with systemd");
    }
    for space in ["net", "mnt"] {
        if !Path::new("/proc/self/ns").join(space).exists() {
            lack(&format!("the kernel has no {space} namespaces"), "use a distribution's kernel");
        }
    }
    if !fs::read_to_string("/proc/filesystems").unwrap_or_default().contains("\tbpf") {
        lack("the kernel has no bpf file system", "it needs CONFIG_BPF_SYSCALL, Linux 5.17 or newer");
    }
    if find_program("nft").is_none() {
        lack("the program `nft` is not there", "apt-get install nftables");
    }
    let programs = Programs::beside_our_own();
    if let Err(missing) = &programs {
        let remedy = "all programs are built together by `cargo build --release`";
        lack(&format!("not beside ambit's own executable: {}", missing.join(", ")), remedy);
    }
    match (cgroups, programs) {
        (Some(cgroups), Ok(programs)) if lacks.is_empty() => Ok(Machine { programs, cgroups }),
        _ => Err(lacks),
    }
}

/// A program on the path; administrators' folders count also where the path leaves them out.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).collect::<Vec<_>>();
    let more = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    folders.into_iter().chain(more).map(|dir| dir.join(name)).find(|path| path.is_file())
}
