//! Messages (RFC 1035): reading a question, writing its answer.

use std::net::{Ipv4Addr, Ipv6Addr};

/// IPv4 addresses.
pub(crate) const A: u16 = 1;
/// IPv6 addresses (RFC 3596).
pub(crate) const AAAA: u16 = 28;
const OPT: u16 = 41;
const IN: u16 = 1;

const HEADER: usize = 12;
const LONGEST_NAME: usize = 255;
const LONGEST_LABEL: usize = 63;
/// What an answer over UDP may have where the question says nothing (RFC 1035, 2.3.4).
const PLAIN_ROOM: u16 = 512;
/// The most that is sent over UDP, whatever the question would take: more comes in fragments.
const MOST_OVER_UDP: u16 = 1232;
/// The most that is sent over TCP.
pub const MOST_OVER_TCP: u16 = u16::MAX;

const RESPONSE: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const AUTHORITATIVE: u16 = 0x0400;
const TRUNCATED: u16 = 0x0200;
const RECURSION_DESIRED: u16 = 0x0100;
const RECURSION_AVAILABLE: u16 = 0x0080;
const CHECKING_DISABLED: u16 = 0x0010;
const CODE: u16 = 0x000f;

const NO_ERROR: u16 = 0;
const SERVER_FAILURE: u16 = 2;
const NO_SUCH_NAME: u16 = 3;

/// The owner of an answer's record: the name in the question, by a pointer to it.
const SAME_NAME: [u8; 2] = [0xc0, HEADER as u8];

/// An ordinary question: one name, one type, class IN, nothing beside it but EDNS.
#[derive(Clone, Copy, Debug)]
pub struct Query<'m> {
    flags: u16,
    /// Header and question, as they came.
    asked: &'m [u8],
    /// The labels of the name, each with its length.
    labels: &'m [u8],
    kind: u16,
    /// How much the client takes over UDP, where it speaks EDNS.
    room: Option<u16>,
    /// Whether it wants signatures (DO), which is said back to it.
    signed: bool,
}

impl<'m> Query<'m> {
    /// Reads a message; nothing where it is anything but an ordinary question, to the last byte.
    pub fn parse(message: &'m [u8]) -> Option<Self> {
        let mut rest = Reader { message, at: 0 };
        let [_id, flags, questions, answers, authorities, additional] = rest.words()?;
        let plain = flags & (RESPONSE | OPCODE | TRUNCATED) == 0;
        if !plain || questions != 1 || answers != 0 || authorities != 0 || additional > 1 {
            return None;
        }
        let labels = rest.labels()?;
        let [kind, class] = rest.words()?;
        if class != IN {
            return None;
        }
        let asked = &message[..rest.at];
        let (mut room, mut signed) = (None, false);
        if additional == 1 {
            let (root, [kind, size, version, flags, length]) = (rest.byte()?, rest.words()?);
            // The upper byte of `version` belongs to the response code.
            if root != 0 || kind != OPT || version & 0xff != 0 {
                return None;
            }
            rest.skip(length.into())?;
            (room, signed) = (Some(size), flags & 0x8000 != 0);
        }
        (rest.at == message.len()).then_some(Self { flags, asked, labels, kind, room, signed })
    }

    /// The name in lower case, without the last dot; nothing where it has characters that no host name has.
    pub fn name(&self) -> Option<String> {
        let mut name = String::with_capacity(self.labels.len());
        let mut rest = self.labels;
        while let Some((length, tail)) = rest.split_first() {
            let (label, after) = tail.split_at_checked(usize::from(*length))?;
            if !label.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
                return None;
            }
            if !name.is_empty() {
                name.push('.');
            }
            name.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
            rest = after;
        }
        Some(name)
    }

    /// The number of the type that is asked for.
    pub fn kind(&self) -> u16 {
        self.kind
    }

    /// How much an answer over UDP may have.
    pub fn room(&self) -> u16 {
        self.room.unwrap_or(PLAIN_ROOM).clamp(PLAIN_ROOM, MOST_OVER_UDP)
    }
}

/// A record of an answer, about the name that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Record {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
}

impl Record {
    fn write(&self, to: &mut Vec<u8>, ttl: u32) {
        let (kind, data): (u16, &[u8]) = match self {
            Self::A(ip) => (A, &ip.octets()),
            Self::Aaaa(ip) => (AAAA, &ip.octets()),
        };
        to.extend(SAME_NAME);
        for word in [kind, IN] {
            to.extend(word.to_be_bytes());
        }
        to.extend(ttl.to_be_bytes());
        to.extend((data.len() as u16).to_be_bytes());
        to.extend(data);
    }
}

