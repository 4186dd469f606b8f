//! What a peer's frames may cost: pure.
//!
//! HTTP/2 has frames that carry nothing for anybody (PING, SETTINGS, resets ...). They are few where a peer means well, and
//! each of them makes the other end work. The [`Meter`] reads the frames' heads as the bytes of a connection pass, in
//! whatever pieces, and takes what such frames cost from a [`Rate`]. A peer that exceeds it floods, and the connection
//! is to end.
//!
//! Bytes of a tunnel cost nothing here: flow control and the reader's pace bound them.

mod head;
mod rate;

use std::fmt;

use tokio::time::Instant;

pub use self::head::{Frame, Heads};
use self::rate::Debt;
pub use self::rate::Rate;

/// So many bytes that this end has written pay for one frame: a peer grants windows anew as it reads.
const PAYING: u64 = 512;

/// Which end of the connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The peer opens streams.
    Server,
    /// The peer answers.
    Client,
}

/// Frames by what a flood of them is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Streams that the peer ended at once.
    Reset,
    /// Requests that the peer took back before they were answered.
    Withdrawn,
    /// PING.
    Ping,
    /// SETTINGS.
    Settings,
    /// PRIORITY.
    Priority,
    /// WINDOW_UPDATE.
    WindowUpdate,
    /// DATA without data, or in so small pieces that they cost more than they are.
    Data,
    /// HEADERS: too long, or more of them than there are streams.
    Headers,
    /// CONTINUATION.
    Continuation,
    /// All else.
    Other,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Reset,
        Self::Withdrawn,
        Self::Ping,
        Self::Settings,
        Self::Priority,
        Self::WindowUpdate,
        Self::Data,
        Self::Headers,
        Self::Continuation,
        Self::Other,
    ];

    /// By the type of RFC 9113 6.
    fn of(frame: &Frame) -> Self {
        match frame.kind {
            0 => Self::Data,
            1 => Self::Headers,
            2 => Self::Priority,
            3 => Self::Reset,
            4 => Self::Settings,
            6 => Self::Ping,
            8 => Self::WindowUpdate,
            9 => Self::Continuation,
            _ => Self::Other,
        }
    }

    /// The word in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Withdrawn => "withdrawn",
            Self::Ping => "ping",
            Self::Settings => "settings",
            Self::Priority => "priority",
            Self::WindowUpdate => "window_update",
            Self::Data => "data",
            Self::Headers => "headers",
            Self::Continuation => "continuation",
            Self::Other => "other",
        }
    }
}

/// A peer sends more than it may of what carries nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flood {
    /// What there was most of.
    pub kind: Kind,
}

impl fmt::Display for Flood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            Kind::Reset => "opens streams only to end them",
            Kind::Withdrawn => "takes back its requests before they are answered",
            Kind::Ping => "sends too many PING frames",
            Kind::Settings => "sends too many SETTINGS frames",
            Kind::Priority => "sends too many PRIORITY frames",
            Kind::WindowUpdate => "sends too many WINDOW_UPDATE frames",
            Kind::Data => "sends too many DATA frames that hold next to nothing",
            Kind::Headers => "sends headers that are too long or too many",
            Kind::Continuation => "sends headers in too many CONTINUATION frames",
            Kind::Other => "sends too many frames of unknown kinds",
        };
        write!(f, "the peer floods the connection: it {what}")
    }
}

/// Reads along on one connection.
#[derive(Debug)]
pub struct Meter {
    end: End,
    heads: Heads,
    frames: Debt,
    withdrawn: Debt,
    /// Requests that nobody was shown: refused beforehand, or still to be looked at.
    unseen: Debt,
    /// What has been paid for since the debt was nothing, by kind.
    tally: [u64; Kind::ALL.len()],
    /// What came last, and before that.
    last: [Option<Kind>; 2],
    /// Written, and not yet counted as pay.
    written: u64,
    flood: Option<Flood>,
}

impl Meter {
    /// Begins with the first byte of the connection.
    pub fn new(end: End, frames: Rate, fruitless: Rate, now: Instant) -> Self {
        Self {
            end,
            heads: match end {
                End::Server => Heads::after_preface(),
                End::Client => Heads::default(),
            },
            frames: Debt::new(frames, now),
            withdrawn: Debt::new(fruitless, now),
            unseen: Debt::new(fruitless, now),
            tally: Default::default(),
            last: [None; 2],
            written: 0,
            flood: None,
        }
    }

    /// These bytes came next.
    pub fn read(&mut self, mut bytes: &[u8], now: Instant) {
        while let Some(frame) = self.heads.next(&mut bytes) {
            let kind = Kind::of(&frame);
            self.last = [Some(kind), self.last[0]];
            if kind == Kind::Headers && self.end == End::Server {
                if !self.unseen.take(now) {
                    self.flood.get_or_insert(Flood { kind });
                }
            } else if Self::costs(kind, &frame) {
                self.charge(kind, now);
            }
        }
    }

    /// So many bytes were written.
    pub fn wrote(&mut self, bytes: usize) {
        self.written += bytes as u64;
        self.frames.pay(self.written / PAYING);
        self.written %= PAYING;
    }

    /// This end opened a stream, which the peer may answer and end.
    pub fn opened(&mut self) {
        self.frames.pay(2);
    }

    /// A request was fit to be shown to who decides about it.
    pub fn shown(&mut self) {
        self.unseen.pay(1);
    }

    /// The peer took a request back before it was answered.
    pub fn withdrew(&mut self, now: Instant) {
        if !self.withdrawn.take(now) {
            self.flood.get_or_insert(Flood { kind: Kind::Withdrawn });
        }
    }

    /// Whether the peer has sent too much, once it has.
    pub fn flood(&self) -> Option<Flood> {
        self.flood
    }

    /// What to call it where somebody else found that the peer sends too much: by what came last. Where streams are opened
    /// and ended in turn, that they are ended is what floods.
    pub fn suspect(&self) -> Flood {
        let resets = self.last.contains(&Some(Kind::Reset));
        let kind = if resets { Some(Kind::Reset) } else { self.last[0] };
        Flood { kind: kind.unwrap_or(Kind::Other) }
    }

    fn costs(kind: Kind, frame: &Frame) -> bool {
        kind != Kind::Data || !(frame.carries_data() || frame.ends_stream())
    }

    fn charge(&mut self, kind: Kind, now: Instant) {
        if self.frames.is_settled(now) {
            self.tally = Default::default();
        }
        self.tally[kind as usize] += 1;
        if !self.frames.take(now) {
            let most = Kind::ALL.into_iter().max_by_key(|kind| self.tally[*kind as usize]);
            self.flood = self.flood.or(most.map(|kind| Flood { kind }));
        }
    }
}

#[cfg(test)]
mod tests;
