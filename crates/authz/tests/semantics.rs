//! The semantics of L4 authorization, one sentence a test.

use std::sync::Arc;

use authz::{CompiledPolicy, Connection, Effect, Field, Judgement, PolicySet, Verdict};
use model::policy::{Action, Clause, Match, Policy, PolicyScope, Rule, ServiceAccountMatch, StringMatch};
use model::{PolicyKey, SpiffeId};

const FRONTEND: &str = "spiffe://cluster.local/ns/shop/sa/frontend";
const LEGACY: Option<&str> = None;

fn exact(text: &str) -> Vec<StringMatch> {
    vec![StringMatch::Exact(text.into())]
}

fn connection(peer: Option<&str>) -> Connection {
    let peer: Option<SpiffeId> = peer.map(|p| p.parse().unwrap());
    Connection::new(peer.as_ref(), "10.0.0.1".parse().unwrap(), "10.0.0.2:8080".parse().unwrap())
}

fn rule(matches: impl IntoIterator<Item = Match>) -> Rule {
    Rule { clauses: vec![Clause { matches: matches.into_iter().collect() }] }
}

fn policy(name: &str, action: Action, rules: Vec<Rule>) -> Policy {
    let key = PolicyKey::new("shop", name);
    Policy { key, scope: PolicyScope::Namespace, action, rules, dry_run: false }
}

fn allow(rules: Vec<Rule>) -> Policy {
    policy("allow", Action::Allow, rules)
}

fn deny(rules: Vec<Rule>) -> Policy {
    policy("deny", Action::Deny, rules)
}

fn dry_run(policy: Policy) -> Policy {
    Policy { dry_run: true, key: PolicyKey::new("shop", "trial"), ..policy }
}

fn verdict(policies: Vec<Policy>, connection: &Connection) -> Verdict {
    let compiled: Vec<_> =
        policies.into_iter().map(|p| Arc::new(CompiledPolicy::compile(Arc::new(p)))).collect();
    PolicySet::new(&[], &compiled, &[], |_| None).decide(connection)
}

fn effect(policies: Vec<Policy>, peer: Option<&str>) -> Effect {
    verdict(policies, &connection(peer)).effect()
}

/// Whether a DENY of this match alone denies.
fn denies(m: Match, peer: Option<&str>) -> bool {
    effect(vec![deny(vec![rule([m])])], peer) == Effect::Deny
}

#[test]
fn without_policies_everyone_may_connect() {
    let verdict = verdict(vec![], &connection(LEGACY));
    assert_eq!(verdict.judgement, Judgement::Unrestricted);
    assert_eq!(verdict.dry_run, None);
}

#[test]
fn an_allow_excludes_all_that_it_does_not_match() {
    let policies = || {
        vec![allow(vec![rule([Match {
            principals: exact("cluster.local/ns/shop/sa/frontend"),
            ..Match::default()
        }])])]
    };
    assert_eq!(effect(policies(), Some(FRONTEND)), Effect::Allow);
    assert_eq!(effect(policies(), Some("spiffe://cluster.local/ns/shop/sa/other")), Effect::Deny);
    assert_eq!(effect(policies(), LEGACY), Effect::Deny);
}

#[test]
fn deny_beats_allow() {
    let everyone = || vec![Rule::default()];
    let verdict = verdict(vec![allow(everyone()), deny(everyone())], &connection(Some(FRONTEND)));
    assert_eq!(verdict.effect(), Effect::Deny);
    assert_eq!(verdict.judgement.decided_by().unwrap().to_string(), "shop/deny rule 0");
}

#[test]
fn a_deny_that_does_not_match_leaves_everyone_else_allowed() {
    let legacy = Match { not_principals: vec![StringMatch::Presence], ..Match::default() };
    let verdict = verdict(vec![deny(vec![rule([legacy])])], &connection(Some(FRONTEND)));
    assert_eq!(verdict.judgement, Judgement::Unrestricted);
}

