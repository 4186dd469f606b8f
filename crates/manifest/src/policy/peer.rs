//! PeerAuthentication.
//!
//! There is no such message on the wire. Where plaintext is refused, that is a DENY of connections without an identity,
//! which the workloads concerned name among their policies.

use std::collections::BTreeMap;

use model::PolicyKey;
use model::policy::{Action, Clause, Match, Policy, PolicyScope, Rule, StringMatch};

use crate::kinds::{MutualTlsMode, PeerAuthentication, selects};

/// Whether plaintext is taken, nothing inherited any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// It is.
    #[default]
    Permissive,
    /// It is refused.
    Strict,
}

impl Mode {
    /// A mode as written, `wider` where it is not set. A node proxy serves HBONE in any case, so `DISABLE` is permissive.
    pub fn under(mode: MutualTlsMode, wider: Self) -> Self {
        match mode {
            MutualTlsMode::Unset => wider,
            MutualTlsMode::Disable | MutualTlsMode::Permissive => Self::Permissive,
            MutualTlsMode::Strict => Self::Strict,
        }
    }
}

/// Of several policies for the same place, the one that counts: the oldest, of equally old ones the first by name. One
/// without a creation time is younger than all that have one.
pub fn oldest<'a>(
    policies: impl IntoIterator<Item = &'a PeerAuthentication>,
) -> Option<&'a PeerAuthentication> {
    policies.into_iter().min_by_key(|policy| {
        let created = policy.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (created.is_none(), created, policy.metadata.name.clone())
    })
}

/// What holds in a namespace: of the mesh's policy and the namespace's own, both without a selector.
pub fn effective_mode(mesh: Option<&PeerAuthentication>, namespace: Option<&PeerAuthentication>) -> Mode {
    let mode = |policy: Option<&PeerAuthentication>, wider| {
        policy.map_or(wider, |policy| Mode::under(policy.spec.mode(), wider))
    };
    mode(namespace, mode(mesh, Mode::Permissive))
}

/// Of a namespace's policies, the one with a selector that governs a workload with these labels.
pub fn governing<'a>(
    policies: impl IntoIterator<Item = &'a PeerAuthentication>,
    labels: Option<&BTreeMap<String, String>>,
) -> Option<&'a PeerAuthentication> {
    oldest(policies.into_iter().filter(|policy| {
        policy.spec.is_selective()
            && policy.spec.selector.as_ref().is_some_and(|s| selects(&s.match_labels, labels))
    }))
}

/// The DENY of everything without an identity, named by all workloads under plain STRICT.
pub fn static_strict(root_namespace: &str) -> Policy {
    Policy {
        key: static_strict_key(root_namespace),
        scope: PolicyScope::WorkloadSelector,
        action: Action::Deny,
        rules: vec![rule(Match { not_principals: vec![StringMatch::Presence], ..Match::default() })],
        dry_run: false,
    }
}

fn static_strict_key(root_namespace: &str) -> PolicyKey {
    PolicyKey::new(root_namespace, "istio_converted_static_strict")
}

fn converted_key(policy: &PeerAuthentication) -> PolicyKey {
    let name = policy.metadata.name.as_deref().unwrap_or_default();
    let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
    PolicyKey::new(namespace, format!("converted_peer_authentication_{name}"))
}

/// The DENY that a policy with a selector becomes where single ports differ from the rest; `wider` is what its
/// namespace says. Nothing where no port differs.
pub fn converted_policy(policy: &PeerAuthentication, wider: Mode) -> Option<Policy> {
    if !policy.spec.is_selective() {
        return None;
    }
    let mode = Mode::under(policy.spec.mode(), wider);
    let differing = differing_ports(policy, mode);
    if differing.is_empty() {
        return None;
    }
    let mut matches = Match { not_principals: vec![StringMatch::Presence], ..Match::default() };
    match mode {
        Mode::Strict => matches.not_destination_ports = differing,
        Mode::Permissive => matches.destination_ports = differing,
    }
    Some(Policy {
        key: converted_key(policy),
        scope: PolicyScope::WorkloadSelector,
        action: Action::Deny,
        rules: vec![rule(matches)],
        dry_run: false,
    })
}

/// The policy that a workload names; `governing` is what selects it, `wider` what its namespace says.
pub fn workload_policy(
    governing: Option<&PeerAuthentication>,
    wider: Mode,
    root_namespace: &str,
) -> Option<PolicyKey> {
    if let Some(policy) = governing
        && converted_policy(policy, wider).is_some()
    {
        return Some(converted_key(policy));
    }
    let mode = governing.map_or(wider, |policy| Mode::under(policy.spec.mode(), wider));
    (mode == Mode::Strict).then(|| static_strict_key(root_namespace))
}

