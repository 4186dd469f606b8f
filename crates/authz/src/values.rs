//! The values of one field of a match, prepared for comparing.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use model::policy::{ServiceAccountMatch, StringMatch};

use crate::Connection;

/// What a field of a match is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    /// The namespace of the source's identity.
    Namespace,
    /// Namespace and account of the source's identity.
    ServiceAccount,
    /// The source's identity, without `spiffe://`.
    Principal,
    /// The source's address.
    SourceIp,
    /// The destination's address.
    DestinationIp,
    /// The destination's port.
    DestinationPort,
    /// A value that this build could not read.
    Unreadable,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Namespace => "source namespace",
            Self::ServiceAccount => "source service account",
            Self::Principal => "source principal",
            Self::SourceIp => "source address",
            Self::DestinationIp => "destination address",
            Self::DestinationPort => "destination port",
            Self::Unreadable => "a condition that this proxy cannot read",
        })
    }
}

impl Field {
    /// What the connection has in this field, in words.
    pub(crate) fn found(self, connection: &Connection) -> String {
        let identity = |text: Option<&str>| match text {
            Some(text) => format!("\"{text}\""),
            None => "absent (the source proved no identity)".to_owned(),
        };
        match self {
            Self::Namespace => identity(connection.namespace()),
            Self::ServiceAccount => {
                let account =
                    connection.peer().map(|id| format!("{}/{}", id.namespace(), id.service_account()));
                identity(account.as_deref())
            }
            Self::Principal => identity(connection.principal()),
            Self::SourceIp => connection.source_ip().to_string(),
            Self::DestinationIp => connection.destination_ip().to_string(),
            Self::DestinationPort => connection.destination_port().to_string(),
            Self::Unreadable => "unknown".to_owned(),
        }
    }
}

/// One field of a match that is not empty: does the connection have one of the values, or, negated, none of them?
#[derive(Clone, Debug)]
pub(crate) struct Test {
    pub(crate) field: Field,
    pub(crate) negated: bool,
    values: Values,
}

#[derive(Clone, Debug)]
enum Values {
    Texts(Texts),
    Accounts(Box<[ServiceAccountMatch]>),
    Blocks(Box<[IpNet]>),
    /// Sorted.
    Ports(Box<[u16]>),
}

impl Test {
    pub(crate) fn texts(field: Field, negated: bool, values: &[StringMatch]) -> Option<Self> {
        (!values.is_empty()).then(|| Self {
            field,
            negated,
            values: Values::Texts(Texts::new(field, values)),
        })
    }

    pub(crate) fn accounts(negated: bool, values: &[ServiceAccountMatch]) -> Option<Self> {
        let field = Field::ServiceAccount;
        (!values.is_empty()).then(|| Self { field, negated, values: Values::Accounts(values.into()) })
    }

    pub(crate) fn blocks(field: Field, negated: bool, values: &[IpNet]) -> Option<Self> {
        let blocks = || values.iter().copied().map(canonical).collect();
        (!values.is_empty()).then(|| Self { field, negated, values: Values::Blocks(blocks()) })
    }

    pub(crate) fn ports(negated: bool, values: &[u16]) -> Option<Self> {
        if values.is_empty() {
            return None;
        }
        let mut ports = values.to_vec();
        ports.sort_unstable();
        Some(Self { field: Field::DestinationPort, negated, values: Values::Ports(ports.into()) })
    }

    pub(crate) fn holds(&self, connection: &Connection) -> bool {
        self.has_one_of_the_values(connection) != self.negated
    }

    fn has_one_of_the_values(&self, connection: &Connection) -> bool {
        match &self.values {
            Values::Texts(texts) => {
                let text = match self.field {
                    Field::Namespace => connection.namespace(),
                    _ => connection.principal(),
                };
                text.is_some_and(|t| texts.match_one(t))
            }
            Values::Accounts(accounts) => connection.peer().is_some_and(|id| {
                let is = |wanted: &str, found: &str| wanted.is_empty() || wanted == found;
                accounts
                    .iter()
                    .any(|a| is(&a.namespace, id.namespace()) && is(&a.service_account, id.service_account()))
            }),
            Values::Blocks(blocks) => {
                let ip: IpAddr = match self.field {
                    Field::SourceIp => connection.source_ip(),
                    _ => connection.destination_ip(),
                };
                blocks.iter().any(|b| b.contains(&ip))
            }
            Values::Ports(ports) => ports.binary_search(&connection.destination_port()).is_ok(),
        }
    }

    /// What the field asks for, in words.
    pub(crate) fn wanted(&self) -> String {
        let values = match &self.values {
            Values::Texts(texts) => texts.to_string(),
            Values::Accounts(accounts) => list(accounts.iter().map(|a| {
                let part = |s: &Arc<str>| if s.is_empty() { "*".to_owned() } else { s.to_string() };
                format!("{}/{}", part(&a.namespace), part(&a.service_account))
            })),
            Values::Blocks(blocks) => list(blocks.iter().map(IpNet::to_string)),
            Values::Ports(ports) => list(ports.iter().map(u16::to_string)),
        };
        if self.negated { format!("none of {values}") } else { format!("one of {values}") }
    }
}

/// The longest list that an explanation writes out.
const LISTED: usize = 8;

fn list(values: impl ExactSizeIterator<Item = String>) -> String {
    let more = values.len().saturating_sub(LISTED);
    let mut text = values.take(LISTED).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    format!("[{text}]")
}

