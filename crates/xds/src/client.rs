//! The client's side of delta xDS: a session core that outlives its streams, and the shell that holds a stream open.

mod ads;
mod backoff;
mod demand;
mod node;
mod session;
mod state;

pub use ads::{AdsClient, AdsConfig, Sink, StreamError};
pub use backoff::Backoff;
pub use demand::{Changes, Demand, DemandCounts};
pub use node::NodeInfo;
pub use session::{Received, Session, Ticket};
pub use state::{Connection, Refusal, Report, State, TypeReport, TypeState};

use crate::TypeUrl;
use crate::decode::DecodeError;

/// Hears of what happens: the hook for metrics. Called on the client's task; must not block.
pub trait Observer: Send + Sync + 'static {
    /// A stream stands.
    fn connected(&self) {}

    /// A stream has ended, or could not be opened.
    fn disconnected(&self, error: &StreamError) {
        let _ = error;
    }

    /// A response has come; `bytes` are its resources'.
    fn message(&self, type_url: TypeUrl, bytes: usize) {
        let _ = (type_url, bytes);
    }

    /// A resource was refused.
    fn refused(&self, type_url: TypeUrl, error: &DecodeError) {
        let _ = (type_url, error);
    }
}

/// Hears nothing.
impl Observer for () {}