fn differing_ports(policy: &PeerAuthentication, mode: Mode) -> Vec<u16> {
    let ports = policy.spec.port_level_mtls.iter();
    ports
        .filter(|(_, tls)| Mode::under(tls.mode(), mode) != mode)
        .filter_map(|(port, _)| u16::try_from(*port).ok())
        .collect()
}

fn rule(matches: Match) -> Rule {
    Rule { clauses: vec![Clause { matches: vec![matches] }] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Object;

    fn peer(name: &str, spec: &str) -> PeerAuthentication {
        let text = format!(
            "apiVersion: security.istio.io/v1beta1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
        );
        let mut parsed = crate::parse("p.yaml", &text);
        let Some(Object::PeerAuthentication(policy)) = parsed.documents.pop().map(|d| d.object) else {
            panic!("{:?}", parsed.problems)
        };
        *policy
    }

    #[test]
    fn a_namespace_overrides_the_mesh_and_unset_inherits() {
        let strict = peer("s", "{mtls: {mode: STRICT}}");
        let permissive = peer("p", "{mtls: {mode: PERMISSIVE}}");
        let unset = peer("u", "{mtls: {mode: UNSET}}");
        assert_eq!(effective_mode(None, None), Mode::Permissive);
        assert_eq!(effective_mode(Some(&strict), None), Mode::Strict);
        assert_eq!(effective_mode(Some(&strict), Some(&unset)), Mode::Strict);
        assert_eq!(effective_mode(Some(&strict), Some(&permissive)), Mode::Permissive);
        assert_eq!(effective_mode(None, Some(&strict)), Mode::Strict);
    }

    #[test]
    fn plain_strict_is_the_static_policy() {
        let key = workload_policy(None, Mode::Strict, "istio-system").unwrap();
        assert_eq!(key.to_string(), "istio-system/istio_converted_static_strict");
        assert_eq!(workload_policy(None, Mode::Permissive, "istio-system"), None);
        let strict = peer("s", "{selector: {matchLabels: {a: b}}, mtls: {mode: STRICT}}");
        assert_eq!(workload_policy(Some(&strict), Mode::Permissive, "istio-system"), Some(key));
        assert_eq!(converted_policy(&strict, Mode::Permissive), None);
    }

    #[test]
    fn an_open_port_under_strict_is_left_out_of_the_denial() {
        let policy = peer(
            "s",
            "{selector: {matchLabels: {a: b}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}, 81: {mode: STRICT}, 82: {}}}",
        );
        let converted = converted_policy(&policy, Mode::Permissive).unwrap();
        assert_eq!(converted.key.to_string(), "shop/converted_peer_authentication_s");
        let matches = &converted.rules[0].clauses[0].matches[0];
        assert_eq!(matches.not_destination_ports, [8080]);
        assert_eq!(matches.not_principals, [StringMatch::Presence]);
        assert_eq!(workload_policy(Some(&policy), Mode::Permissive, "r"), Some(converted.key));
    }

    #[test]
    fn a_strict_port_under_permissive_is_all_of_the_denial() {
        let policy = peer("s", "{selector: {matchLabels: {a: b}}, portLevelMtls: {'8080': {mode: STRICT}}}");
        let matches =
            converted_policy(&policy, Mode::Permissive).unwrap().rules[0].clauses[0].matches[0].clone();
        assert_eq!(matches.destination_ports, [8080]);
        assert_eq!(converted_policy(&policy, Mode::Strict), None, "inherits strict, so no port differs");
        assert!(workload_policy(Some(&policy), Mode::Strict, "r").unwrap().name.contains("static_strict"));
    }

    #[test]
    fn of_two_the_oldest_counts() {
        let time =
            |text: &str| Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(text.parse().unwrap()));
        let (mut a, mut b, c) = (peer("a", "{}"), peer("b", "{}"), peer("c", "{}"));
        a.metadata.creation_timestamp = time("2024-02-01T00:00:00Z");
        b.metadata.creation_timestamp = time("2024-01-01T00:00:00Z");
        assert_eq!(oldest([&a, &b, &c]), Some(&b));
        assert_eq!(oldest([&c, &a]), Some(&a));
    }

    #[test]
    fn labels_decide_who_is_governed() {
        let policy = peer("s", "{selector: {matchLabels: {a: b}}}");
        let labels = BTreeMap::from([("a".to_owned(), "b".to_owned()), ("c".to_owned(), "d".to_owned())]);
        assert_eq!(governing([&policy], Some(&labels)), Some(&policy));
        assert_eq!(governing([&policy], None), None);
        assert_eq!(governing([&peer("n", "{}")], Some(&labels)), None);
    }
}