#[test]
fn an_allow_without_rules_allows_nobody() {
    assert_eq!(effect(vec![allow(vec![])], Some(FRONTEND)), Effect::Deny);
}

#[test]
fn a_deny_without_rules_denies_nobody() {
    assert_eq!(effect(vec![deny(vec![])], Some(FRONTEND)), Effect::Allow);
}

#[test]
fn a_rule_without_clauses_and_a_clause_without_matches_match_everything() {
    for rule in [Rule::default(), Rule { clauses: vec![Clause::default()] }, rule([Match::default()])] {
        assert_eq!(effect(vec![deny(vec![rule])], LEGACY), Effect::Deny);
    }
}

#[test]
fn strict_denies_plaintext_and_nothing_else() {
    let strict = || Match { not_principals: vec![StringMatch::Presence], ..Match::default() };
    assert!(denies(strict(), LEGACY));
    assert!(!denies(strict(), Some(FRONTEND)));
}

#[test]
fn a_source_without_identity_has_no_namespace_and_no_account() {
    let any_account = ServiceAccountMatch { namespace: "".into(), service_account: "".into() };
    for m in [
        Match { namespaces: vec![StringMatch::Presence], ..Match::default() },
        Match { namespaces: vec![StringMatch::Prefix("".into())], ..Match::default() },
        Match { principals: vec![StringMatch::Suffix("".into())], ..Match::default() },
        Match { service_accounts: vec![any_account.clone()], ..Match::default() },
    ] {
        assert!(!denies(m.clone(), LEGACY), "{m:?}");
        assert!(denies(m, Some(FRONTEND)));
    }
    for m in [
        Match { not_namespaces: vec![StringMatch::Presence], ..Match::default() },
        Match { not_service_accounts: vec![any_account], ..Match::default() },
    ] {
        assert!(denies(m.clone(), LEGACY), "{m:?}");
        assert!(!denies(m, Some(FRONTEND)));
    }
}

#[test]
fn the_namespace_is_that_of_the_identity() {
    assert!(denies(Match { namespaces: exact("shop"), ..Match::default() }, Some(FRONTEND)));
    assert!(!denies(Match { namespaces: exact("shop2"), ..Match::default() }, Some(FRONTEND)));
    assert!(!denies(Match { not_namespaces: exact("shop"), ..Match::default() }, Some(FRONTEND)));
}

#[test]
fn an_account_is_compared_with_its_namespace_where_one_is_given() {
    let account = |namespace: &str, service_account: &str| Match {
        service_accounts: vec![ServiceAccountMatch {
            namespace: namespace.into(),
            service_account: service_account.into(),
        }],
        ..Match::default()
    };
    for (namespace, service_account, matches) in [
        ("shop", "frontend", true),
        ("", "frontend", true),
        ("shop", "", true),
        ("other", "frontend", false),
        ("shop", "other", false),
        ("shop", "front", false),
    ] {
        assert_eq!(
            denies(account(namespace, service_account), Some(FRONTEND)),
            matches,
            "{namespace}/{service_account}"
        );
    }
}

#[test]
fn addresses_are_compared_by_block_and_ports_by_number() {
    let block = |b: &str| vec![b.parse().unwrap()];
    for (m, matches) in [
        (Match { source_ips: block("10.0.0.0/24"), ..Match::default() }, true),
        (Match { source_ips: block("10.0.0.1/32"), ..Match::default() }, true),
        (Match { source_ips: block("10.0.0.2/32"), ..Match::default() }, false),
        (Match { source_ips: block("::/0"), ..Match::default() }, false),
        (Match { not_source_ips: block("10.0.0.0/8"), ..Match::default() }, false),
        (Match { not_source_ips: block("192.168.0.0/16"), ..Match::default() }, true),
        (Match { destination_ips: block("10.0.0.2/32"), ..Match::default() }, true),
        (Match { destination_ips: block("10.0.0.1/32"), ..Match::default() }, false),
        (Match { not_destination_ips: block("10.0.0.2/32"), ..Match::default() }, false),
        (Match { destination_ports: vec![443, 8080], ..Match::default() }, true),
        (Match { destination_ports: vec![443], ..Match::default() }, false),
        (Match { not_destination_ports: vec![8080, 1], ..Match::default() }, false),
        (Match { not_destination_ports: vec![443], ..Match::default() }, true),
    ] {
        assert_eq!(denies(m.clone(), LEGACY), matches, "{m:?}");
    }
}

