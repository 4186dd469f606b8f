//! AuthorizationPolicy.

use model::PolicyKey;
use model::policy::{Action as WireAction, Clause, Match, Policy, PolicyScope, Rule as WireRule};

use super::Note;
use super::matching::{self, ConditionKey};
use crate::kinds::{Action, AuthorizationPolicy, Condition, MeshSettings, Operation, Rule, Source};
use crate::object::annotation;

/// The annotation that makes a policy be reported only.
pub const DRY_RUN_ANNOTATION: &str = "istio.io/dry-run";

/// What a policy is to a node proxy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Translation {
    /// The policy; none where the node proxy has nothing to do with it.
    pub policy: Option<Policy>,
    /// For each of the policy's rules, the index of the object's rule that it comes from.
    pub rule_origins: Vec<usize>,
    /// What is done otherwise than the object says.
    pub notes: Vec<Note>,
}

/// Whether a node proxy has anything to do with a policy.
pub fn is_for_node(object: &AuthorizationPolicy) -> bool {
    object.spec.targets().next().is_none() && object.spec.action() != Action::Audit
}

/// Translates a policy of a mesh with these settings.
pub fn translate(object: &AuthorizationPolicy, mesh: &MeshSettings) -> Translation {
    let spec = &object.spec;
    let mut translation = Translation::default();
    if spec.targets().next().is_some() {
        translation.notes.push(Note::ForWaypoint);
        return translation;
    }
    let action = match spec.action() {
        Action::Allow => WireAction::Allow,
        Action::Deny => WireAction::Deny,
        unable @ (Action::Audit | Action::Custom) => {
            translation.notes.push(Note::Action { action: unable.as_str() });
            if unable == Action::Audit {
                return translation;
            }
            WireAction::Deny
        }
    };
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let mut rules = Vec::new();
    for (index, rule) in spec.rules.iter().enumerate() {
        let Reduced { clauses, unseen } = reduce(rule, namespace, mesh);
        match action {
            _ if unseen.is_empty() => {}
            WireAction::Allow => {
                translation.notes.push(Note::NeverAllows { rule: index, attributes: unseen });
                continue;
            }
            WireAction::Deny if clauses.is_empty() => {
                translation.notes.push(Note::DeniesAll { rule: index, attributes: unseen });
            }
            WireAction::Deny => {
                translation.notes.push(Note::DeniesMore { rule: index, attributes: unseen });
            }
        }
        rules.push(WireRule { clauses });
        translation.rule_origins.push(index);
    }
    let selective = spec.selector.as_ref().is_some_and(|s| !s.match_labels.is_empty());
    let scope = match (selective, namespace == mesh.root_namespace) {
        (true, _) => PolicyScope::WorkloadSelector,
        (false, true) => PolicyScope::Global,
        (false, false) => PolicyScope::Namespace,
    };
    translation.policy = Some(Policy {
        key: PolicyKey::new(namespace, object.metadata.name.as_deref().unwrap_or_default()),
        scope,
        action,
        rules,
        dry_run: annotation(&object.metadata, DRY_RUN_ANNOTATION) == Some("true"),
    });
    translation
}

/// What a node proxy can see of a rule.
struct Reduced {
    /// Without clauses that always hold.
    clauses: Vec<Clause>,
    /// Attributes that were left out.
    unseen: Vec<String>,
}

/// Leaves out of a rule what a node proxy cannot see or what cannot be read. What is left holds at least as often as
/// the rule does.
fn reduce(rule: &Rule, namespace: &str, mesh: &MeshSettings) -> Reduced {
    let mut unseen = Unseen(Vec::new());
    let mut clauses = Vec::new();
    let from = rule.from.iter().map(|f| f.source.as_ref());
    clauses.extend(clause(from.map(|s| source(s, namespace, mesh, &mut unseen)).collect()));
    let to = rule.to.iter().map(|t| t.operation.as_ref());
    clauses.extend(clause(to.map(|o| operation(o, &mut unseen)).collect()));
    for when in &rule.when {
        clauses.extend(clause(vec![condition(when, namespace, mesh, &mut unseen)]));
    }
    Reduced { clauses, unseen: unseen.0 }
}

