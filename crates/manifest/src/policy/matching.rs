//! Values of a policy to values of a match.

use std::net::IpAddr;

use ipnet::IpNet;
use model::TrustDomain;
use model::policy::{ServiceAccountMatch, StringMatch};

use crate::kinds::MeshSettings;

/// `*`, `prefix*`, `*suffix`, or the whole text. A `*` elsewhere has no meaning.
pub(crate) fn string(value: &str) -> Option<StringMatch> {
    let inner = |text: &str| (!text.is_empty() && !text.contains('*')).then(|| text.into());
    match (value.strip_prefix('*'), value.strip_suffix('*')) {
        (Some(""), _) => Some(StringMatch::Presence),
        (Some(suffix), _) => inner(suffix).map(StringMatch::Suffix),
        (_, Some(prefix)) => inner(prefix).map(StringMatch::Prefix),
        _ => inner(value).map(StringMatch::Exact),
    }
}

/// A principal, under each name of the mesh's trust domain where it is of that: under one of the names, or under
/// `cluster.local`, which in policies means the mesh's own, whatever its name.
pub(crate) fn principals(value: &str, mesh: &MeshSettings) -> Option<Vec<StringMatch>> {
    let read = string(value)?;
    let text = match &read {
        StringMatch::Exact(text) | StringMatch::Prefix(text) | StringMatch::Suffix(text) => &**text,
        StringMatch::Presence => "",
    };
    let ends = matches!(read, StringMatch::Suffix(_));
    let Some((domain, rest)) = text.split_once('/').filter(|(domain, _)| !domain.is_empty()) else {
        return Some(vec![read]);
    };
    // A suffix that does not begin with the domain begins within what comes after it.
    if ends && !rest.starts_with("ns/") {
        return Some(vec![read]);
    }
    let is = |name: &str| if ends { name.ends_with(domain) } else { name == domain };
    let own = mesh.trust_domains().any(|name| is(name.as_str())) || is(TrustDomain::default().as_str());
    if !own {
        return Some(vec![read]);
    }
    let under = |name: &TrustDomain| -> StringMatch {
        let text = format!("{name}/{rest}").into();
        if matches!(read, StringMatch::Prefix(_)) {
            StringMatch::Prefix(text)
        } else {
            StringMatch::Exact(text)
        }
    };
    Some(mesh.trust_domains().map(under).collect())
}

/// An address or a CIDR; the bits beyond its length do not count.
pub(crate) fn network(value: &str) -> Option<IpNet> {
    if let Ok(ip) = value.parse::<IpAddr>() {
        return Some(IpNet::from(ip));
    }
    value.parse::<IpNet>().ok().map(|net| net.trunc())
}

/// A port, from 1.
pub(crate) fn port(value: &str) -> Option<u16> {
    let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    value.parse().ok().filter(|port| digits && *port != 0)
}

/// `namespace/account`, or `account` in the policy's own namespace.
pub(crate) fn service_account(value: &str, own_namespace: &str) -> Option<ServiceAccountMatch> {
    let (namespace, account) = value.split_once('/').unwrap_or((own_namespace, value));
    let ok = |part: &str| !part.is_empty() && !part.contains(['*', '/']);
    (ok(namespace) && ok(account))
        .then(|| ServiceAccountMatch { namespace: namespace.into(), service_account: account.into() })
}

/// What a `when` looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionKey {
    /// The connection's source address.
    SourceIp,
    /// The source identity's namespace.
    SourceNamespace,
    /// The source identity.
    SourcePrincipal,
    /// The source identity's account.
    SourceServiceAccount,
    /// The destination's address.
    DestinationIp,
    /// The destination's port.
    DestinationPort,
    /// Something that only a proxy of requests sees.
    Request,
}

impl ConditionKey {
    /// The keys without an argument, for a did-you-mean.
    pub(crate) const NAMES: [&'static str; 14] = [
        "source.ip",
        "source.namespace",
        "source.principal",
        "source.serviceAccount",
        "destination.ip",
        "destination.port",
        "remote.ip",
        "connection.sni",
        "request.headers",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "request.auth.claims",
        "experimental.envoy.filters",
    ];

    /// Reads a key; nothing where there is none of that name.
    pub fn parse(key: &str) -> Option<Self> {
        Some(match key {
            "source.ip" => Self::SourceIp,
            "source.namespace" => Self::SourceNamespace,
            "source.principal" => Self::SourcePrincipal,
            "source.serviceAccount" => Self::SourceServiceAccount,
            "destination.ip" => Self::DestinationIp,
            "destination.port" => Self::DestinationPort,
            "remote.ip"
            | "connection.sni"
            | "request.auth.principal"
            | "request.auth.audiences"
            | "request.auth.presenter" => Self::Request,
            _ if key.starts_with("experimental.envoy.filters.") => Self::Request,
            _ => {
                let argument = ["request.headers[", "request.auth.claims["];
                let rest = argument.iter().find_map(|prefix| key.strip_prefix(prefix))?;
                return (rest.len() > 1 && rest.ends_with(']')).then_some(Self::Request);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_at_one_end_only() {
        assert_eq!(string("*"), Some(StringMatch::Presence));
        assert_eq!(string("a*"), Some(StringMatch::Prefix("a".into())));
        assert_eq!(string("*a"), Some(StringMatch::Suffix("a".into())));
        assert_eq!(string("a"), Some(StringMatch::Exact("a".into())));
        for bad in ["", "**", "a*b", "*a*", "***"] {
            assert_eq!(string(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_address_is_a_block_of_one() {
        assert_eq!(network("10.0.0.1").unwrap().to_string(), "10.0.0.1/32");
        assert_eq!(network("10.1.2.3/8").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(network("fd00::/8").unwrap().to_string(), "fd00::/8");
        assert_eq!(network("10.0.0.0/33"), None);
        assert_eq!(network("host"), None);
    }

    #[test]
    fn condition_keys_are_those_of_the_api() {
        assert_eq!(ConditionKey::parse("destination.port"), Some(ConditionKey::DestinationPort));
        assert_eq!(ConditionKey::parse("request.headers[X-A]"), Some(ConditionKey::Request));
        for bad in ["", "source", "request.headers", "request.headers[]", "source.port"] {
            assert_eq!(ConditionKey::parse(bad), None, "{bad}");
        }
    }
}
