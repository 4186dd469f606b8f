//! The node proxy.
//!
//! It carries the connections of the node's meshed pods: captured in the pod ([`outbound`], [`inbound`]), decided on by
//! pure functions of one snapshot ([`outbound::plan`], [`inbound::admit`]), and relayed as plaintext or by HBONE.
//!
//! Connections live on shards ([`shard`]): one thread and one runtime each, with listeners of their own in every pod
//! ([`pod`]). All else (the control plane, certificates, the agent, admin pages) runs on a thread of its own ([`program`])
//! and reaches the shards as immutable snapshots ([`mesh`]); what they change is applied to connections that stand by
//! [`review`].
//!
//! The data path is generic over [`net::Network`], so that the same shells run on simulated networks: [`pod::serve`] is
//! where a simulation comes in.

pub mod admin;
pub mod binding;
pub mod config;
pub mod connections;
pub mod control;
pub mod departures;
pub mod dns;
mod floods;
pub mod inbound;
pub mod limits;
pub mod local;
pub mod mesh;
pub mod metrics;
pub mod names;
pub mod needs;
pub mod outbound;
pub mod pod;
pub mod ports;
pub mod program;
pub mod proxy;
pub mod quota;
pub mod redirection;
pub mod relay;
pub mod review;
pub mod shard;
pub mod trust;
