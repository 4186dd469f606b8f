//! Becoming a process of a pod or a node.
//!
//! A process enters namespaces and a cgroup, narrows its capabilities, and then *is* the command. Whoever wants such a
//! process starts `ambit internal enter … -- COMMAND`; `ambit lab exec` does it in its own process, so that the terminal,
//! the signals and the exit status are the command's.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use caps::{CapSet, Capability};
use nix::sched::{CloneFlags, setns};
use thiserror::Error;

/// What to enter, and what to be then.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct Entry {
    /// The network namespace.
    #[arg(long, value_name = "PATH")]
    pub(crate) net: Option<PathBuf>,
    /// The mount namespace.
    #[arg(long, value_name = "PATH")]
    pub(crate) mnt: Option<PathBuf>,
    /// The cgroup's folder.
    #[arg(long, value_name = "PATH")]
    pub(crate) cgroup: Option<PathBuf>,
    /// Keep only these capabilities, for good, separated by commas, or none; all where this is not given.
    #[arg(long, value_name = "CAPS")]
    pub(crate) caps: Option<Kept>,
    /// The working directory.
    #[arg(long, value_name = "PATH")]
    pub(crate) dir: Option<PathBuf>,
    /// Lead a session of its own, away from any terminal.
    #[arg(long)]
    pub(crate) session: bool,
    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// Capabilities that a process keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept(Vec<Capability>);

impl From<&[Capability]> for Kept {
    fn from(caps: &[Capability]) -> Self {
        Self(caps.to_vec())
    }
}

/// `none`, or names with commas between.
impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        if names.is_empty() { f.write_str("none") } else { f.write_str(&names.join(",")) }
    }
}

impl FromStr for Kept {
    type Err = caps::errors::CapsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "none" {
            return Ok(Self::default());
        }
        text.split(',').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// Why a process did not become what it should.
#[derive(Debug, Error)]
pub(crate) enum EnterError {
    #[error("{}: {source}", command.display())]
    Run {
        command: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot enter {}: {source}", path.display())]
    Enter {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot begin a session: {0}")]
    Session(#[source] io::Error),
    #[error("cannot drop capabilities: {0}")]
    Capabilities(#[source] caps::errors::CapsError),
}

impl EnterError {
    /// The exit status that shells give in this case: 127 for a command that is not there, 126 for one that cannot run.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Run { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            _ => 126,
        }
    }
}

impl Entry {
    /// The arguments by which `ambit` does this.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["internal".into(), "enter".into()];
        let mut flag = |name: &str, value: &Path| arguments.extend([name.into(), value.into()]);
        for (name, value) in
            [("--net", &self.net), ("--mnt", &self.mnt), ("--cgroup", &self.cgroup), ("--dir", &self.dir)]
        {
            if let Some(value) = value {
                flag(name, value);
            }
        }
        if let Some(kept) = &self.caps {
            flag("--caps", Path::new(&kept.to_string()));
        }
        if self.session {
            arguments.push("--session".into());
        }
        arguments.push("--".into());
        arguments.extend(self.command.iter().cloned());
        arguments
    }

    /// Becomes the command; comes back only where that fails. With `env`, it gets that environment and no other.
    ///
    /// The process must have one thread: a mount namespace cannot be entered with more.
    pub(crate) fn become_command(&self, env: Option<&[(String, String)]>) -> EnterError {
        let error = match self.enter() {
            Ok(()) => self.exec(env),
            Err(error) => error,
        };
        // What is missing may be the working directory; then say so.
        match (&error, &self.dir) {
            (EnterError::Run { source, .. }, Some(dir))
                if source.kind() == io::ErrorKind::NotFound && !dir.is_dir() =>
            {
                EnterError::Enter { path: dir.clone(), source: io::ErrorKind::NotFound.into() }
            }
            _ => error,
        }
    }

    fn enter(&self) -> Result<(), EnterError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| EnterError::Enter { path, source }
        };
        let open = |path: &Option<PathBuf>| {
            path.as_ref().map(|path| File::open(path).map_err(failed(path))).transpose()
        };
        // All paths are those of the world outside.
        let (net, mnt) = (open(&self.net)?, open(&self.mnt)?);
        if let Some(cgroup) = &self.cgroup {
            fs::write(cgroup.join("cgroup.procs"), "0").map_err(failed(cgroup))?;
        }
        for (file, path, kind) in
            [(net, &self.net, CloneFlags::CLONE_NEWNET), (mnt, &self.mnt, CloneFlags::CLONE_NEWNS)]
        {
            if let (Some(file), Some(path)) = (file, path) {
                setns(&file, kind).map_err(|errno| failed(path)(errno.into()))?;
            }
        }
        if self.session {
            nix::unistd::setsid().map_err(|errno| EnterError::Session(errno.into()))?;
        }
        self.narrow()
    }

