//! Simulated meshes: the real cores and shells on virtual time and a simulated network, with faults drawn from a seed.
//!
//! A failure prints its seed; `AMBIT_SEED=<number> cargo test -p ambit-tests --test sim` runs just that one.
//! `AMBIT_SEEDS=<number>` runs so many of each, drawn anew; `cargo xtask test` runs the same ones each time.

mod ages;
mod calls;
mod discovery;
mod endings;
mod live;
mod mesh;
mod networks;
mod on_demand;
mod silence;
mod wire;
