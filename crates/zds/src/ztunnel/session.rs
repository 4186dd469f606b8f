//! ztunnel's side of one connection, without its socket.

use std::collections::BTreeSet;
use std::os::fd::{BorrowedFd, OwnedFd};

use net::Netns;
use net::seqpacket::Packet;
use thiserror::Error;

use super::Event;
use crate::{
    Add, Attached, DecodeError, Exemption, Hello, Kept, PodUid, Request, decode_request, encode_hello,
    encode_response,
};

/// One connection to an agent: checks what comes, and that each message is answered before the next.
#[derive(Debug)]
pub struct Session {
    named: BTreeSet<PodUid>,
    started: bool,
    unanswered: bool,
    /// The agent keeps listeners.
    keeps: bool,
}

/// What a packet was.
#[derive(Debug)]
pub enum Received {
    /// Something to do and to answer.
    Event(Event),
    /// Something that cannot be done; answer with this reason.
    Refuse(String),
}

/// Why a connection cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SessionError {
    /// The peer sent what is no message.
    #[error("the peer does not speak the node protocol")]
    Decode(#[from] DecodeError),
    /// The peer did not wait for the answer.
    #[error("the peer sent a message before its last one was answered")]
    Impatient,
}

impl Session {
    /// A connection that has just been made, and the packet to send first.
    pub fn new() -> (Self, Vec<u8>) {
        let session = Self { named: BTreeSet::new(), started: false, unanswered: false, keeps: false };
        (
            session,
            encode_hello(Hello { redirection_fds: true, listener_fds: true, pod_state: true, dns: true }),
        )
    }

    /// Takes in a packet. Each must be answered by [`Session::answer`] before the next.
    ///
    /// # Errors
    /// After one, the connection is to be closed.
    pub fn handle(&mut self, packet: Packet) -> Result<Received, SessionError> {
        if self.unanswered {
            return Err(SessionError::Impatient);
        }
        let request = match decode_request(&packet.bytes) {
            Ok(request) => request,
            // Readable, only without sense: the peer learns what it lacks.
            Err(error @ DecodeError::Missing(_)) => {
                self.unanswered = true;
                return Ok(Received::Refuse(error.to_string()));
            }
            Err(error) => return Err(error.into()),
        };
        self.unanswered = true;
        let first = !std::mem::replace(&mut self.started, true);
        Ok(match self.event(request, packet.fds, first) {
            Ok(event) => Received::Event(event),
            Err(reason) => Received::Refuse(reason),
        })
    }

    fn event(&mut self, request: Request, fds: Vec<OwnedFd>, first: bool) -> Result<Event, String> {
        let mut fds = fds.into_iter();
        match request {
            Request::Redirection { mark, mask, exempt_mark } => {
                if !first {
                    return Err("the redirection must be the first message".to_owned());
                }
                let exempt = match (exempt_mark, fds.next()) {
                    (Some(mark), None) => Exemption::Mark(mark),
                    (None, Some(bypass)) => Exemption::Storage(bypass),
                    (None, None) => return Err("the redirection came without the bypass storage".to_owned()),
                    (Some(_), Some(_)) => return Err("the redirection exempts in two ways".to_owned()),
                };
                if mask == 0 || mark & !mask != 0 || mark == 0 {
                    return Err(format!("mark {mark:#x} under mask {mask:#x} tells nothing apart"));
                }
                Ok(Event::Redirection { mark, mask, exempt })
            }
            Request::Add(Add { uid, info, attached, dns }) => {
                let netns = fds.next().ok_or("the pod came without its network namespace")?;
                let netns = Netns::from_fd(netns).map_err(|error| error.to_string())?;
                if fds.len() < attached.len() {
                    return Err("fewer descriptors came than were announced".to_owned());
                }
                let is_map = |(kind, _): &(Attached, OwnedFd)| *kind == Attached::ListenerMap;
                let (maps, others): (Vec<_>, Vec<_>) = attached.into_iter().zip(fds).partition(is_map);
                let listener_map = maps.into_iter().next().map(|(_, fd)| fd);
                let kept = Kept::of_message(others);
                kept.check(&netns).map_err(|error| error.to_string())?;
                self.named.insert(uid.clone());
                Ok(Event::Add { uid, info, netns, listener_map, kept, dns })
            }
            Request::Keep(uid) => {
                self.named.insert(uid.clone());
                Ok(Event::Keep(uid))
            }
            Request::Del(uid) => {
                self.named.remove(&uid);
                Ok(Event::Del(uid))
            }
            Request::State(state) => Ok(Event::State(state)),
            Request::Listeners(turn) => {
                self.keeps = true;
                Ok(Event::Turn(turn))
            }
            Request::SnapshotSent => Ok(Event::SnapshotSent { named: self.named.clone() }),
            Request::Unknown => Err("this ztunnel does not know that kind of message".to_owned()),
        }
    }

    /// The packet that answers the last message — done, with what is to be kept of the pod that it was about, or why not —
    /// and the descriptors to send with it.
    pub fn answer<'a>(&mut self, answer: &'a Result<Kept, String>) -> (Vec<u8>, Vec<BorrowedFd<'a>>) {
        self.unanswered = false;
        match answer {
            Ok(kept) => {
                let (kinds, fds) = kept.all().filter(|_| self.keeps).unzip();
                (encode_response(&Ok(kinds)), fds)
            }
            Err(reason) => (encode_response(&Err(reason.clone())), Vec::new()),
        }
    }
}
