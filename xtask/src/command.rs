//! Running other programs: what they were is in every error, and nothing of theirs gets into our standard output.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context as _, bail};

use crate::repo;

/// A command to be run in the workspace's folder, with our tools on its path.
#[derive(Debug)]
pub(crate) struct Run(Command);

impl Run {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.current_dir(repo::root()).env("PATH", repo::path()).stdin(Stdio::null());
        Self(command)
    }

    /// The cargo that runs us, so that the toolchain is the same.
    pub(crate) fn cargo() -> Self {
        Self::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
    }

    pub(crate) fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.0.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    pub(crate) fn without_env(mut self, name: &str) -> Self {
        self.0.env_remove(name);
        self
    }

    pub(crate) fn within(mut self, folder: &Path) -> Self {
        self.0.current_dir(folder);
        self
    }

    /// Runs it, its output among our account.
    pub(crate) fn status(mut self) -> anyhow::Result<ExitStatus> {
        let shown = self.shown();
        self.0
            .stdout(Stdio::from(std::io::stderr()))
            .status()
            .with_context(|| format!("cannot run `{shown}`"))
    }

    /// Runs it; an exit status other than 0 is an error.
    pub(crate) fn check(self) -> anyhow::Result<()> {
        let shown = self.shown();
        let status = self.status()?;
        if !status.success() {
            bail!("`{shown}` failed ({status})");
        }
        Ok(())
    }

    /// Runs it for its standard output; an exit status other than 0 is an error that quotes the end of what it said.
    pub(crate) fn output(mut self) -> anyhow::Result<String> {
        let shown = self.shown();
        let output = self.0.output().with_context(|| format!("cannot run `{shown}`"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let tail: Vec<_> = said.trim_end().lines().rev().take(8).collect();
            let tail: Vec<_> = tail.into_iter().rev().collect();
            bail!("`{shown}` failed ({}):\n{}", output.status, tail.join("\n"));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn shown(&self) -> String {
        let words = [self.0.get_program()].into_iter().chain(self.0.get_args());
        words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
    }
}
