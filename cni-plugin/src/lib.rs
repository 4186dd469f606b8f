//! The node agent: enrols the node's pods into the mesh and hands their network namespaces to ztunnel.
//!
//! It is the only privileged part of the mesh. What it decides is decided without I/O: [`membership`] says which pods
//! belong to the mesh, [`roster`] in which order a pod is captured and let go. [`node`] does what they say by
//! [`redirect`], [`agent`] drives them from the objects, from ztunnel's answers and from the clock.
//!
//! A pod joins without a failed connection: ztunnel first listens in it, then capture begins. It leaves the same way:
//! capture ends first, ztunnel goes on serving for a while, and the pod's routing is put back once no connection needs
//! it. What is captured stays captured while ztunnel or the agent is away: nothing leaves in plaintext.

pub mod agent;
pub mod choice;
pub mod cleanup;
pub mod membership;
pub mod namespaces;
pub mod nft;
pub mod node;
pub mod older;
pub mod redirect;
pub mod roster;
pub mod routing;
pub mod status;
pub mod ztunnels;
