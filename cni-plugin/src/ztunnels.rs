//! The ztunnels that are connected, as others see them.

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use zds::agent::{Peer, Role, Server};

/// One ztunnel of `/debug/ztunnels`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Ztunnel {
    /// Its process; null where the agent's PID namespace does not know it.
    pub pid: Option<i32>,
    /// `serves`, `stands-by`, `hands-over`, or `sleeps` where another serves that did not take over its listeners.
    pub role: &'static str,
}

impl From<Peer> for Ztunnel {
    fn from(Peer { pid, role }: Peer) -> Self {
        let role = match role {
            Role::Serves => "serves",
            Role::StandsBy { .. } => "stands-by",
            Role::HandsOver => "hands-over",
            Role::Sleeps => "sleeps",
        };
        Self { pid, role }
    }
}

/// The page `/debug/ztunnels`: a JSON list, the one that came first first.
pub fn pages(server: Server) -> Router {
    Router::new().route("/debug/ztunnels", get(connected)).with_state(server)
}

async fn connected(State(server): State<Server>) -> Json<Vec<Ztunnel>> {
    Json(server.peers().into_iter().map(Ztunnel::from).collect())
}
