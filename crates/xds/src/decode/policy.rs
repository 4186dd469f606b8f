//! Policies, which fail closed.
//!
//! What decides whether a policy applies at all (its name, scope and action) must be known, or the policy is bad and
//! its last good state stays. Inside its rules, whatever this build cannot read makes the match that carries it
//! `unreadable`, so that an ALLOW never allows by it and a DENY always denies by it.

use std::sync::Arc;

use ambit_proto::security as wire;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use model::policy::{Action, Clause, Match, PolicyScope, Rule, ServiceAccountMatch, StringMatch};
use model::{Policy, PolicyKey};

use super::Fault;
use super::unread::Unread;
use super::workload::raw_ip;

pub(super) fn read(a: wire::Authorization, unread: &Unread) -> Result<Policy, Fault> {
    for (field, value) in [("name", &a.name), ("namespace", &a.namespace)] {
        if value.is_empty() {
            return Err(Fault::Missing { field });
        }
    }
    let scope = match wire::Scope::try_from(a.scope) {
        Ok(wire::Scope::Global) => PolicyScope::Global,
        Ok(wire::Scope::Namespace) => PolicyScope::Namespace,
        Ok(wire::Scope::WorkloadSelector) => PolicyScope::WorkloadSelector,
        Err(_) => return Err(Fault::Choice { field: "scope", value: a.scope }),
    };
    let action = match wire::Action::try_from(a.action) {
        Ok(wire::Action::Allow) => Action::Allow,
        Ok(wire::Action::Deny) => Action::Deny,
        Err(_) => return Err(Fault::Choice { field: "action", value: a.action }),
    };
    let rules = a.rules.into_iter().enumerate().map(|(at, r)| rule(r, unread, at)).collect();
    Ok(Policy { key: PolicyKey::new(a.namespace, a.name), scope, action, rules, dry_run: a.dry_run })
}

/// A rule's clauses are AND-ed, so what is unread in it is one more clause that cannot be decided.
fn rule(r: wire::Rule, unread: &Unread, at: usize) -> Rule {
    let mut clauses: Vec<Clause> =
        r.clauses.into_iter().enumerate().map(|(c, clause)| read_clause(clause, unread, at, c)).collect();
    if unread.in_rule(at) {
        clauses.push(Clause { matches: vec![undecidable()] });
    }
    Rule { clauses }
}

/// A clause's matches are OR-ed, so what is unread in it is one more match that cannot be decided.
fn read_clause(c: wire::Clause, unread: &Unread, rule: usize, at: usize) -> Clause {
    let mut matches: Vec<Match> = c
        .matches
        .into_iter()
        .enumerate()
        .map(|(m, wire)| read_match(wire, unread.in_match(rule, at, m)))
        .collect();
    if unread.in_clause(rule, at) {
        matches.push(undecidable());
    }
    Clause { matches }
}

fn undecidable() -> Match {
    Match { unreadable: true, ..Match::default() }
}

fn read_match(m: wire::Match, unread: bool) -> Match {
    // A further condition that only others understand narrows the match, and so counts as unreadable here.
    let mut unreadable = unread || !m.extensions.is_empty();
    let bad = &mut unreadable;
    Match {
        namespaces: each(m.namespaces, bad, string),
        not_namespaces: each(m.not_namespaces, bad, string),
        service_accounts: each(m.service_accounts, bad, account),
        not_service_accounts: each(m.not_service_accounts, bad, account),
        principals: each(m.principals, bad, string),
        not_principals: each(m.not_principals, bad, string),
        source_ips: each(m.source_ips, bad, block),
        not_source_ips: each(m.not_source_ips, bad, block),
        destination_ips: each(m.destination_ips, bad, block),
        not_destination_ips: each(m.not_destination_ips, bad, block),
        destination_ports: each(m.destination_ports, bad, |p| p.try_into().ok()),
        not_destination_ports: each(m.not_destination_ports, bad, |p| p.try_into().ok()),
        unreadable,
    }
}

fn each<W, M>(values: Vec<W>, bad: &mut bool, read: impl Fn(W) -> Option<M>) -> Vec<M> {
    let before = values.len();
    let read: Vec<M> = values.into_iter().filter_map(read).collect();
    *bad |= read.len() != before;
    read
}

fn string(m: wire::StringMatch) -> Option<StringMatch> {
    use wire::string_match::MatchType;
    Some(match m.match_type? {
        MatchType::Exact(text) => StringMatch::Exact(text.into()),
        MatchType::Prefix(text) => StringMatch::Prefix(text.into()),
        MatchType::Suffix(text) => StringMatch::Suffix(text.into()),
        MatchType::Presence(()) => StringMatch::Presence,
    })
}

fn account(m: wire::ServiceAccountMatch) -> Option<ServiceAccountMatch> {
    let (namespace, service_account): (Arc<str>, Arc<str>) = (m.namespace.into(), m.service_account.into());
    Some(ServiceAccountMatch { namespace, service_account })
}

/// A block of v4-mapped addresses is a block of v4 ones, as the addresses it is compared with are.
fn block(a: wire::Address) -> Option<IpNet> {
    let length = u8::try_from(a.length).ok()?;
    match raw_ip(&a.address)? {
        std::net::IpAddr::V4(ip) => Ipv4Net::new(ip, length).ok().map(IpNet::V4),
        std::net::IpAddr::V6(ip) => match (ip.to_ipv4_mapped(), length.checked_sub(96)) {
            (Some(v4), Some(length)) => Ipv4Net::new(v4, length).ok().map(IpNet::V4),
            _ => Ipv6Net::new(ip, length).ok().map(IpNet::V6),
        },
    }
}
