//! `ambit`: the command line of the mesh.

use std::process::ExitCode;

fn main() -> ExitCode {
    ambit::cli::run()
}
