//! The netlink protocol of nftables (`nf_tables(7)` has none; `linux/netfilter/nf_tables.h` and `nfnetlink.h` do): changes
//! that happen together or not at all, and lists of what there is.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use thiserror::Error;

const HEADER: usize = 16;
/// `struct nfgenmsg`, behind the header.
const GENERAL: usize = 4;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NLM_F_REQUEST: u16 = 0x001;
const NLM_F_ACK: u16 = 0x004;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NFTABLES: u16 = 10;
const NLA_NESTED: u16 = 0x8000;
/// The bits of an attribute's type that say which it is.
const NLA_TYPE: u16 = 0x3fff;

/// NFPROTO_INET: both families.
pub(super) const INET: u8 = 1;

/// What a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Kind {
    NewTable = 0,
    GetTable = 1,
    DeleteTable = 2,
    NewChain = 3,
    GetChain = 4,
    NewRule = 6,
    GetRule = 7,
    GetGeneration = 16,
}

/// Attributes, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.0.extend((4 + value.len() as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Numbers are in network order in this protocol.
    pub(super) fn put_u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// A name, with the zero at its end.
    pub(super) fn put_name(&mut self, kind: u16, name: &str) -> &mut Self {
        let mut bytes = name.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    pub(super) fn put_nested(&mut self, kind: u16, value: &Self) -> &mut Self {
        self.put_encoded(kind, &value.0)
    }

    pub(super) fn put_encoded(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.put(kind | NLA_NESTED, value)
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Attributes of a message of the kernel's, each with its type and its value. Ends where they make no sense.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & NLA_TYPE, value))
    })
}

/// The value of the first attribute of a type.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// Changes that happen together or not at all.
#[derive(Debug, Default)]
pub(super) struct Batch {
    messages: Vec<(Kind, Attributes)>,
}

impl Batch {
    pub(super) fn push(&mut self, kind: Kind, attributes: Attributes) {
        self.messages.push((kind, attributes));
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = message(BATCH_BEGIN, NLM_F_REQUEST, 0, 0, NFTABLES, &[]);
        for (sequence, (kind, attributes)) in (1..).zip(&self.messages) {
            let create = match kind {
                Kind::NewTable | Kind::NewChain => NLM_F_CREATE,
                Kind::NewRule => NLM_F_CREATE | NLM_F_APPEND,
                _ => 0,
            };
            let flags = NLM_F_REQUEST | NLM_F_ACK | create;
            bytes.extend(message(of(*kind), flags, sequence, INET, 0, &attributes.0));
        }
        let end = self.messages.len() as u32 + 1;
        bytes.extend(message(BATCH_END, NLM_F_REQUEST, end, 0, NFTABLES, &[]));
        bytes
    }
}

fn of(kind: Kind) -> u16 {
    NFTABLES << 8 | kind as u16
}

fn message(kind: u16, flags: u16, sequence: u32, family: u8, resource: u16, attributes: &[u8]) -> Vec<u8> {
    let length = (HEADER + GENERAL + attributes.len()) as u32;
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(attributes);
    bytes
}

/// A socket that speaks with the nftables of the network namespace in which it was opened.
#[derive(Debug)]
pub(super) struct Link(OwnedFd);

