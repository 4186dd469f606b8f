//! `apply`, `delete`, `label`.

use std::path::PathBuf;
use std::process::ExitCode;

use super::console::complain;
use super::{call, conclude, files};
use crate::lab::admission::LabelEdit;
use crate::lab::api::Request;
use crate::lab::place::Place;

/// Creates or changes objects.
#[derive(Debug, clap::Args)]
pub(super) struct Apply {
    /// A file, a folder with all below it, or `-`.
    #[arg(short, long = "filename", value_name = "FILE|DIR|-", required = true)]
    filename: Vec<PathBuf>,
}

/// Deletes objects.
#[derive(Debug, clap::Args)]
pub(super) struct Delete {
    /// A file, a folder with all below it, or `-`.
    #[arg(short, long = "filename", value_name = "FILE|DIR|-", required = true)]
    filename: Vec<PathBuf>,
    /// Pass over objects that are not there.
    #[arg(long)]
    ignore_not_found: bool,
}

/// Changes an object's labels.
#[derive(Debug, clap::Args)]
pub(super) struct Label {
    /// `ns`, `pod`, `svc`, …
    kind: String,
    name: String,
    /// KEY=VALUE, or KEY- to take it off.
    #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
    labels: Vec<LabelEdit>,
    #[arg(short, long)]
    namespace: Option<String>,
    /// Labels are overwritten anyway; taken for habit's sake.
    #[arg(long, hide = true)]
    overwrite: bool,
}

impl Apply {
    pub(super) fn run(&self, place: &Place) -> ExitCode {
        with_files(&self.filename, |files| send(place, &Request::Apply { files, wait: true }))
    }
}

impl Delete {
    pub(super) fn run(&self, place: &Place) -> ExitCode {
        with_files(&self.filename, |files| {
            send(place, &Request::Delete { files, ignore_missing: self.ignore_not_found })
        })
    }
}

impl Label {
    pub(super) fn run(&self, place: &Place) -> ExitCode {
        let request = Request::Label {
            kind: self.kind.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            edits: self.labels.clone(),
        };
        send(place, &request)
    }
}

fn with_files(
    names: &[PathBuf],
    then: impl FnOnce(Vec<crate::lab::admission::Text>) -> ExitCode,
) -> ExitCode {
    match files::read(names) {
        Ok(texts) => then(texts),
        Err(error) => {
            complain(error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn send(place: &Place, request: &Request) -> ExitCode {
    call(place, request).map_or_else(|code| code, conclude)
}
