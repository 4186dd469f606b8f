//! A command that the kernel refuses `bpf(2)`, as one without the system call, or a container's profile, would.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::Context as _;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

#[derive(clap::Args)]
pub(crate) struct WithoutBpf {
    /// The command, and what it is told.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl WithoutBpf {
    /// Becomes the command; returns only where that cannot be.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let refused = BTreeMap::from([(libc::SYS_bpf, Vec::new())]);
        let arch = std::env::consts::ARCH.try_into().context("a filter for this machine")?;
        let errno = SeccompAction::Errno(libc::EPERM.cast_unsigned());
        let filter = SeccompFilter::new(refused, SeccompAction::Allow, errno, arch)?;
        let filter: BpfProgram = filter.try_into()?;
        seccompiler::apply_filter(&filter)?;
        let [program, arguments @ ..] = &self.command[..] else { anyhow::bail!("no command") };
        Err(Command::new(program).args(arguments).exec()).with_context(|| program.clone())
    }
}