impl Link {
    /// Opens one in the calling thread's network namespace.
    pub(super) fn open() -> Result<Self, WireError> {
        let link = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )?;
        setsockopt(&link, sockopt::ReceiveTimeout, &TimeVal::new(5, 0))?;
        Ok(Self(link))
    }

    /// Makes changes. To be done on a link of its own: where the kernel refuses, answers are left in it.
    pub(super) fn commit(self, batch: &Batch) -> Result<(), WireError> {
        send(self.0.as_raw_fd(), &batch.encode(), MsgFlags::empty())?;
        let last = batch.messages.len() as u32;
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let received = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut is_done = false;
            each(&buffer[..received], |kind, sequence, body| {
                if kind == NLMSG_ERROR {
                    refused(body)?;
                    is_done |= sequence == last;
                }
                Ok(())
            })?;
            if is_done {
                return Ok(());
            }
        }
    }

    /// The attributes of all that there is of a kind, or of the one thing that there is of it.
    pub(super) fn list(&self, kind: Kind, attributes: &Attributes) -> Result<Vec<Vec<u8>>, WireError> {
        let dump = if kind == Kind::GetGeneration { 0 } else { NLM_F_DUMP };
        let asked = message(of(kind), NLM_F_REQUEST | dump, 0, INET, 0, &attributes.0);
        send(self.0.as_raw_fd(), &asked, MsgFlags::empty())?;
        let mut buffer = vec![0; 32 * 1024];
        let mut found = Vec::new();
        loop {
            let received = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut is_done = false;
            each(&buffer[..received], |kind, _, body| {
                match kind {
                    NLMSG_DONE => is_done = true,
                    NLMSG_ERROR => refused(body)?,
                    _ => {
                        let attributes = body.get(GENERAL..).ok_or(WireError::Truncated)?;
                        found.push(attributes.to_vec());
                        is_done |= dump == 0;
                    }
                }
                Ok(())
            })?;
            if is_done {
                return Ok(found);
            }
        }
    }
}

fn refused(body: &[u8]) -> Result<(), WireError> {
    let errno = i32::from_ne_bytes(*body.first_chunk().ok_or(WireError::Truncated)?);
    match errno {
        0 => Ok(()),
        errno => Err(WireError::Refused(io::Error::from_raw_os_error(errno.saturating_neg()))),
    }
}

/// The messages of a datagram: what each is, which one it answers, and what follows its header.
fn each(
    mut bytes: &[u8],
    mut take: impl FnMut(u16, u32, &[u8]) -> Result<(), WireError>,
) -> Result<(), WireError> {
    while !bytes.is_empty() {
        let header: &[u8; HEADER] = bytes.first_chunk().ok_or(WireError::Truncated)?;
        let [a, b, c, d, kind_low, kind_high, _, _, e, f, g, h, ..] = *header;
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        let body = bytes.get(HEADER..length).ok_or(WireError::Truncated)?;
        take(u16::from_ne_bytes([kind_low, kind_high]), u32::from_ne_bytes([e, f, g, h]), body)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(())
}

/// Why the kernel's nftables cannot be changed or listed.
#[derive(Debug, Error)]
pub enum WireError {
    /// The socket fails.
    #[error("the kernel's nftables cannot be asked")]
    Socket(#[from] Errno),
    /// The kernel refuses. ENOENT may say that it lacks an expression, EOPNOTSUPP nftables altogether.
    #[error("the kernel refuses")]
    Refused(#[source] io::Error),
    /// The answer ends too early.
    #[error("the kernel's answer is cut short")]
    Truncated,
}

impl WireError {
    /// Whether what it was about is not there.
    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Self::Refused(error) if error.kind() == io::ErrorKind::NotFound)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_survive_the_round_trip() {
        let (mut inner, mut outer) = (Attributes::default(), Attributes::default());
        inner.put_name(3, "odd").put_u32(4, 0x0102_0304);
        outer.put(1, b"abcde").put_nested(2, &inner);
        let bytes = outer.into_bytes();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(attribute(&bytes, 1), Some(&b"abcde"[..]));
        let inner = attribute(&bytes, 2).unwrap();
        assert_eq!(attribute(inner, 3), Some(&b"odd\0"[..]));
        assert_eq!(attribute(inner, 4), Some(&[1, 2, 3, 4][..]));
        assert_eq!(attribute(inner, 5), None);
    }

    #[test]
    fn a_batch_is_framed_and_every_change_is_answered() {
        let mut batch = Batch::default();
        batch.push(Kind::NewTable, Attributes::default());
        batch.push(Kind::NewRule, Attributes::default());
        let mut seen = Vec::new();
        each(&batch.encode(), |kind, sequence, _| {
            seen.push((kind, sequence));
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, [(BATCH_BEGIN, 0), (0x0a00, 1), (0x0a06, 2), (BATCH_END, 3)]);
    }

    proptest! {
        #[test]
        fn no_answer_panics_or_hangs(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = each(&bytes, |_, _, body| refused(body));
            let _ = attributes(&bytes).count();
        }
    }
}
