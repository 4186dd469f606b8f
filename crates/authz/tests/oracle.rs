//! Compiled policies against an oracle that is written straight from the text and knows no shortcuts.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use authz::{CompiledPolicy, Connection, Effect, Judgement, PolicySet};
use ipnet::IpNet;
use model::policy::{Action, Clause, Match, Policy, PolicyScope, Rule, ServiceAccountMatch, StringMatch};
use model::{PolicyKey, SpiffeId, TrustDomain};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

mod oracle {
    use super::*;

    fn text(value: &StringMatch, text: &str) -> bool {
        match value {
            StringMatch::Exact(v) => text == &**v,
            StringMatch::Prefix(v) => text.starts_with(&**v),
            StringMatch::Suffix(v) => text.ends_with(&**v),
            StringMatch::Presence => !text.is_empty(),
        }
    }

    /// A field that is empty asks nothing; else one of its values must be had.
    fn positive<T>(values: &[T], has: impl Fn(&T) -> bool) -> bool {
        if values.is_empty() {
            return true;
        }
        for value in values {
            if has(value) {
                return true;
            }
        }
        false
    }

    /// None of a `not_` field's values may be had.
    fn negative<T>(values: &[T], has: impl Fn(&T) -> bool) -> bool {
        for value in values {
            if has(value) {
                return false;
            }
        }
        true
    }

    fn matches(m: &Match, action: Action, c: &Facts) -> bool {
        if m.unreadable {
            return matches!(action, Action::Deny);
        }
        let namespace = |v: &StringMatch| c.peer.as_ref().is_some_and(|id| text(v, id.namespace()));
        let principal = |v: &StringMatch| {
            c.peer.as_ref().is_some_and(|id| text(v, id.to_string().strip_prefix("spiffe://").unwrap()))
        };
        let account = |v: &ServiceAccountMatch| {
            c.peer.as_ref().is_some_and(|id| {
                (v.namespace.is_empty() || &*v.namespace == id.namespace())
                    && (v.service_account.is_empty() || &*v.service_account == id.service_account())
            })
        };
        let source = |v: &IpNet| v.contains(&c.source);
        let destination = |v: &IpNet| v.contains(&c.destination.ip());
        let port = |v: &u16| *v == c.destination.port();
        positive(&m.namespaces, namespace)
            && negative(&m.not_namespaces, namespace)
            && positive(&m.service_accounts, account)
            && negative(&m.not_service_accounts, account)
            && positive(&m.principals, principal)
            && negative(&m.not_principals, principal)
            && positive(&m.source_ips, source)
            && negative(&m.not_source_ips, source)
            && positive(&m.destination_ips, destination)
            && negative(&m.not_destination_ips, destination)
            && positive(&m.destination_ports, port)
            && negative(&m.not_destination_ports, port)
    }

    fn policy_matches(policy: &Policy, c: &Facts) -> bool {
        policy.rules.iter().any(|rule| {
            rule.clauses.iter().all(|clause| {
                clause.matches.is_empty() || clause.matches.iter().any(|m| matches(m, policy.action, c))
            })
        })
    }

    pub(super) fn decide(policies: &[Policy], c: &Facts) -> Effect {
        let of = |action: Action| policies.iter().filter(move |p| p.action == action);
        if of(Action::Deny).any(|p| policy_matches(p, c)) {
            return Effect::Deny;
        }
        if of(Action::Allow).count() > 0 && !of(Action::Allow).any(|p| policy_matches(p, c)) {
            return Effect::Deny;
        }
        Effect::Allow
    }
}

#[derive(Clone, Debug)]
struct Facts {
    peer: Option<SpiffeId>,
    source: IpAddr,
    destination: SocketAddr,
}

const NAMES: [&str; 3] = ["a", "ab", "b"];
const PORTS: [u16; 3] = [80, 443, 8080];
const IPS: [&str; 4] = ["10.0.0.1", "10.0.1.1", "192.168.0.1", "fd00::1"];
const BLOCKS: [&str; 6] = ["10.0.0.1/32", "10.0.0.0/16", "10.0.0.0/24", "0.0.0.0/0", "fd00::/64", "::/0"];

/// Mostly nothing, so that the fields that are set decide.
fn few<T: Strategy + 'static>(values: T) -> impl Strategy<Value = Vec<T::Value>>
where
    T::Value: Clone + std::fmt::Debug,
{
    prop_oneof![6 => Just(vec![]), 2 => vec(values, 1..3)]
}

fn any_text(whole: Vec<&'static str>) -> impl Strategy<Value = StringMatch> + Clone {
    let part = select(vec!["", "a", "b", "td/ns/a", "/sa/b", "t"]);
    prop_oneof![
        4 => select(whole).prop_map(|t| StringMatch::Exact(t.into())),
        1 => part.clone().prop_map(|t| StringMatch::Prefix(t.into())),
        1 => part.prop_map(|t| StringMatch::Suffix(t.into())),
        1 => Just(StringMatch::Presence),
    ]
}

