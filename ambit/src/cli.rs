//! What a person types, and what they read.

mod console;
mod exec;
mod files;
mod get;
mod logs;
mod objects;
mod reboot;
mod restart;
mod status;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::enter::Entry;
use crate::lab::LabName;
use crate::lab::api::Reply;
use crate::lab::client::CallError;
use crate::lab::place::Place;
use crate::lab::{supervisor, teardown};
use console::{complain, say};

/// Exit statuses beyond 0 and 1 (refused, failed).
mod code {
    /// No lab runs.
    pub(super) const NO_LAB: u8 = 3;
    /// Done, but not in effect in time.
    pub(super) const LATE: u8 = 4;
    /// Interrupted.
    pub(super) const INTERRUPTED: u8 = 130;
}

/// The command line of the mesh.
#[derive(Debug, Parser)]
#[command(name = "ambit", version)]
struct Ambit {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The whole mesh on this machine, without Kubernetes and without containers.
    Lab(Lab),
    #[command(subcommand, hide = true)]
    Internal(Internal),
}

/// What ambit starts itself as.
#[derive(Debug, Subcommand)]
enum Internal {
    /// Becomes a process of a pod or a node.
    Enter(Entry),
}

#[derive(Debug, clap::Args)]
struct Lab {
    /// Which lab; several may run side by side.
    #[arg(id = "lab-name", long = "name", env = "AMBIT_LAB_NAME", default_value = "lab", global = true)]
    name: LabName,
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// Brings up a lab; in the foreground, Ctrl-C takes it down.
    Up(up::Up),
    /// Takes the lab down, whatever state it is in, and leaves nothing.
    Down,
    /// Shows nodes, pods and the mesh's processes.
    Status(status::Show),
    /// Creates or changes objects, and returns when every proxy knows.
    Apply(objects::Apply),
    /// Deletes objects, and returns when every proxy knows.
    Delete(objects::Delete),
    /// Puts labels on an object (KEY=VALUE) or takes them off (KEY-).
    Label(objects::Label),
    /// Shows objects.
    Get(get::Get),
    /// Runs a command in a pod.
    Exec(exec::Exec),
    /// Shows what a pod or a part of the mesh wrote.
    Logs(logs::Logs),
    /// Puts a new process in the place of a part of the mesh; a ztunnel hands over without a failed connection.
    Restart(restart::Restart),
    /// Cuts a node's power and switches it on again.
    Reboot(reboot::Reboot),
    #[command(hide = true)]
    Supervise(Supervise),
}

#[derive(Debug, clap::Args)]
struct Supervise {
    #[arg(long)]
    nodes: u8,
}

/// Runs the command that the process was started with.
pub fn run() -> ExitCode {
    match Ambit::parse().command {
        Command::Internal(Internal::Enter(entry)) => {
            let error = entry.become_command(None);
            complain(error.to_string());
            ExitCode::from(error.code())
        }
        Command::Lab(Lab { name, command }) => lab(&Place::of(name), command),
    }
}

fn lab(place: &Place, command: LabCommand) -> ExitCode {
    match command {
        LabCommand::Up(up) => up.run(place),
        LabCommand::Down => down(place),
        LabCommand::Status(show) => show.run(place),
        LabCommand::Apply(apply) => apply.run(place),
        LabCommand::Delete(delete) => delete.run(place),
        LabCommand::Label(label) => label.run(place),
        LabCommand::Get(get) => get.run(place),
        LabCommand::Exec(exec) => exec.run(place),
        LabCommand::Logs(logs) => logs.run(place),
        LabCommand::Restart(restart) => restart.run(place),
        LabCommand::Reboot(reboot) => reboot.run(place),
        LabCommand::Supervise(supervise) => supervisor::run(place.clone(), supervise.nodes),
    }
}

fn down(place: &Place) -> ExitCode {
    match teardown::run(place) {
        Ok(()) => {
            say(format!("lab `{}` is down", place.name()));
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain(format!("something of lab `{}` is still there: {error}", place.name()));
            ExitCode::FAILURE
        }
    }
}

/// Runs what has to wait for something.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => {
            complain(format!("the machine is out of resources: {error}"));
            std::process::exit(1);
        }
    }
}

/// Asks the supervisor, and tells what it says meanwhile.
fn call(place: &Place, request: &crate::lab::api::Request) -> Result<Reply, ExitCode> {
    let answered = block_on(crate::lab::client::call(place, request, |line| complain(line)));
    answered.map_err(|error| unanswered(place, &error))
}

fn unanswered(place: &Place, error: &CallError) -> ExitCode {
    if !matches!(error, CallError::NoLab(_)) {
        complain(error.to_string());
        return ExitCode::FAILURE;
    }
    match teardown::presence(place) {
        teardown::Presence::None => complain(format!("{error}: bring one up by `ambit lab up`")),
        teardown::Presence::Runs => complain(format!("lab `{}` is not up yet", place.name())),
        teardown::Presence::Remains => complain(format!(
            "lab `{}` did not end cleanly, its supervisor is gone: run `ambit lab down`",
            place.name()
        )),
    }
    ExitCode::from(code::NO_LAB)
}

/// Tells what came of a change.
fn conclude(reply: Reply) -> ExitCode {
    match reply {
        Reply::Done { lines, notes } => {
            notes.into_iter().for_each(note);
            lines.into_iter().for_each(say);
            ExitCode::SUCCESS
        }
        Reply::Late { lines, notes, waiting } => {
            notes.into_iter().for_each(note);
            lines.into_iter().for_each(say);
            complain("done, but not in effect everywhere in time; still waiting for:");
            waiting.iter().for_each(|who| complain(format!("  {who}")));
            ExitCode::from(code::LATE)
        }
        Reply::Refused(problems) => {
            problems.into_iter().for_each(complain);
            ExitCode::FAILURE
        }
        other => foreign(&other),
    }
}

fn note(note: String) {
    complain(format!("note: {note}"));
}

fn foreign(reply: &Reply) -> ExitCode {
    complain(format!("the supervisor answers something else than was asked: {reply:?}"));
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        Ambit::command().debug_assert();
    }

    #[test]
    fn a_name_may_stand_anywhere() {
        for line in [["ambit", "lab", "--name", "x", "down"], ["ambit", "lab", "down", "--name", "x"]] {
            let Command::Lab(lab) = Ambit::parse_from(line).command else { panic!("{line:?}") };
            assert_eq!(lab.name.as_str(), "x");
        }
        assert!(Ambit::try_parse_from(["ambit", "lab", "--name", "../x", "down"]).is_err());
    }
}