    fn narrow(&self) -> Result<(), EnterError> {
        let Some(Kept(kept)) = &self.caps else { return Ok(()) };
        // A program of root's gets what the bounding set has, at exec; so the rest is gone for good.
        let bound = caps::read(None, CapSet::Bounding).map_err(EnterError::Capabilities)?;
        for cap in bound.into_iter().filter(|cap| !kept.contains(cap)) {
            caps::drop(None, CapSet::Bounding, cap).map_err(EnterError::Capabilities)?;
        }
        for set in [CapSet::Ambient, CapSet::Inheritable] {
            caps::clear(None, set).map_err(EnterError::Capabilities)?;
        }
        Ok(())
    }

    fn exec(&self, env: Option<&[(String, String)]>) -> EnterError {
        let Some((program, arguments)) = self.command.split_first() else {
            let source = io::Error::new(io::ErrorKind::NotFound, "no command");
            return EnterError::Run { command: PathBuf::new(), source };
        };
        let mut command = Command::new(program);
        command.args(arguments);
        if let Some(env) = env {
            command.env_clear().envs(env.iter().map(|(key, value)| (key, value)));
        }
        // Entering a mount namespace leaves the process at its root.
        command.current_dir(self.dir.as_deref().unwrap_or(Path::new("/")));
        let source = command.exec();
        EnterError::Run { command: program.into(), source }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Internal {
        #[command(flatten)]
        entry: Entry,
    }

    #[test]
    fn arguments_say_what_the_entry_says() {
        let entry = Entry {
            net: Some("/run/net".into()),
            mnt: Some("/proc/7/fd/9".into()),
            cgroup: Some("/cg/pods/a".into()),
            caps: Some(Kept(vec![Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW])),
            dir: Some("/tmp".into()),
            session: true,
            command: vec!["sh".into(), "-c".into(), "exit 7".into()],
        };
        let arguments = entry.arguments();
        assert_eq!(arguments[..2], ["internal", "enter"]);
        assert_eq!(Internal::parse_from(&arguments[1..]).entry, entry);
    }

    #[test]
    fn who_keeps_nothing_is_not_who_keeps_everything() {
        let none = Entry { caps: Some(Kept::default()), command: vec!["true".into()], ..Entry::default() };
        let parsed = Internal::parse_from(&none.arguments()[1..]).entry;
        assert_eq!(parsed, none);
        assert_ne!(parsed.caps, None);
    }

    #[test]
    fn what_cannot_run_has_the_status_that_shells_give() {
        let run = |kind: io::ErrorKind| EnterError::Run { command: "x".into(), source: kind.into() };
        assert_eq!(run(io::ErrorKind::NotFound).code(), 127);
        assert_eq!(run(io::ErrorKind::PermissionDenied).code(), 126);
        let entry = Entry { command: vec!["/nowhere/at/all".into()], ..Entry::default() };
        assert_eq!(entry.become_command(None).code(), 127);
    }
}