#[test]
fn a_v4_mapped_source_is_compared_as_v4() {
    let m = Match { source_ips: vec!["10.0.0.0/24".parse().unwrap()], ..Match::default() };
    let mapped =
        Connection::new(None, "::ffff:10.0.0.1".parse().unwrap(), "[::ffff:10.0.0.2]:80".parse().unwrap());
    assert_eq!(verdict(vec![deny(vec![rule([m])])], &mapped).effect(), Effect::Deny);
}

#[test]
fn fields_are_and_ed_and_values_or_ed() {
    let both = |port: u16| Match {
        principals: vec![StringMatch::Exact("nobody".into()), StringMatch::Suffix("/sa/frontend".into())],
        destination_ports: vec![port],
        ..Match::default()
    };
    assert!(denies(both(8080), Some(FRONTEND)));
    assert!(!denies(both(443), Some(FRONTEND)));
    assert!(!denies(both(8080), LEGACY));
}

#[test]
fn matches_are_or_ed_and_clauses_and_ed() {
    let port = |p: u16| Match { destination_ports: vec![p], ..Match::default() };
    assert_eq!(effect(vec![deny(vec![rule([port(443), port(8080)])])], LEGACY), Effect::Deny);
    let clause = |p: u16| Clause { matches: vec![port(p)] };
    let both = Rule { clauses: vec![clause(443), clause(8080)] };
    assert_eq!(effect(vec![deny(vec![both])], LEGACY), Effect::Allow);
}

#[test]
fn what_cannot_be_read_never_allows_and_always_denies() {
    // Even where the fields that were read would settle it the other way.
    let m = || Match { destination_ports: vec![1], unreadable: true, ..Match::default() };
    assert_eq!(effect(vec![deny(vec![rule([m()])])], Some(FRONTEND)), Effect::Deny);
    let m = || Match { unreadable: true, ..Match::default() };
    let verdict = verdict(vec![allow(vec![rule([m()])])], &connection(Some(FRONTEND)));
    assert_eq!(verdict.effect(), Effect::Deny);
    assert_eq!(verdict.judgement.failing_clause().unwrap().field, Field::Unreadable);
}

#[test]
fn an_unreadable_match_leaves_its_rules_other_clauses_in_force() {
    let other = Clause { matches: vec![Match { destination_ports: vec![443], ..Match::default() }] };
    let unreadable = Clause { matches: vec![Match { unreadable: true, ..Match::default() }] };
    assert_eq!(effect(vec![deny(vec![Rule { clauses: vec![other, unreadable] }])], LEGACY), Effect::Allow);
}

#[test]
fn a_dry_run_policy_decides_nothing_and_says_what_it_would_have() {
    let trial = dry_run(deny(vec![Rule::default()]));
    let verdict = verdict(vec![trial], &connection(Some(FRONTEND)));
    assert_eq!(verdict.effect(), Effect::Allow);
    assert_eq!(verdict.would_become().unwrap().decided_by().unwrap().to_string(), "shop/trial rule 0");
}

#[test]
fn a_dry_run_allow_would_exclude_others() {
    let only_443 = rule([Match { destination_ports: vec![443], ..Match::default() }]);
    let verdict = verdict(vec![dry_run(allow(vec![only_443]))], &connection(Some(FRONTEND)));
    assert_eq!(verdict.effect(), Effect::Allow);
    assert_eq!(verdict.would_become().unwrap().effect(), Effect::Deny);
}