/// Alternatives, one of which always holds where it is empty: then the clause says nothing.
fn clause(matches: Vec<Match>) -> Option<Clause> {
    let says_nothing = matches.is_empty() || matches.contains(&Match::default());
    (!says_nothing).then_some(Clause { matches })
}

/// The attributes that were left out, each once.
struct Unseen(Vec<String>);

impl Unseen {
    fn add(&mut self, attribute: &str) {
        if !self.0.iter().any(|known| known == attribute) {
            self.0.push(attribute.to_owned());
        }
    }

    /// Notes an attribute where it has values.
    fn requests<const N: usize>(&mut self, attributes: [(&str, &[String]); N]) {
        for (name, values) in attributes {
            if !values.is_empty() {
                self.add(name);
            }
        }
    }

    /// Reads the values of one attribute, or none of them: with one left out, the others would match less.
    fn read<T>(&mut self, name: &str, values: &[String], read: impl Fn(&str) -> Option<T>) -> Vec<T> {
        let all: Option<Vec<T>> = values.iter().map(|value| read(value)).collect();
        all.unwrap_or_else(|| {
            self.add(name);
            Vec::new()
        })
    }
}

fn source(source: Option<&Source>, namespace: &str, mesh: &MeshSettings, unseen: &mut Unseen) -> Match {
    let Some(s) = source.filter(|s| **s != Source::default()) else {
        unseen.add("an empty source");
        return Match::default();
    };
    unseen.requests([
        ("requestPrincipals", &s.request_principals),
        ("notRequestPrincipals", &s.not_request_principals),
        ("remoteIpBlocks", &s.remote_ip_blocks),
        ("notRemoteIpBlocks", &s.not_remote_ip_blocks),
    ]);
    let account = |value: &str| matching::service_account(value, namespace);
    let principals = |value: &str| matching::principals(value, mesh);
    Match {
        namespaces: unseen.read("namespaces", &s.namespaces, matching::string),
        not_namespaces: unseen.read("notNamespaces", &s.not_namespaces, matching::string),
        service_accounts: unseen.read("serviceAccounts", &s.service_accounts, account),
        not_service_accounts: unseen.read("notServiceAccounts", &s.not_service_accounts, account),
        principals: unseen.read("principals", &s.principals, principals).concat(),
        not_principals: unseen.read("notPrincipals", &s.not_principals, principals).concat(),
        source_ips: unseen.read("ipBlocks", &s.ip_blocks, matching::network),
        not_source_ips: unseen.read("notIpBlocks", &s.not_ip_blocks, matching::network),
        ..Match::default()
    }
}

fn operation(operation: Option<&Operation>, unseen: &mut Unseen) -> Match {
    let Some(o) = operation.filter(|o| **o != Operation::default()) else {
        unseen.add("an empty operation");
        return Match::default();
    };
    unseen.requests([
        ("hosts", &o.hosts),
        ("notHosts", &o.not_hosts),
        ("methods", &o.methods),
        ("notMethods", &o.not_methods),
        ("paths", &o.paths),
        ("notPaths", &o.not_paths),
    ]);
    Match {
        destination_ports: unseen.read("ports", &o.ports, matching::port),
        not_destination_ports: unseen.read("notPorts", &o.not_ports, matching::port),
        ..Match::default()
    }
}

