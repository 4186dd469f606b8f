//! `up`.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, timeout};

use super::console::{complain, say};
use super::{block_on, code, files, note, unanswered};
use crate::lab::address::MAX_NODES;
use crate::lab::admission::{self, Text};
use crate::lab::api::{Laggard, Reply, Request};
use crate::lab::client;
use crate::lab::place::Place;
use crate::lab::supervisor::STANDS;
use crate::lab::{precheck, teardown};

/// How long all pods may take to be ready.
const PATIENCE: Duration = Duration::from_secs(60);

/// Brings up a lab.
#[derive(Debug, clap::Args)]
pub(super) struct Up {
    /// What is to run: a file, a folder with all below it, or `-`. Without any, the nodes are empty.
    #[arg(short, long = "filename", value_name = "FILE|DIR|-")]
    filename: Vec<PathBuf>,
    /// How many nodes, `node1`, `node2`, ….
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_NODES)))]
    nodes: u8,
    /// Return when all pods are ready, and leave the lab running.
    #[arg(long)]
    detach: bool,
}

/// Why a lab did not come up.
enum Failure {
    /// Nothing was begun, or all is taken down again.
    Refused(Vec<String>),
    /// It is there, but not all of it runs.
    Unready(Vec<Laggard>),
}

impl Up {
    pub(super) fn run(&self, place: &Place) -> ExitCode {
        let texts = match self.texts() {
            Ok(texts) => texts,
            Err(problems) => {
                problems.into_iter().for_each(complain);
                return ExitCode::FAILURE;
            }
        };
        if let Err(why) = self.claim(place) {
            why.into_iter().for_each(complain);
            return ExitCode::FAILURE;
        }
        block_on(self.bring_up(place, texts))
    }

    fn texts(&self) -> Result<Vec<Text>, Vec<String>> {
        let texts = files::read(&self.filename).map_err(|error| vec![error.to_string()])?;
        let told =
            |problems: Vec<manifest::Problem>| problems.iter().map(ToString::to_string).collect::<Vec<_>>();
        admission::read(&texts).map_err(told)?;
        Ok(texts)
    }

    /// Looks whether a lab can be brought up, and takes its name.
    fn claim(&self, place: &Place) -> Result<(), Vec<String>> {
        let name = place.name();
        match teardown::presence(place) {
            teardown::Presence::None => {}
            teardown::Presence::Runs => {
                return Err(vec![format!(
                    "lab `{name}` runs already: `ambit lab status` shows it, `ambit lab down` takes it down"
                )]);
            }
            teardown::Presence::Remains => {
                return Err(vec![format!("lab `{name}` did not end cleanly: run `ambit lab down` first")]);
            }
        }
        precheck::machine().map_err(|lacks| lacks.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        let failed = |error: io::Error| vec![format!("{}: {error}", place.dir().display())];
        // A lab that is taken down meanwhile may take the folder above along.
        for _ in 0..5 {
            std::fs::create_dir_all(crate::lab::place::ROOT).map_err(failed)?;
            match std::fs::create_dir(place.dir()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(vec![format!("lab `{name}` is just being brought up by somebody else")]);
                }
                other => {
                    other.and_then(|()| std::fs::create_dir_all(place.logs())).map_err(failed)?;
                    return Ok(());
                }
            }
        }
        Err(failed(io::ErrorKind::NotFound.into()))
    }

