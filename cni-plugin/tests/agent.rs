//! The agent with the real kernel: network namespaces joined by a cable, a small ztunnel that speaks the node protocol,
//! and applications that know nothing of it. Needs root.

#[path = "agent/app.rs"]
mod app;
#[path = "agent/bench.rs"]
mod bench;
#[path = "agent/netns.rs"]
mod netns;
#[path = "agent/proxy.rs"]
mod proxy;
#[path = "agent/town.rs"]
mod town;
#[path = "agent/wire.rs"]
mod wire;
