//! Policies.

use ambit_proto::security as wire;
use ipnet::IpNet;
use model::Policy;
use model::policy::{Action, Clause, Match, PolicyScope, Rule, ServiceAccountMatch, StringMatch};

use super::octets;

/// A policy.
///
/// A match that is `unreadable` has no words on the wire, so what it means is written instead, in words that every
/// reader knows: in a DENY a match that always holds, in an ALLOW one match fewer, and one rule fewer where that was
/// a clause's last.
pub fn policy(p: &Policy) -> wire::Authorization {
    wire::Authorization {
        name: p.key.name.to_string(),
        namespace: p.key.namespace.to_string(),
        scope: match p.scope {
            PolicyScope::Global => wire::Scope::Global,
            PolicyScope::Namespace => wire::Scope::Namespace,
            PolicyScope::WorkloadSelector => wire::Scope::WorkloadSelector,
        }
        .into(),
        action: match p.action {
            Action::Allow => wire::Action::Allow,
            Action::Deny => wire::Action::Deny,
        }
        .into(),
        rules: p.rules.iter().filter_map(|r| rule(r, p.action)).collect(),
        dry_run: p.dry_run,
        extensions: Vec::new(),
    }
}

/// Nothing where a clause can never hold.
fn rule(r: &Rule, action: Action) -> Option<wire::Rule> {
    let clauses = r.clauses.iter().map(|c| clause(c, action)).collect::<Option<_>>()?;
    Some(wire::Rule { clauses })
}

fn clause(c: &Clause, action: Action) -> Option<wire::Clause> {
    let matches: Vec<wire::Match> = c
        .matches
        .iter()
        .filter_map(|m| match (m.unreadable, action) {
            (false, _) => Some(r#match(m)),
            (true, Action::Deny) => Some(wire::Match::default()),
            (true, Action::Allow) => None,
        })
        .collect();
    let never = matches.is_empty() && !c.matches.is_empty();
    (!never).then_some(wire::Clause { matches })
}

fn r#match(m: &Match) -> wire::Match {
    wire::Match {
        namespaces: strings(&m.namespaces),
        not_namespaces: strings(&m.not_namespaces),
        service_accounts: accounts(&m.service_accounts),
        not_service_accounts: accounts(&m.not_service_accounts),
        principals: strings(&m.principals),
        not_principals: strings(&m.not_principals),
        source_ips: blocks(&m.source_ips),
        not_source_ips: blocks(&m.not_source_ips),
        destination_ips: blocks(&m.destination_ips),
        not_destination_ips: blocks(&m.not_destination_ips),
        destination_ports: m.destination_ports.iter().map(|p| u32::from(*p)).collect(),
        not_destination_ports: m.not_destination_ports.iter().map(|p| u32::from(*p)).collect(),
        extensions: Vec::new(),
    }
}

fn strings(list: &[StringMatch]) -> Vec<wire::StringMatch> {
    use wire::string_match::MatchType;
    list.iter()
        .map(|m| {
            let match_type = match m {
                StringMatch::Exact(text) => MatchType::Exact(text.to_string()),
                StringMatch::Prefix(text) => MatchType::Prefix(text.to_string()),
                StringMatch::Suffix(text) => MatchType::Suffix(text.to_string()),
                StringMatch::Presence => MatchType::Presence(()),
            };
            wire::StringMatch { match_type: Some(match_type) }
        })
        .collect()
}

fn accounts(list: &[ServiceAccountMatch]) -> Vec<wire::ServiceAccountMatch> {
    list.iter()
        .map(|a| wire::ServiceAccountMatch {
            namespace: a.namespace.to_string(),
            service_account: a.service_account.to_string(),
        })
        .collect()
}

fn blocks(list: &[IpNet]) -> Vec<wire::Address> {
    list.iter()
        .map(|net| wire::Address { address: octets(net.addr()), length: net.prefix_len().into() })
        .collect()
}
