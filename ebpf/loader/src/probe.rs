//! Whether this kernel can redirect, found out by loading.

use aya::programs::ProgramError;
use aya::{EbpfError, EbpfLoader};
use ebpf_abi::name;
use thiserror::Error;

use crate::{attach, objects};

/// Loads all programs, attaches none, and lets go of them.
///
/// The kernel's version says little: distributions take features back and configurations leave them out.
///
/// # Errors
///
/// What the kernel does not take. It also fails without CAP_BPF and CAP_NET_ADMIN.
pub fn probe() -> Result<(), Unsupported> {
    let mut loader = EbpfLoader::new();
    for (object, programs) in PARTS {
        let mut object = loader.load(object)?;
        for program in *programs {
            attach::load(&mut object, program)
                .map_err(|source| Unsupported::Program { program, source })?
                .ok_or(Unsupported::Incomplete)?;
        }
    }
    Ok(())
}

/// All that redirection cannot do without. The socket lookup program needs Linux 5.17.
const PARTS: &[(&[u8], &[&str])] = &[
    (objects::CONNECT, &[name::CONNECT4, name::CONNECT6]),
    (objects::STEER, &[name::STEER]),
    (objects::WATCH, &[name::WATCH]),
];

/// Why this kernel cannot redirect by BPF.
#[derive(Debug, Error)]
pub enum Unsupported {
    /// It does not take a map.
    #[error("a map cannot be created")]
    Maps(#[from] EbpfError),
    /// The committed objects lack a program.
    #[error("the committed objects are incomplete")]
    Incomplete,
    /// It does not take a program.
    #[error("the program `{program}` cannot be loaded")]
    Program {
        /// Which.
        program: &'static str,
        /// Why not.
        #[source]
        source: ProgramError,
    },
}
