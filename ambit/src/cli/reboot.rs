//! `reboot`.

use std::process::ExitCode;

use super::{call, conclude};
use crate::lab::api::Request;
use crate::lab::place::Place;

/// Cuts a node's power and switches it on again: all its processes end at once, and what the kernel held for the mesh is gone.
#[derive(Debug, clap::Args)]
pub(super) struct Reboot {
    node: String,
}

impl Reboot {
    pub(super) fn run(&self, place: &Place) -> ExitCode {
        match call(place, &Request::Reboot { node: self.node.clone() }) {
            Ok(reply) => conclude(reply),
            Err(code) => code,
        }
    }
}
