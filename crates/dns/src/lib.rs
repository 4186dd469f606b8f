//! Names, as the mesh knows them: which questions it answers itself, and with what.
//!
//! Pure: a question comes in as the bytes of a message, and out comes the answer's bytes or the word that somebody else
//! has to be asked ([`decide`]). Only what is certainly an ordinary question is read at all ([`Query::parse`]). All else
//! (updates, notifications, signed messages, several questions, rubbish) is somebody else's, and goes there as it is.

mod message;
mod zone;

pub use message::{MOST_OVER_TCP, Query, Record, failure, is_answer_to, owned_exists, respond};
pub use zone::{TTL, Verdict, Viewer, decide};
