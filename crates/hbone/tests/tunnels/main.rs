//! Tunnels between a pool and a server, over pipes and over TLS.

mod fixtures;
mod floods;
mod pool;
mod server;
mod tls;
mod tunnel;