fn any_match() -> impl Strategy<Value = Match> {
    let namespace = || few(any_text(NAMES.to_vec()));
    let principal = || few(any_text(vec!["td/ns/a/sa/b", "td/ns/ab/sa/a", "other/ns/a/sa/b"]));
    let account = || {
        let part = || select(vec!["", "a", "ab", "b"]);
        few((part(), part())
            .prop_map(|(n, s)| ServiceAccountMatch { namespace: n.into(), service_account: s.into() }))
    };
    let block = || few(select(BLOCKS.to_vec()).prop_map(|b| b.parse::<IpNet>().unwrap()));
    let port = || few(select(PORTS.to_vec()));
    (
        (namespace(), namespace(), account(), account(), principal(), principal()),
        (block(), block(), block(), block(), port(), port()),
        prop::bool::weighted(0.05),
    )
        .prop_map(|(of_source, of_addresses, unreadable)| Match {
            namespaces: of_source.0,
            not_namespaces: of_source.1,
            service_accounts: of_source.2,
            not_service_accounts: of_source.3,
            principals: of_source.4,
            not_principals: of_source.5,
            source_ips: of_addresses.0,
            not_source_ips: of_addresses.1,
            destination_ips: of_addresses.2,
            not_destination_ips: of_addresses.3,
            destination_ports: of_addresses.4,
            not_destination_ports: of_addresses.5,
            unreadable,
        })
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let clause = vec(any_match(), 0..3).prop_map(|matches| Clause { matches });
    let rule = vec(clause, 0..3).prop_map(|clauses| Rule { clauses });
    (select(NAMES.to_vec()), any::<bool>(), vec(rule, 0..3), prop::bool::weighted(0.2)).prop_map(
        |(name, allows, rules, dry_run)| Policy {
            key: PolicyKey::new("shop", name),
            scope: PolicyScope::Namespace,
            action: if allows { Action::Allow } else { Action::Deny },
            rules,
            dry_run,
        },
    )
}

fn any_facts() -> impl Strategy<Value = Facts> {
    let id = (select(vec!["td", "other"]), select(NAMES.to_vec()), select(NAMES.to_vec()))
        .prop_map(|(td, ns, sa)| SpiffeId::new(TrustDomain::new(td).unwrap(), ns, sa).unwrap());
    let ip = || select(IPS.to_vec()).prop_map(|ip| ip.parse::<IpAddr>().unwrap());
    (option::weighted(0.8, id), ip(), ip(), select(PORTS.to_vec()))
        .prop_map(|(peer, source, ip, port)| Facts { peer, source, destination: SocketAddr::new(ip, port) })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn compiled_policies_decide_as_the_text_says(policies in vec(any_policy(), 0..4), facts in vec(any_facts(), 1..6)) {
        let compiled: Vec<_> =
            policies.iter().map(|p| Arc::new(CompiledPolicy::compile(Arc::new(p.clone())))).collect();
        let enforced: Vec<Policy> = policies.iter().filter(|p| !p.dry_run).cloned().collect();
        for facts in facts {
            let connection = Connection::new(facts.peer.as_ref(), facts.source, facts.destination);
            let set = PolicySet::new(&[], &compiled, &[], |_| None);
            let verdict = set.decide(&connection);
            prop_assert_eq!(verdict.effect(), oracle::decide(&enforced, &facts));
            prop_assert_eq!(verdict.dry_run.is_some(), policies.iter().any(|p| p.dry_run));
            if let Some(dry_run) = &verdict.dry_run {
                prop_assert_eq!(dry_run.effect(), oracle::decide(&policies, &facts));
            }

            // What is said about the decision agrees with it.
            let reports = set.explain(&connection);
            for report in &reports {
                let alone = policies.iter().filter(|p| p.key == report.policy && p.action == report.action);
                prop_assert!(alone.count() > 0);
                prop_assert!(report.matched.is_none() || report.failing.is_none());
            }
            let matched = |action: Action| reports.iter().any(|r| r.action == action && !r.dry_run && r.matched.is_some());
            match &verdict.judgement {
                Judgement::Denied(_) => prop_assert!(matched(Action::Deny)),
                Judgement::Allowed(_) => prop_assert!(!matched(Action::Deny) && matched(Action::Allow)),
                Judgement::NotAllowed { policies, nearest } => {
                    prop_assert!(!policies.is_empty() && !matched(Action::Allow));
                    let rules = enforced.iter().filter(|p| p.action == Action::Allow).map(|p| p.rules.len()).sum::<usize>();
                    prop_assert_eq!(nearest.is_some(), rules > 0);
                }
                Judgement::Unrestricted => prop_assert!(enforced.iter().all(|p| p.action == Action::Deny)),
                Judgement::NotYetKnown(_) => prop_assert!(false),
            }
        }
    }
}