#[test]
fn a_dry_run_that_changes_nothing_is_not_worth_telling() {
    let policies = vec![deny(vec![Rule::default()]), dry_run(deny(vec![Rule::default()]))];
    assert_eq!(verdict(policies, &connection(LEGACY)).would_become(), None);
}

#[test]
fn a_policy_that_is_named_but_not_known_denies_for_now() {
    let names = [PolicyKey::new("shop", "late")];
    let everyone = Arc::new(CompiledPolicy::compile(Arc::new(allow(vec![Rule::default()]))));
    let set = PolicySet::new(&[], std::slice::from_ref(&everyone), &names, |_| None);
    let judgement = set.decide(&connection(Some(FRONTEND))).judgement;
    assert_eq!(judgement, Judgement::NotYetKnown(names[0].clone()));
    assert!(judgement.is_provisional());
    assert_eq!(judgement.effect(), Effect::Deny);
}

#[test]
fn a_deny_that_matches_is_final_even_while_a_named_policy_is_not_known() {
    let names = [PolicyKey::new("shop", "late")];
    let all = [Arc::new(CompiledPolicy::compile(Arc::new(deny(vec![Rule::default()]))))];
    let judgement = PolicySet::new(&all, &[], &names, |_| None).decide(&connection(LEGACY)).judgement;
    assert!(matches!(judgement, Judgement::Denied(_)));
    assert!(!judgement.is_provisional());
}

#[test]
fn the_policies_of_mesh_namespace_and_workload_all_count() {
    let compile =
        |name: &str| Arc::new(CompiledPolicy::compile(Arc::new(policy(name, Action::Deny, vec![]))));
    let (mesh, namespace, own) = ([compile("mesh")], [compile("ns")], compile("own"));
    let names = [PolicyKey::new("shop", "own")];
    let set = PolicySet::new(&mesh, &namespace, &names, |_| Some(&own));
    let keys: Vec<_> = set.policies().map(|p| p.key().to_string()).collect();
    assert_eq!(keys, ["shop/mesh", "shop/ns", "shop/own"]);
}

#[test]
fn a_denial_for_want_of_an_allow_tells_the_nearest_condition() {
    let far = rule([Match { destination_ports: vec![1], principals: exact("nobody"), ..Match::default() }]);
    let far = Rule { clauses: [far.clauses.clone(), far.clauses].concat() };
    let near = rule([Match {
        principals: exact("cluster.local/ns/shop/sa/checkout"),
        destination_ports: vec![8080],
        ..Match::default()
    }]);
    let verdict = verdict(vec![allow(vec![far, near])], &connection(Some(FRONTEND)));
    assert_eq!(
        verdict.judgement.to_string(),
        "denied: no ALLOW policy matches; the nearest is shop/allow rule 1: source principal is \
         \"cluster.local/ns/shop/sa/frontend\", not one of [\"cluster.local/ns/shop/sa/checkout\"]"
    );
}

#[test]
fn each_policy_can_be_asked_for_its_own_word() {
    let port = |p: u16| rule([Match { destination_ports: vec![p], ..Match::default() }]);
    let compiled = [
        Arc::new(CompiledPolicy::compile(Arc::new(allow(vec![port(443), port(8080)])))),
        Arc::new(CompiledPolicy::compile(Arc::new(deny(vec![port(443)])))),
    ];
    let reports = PolicySet::new(&compiled, &[], &[], |_| None).explain(&connection(LEGACY));
    assert_eq!(reports[0].matched.as_ref().unwrap().rule, 1);
    assert_eq!(reports[1].matched, None);
    let failing = reports[1].failing.as_ref().unwrap();
    assert_eq!(failing.to_string(), "shop/deny rule 0: destination port is 8080, not one of [443]");
}
