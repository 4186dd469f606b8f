//! `restart`.

use std::process::ExitCode;

use super::{call, conclude};
use crate::lab::api::Request;
use crate::lab::place::Place;

/// Puts a new process in the place of a part of the mesh.
#[derive(Debug, clap::Args)]
pub(super) struct Restart {
    /// ztunnel@NODE, agent@NODE or istiod. A ztunnel hands over: the new one serves before the old one stops accepting,
    /// which ends with the last of its connections.
    part: String,
}

impl Restart {
    pub(super) fn run(&self, place: &Place) -> ExitCode {
        match call(place, &Request::Restart { part: self.part.clone() }) {
            Ok(reply) => conclude(reply),
            Err(code) => code,
        }
    }
}
