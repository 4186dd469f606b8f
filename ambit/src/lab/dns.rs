//! The lab's resolver: what cluster DNS answers, for pods in and outside the mesh alike.

mod server;
mod zone;

pub(crate) use server::{Sockets, serve};
pub(crate) use zone::Zone;
