//! The heads of HTTP/2 frames (RFC 9113 4.1), found in a stream of bytes.

const HEAD: usize = 9;
/// What a client sends first (RFC 9113 3.4).
const PREFACE: usize = 24;

const END_STREAM: u8 = 0x1;
const PADDED: u8 = 0x8;
/// The most that padding can be of a frame, its length included.
const PADDING_MAX: u32 = 256;

/// A frame's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The payload's length.
    pub len: u32,
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
}

impl Frame {
    fn read(head: &[u8; HEAD]) -> Self {
        let [a, b, c, kind, flags, ..] = *head;
        Self { len: u32::from_be_bytes([0, a, b, c]), kind, flags }
    }

    /// Whether a DATA frame has data for certain: what is padded may be nothing but padding.
    pub(super) fn carries_data(&self) -> bool {
        let padding = if self.flags & PADDED == 0 { 0 } else { PADDING_MAX };
        self.len > padding
    }

    pub(super) fn ends_stream(&self) -> bool {
        self.flags & END_STREAM != 0
    }
}

/// Finds one head after the other.
#[derive(Clone, Debug, Default)]
pub struct Heads {
    /// Bytes until the next head.
    skip: usize,
    head: [u8; HEAD],
    /// How many of the head's bytes are there.
    has: usize,
}

impl Heads {
    /// The first head comes after a client's preface.
    pub fn after_preface() -> Self {
        Self { skip: PREFACE, ..Self::default() }
    }

    /// Takes bytes off the front until a head is complete; nothing once they are used up.
    pub fn next(&mut self, bytes: &mut &[u8]) -> Option<Frame> {
        let skipped = self.skip.min(bytes.len());
        *bytes = &bytes[skipped..];
        self.skip -= skipped;
        let n = (HEAD - self.has).min(bytes.len());
        let (part, rest) = bytes.split_at(n);
        self.head[self.has..self.has + n].copy_from_slice(part);
        *bytes = rest;
        self.has += n;
        if self.has < HEAD {
            return None;
        }
        let frame = Frame::read(&self.head);
        (self.skip, self.has) = (frame.len as usize, 0);
        Some(frame)
    }
}
