//! The `forwarded` header: which client a tunnel is opened for.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

/// The longest header that is read, in bytes.
const HEADER_MAX: usize = 1024;

/// The original client, and the service it addressed (RFC 7239): `for="10.0.0.7:41000";host=catalog.shop.svc`.
///
/// It is the peer's claim, proven by nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// The client's address.
    pub client: IpAddr,
    /// The client's port, where the peer told it.
    pub port: Option<u16>,
    /// The service's host name, where the client addressed one.
    pub host: Option<Arc<str>>,
}

impl Forwarded {
    /// What a proxy says of a connection that it captured.
    pub fn new(client: SocketAddr, host: Option<Arc<str>>) -> Self {
        Self {
            client: client.ip().to_canonical(),
            port: Some(client.port()),
            host: host.filter(|h| is_host(h)),
        }
    }
}

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.client {
            IpAddr::V4(ip) => write!(f, "for=\"{ip}")?,
            IpAddr::V6(ip) => write!(f, "for=\"[{ip}]")?,
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        f.write_str("\"")?;
        match &self.host {
            // A port's colon may stand in a quoted string only.
            Some(host) if host.contains([':', '[', ']']) => write!(f, ";host=\"{host}\""),
            Some(host) => write!(f, ";host={host}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Forwarded {
    type Err = ParseForwardedError;

    /// Reads the first element, the one nearest the client. Parameters other than `for` and `host` are passed over.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if s.len() > HEADER_MAX {
            return Err(ParseForwardedError::TooLong);
        }
        let (mut client, mut host) = (None, None);
        let mut rest = s;
        loop {
            rest = rest.trim_start_matches([' ', '\t', ';']);
            if rest.is_empty() || rest.starts_with(',') {
                break;
            }
            let (name, after) = rest.split_once('=').ok_or(ParseForwardedError::Syntax)?;
            let (value, after) = value(after)?;
            match name.trim_end() {
                n if n.eq_ignore_ascii_case("for") && client.is_none() => client = Some(node(&value)?),
                n if n.eq_ignore_ascii_case("host") && host.is_none() => {
                    host = Some(value).filter(|h| is_host(h)).map(Arc::from);
                }
                _ => {}
            }
            rest = after.trim_start_matches([' ', '\t']);
            if !(rest.is_empty() || rest.starts_with([';', ','])) {
                return Err(ParseForwardedError::Syntax);
            }
        }
        let (client, port) = client.ok_or(ParseForwardedError::NoClient)?;
        Ok(Self { client, port, host })
    }
}

/// A token or a quoted string at the front, and what follows it.
fn value(s: &str) -> Result<(String, &str), ParseForwardedError> {
    let s = s.trim_start_matches([' ', '\t']);
    let Some(quoted) = s.strip_prefix('"') else {
        let end = s.find([';', ',', ' ', '\t', '"']).unwrap_or(s.len());
        let (token, rest) = s.split_at(end);
        return if token.is_empty() {
            Err(ParseForwardedError::Syntax)
        } else {
            Ok((token.to_owned(), rest))
        };
    };
    let mut out = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((out, &quoted[at + 1..])),
            '\\' => out.push(chars.next().ok_or(ParseForwardedError::Syntax)?.1),
            c => out.push(c),
        }
    }
    Err(ParseForwardedError::Syntax)
}

/// An address with or without a port; `unknown` and obfuscated names tell nothing.
fn node(s: &str) -> Result<(IpAddr, Option<u16>), ParseForwardedError> {
    if let Ok(addr) = s.parse::<SocketAddr>() {
        return Ok((addr.ip().to_canonical(), Some(addr.port())));
    }
    let bare = s.strip_prefix('[').and_then(|s| s.strip_suffix(']')).unwrap_or(s);
    bare.parse::<IpAddr>().map(|ip| (ip.to_canonical(), None)).map_err(|_| ParseForwardedError::NoClient)
}

fn is_host(s: &str) -> bool {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    !s.is_empty() && s.len() <= 260 && s.bytes().all(ok)
}

/// Why a `forwarded` header tells nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ParseForwardedError {
    /// Longer than is read.
    #[error("the header is longer than {HEADER_MAX} bytes")]
    TooLong,
    /// Not a list of parameters.
    #[error("the header is not a list of parameters")]
    Syntax,
    /// No `for`, or one that is no IP address.
    #[error("the header names no client by address")]
    NoClient,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn forwarded(client: &str, host: Option<&str>) -> Forwarded {
        Forwarded::new(client.parse().unwrap(), host.map(Arc::from))
    }

    #[test]
    fn both_families_are_written_in_quotes() {
        let v4 = forwarded("10.0.0.7:41000", Some("catalog.shop.svc"));
        assert_eq!(v4.to_string(), r#"for="10.0.0.7:41000";host=catalog.shop.svc"#);
        let v6 = forwarded("[fd00::7]:41000", None);
        assert_eq!(v6.to_string(), r#"for="[fd00::7]:41000""#);
        for f in [v4, v6] {
            assert_eq!(f.to_string().parse(), Ok(f));
        }
    }

    #[test]
    fn the_forms_of_the_standard_are_read() {
        let read = |s: &str| s.parse::<Forwarded>();
        let bare = Forwarded { client: "192.0.2.60".parse().unwrap(), port: None, host: None };
        assert_eq!(read("For=192.0.2.60;proto=http;by=203.0.113.43"), Ok(bare.clone()));
        assert_eq!(read("for=192.0.2.60, for=198.51.100.17"), Ok(bare));
        let v6 = Forwarded { client: "2001:db8::17".parse().unwrap(), port: Some(4711), host: None };
        assert_eq!(read(r#"proto=https; for="[2001:db8::17]:4711""#), Ok(v6.clone()));
        assert_eq!(read(r#"for="[2001:db8::17]""#).map(|f| f.port), Ok(None));
        assert_eq!(read("host=a.b:80;for=10.0.0.1").map(|f| f.host), Ok(Some("a.b:80".into())));
    }

    #[test]
    fn what_names_no_client_is_refused() {
        use ParseForwardedError::*;
        let cases = [
            ("", NoClient),
            ("for=unknown", NoClient),
            ("for=_hidden", NoClient),
            ("host=a", NoClient),
            ("for", Syntax),
            (r#"for="10.0.0.1"#, Syntax),
            (r#"for="10.0.0.1"x"#, Syntax),
            ("for=", Syntax),
        ];
        for (text, why) in cases {
            assert_eq!(text.parse::<Forwarded>(), Err(why), "{text}");
        }
        let long = format!("for=10.0.0.1;host={}", "a".repeat(HEADER_MAX));
        assert_eq!(long.parse::<Forwarded>(), Err(TooLong));
    }

    #[test]
    fn a_host_that_could_break_the_header_is_left_out() {
        assert_eq!(forwarded("10.0.0.7:1", Some("a\";for=x")).host, None);
    }

    proptest! {
        #[test]
        fn any_text_gives_an_answer_and_an_accepted_one_survives(s in "(for|host|=|\"|;|,|\\\\|[0-9.:\\[\\]a-f]{1,8}|.){0,24}") {
            if let Ok(read) = s.parse::<Forwarded>() {
                prop_assert_eq!(read.to_string().parse(), Ok(read));
            }
        }

        #[test]
        fn every_client_survives(client: SocketAddr, host in proptest::option::of("[a-z]{1,9}(\\.[a-z]{1,9}){0,3}")) {
            let f = Forwarded::new(client, host.map(Arc::from));
            prop_assert_eq!(f.to_string().parse(), Ok(f));
        }
    }
}