/// Writes the answer to a question: the name exists and has these records, or none of the type.
///
/// The question stands in it as it came, in upper and lower case. What does not fit into `room` is left out, and the
/// answer says so; the client then asks over TCP.
pub fn respond(query: &Query<'_>, records: &[Record], ttl: u32, room: u16) -> Vec<u8> {
    let room = usize::from(room);
    let mut message = query.asked.to_vec();
    let edns = query.room.map(|_| edns(query.signed));
    let reserved = edns.as_ref().map_or(0, Vec::len);
    let (mut count, mut truncated) = (0_u16, 0);
    for record in records {
        let before = message.len();
        record.write(&mut message, ttl);
        if message.len() + reserved > room {
            message.truncate(before);
            truncated = TRUNCATED;
            break;
        }
        count += 1;
    }
    message.extend(edns.into_iter().flatten());
    let kept = query.flags & (RECURSION_DESIRED | CHECKING_DISABLED);
    let flags = RESPONSE | AUTHORITATIVE | RECURSION_AVAILABLE | kept | truncated | NO_ERROR;
    put(&mut message, 2, flags);
    put(&mut message, 6, count);
    put(&mut message, 10, query.room.is_some().into());
    message
}

/// The answer to a message that could not be carried to whom it was for: a failure of the server, which makes a resolver
/// try the next one as an unreachable server would. Nothing where the message is an answer itself, or too short for any.
pub fn failure(message: &[u8]) -> Option<Vec<u8>> {
    let header = message.get(..HEADER)?;
    let flags = u16::from_be_bytes([header[2], header[3]]);
    if flags & RESPONSE != 0 {
        return None;
    }
    let mut answer = match Query::parse(message) {
        Some(query) => query.asked.to_vec(),
        None => header.to_vec(),
    };
    let asked = answer.len() > HEADER;
    let kept = flags & (OPCODE | RECURSION_DESIRED | CHECKING_DISABLED);
    put(&mut answer, 2, RESPONSE | RECURSION_AVAILABLE | kept | SERVER_FAILURE);
    put(&mut answer, 4, asked.into());
    for place in [6, 8, 10] {
        put(&mut answer, place, 0);
    }
    Some(answer)
}

/// Whether a message is the answer to another: it has its identifier and says that it is one.
pub fn is_answer_to(answer: &[u8], question: &[u8]) -> bool {
    let header = |m: &[u8]| Some((m.get(..2)?.to_vec(), m.get(2)? & 0x80 != 0));
    match (header(answer), header(question)) {
        (Some((answered, true)), Some((asked, _))) => answered == asked,
        _ => false,
    }
}

/// Makes "no such name" in an answer to "nothing of that type", for a name that the mesh knows and that who was asked for
/// something else about it does not. A client would else take the name itself for absent.
pub fn owned_exists(answer: &mut [u8]) {
    if let Some(code) = answer.get_mut(3)
        && u16::from(*code) & CODE == NO_SUCH_NAME
    {
        *code &= !(CODE as u8);
    }
}

/// The other side's word that EDNS is spoken (RFC 6891).
fn edns(signed: bool) -> Vec<u8> {
    let mut record = vec![0];
    let flags = if signed { 0x8000 } else { 0 };
    for word in [OPT, MOST_OVER_UDP, 0, flags, 0] {
        record.extend(u16::to_be_bytes(word));
    }
    record
}

/// Writes a word into a message that has a header.
fn put(message: &mut [u8], at: usize, word: u16) {
    message[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

struct Reader<'m> {
    message: &'m [u8],
    at: usize,
}

impl<'m> Reader<'m> {
    fn skip(&mut self, count: usize) -> Option<&'m [u8]> {
        let taken = self.message.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.skip(1).map(|bytes| bytes[0])
    }

    fn words<const N: usize>(&mut self) -> Option<[u16; N]> {
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(self.skip(2 * N)?.chunks_exact(2)) {
            *word = u16::from_be_bytes([bytes[0], bytes[1]]);
        }
        Some(words)
    }

    /// The labels up to the root, without it. In a question none is a pointer.
    fn labels(&mut self) -> Option<&'m [u8]> {
        let start = self.at;
        loop {
            match usize::from(self.byte()?) {
                0 => break,
                length if length <= LONGEST_LABEL => self.skip(length)?,
                _ => return None,
            };
        }
        let length = self.at - start;
        (length <= LONGEST_NAME).then(|| &self.message[start..self.at - 1])
    }
}

#[cfg(test)]
pub(crate) mod tests;
