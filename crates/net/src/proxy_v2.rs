//! The PROXY protocol, version 2: who a connection is really from, told in a header before its first byte.
//!
//! This is the binary form of HAProxy's `proxy-protocol.txt`, section 2.2, for TCP alone. Two of its fields (TLVs) are the
//! mesh's own: the source's SPIFFE identity, and the host name of the service that was addressed.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and protocol, length.
const FIXED: usize = 16;
/// Version 2, PROXY: the addresses are those of the connection that is passed on.
const PROXY: u8 = 0x21;
/// Version 2, LOCAL: the sender speaks for itself.
const LOCAL: u8 = 0x20;
const TCP_V4: u8 = 0x11;
const TCP_V6: u8 = 0x21;
/// The source's SPIFFE identity.
const IDENTITY: u8 = 0xd0;
/// The host name of the service.
const SERVICE: u8 = 0xd1;

/// What a proxy says of a connection that it passes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// The client.
    pub source: SocketAddr,
    /// Where it was going.
    pub destination: SocketAddr,
    /// The SPIFFE identity that the client proved.
    pub identity: Option<String>,
    /// The host name of the service that it addressed.
    pub service: Option<String>,
}

/// A header's fields do not fit into one: they are longer than 64 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the fields of a PROXY header are longer than it can hold")]
pub struct TooLong;

/// Why bytes are no header.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProxyHeaderError {
    /// It does not begin as one.
    #[error("it does not begin with the signature of PROXY version 2")]
    Signature,
    /// It is of another version, or neither LOCAL nor PROXY.
    #[error("version and command {0:#04x} are unknown")]
    Version(u8),
    /// It is about something else than TCP.
    #[error("family and protocol {0:#04x} are not TCP over IP")]
    Family(u8),
    /// Its length leaves no room for what it must hold.
    #[error("it is shorter than its fields")]
    Short,
    /// A field of the mesh is no text.
    #[error("field {0:#04x} is no text")]
    Text(u8),
    /// A field of the mesh is there twice: which one counts?
    #[error("field {0:#04x} is there twice")]
    Twice(u8),
}

/// What stands at the beginning of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prelude {
    /// Not all of the header has come yet: at least this many bytes in all are needed.
    More(usize),
    /// A header, and its length in bytes. None where the sender speaks for itself (LOCAL).
    Header(Option<ProxyHeader>, usize),
}

impl ProxyHeader {
    /// The bytes of the header. Both addresses are written as v6 where one of them is.
    ///
    /// # Errors
    /// Where the fields are too long for a header.
    pub fn encode(&self) -> Result<Vec<u8>, TooLong> {
        let mut body = Vec::with_capacity(128);
        let family = match (self.source.ip().to_canonical(), self.destination.ip().to_canonical()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                body.extend(source.octets());
                body.extend(destination.octets());
                TCP_V4
            }
            (source, destination) => {
                body.extend(mapped(source).octets());
                body.extend(mapped(destination).octets());
                TCP_V6
            }
        };
        body.extend(self.source.port().to_be_bytes());
        body.extend(self.destination.port().to_be_bytes());
        for (kind, value) in [(IDENTITY, &self.identity), (SERVICE, &self.service)] {
            if let Some(value) = value {
                body.push(kind);
                body.extend(u16::try_from(value.len()).map_err(|_| TooLong)?.to_be_bytes());
                body.extend(value.as_bytes());
            }
        }
        let length = u16::try_from(body.len()).map_err(|_| TooLong)?;
        let mut header = Vec::with_capacity(FIXED + body.len());
        header.extend(SIGNATURE);
        header.extend([PROXY, family]);
        header.extend(length.to_be_bytes());
        header.extend(body);
        Ok(header)
    }

    /// Reads the beginning of a connection. Fields that are not the mesh's are passed over.
    ///
    /// # Errors
    /// As soon as it is clear that it is no header, or one that cannot be believed.
    pub fn parse(bytes: &[u8]) -> Result<Prelude, ProxyHeaderError> {
        let begun = bytes.len().min(SIGNATURE.len());
        if bytes[..begun] != SIGNATURE[..begun] {
            return Err(ProxyHeaderError::Signature);
        }
        let Some((fixed, rest)) = bytes.split_at_checked(FIXED) else { return Ok(Prelude::More(FIXED)) };
        let (command, family) = (fixed[12], fixed[13]);
        if !matches!(command, PROXY | LOCAL) {
            return Err(ProxyHeaderError::Version(command));
        }
        let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
        let whole = FIXED + length;
        let Some(body) = rest.get(..length) else { return Ok(Prelude::More(whole)) };
        if command == LOCAL {
            return Ok(Prelude::Header(None, whole));
        }
        let mut body = Reader(body);
        let (source, destination) = match family {
            TCP_V4 => (IpAddr::from(body.array::<4>()?), IpAddr::from(body.array::<4>()?)),
            TCP_V6 => (IpAddr::from(body.array::<16>()?), IpAddr::from(body.array::<16>()?)),
            other => return Err(ProxyHeaderError::Family(other)),
        };
        let source = SocketAddr::new(source.to_canonical(), u16::from_be_bytes(body.array()?));
        let destination = SocketAddr::new(destination.to_canonical(), u16::from_be_bytes(body.array()?));
        let mut header = Self { source, destination, identity: None, service: None };
        while let Some((kind, value)) = body.field()? {
            let slot = match kind {
                IDENTITY => &mut header.identity,
                SERVICE => &mut header.service,
                _ => continue,
            };
            let value = std::str::from_utf8(value).map_err(|_| ProxyHeaderError::Text(kind))?;
            if slot.replace(value.to_owned()).is_some() {
                return Err(ProxyHeaderError::Twice(kind));
            }
        }
        Ok(Prelude::Header(Some(header), whole))
    }
}

fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => Ipv4Addr::to_ipv6_mapped(&ip),
        IpAddr::V6(ip) => ip,
    }
}

/// What is left of a header's body.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProxyHeaderError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(ProxyHeaderError::Short)?;
        self.0 = rest;
        Ok(*head)
    }

    /// The next field and its kind; nothing at the end.
    fn field(&mut self) -> Result<Option<(u8, &'a [u8])>, ProxyHeaderError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let [kind, high, low] = self.array()?;
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (value, rest) = self.0.split_at_checked(length).ok_or(ProxyHeaderError::Short)?;
        self.0 = rest;
        Ok(Some((kind, value)))
    }
}

/// `10.0.0.1:4100 -> 10.96.0.9:80 spiffe://…`, for people.
impl fmt::Display for ProxyHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.source, self.destination)?;
        for part in [&self.identity, &self.service].into_iter().flatten() {
            write!(f, " {part}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> impl Strategy<Value = ProxyHeader> {
        let address = || {
            prop_oneof![
                (any::<u32>(), any::<u16>()).prop_map(|(ip, port)| (Ipv4Addr::from(ip), port).into()),
                (any::<u128>(), any::<u16>()).prop_map(|(ip, port)| {
                    SocketAddr::new(IpAddr::V6(Ipv6Addr::from(ip)).to_canonical(), port)
                }),
            ]
        };
        let text = || proptest::option::of(".{0,300}");
        (address(), address(), text(), text()).prop_map(|(source, destination, identity, service)| {
            ProxyHeader { source, destination, identity, service }
        })
    }

    #[test]
    fn the_bytes_are_those_of_the_specification() {
        let header = ProxyHeader {
            source: "10.0.0.7:41000".parse().unwrap(),
            destination: "10.96.0.9:80".parse().unwrap(),
            identity: Some("spiffe://a/ns/b/sa/c".to_owned()),
            service: Some("w.b.svc".to_owned()),
        };
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x2d".to_vec();
        expected.extend([10, 0, 0, 7, 10, 96, 0, 9, 0xa0, 0x28, 0, 80]);
        expected.extend(b"\xd0\x00\x14spiffe://a/ns/b/sa/c\xd1\x00\x07w.b.svc");
        assert_eq!(header.encode().unwrap(), expected);
    }

    #[test]
    fn what_cannot_be_believed_is_refused() {
        let sample = |identity: Option<&str>| ProxyHeader {
            source: "10.0.0.7:1".parse().unwrap(),
            destination: "10.0.0.8:2".parse().unwrap(),
            identity: identity.map(str::to_owned),
            service: None,
        };
        let good = sample(Some("x")).encode().unwrap();
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            ProxyHeader::parse(&bytes)
        };
        assert_eq!(with(&|b| b[0] = b'G'), Err(ProxyHeaderError::Signature));
        assert_eq!(with(&|b| b[12] = 0x11), Err(ProxyHeaderError::Version(0x11)));
        assert_eq!(with(&|b| b[13] = 0x12), Err(ProxyHeaderError::Family(0x12)));
        assert_eq!(with(&|b| b[13] = TCP_V6), Err(ProxyHeaderError::Short));
        assert_eq!(with(&|b| b[30] = 9), Err(ProxyHeaderError::Short));
        assert_eq!(with(&|b| b[31] = 0xff), Err(ProxyHeaderError::Text(IDENTITY)));
        let twice = |b: &mut Vec<u8>| {
            b.extend([IDENTITY, 0, 1, b'y']);
            b[15] += 4;
        };
        assert_eq!(with(&twice), Err(ProxyHeaderError::Twice(IDENTITY)));
        assert_eq!(sample(Some(&"x".repeat(70_000))).encode(), Err(TooLong));
    }

    #[test]
    fn a_sender_that_speaks_for_itself_says_nothing_of_others() {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([LOCAL, 0, 0, 0]);
        assert_eq!(ProxyHeader::parse(&bytes), Ok(Prelude::Header(None, FIXED)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(header in header(), rest in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut bytes = header.encode().unwrap();
            let length = bytes.len();
            bytes.extend(rest);
            prop_assert_eq!(ProxyHeader::parse(&bytes), Ok(Prelude::Header(Some(header), length)));
        }

        #[test]
        fn a_header_that_comes_in_pieces_is_waited_for(header in header()) {
            let bytes = header.encode().unwrap();
            for n in 0..bytes.len() {
                let Ok(Prelude::More(needed)) = ProxyHeader::parse(&bytes[..n]) else { panic!("{n} bytes are enough") };
                prop_assert!(needed > n && needed <= bytes.len());
            }
        }

        #[test]
        fn no_bytes_break_the_reader(mut bytes in proptest::collection::vec(any::<u8>(), 0..80), signed in any::<bool>()) {
            if signed {
                let n = bytes.len().min(SIGNATURE.len());
                bytes[..n].copy_from_slice(&SIGNATURE[..n]);
            }
            if let Ok(Prelude::Header(_, length)) = ProxyHeader::parse(&bytes) {
                prop_assert!(length <= bytes.len());
            }
        }
    }
}
