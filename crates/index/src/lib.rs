//! The world as one immutable snapshot, with updates that cost what they change.
//!
//! [`World`] holds all workloads, services and policies that the control plane has told of, with an index for each way
//! in which the data path asks. A snapshot never changes: [`World::apply`] makes the next one, which shares with it all
//! that the updates do not touch (the tables are persistent maps, so an update copies a few small nodes, not a table),
//! and says in a [`Delta`] what the difference is. Hold it behind an `ArcSwap`: a reader loads one snapshot per
//! decision and never waits.
//!
//! The order in which updates arrive does not matter, with one exception that is wanted: where several workloads claim
//! one address, the one that came to it last has it (see [`World::workload_at`]).

mod apply;
mod delta;
mod endpoint;
mod few;
mod pmap;
mod update;
mod world;

pub use delta::{Change, Delta, Reach};
pub use endpoint::target_port;
pub use update::Update;
pub use world::World;
