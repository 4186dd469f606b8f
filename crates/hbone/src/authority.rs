//! The `:authority` of a CONNECT request: where the tunnel ends.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

/// The longest host name that DNS knows, in bytes.
const NAME_MAX: usize = 253;
/// The longest label of one.
const LABEL_MAX: usize = 63;

/// A CONNECT request's target, `10.0.0.1:8080`, `[fd00::1]:8080` or `catalog.shop.svc.cluster.local:8080`.
///
/// One target has one spelling: a v4-mapped v6 address is its v4 address and a name is in lower case without the root's
/// dot. The port is never 0 where it was parsed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Authority {
    host: Host,
    port: u16,
}

/// The host of an [`Authority`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// An address: a workload, or a service's address on the way to a waypoint.
    Ip(IpAddr),
    /// A name: a service behind an east-west gateway.
    Name(Arc<str>),
}

impl Authority {
    /// The host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address, where the host is one.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Ip(ip) => Some(SocketAddr::new(ip, self.port)),
            Host::Name(_) => None,
        }
    }

    /// A target by name. The name is checked as one from a peer would be.
    pub fn named(name: &str, port: u16) -> Result<Self, ParseAuthorityError> {
        if port == 0 {
            return Err(ParseAuthorityError::Port);
        }
        Ok(Self { host: Host::Name(host_name(name)?), port })
    }
}

impl From<SocketAddr> for Authority {
    fn from(addr: SocketAddr) -> Self {
        Self { host: Host::Ip(addr.ip().to_canonical()), port: addr.port() }
    }
}

impl FromStr for Authority {
    type Err = ParseAuthorityError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if let Some(rest) = s.strip_prefix('[') {
            let (ip, rest) = rest.split_once(']').ok_or(ParseAuthorityError::Host)?;
            let port = rest.strip_prefix(':').ok_or(ParseAuthorityError::Port)?;
            let ip: std::net::Ipv6Addr = ip.parse().map_err(|_| ParseAuthorityError::Host)?;
            return Ok(Self { host: Host::Ip(IpAddr::V6(ip).to_canonical()), port: parse_port(port)? });
        }
        let (host, port) = s.rsplit_once(':').ok_or(ParseAuthorityError::Port)?;
        let host = match host.parse::<std::net::Ipv4Addr>() {
            Ok(ip) => Host::Ip(IpAddr::V4(ip)),
            Err(_) => Host::Name(host_name(host)?),
        };
        Ok(Self { host, port: parse_port(port)? })
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            Host::Ip(IpAddr::V4(ip)) => write!(f, "{ip}:{}", self.port),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

fn parse_port(s: &str) -> Result<u16, ParseAuthorityError> {
    let plain = !s.is_empty() && !s.starts_with('0') && s.bytes().all(|b| b.is_ascii_digit());
    if !plain {
        return Err(ParseAuthorityError::Port);
    }
    s.parse().map_err(|_| ParseAuthorityError::Port)
}

fn host_name(s: &str) -> Result<Arc<str>, ParseAuthorityError> {
    let s = s.strip_suffix('.').unwrap_or(s);
    if s.is_empty() || s.len() > NAME_MAX {
        return Err(ParseAuthorityError::Host);
    }
    let byte = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let label = |l: &str| !l.is_empty() && l.len() <= LABEL_MAX && l.bytes().all(byte);
    // What ends in a number was meant as an address, and is not one: `999.0.0.1`, `010.0.0.1`.
    let number = |l: &str| l.bytes().all(|b| b.is_ascii_digit());
    if !s.split('.').all(label) || s.rsplit('.').next().is_some_and(number) {
        return Err(ParseAuthorityError::Host);
    }
    Ok(s.to_ascii_lowercase().into())
}

/// Why a text is no CONNECT target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ParseAuthorityError {
    /// The host is neither an address nor a name.
    #[error("the authority's host is neither an IP address nor a host name")]
    Host,
    /// The port is missing, 0, or no number of 16 bits.
    #[error("the authority's port is not a number from 1 to 65535")]
    Port,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(s: &str) -> Result<Authority, ParseAuthorityError> {
        s.parse()
    }

    #[test]
    fn the_three_forms_are_read() {
        let v4 = parse("10.0.0.1:80").unwrap();
        assert_eq!(v4.socket_addr(), Some("10.0.0.1:80".parse().unwrap()));
        let v6 = parse("[fd00::1]:65535").unwrap();
        assert_eq!(v6.socket_addr(), Some("[fd00::1]:65535".parse().unwrap()));
        let name = parse("Catalog.shop.svc.cluster.local.:8080").unwrap();
        assert_eq!(name.host(), &Host::Name("catalog.shop.svc.cluster.local".into()));
        assert_eq!((name.port(), name.socket_addr()), (8080, None));
    }

    #[test]
    fn a_mapped_address_is_its_v4_address() {
        assert_eq!(parse("[::ffff:10.0.0.1]:80"), parse("10.0.0.1:80"));
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:80".parse().unwrap();
        assert_eq!(Authority::from(mapped).to_string(), "10.0.0.1:80");
    }

    #[test]
    fn what_names_no_target_is_refused() {
        for host in
            ["", ":80", "a b:80", "user@host:80", "10.0.0.256:80", "010.0.0.1:80", "[10.0.0.1]:80", "a..b:80"]
        {
            assert!(parse(host).is_err(), "{host}");
        }
        for port in ["h:0", "h:", "h", "h:+80", "h:080", "h:65536", "[::1]", "[::1]80", "h:80:"] {
            assert!(parse(port).is_err(), "{port}");
        }
        for v6 in ["::1:80", "[::1", "[fe80::1%eth0]:80"] {
            assert!(parse(v6).is_err(), "{v6}");
        }
    }

    proptest! {
        #[test]
        fn any_text_gives_an_answer_and_an_accepted_one_keeps_its_spelling(s in ".{0,80}") {
            if let Ok(authority) = parse(&s) {
                prop_assert_eq!(parse(&authority.to_string()), Ok(authority));
            }
        }

        #[test]
        fn every_address_survives(ip: IpAddr, port in 1u16..) {
            let authority = Authority::from(SocketAddr::new(ip, port));
            prop_assert_eq!(parse(&authority.to_string()), Ok(authority));
        }
    }
}