/// A block of v4-mapped addresses is a v4 block.
fn canonical(block: IpNet) -> IpNet {
    match block {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => match v6.addr().to_ipv4_mapped() {
            Some(v4) => Ipv4Net::new(v4, v6.prefix_len() - 96).map_or(block, IpNet::V4),
            None => block,
        },
        _ => block,
    }
}

/// Texts to compare with, by kind, so that the many exact ones cost one search.
#[derive(Clone, Debug, Default)]
struct Texts {
    /// Presence, which any text that is not empty has.
    presence: bool,
    /// Sorted.
    exact: Box<[Arc<str>]>,
    prefixes: Box<[Arc<str>]>,
    suffixes: Box<[Arc<str>]>,
}

impl Texts {
    fn new(field: Field, values: &[StringMatch]) -> Self {
        // Principals are compared without the scheme. A value that has it must not silently match nothing.
        let bare = |text: &Arc<str>| match text.strip_prefix("spiffe://") {
            Some(rest) if field == Field::Principal => rest.into(),
            _ => text.clone(),
        };
        let (mut presence, mut exact, mut prefixes, mut suffixes) = (false, vec![], vec![], vec![]);
        for value in values {
            match value {
                StringMatch::Exact(text) => exact.push(bare(text)),
                StringMatch::Prefix(text) => prefixes.push(bare(text)),
                StringMatch::Suffix(text) => suffixes.push(text.clone()),
                StringMatch::Presence => presence = true,
            }
        }
        exact.sort_unstable();
        Self { presence, exact: exact.into(), prefixes: prefixes.into(), suffixes: suffixes.into() }
    }

    fn match_one(&self, text: &str) -> bool {
        (self.presence && !text.is_empty())
            || self.exact.binary_search_by(|e| (**e).cmp(text)).is_ok()
            || self.prefixes.iter().any(|p| text.starts_with(&**p))
            || self.suffixes.iter().any(|s| text.ends_with(&**s))
    }
}

impl fmt::Display for Texts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values: Vec<String> = (self.presence.then(|| "*".to_owned()).into_iter())
            .chain(self.exact.iter().map(|t| format!("\"{t}\"")))
            .chain(self.prefixes.iter().map(|t| format!("\"{t}*\"")))
            .chain(self.suffixes.iter().map(|t| format!("\"*{t}\"")))
            .collect();
        f.write_str(&list(values.into_iter()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(value: StringMatch, text: &str) -> bool {
        Texts::new(Field::Namespace, &[value]).match_one(text)
    }

    #[test]
    fn an_exact_value_is_the_whole_text() {
        let exact = || StringMatch::Exact("shop".into());
        assert!(matches(exact(), "shop"));
        for other in ["", "sho", "shop2", "Shop"] {
            assert!(!matches(exact(), other), "{other}");
        }
    }

    #[test]
    fn a_prefix_is_the_beginning_and_a_suffix_the_end() {
        assert!(matches(StringMatch::Prefix("sh".into()), "shop"));
        assert!(matches(StringMatch::Prefix("shop".into()), "shop"));
        assert!(!matches(StringMatch::Prefix("hop".into()), "shop"));
        assert!(matches(StringMatch::Suffix("op".into()), "shop"));
        assert!(matches(StringMatch::Suffix("shop".into()), "shop"));
        assert!(!matches(StringMatch::Suffix("sho".into()), "shop"));
    }

    #[test]
    fn an_empty_prefix_or_suffix_matches_every_text() {
        assert!(matches(StringMatch::Prefix("".into()), "shop"));
        assert!(matches(StringMatch::Suffix("".into()), "shop"));
    }

    #[test]
    fn presence_is_any_text_but_the_empty_one() {
        assert!(matches(StringMatch::Presence, "a"));
        assert!(!matches(StringMatch::Presence, ""));
    }

    #[test]
    fn values_are_or_ed() {
        let texts = Texts::new(
            Field::Namespace,
            &[
                StringMatch::Exact("b".into()),
                StringMatch::Exact("a".into()),
                StringMatch::Suffix("-x".into()),
            ],
        );
        for yes in ["a", "b", "c-x"] {
            assert!(texts.match_one(yes), "{yes}");
        }
        assert!(!texts.match_one("c"));
    }

    #[test]
    fn a_scheme_is_dropped_from_principals_only() {
        let value = [StringMatch::Exact("spiffe://td/ns/a/sa/b".into())];
        assert!(Texts::new(Field::Principal, &value).match_one("td/ns/a/sa/b"));
        assert!(!Texts::new(Field::Namespace, &value).match_one("td/ns/a/sa/b"));
    }

    #[test]
    fn a_block_of_v4_mapped_addresses_is_a_v4_block() {
        let mapped: IpNet = "::ffff:10.0.0.0/104".parse().unwrap();
        assert_eq!(canonical(mapped), "10.0.0.0/8".parse::<IpNet>().unwrap());
        let all_v6: IpNet = "::/0".parse().unwrap();
        assert_eq!(canonical(all_v6), all_v6);
    }

    #[test]
    fn a_long_list_is_cut_in_words_only() {
        let ports: Vec<u16> = (1..=20).collect();
        let test = Test::ports(false, &ports).unwrap();
        assert_eq!(test.wanted(), "one of [1, 2, 3, 4, 5, 6, 7, 8 and 12 more]");
    }
}