    async fn bring_up(&self, place: &Place, texts: Vec<Text>) -> ExitCode {
        let (Ok(mut interrupt), Ok(mut terminate)) =
            (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            complain("cannot listen for signals");
            return ExitCode::FAILURE;
        };
        let mut signalled = async || {
            // Cancel-safe, both.
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        // What is cut off here is taken down as a whole.
        let begun = tokio::select! {
            begun = self.begin(place, texts) => begun,
            () = signalled() => return take_down(place, code::INTERRUPTED),
        };
        let mut supervisor = match begun {
            Ok(supervisor) => supervisor,
            Err(Failure::Refused(why)) => {
                why.into_iter().for_each(complain);
                return take_down(place, 1);
            }
            Err(Failure::Unready(why)) => {
                complain(format!("lab `{}` is not ready after {} s:", place.name(), PATIENCE.as_secs()));
                why.iter().for_each(|line| complain(format!("  {line}")));
                if !self.detach {
                    return take_down(place, code::LATE);
                }
                complain(
                    "it stays up for a look at `ambit lab status` and `ambit lab logs`; `ambit lab down` takes it down",
                );
                return ExitCode::from(code::LATE);
            }
        };
        if self.detach {
            say(format!(
                "lab `{}` is up: `ambit lab status` shows it, `ambit lab down` takes it down",
                place.name()
            ));
            return ExitCode::SUCCESS;
        }
        say(format!("lab `{}` is up; Ctrl-C takes it down", place.name()));
        // Cancel-safe, both.
        tokio::select! {
            () = signalled() => take_down(place, 0),
            _ = supervisor.wait() => {
                if place.dir().exists() {
                    complain("the lab's supervisor has ended");
                    return take_down(place, 1);
                }
                // Somebody else took it down.
                ExitCode::SUCCESS
            }
        }
    }

    /// Starts the supervisor, gives it the objects, and waits until all runs.
    async fn begin(&self, place: &Place, files: Vec<Text>) -> Result<Child, Failure> {
        let refused = |why: String| Failure::Refused(vec![why]);
        let deadline = Instant::now() + PATIENCE;
        complain(format!("lab `{}`: {} nodes and the link between them", place.name(), self.nodes));
        let supervisor = start(place, self.nodes, deadline).await.map_err(refused)?;
        if files.is_empty() {
            complain("no objects are given (-f): the nodes are empty");
        } else {
            complain(format!("applying {} files", files.len()));
            let request = Request::Apply { files, wait: false };
            match client::call(place, &request, |_| ()).await {
                Ok(Reply::Done { notes, .. }) => notes.into_iter().for_each(note),
                Ok(Reply::Refused(why)) => return Err(Failure::Refused(why)),
                Ok(other) => return Err(refused(format!("the supervisor answers {other:?}"))),
                Err(error) => return Err(refused(error.to_string())),
            }
        }
        let seconds = deadline.saturating_duration_since(Instant::now()).as_secs().max(1);
        let progress = |line: &str| complain(format!("waiting for {line}"));
        match client::call(place, &Request::Await { seconds }, progress).await {
            Ok(Reply::Done { .. }) => Ok(supervisor),
            Ok(Reply::Late { waiting, .. }) => Err(Failure::Unready(waiting)),
            Ok(Reply::Refused(why)) => Err(Failure::Refused(why)),
            Ok(other) => Err(refused(format!("the supervisor answers {other:?}"))),
            Err(error) => {
                unanswered(place, &error);
                Err(refused("the supervisor is gone".to_owned()))
            }
        }
    }
}

/// Starts the supervisor and waits until it can be talked to.
async fn start(place: &Place, nodes: u8, deadline: Instant) -> Result<Child, String> {
    let log = File::create(place.supervisor_log()).map_err(|e| format!("the supervisor's log: {e}"))?;
    let own = std::env::current_exe().map_err(|e| format!("ambit's own executable: {e}"))?;
    let mut supervisor = Command::new(own)
        .args(["lab", "supervise", "--name", place.name().as_str(), "--nodes", &nodes.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .current_dir("/")
        .spawn()
        .map_err(|e| format!("the supervisor cannot be started: {e}"))?;
    let Some(stdout) = supervisor.stdout.take() else { return Err("the supervisor is mute".to_owned()) };
    let mut lines = BufReader::new(stdout).lines();
    let mut said = Vec::new();
    let listening = async {
        while let Ok(Some(line)) = lines.next_line().await {
            if line == STANDS {
                return true;
            }
            said.push(line);
        }
        false
    };
    match timeout(deadline.saturating_duration_since(Instant::now()), listening).await {
        Ok(true) => Ok(supervisor),
        Ok(false) => {
            said.push(format!("the supervisor ended; its log was {}", place.supervisor_log().display()));
            Err(said.join("\n"))
        }
        Err(_) => Err("the supervisor does not come up in time".to_owned()),
    }
}

fn take_down(place: &Place, code: u8) -> ExitCode {
    complain(format!("taking lab `{}` down", place.name()));
    match teardown::run(place) {
        Ok(()) => ExitCode::from(code),
        Err(error) => {
            complain(format!("something of it is still there: {error}"));
            ExitCode::FAILURE
        }
    }
}