fn condition(when: &Condition, namespace: &str, mesh: &MeshSettings, unseen: &mut Unseen) -> Match {
    let key = ConditionKey::parse(&when.key);
    let (Some(key), false) = (key, when.values.is_empty() && when.not_values.is_empty()) else {
        unseen.add(&when.key);
        return Match::default();
    };
    let (values, not_values) = (&when.values, &when.not_values);
    let name = when.key.as_str();
    let account = |value: &str| matching::service_account(value, namespace);
    let principals = |value: &str| matching::principals(value, mesh);
    let mut matches = Match::default();
    match key {
        ConditionKey::SourceIp => {
            matches.source_ips = unseen.read(name, values, matching::network);
            matches.not_source_ips = unseen.read(name, not_values, matching::network);
        }
        ConditionKey::SourceNamespace => {
            matches.namespaces = unseen.read(name, values, matching::string);
            matches.not_namespaces = unseen.read(name, not_values, matching::string);
        }
        ConditionKey::SourcePrincipal => {
            matches.principals = unseen.read(name, values, principals).concat();
            matches.not_principals = unseen.read(name, not_values, principals).concat();
        }
        ConditionKey::SourceServiceAccount => {
            matches.service_accounts = unseen.read(name, values, account);
            matches.not_service_accounts = unseen.read(name, not_values, account);
        }
        ConditionKey::DestinationIp => {
            matches.destination_ips = unseen.read(name, values, matching::network);
            matches.not_destination_ips = unseen.read(name, not_values, matching::network);
        }
        ConditionKey::DestinationPort => {
            matches.destination_ports = unseen.read(name, values, matching::port);
            matches.not_destination_ports = unseen.read(name, not_values, matching::port);
        }
        ConditionKey::Request => unseen.add(name),
    }
    matches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Object;
    use model::policy::StringMatch;

    fn policy(spec: &str) -> Translation {
        in_namespace("shop", "", spec)
    }

    fn in_namespace(namespace: &str, annotations: &str, spec: &str) -> Translation {
        in_mesh(&MeshSettings::default(), namespace, annotations, spec)
    }

    fn in_mesh(mesh: &MeshSettings, namespace: &str, annotations: &str, spec: &str) -> Translation {
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: {namespace}, annotations: {{{annotations}}}}}\nspec: {spec}\n"
        );
        let parsed = crate::parse("p.yaml", &text);
        let Some(Object::AuthorizationPolicy(object)) = parsed.documents.first().map(|d| &d.object) else {
            panic!("{:?}", parsed.problems)
        };
        translate(object, mesh)
    }

    fn rules(translation: &Translation) -> &[WireRule] {
        &translation.policy.as_ref().unwrap().rules
    }

    #[test]
    fn sources_are_alternatives_and_from_to_when_all_hold() {
        let translation = policy(
            "{rules: [{from: [{source: {principals: ['cluster.local/ns/a/sa/*'], notIpBlocks: [10.0.0.0/8]}}, {source: {namespaces: [b]}}], to: [{operation: {ports: ['80', '443']}}], when: [{key: destination.ip, notValues: [10.0.0.1]}]}]}",
        );
        assert_eq!(translation.notes, []);
        let [rule] = rules(&translation) else { panic!() };
        let [from, to, when] = &rule.clauses[..] else { panic!() };
        assert_eq!(from.matches[0].principals, [StringMatch::Prefix("cluster.local/ns/a/sa/".into())]);
        assert_eq!(from.matches[0].not_source_ips, ["10.0.0.0/8".parse().unwrap()]);
        assert_eq!(from.matches[1].namespaces, [StringMatch::Exact("b".into())]);
        assert_eq!(to.matches[0].destination_ports, [80, 443]);
        assert_eq!(when.matches[0].not_destination_ips, ["10.0.0.1/32".parse().unwrap()]);
    }

    #[test]
    fn every_l4_condition_has_its_field() {
        let translation = policy(
            "{rules: [{when: [{key: source.ip, values: [10.0.0.0/8]}, {key: source.namespace, values: ['a*']}, {key: source.principal, notValues: ['*']}, {key: source.serviceAccount, values: [b/c, d]}, {key: destination.port, values: ['80'], notValues: ['81']}]}]}",
        );
        let clauses = &rules(&translation)[0].clauses;
        assert_eq!(clauses.len(), 5);
        assert_eq!(clauses[2].matches[0].not_principals, [StringMatch::Presence]);
        assert_eq!(&*clauses[3].matches[0].service_accounts[1].namespace, "shop");
        assert_eq!(clauses[4].matches[0].not_destination_ports, [81]);
    }

    #[test]
    fn an_empty_rule_matches_everything_and_no_rules_match_nothing() {
        assert_eq!(rules(&policy("{rules: [{}]}")), [WireRule::default()]);
        assert_eq!(rules(&policy("{}")), []);
        assert_eq!(policy("{}").policy.unwrap().action, WireAction::Allow);
    }

    #[test]
    fn an_allow_rule_about_requests_is_dropped() {
        let translation = policy(
            "{rules: [{from: [{source: {namespaces: [a]}}], to: [{operation: {methods: [GET]}}]}, {from: [{source: {namespaces: [b]}}]}]}",
        );
        assert_eq!(translation.rule_origins, [1]);
        assert_eq!(rules(&translation).len(), 1);
        assert_eq!(translation.notes, [Note::NeverAllows { rule: 0, attributes: vec!["methods".into()] }]);
    }

    #[test]
    fn a_deny_rule_about_requests_denies_by_its_l4_part() {
        let translation = policy(
            "{action: DENY, rules: [{from: [{source: {namespaces: [a], requestPrincipals: ['*']}}], to: [{operation: {ports: ['80'], paths: [/x]}}]}]}",
        );
        let clauses = &rules(&translation)[0].clauses;
        assert_eq!(clauses[0].matches[0].namespaces.len(), 1);
        assert_eq!(clauses[1].matches[0].destination_ports, [80]);
        assert_eq!(
            translation.notes,
            [Note::DeniesMore { rule: 0, attributes: vec!["requestPrincipals".into(), "paths".into()] }]
        );
    }

    #[test]
    fn of_alternatives_one_about_requests_alone_takes_the_clause_with_it() {
        let translation = policy(
            "{action: DENY, rules: [{from: [{source: {namespaces: [a]}}], to: [{operation: {ports: ['80']}}, {operation: {methods: [GET]}}]}]}",
        );
        assert_eq!(rules(&translation)[0].clauses.len(), 1);
    }

    #[test]
    fn a_deny_rule_of_nothing_but_requests_denies_all() {
        let translation = policy("{action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]}");
        assert_eq!(rules(&translation), [WireRule::default()]);
        assert!(matches!(&translation.notes[..], [Note::DeniesAll { rule: 0, .. }]));
    }

    #[test]
    fn custom_denies_what_it_matches_and_audit_does_nothing() {
        let custom =
            policy("{action: CUSTOM, provider: {name: x}, rules: [{to: [{operation: {ports: ['80']}}]}]}");
        assert_eq!(custom.policy.as_ref().unwrap().action, WireAction::Deny);
        assert_eq!(custom.notes, [Note::Action { action: "CUSTOM" }]);
        let audit = policy("{action: AUDIT, rules: [{}]}");
        assert_eq!(audit.policy, None);
    }

    #[test]
    fn scope_follows_selector_and_root_namespace() {
        let scope = |t: Translation| t.policy.unwrap().scope;
        assert_eq!(scope(policy("{}")), PolicyScope::Namespace);
        assert_eq!(scope(policy("{selector: {}}")), PolicyScope::Namespace);
        assert_eq!(scope(policy("{selector: {matchLabels: {a: b}}}")), PolicyScope::WorkloadSelector);
        assert_eq!(scope(in_namespace("istio-system", "", "{}")), PolicyScope::Global);
        let rooted = in_namespace("istio-system", "", "{selector: {matchLabels: {a: b}}}");
        assert_eq!(scope(rooted), PolicyScope::WorkloadSelector);
    }

    #[test]
    fn a_policy_for_a_waypoint_gives_nothing_at_the_node() {
        let translation = policy("{targetRefs: [{group: '', kind: Service, name: a}], rules: [{}]}");
        assert_eq!((translation.policy, translation.notes), (None, vec![Note::ForWaypoint]));
    }

    #[test]
    fn the_annotation_makes_a_dry_run() {
        assert!(in_namespace("shop", "istio.io/dry-run: 'true'", "{}").policy.unwrap().dry_run);
        assert!(!in_namespace("shop", "istio.io/dry-run: 'false'", "{}").policy.unwrap().dry_run);
    }

    #[test]
    fn what_cannot_be_read_never_allows_and_always_denies() {
        let mut object = AuthorizationPolicy::default();
        let source =
            Source { namespaces: vec!["a".into()], ip_blocks: vec!["nonsense".into()], ..Source::default() };
        object.spec.rules =
            vec![Rule { from: vec![crate::kinds::From { source: Some(source) }], ..Rule::default() }];
        assert_eq!(translate(&object, &MeshSettings::default()).policy.unwrap().rules, []);
        object.spec.action = Some(Action::Deny);
        let denied = translate(&object, &MeshSettings::default()).policy.unwrap().rules;
        assert_eq!(denied[0].clauses[0].matches[0].source_ips, []);
        assert_eq!(denied[0].clauses[0].matches[0].namespaces.len(), 1);
    }

    #[test]
    fn principals_are_of_the_trust_domain_by_each_of_its_names() {
        let domain = |name| model::TrustDomain::new(name).unwrap();
        let mesh = MeshSettings {
            trust_domain: domain("new.example"),
            trust_domain_aliases: vec![domain("old.example")],
            ..MeshSettings::default()
        };
        let both = |pattern: fn(&str) -> StringMatch| ["new.example", "old.example"].map(pattern).to_vec();
        let exact = |td: &str| StringMatch::Exact(format!("{td}/ns/a/sa/b").into());
        for (value, expected) in [
            ("new.example/ns/a/sa/b", both(exact)),
            ("old.example/ns/a/sa/b", both(exact)),
            ("cluster.local/ns/a/sa/b", both(exact)),
            ("*.example/ns/a/sa/b", both(exact)),
            ("old.example/ns/a/*", both(|td| StringMatch::Prefix(format!("{td}/ns/a/").into()))),
            ("other.example/ns/a/sa/b", vec![exact("other.example")]),
            ("*/ns/a/sa/b", vec![StringMatch::Suffix("/ns/a/sa/b".into())]),
            ("*/sa/b", vec![StringMatch::Suffix("/sa/b".into())]),
            ("old*", vec![StringMatch::Prefix("old".into())]),
            ("*", vec![StringMatch::Presence]),
        ] {
            let of = |spec: &str| {
                let translation = in_mesh(&mesh, "shop", "", spec);
                rules(&translation)[0].clauses[0].matches[0].clone()
            };
            let source = of(&format!("{{rules: [{{from: [{{source: {{principals: ['{value}']}}}}]}}]}}"));
            assert_eq!(source.principals, expected, "{value}");
            let not = of(&format!("{{rules: [{{from: [{{source: {{notPrincipals: ['{value}']}}}}]}}]}}"));
            assert_eq!(not.not_principals, expected, "{value}");
            let when =
                of(&format!("{{rules: [{{when: [{{key: source.principal, values: ['{value}']}}]}}]}}"));
            assert_eq!(when.principals, expected, "{value}");
        }
        let twice = in_mesh(
            &mesh,
            "shop",
            "",
            "{rules: [{from: [{source: {principals: ['old.example/ns/a/sa/b', 'new.example/ns/a/sa/b']}}]}]}",
        );
        assert_eq!(rules(&twice)[0].clauses[0].matches[0].principals.len(), 4, "which does no harm");
    }
}
