//! AuthorizationPolicy and PeerAuthentication.

use super::{FieldPath, Findings, check_port, names};
use crate::kinds::{
    Action, AuthorizationPolicy, Condition, Operation, PeerAuthentication, Selector, Source, TargetRef,
};
use crate::object::annotation;
use crate::policy::{self, ConditionKey, DRY_RUN_ANNOTATION, Note};
use crate::policy::{network, port, service_account, string};

const USE_A_WAYPOINT: &str = "bind a waypoint and attach the policy to it by `targetRefs` instead";

pub(super) fn authorization(object: &AuthorizationPolicy, findings: &mut Findings) {
    let spec = &object.spec;
    let path = FieldPath::from("spec");
    let own_namespace = object.metadata.namespace.as_deref().unwrap_or(crate::DEFAULT_NAMESPACE);
    selector(spec.selector.as_ref(), &path, findings);
    if spec.target_ref.is_some() && !spec.target_refs.is_empty() {
        findings.error(&path.field("targetRef"), "either `targetRef` or `targetRefs`, not both");
    }
    let targets = spec.target_refs.iter().enumerate();
    let targets = targets.map(|(n, target)| (path.field("targetRefs").index(n), target));
    let singular = spec.target_ref.iter().map(|target| (path.field("targetRef"), target));
    let mut attached = false;
    for (path, target) in singular.chain(targets) {
        attached = true;
        target_ref(target, own_namespace, &path, findings);
    }
    if attached && spec.selector.is_some() {
        findings.error(&path.field("selector"), "either `selector` or `targetRefs`, not both").remedy(
            "a node proxy takes policies by selector, a waypoint by targetRefs: write two policies for both",
        );
    }
    action(object, attached, &path, findings);
    if let Some(value) = annotation(&object.metadata, DRY_RUN_ANNOTATION)
        && !["true", "false"].contains(&value)
    {
        let at = FieldPath::from("metadata.annotations").field(DRY_RUN_ANNOTATION);
        findings.error(&at, format!("{value:?} is neither \"true\" nor \"false\""));
    }
    for (n, rule) in spec.rules.iter().enumerate() {
        let path = path.field("rules").index(n);
        for (n, from) in rule.from.iter().enumerate() {
            let path = path.field("from").index(n);
            match from.source.as_ref().filter(|source| **source != Source::default()) {
                Some(s) => source(s, own_namespace, &path.field("source"), findings),
                None => {
                    findings
                        .error(&path, "an empty source")
                        .remedy("leave `from` away to match every source");
                }
            }
        }
        for (n, to) in rule.to.iter().enumerate() {
            let path = path.field("to").index(n);
            match to.operation.as_ref().filter(|operation| **operation != Operation::default()) {
                Some(o) => operation(o, &path.field("operation"), findings),
                None => {
                    findings
                        .error(&path, "an empty operation")
                        .remedy("leave `to` away to match every operation");
                }
            }
        }
        for (n, when) in rule.when.iter().enumerate() {
            condition(when, own_namespace, &path.field("when").index(n), findings);
        }
    }
    for note in policy::translate(object, &crate::kinds::MeshSettings::default()).notes {
        if let Note::DeniesAll { rule, attributes } = note
            && spec.action() == Action::Deny
        {
            let message = format!(
                "the rule is about requests only ({}), which a node proxy cannot see: it would deny everything",
                attributes.join(", ")
            );
            findings.refused(&path.field("rules").index(rule), message).remedy(USE_A_WAYPOINT);
        }
    }
}

fn action(object: &AuthorizationPolicy, attached: bool, path: &FieldPath, findings: &mut Findings) {
    let spec = &object.spec;
    let at = path.field("action");
    match spec.action() {
        Action::Custom if !attached => {
            let message =
                "CUSTOM needs a proxy of requests; a node proxy would deny all that the policy matches";
            findings.refused(&at, message).remedy(USE_A_WAYPOINT);
        }
        Action::Audit if !attached => {
            findings.refused(&at, "AUDIT has no effect at a node proxy").remedy(USE_A_WAYPOINT);
        }
        _ => {}
    }
    match (spec.action(), &spec.provider) {
        (Action::Custom, None) => {
            findings.error(path, "CUSTOM needs a `provider`");
        }
        (Action::Custom, Some(provider)) if provider.name.is_empty() => {
            findings.error(&path.field("provider"), "the provider has no `name`");
        }
        (action, Some(_)) if action != Action::Custom => {
            findings.error(&path.field("provider"), "only the action CUSTOM asks a provider");
        }
        _ => {}
    }
    if spec.action() != Action::Allow && spec.rules.is_empty() {
        findings
            .refused(path, format!("{} without `rules` matches nothing", spec.action().as_str()))
            .remedy("`rules: [{}]` matches everything");
    }
}

fn selector(selector: Option<&Selector>, path: &FieldPath, findings: &mut Findings) {
    if let Some(selector) = selector {
        names::labels(&selector.match_labels, &path.field("selector").field("matchLabels"), findings);
    }
}

fn target_ref(target: &TargetRef, own_namespace: &str, path: &FieldPath, findings: &mut Findings) {
    const KINDS: [(&str, &str); 4] = [
        ("Service", ""),
        ("ServiceEntry", "networking.istio.io"),
        ("Gateway", "gateway.networking.k8s.io"),
        ("GatewayClass", "gateway.networking.k8s.io"),
    ];
    if target.name.is_empty() {
        findings.error(path, "the target has no `name`");
    }
    match KINDS.iter().find(|(kind, _)| *kind == target.kind) {
        None => {
            let finding = findings
                .error(&path.field("kind"), format!("a policy cannot be attached to {:?}", target.kind));
            finding.did_you_mean(&target.kind, KINDS.iter().map(|(kind, _)| *kind));
        }
        Some((kind, group)) if *group != target.group && !(group.is_empty() && target.group == "core") => {
            findings
                .error(&path.field("group"), format!("{kind} is not of the group {:?}", target.group))
                .remedy(format!("its group is {group:?}"));
        }
        Some(_) => {}
    }
    if target.namespace.as_ref().is_some_and(|namespace| namespace != own_namespace) {
        findings.error(&path.field("namespace"), "a policy is attached within its own namespace only");
    }
}

fn source(s: &Source, own_namespace: &str, path: &FieldPath, findings: &mut Findings) {
    let identities = [("principals", &s.principals), ("notPrincipals", &s.not_principals)];
    for (name, values) in identities {
        each(values, &path.field(name), findings, principal);
    }
    let texts = [
        ("namespaces", &s.namespaces),
        ("notNamespaces", &s.not_namespaces),
        ("requestPrincipals", &s.request_principals),
        ("notRequestPrincipals", &s.not_request_principals),
    ];
    for (name, values) in texts {
        each(values, &path.field(name), findings, text);
    }
    let accounts =
        [("serviceAccounts", &s.service_accounts), ("notServiceAccounts", &s.not_service_accounts)];
    for (name, values) in accounts {
        each(values, &path.field(name), findings, |value| account(value, own_namespace));
        let others = !s.principals.is_empty() || !s.namespaces.is_empty();
        if !values.is_empty() && others {
            let finding = findings.error(&path.field(name), "not together with `principals` or `namespaces`");
            finding.remedy("an account names its namespace itself: `namespace/account`");
        }
    }
    let blocks = [
        ("ipBlocks", &s.ip_blocks),
        ("notIpBlocks", &s.not_ip_blocks),
        ("remoteIpBlocks", &s.remote_ip_blocks),
        ("notRemoteIpBlocks", &s.not_remote_ip_blocks),
    ];
    for (name, values) in blocks {
        each(values, &path.field(name), findings, block);
    }
}

fn operation(o: &Operation, path: &FieldPath, findings: &mut Findings) {
    for (name, values) in [("ports", &o.ports), ("notPorts", &o.not_ports)] {
        each(values, &path.field(name), findings, port_number);
    }
    let texts = [
        ("hosts", &o.hosts),
        ("notHosts", &o.not_hosts),
        ("methods", &o.methods),
        ("notMethods", &o.not_methods),
        ("paths", &o.paths),
        ("notPaths", &o.not_paths),
    ];
    for (name, values) in texts {
        each(values, &path.field(name), findings, |value| {
            value.is_empty().then(|| ("an empty text".to_owned(), None))
        });
    }
}

fn condition(when: &Condition, own_namespace: &str, path: &FieldPath, findings: &mut Findings) {
    let Some(key) = ConditionKey::parse(&when.key) else {
        let finding = findings.error(&path.field("key"), format!("there is no attribute {:?}", when.key));
        return finding.did_you_mean(&when.key, ConditionKey::NAMES);
    };
    if when.values.is_empty() && when.not_values.is_empty() {
        findings.error(path, "neither `values` nor `notValues`");
    }
    for (name, values) in [("values", &when.values), ("notValues", &when.not_values)] {
        let path = path.field(name);
        match key {
            ConditionKey::SourceIp | ConditionKey::DestinationIp => each(values, &path, findings, block),
            ConditionKey::SourceNamespace => each(values, &path, findings, text),
            ConditionKey::SourcePrincipal => each(values, &path, findings, principal),
            ConditionKey::DestinationPort => each(values, &path, findings, port_number),
            ConditionKey::SourceServiceAccount => {
                each(values, &path, findings, |value| account(value, own_namespace));
            }
            ConditionKey::Request => {}
        }
    }
}

/// What is wrong with a value, and what to do instead.
type Wrong = Option<(String, Option<String>)>;

fn each(values: &[String], path: &FieldPath, findings: &mut Findings, check: impl Fn(&str) -> Wrong) {
    for (n, value) in values.iter().enumerate() {
        if let Some((message, remedy)) = check(value) {
            findings.error(&path.index(n), message).remedy = remedy;
        }
    }
}

fn text(value: &str) -> Wrong {
    match string(value) {
        Some(_) => None,
        None if value.is_empty() => Some(("an empty text".to_owned(), None)),
        None => Some((
            format!("{value:?} has a `*` where it means nothing"),
            Some("`*` stands alone, at the beginning or at the end".to_owned()),
        )),
    }
}

fn principal(value: &str) -> Wrong {
    if let Some(rest) = value.strip_prefix("spiffe://") {
        return Some((
            "principals are written without `spiffe://`, or they match nothing".to_owned(),
            Some(format!("write `{rest}`")),
        ));
    }
    let wrong = text(value);
    if wrong.is_some() || value.contains('*') {
        return wrong;
    }
    let identity = format!("spiffe://{value}").parse::<model::SpiffeId>();
    identity.is_err().then(|| {
        (
            format!("{value:?} is no identity of a workload and matches nothing"),
            Some("<trust domain>/ns/<namespace>/sa/<service account>".to_owned()),
        )
    })
}

fn account(value: &str, own_namespace: &str) -> Wrong {
    service_account(value, own_namespace).is_none().then(|| {
        (
            format!("{value:?} is no service account"),
            Some("`namespace/account` or `account`, without `*`".to_owned()),
        )
    })
}

fn block(value: &str) -> Wrong {
    network(value).is_none().then(|| (format!("{value:?} is no address or CIDR"), None))
}

fn port_number(value: &str) -> Wrong {
    port(value).is_none().then(|| (format!("{value:?} is no port"), Some("ports are 1 to 65535".to_owned())))
}

pub(super) fn peer(object: &PeerAuthentication, findings: &mut Findings) {
    let spec = &object.spec;
    let path = FieldPath::from("spec");
    selector(spec.selector.as_ref(), &path, findings);
    let at = path.field("portLevelMtls");
    if !spec.port_level_mtls.is_empty() && !spec.is_selective() {
        findings
            .error(&at, "ports are told apart only for workloads that a `selector` names")
            .remedy("add `selector.matchLabels`");
    }
    for number in spec.port_level_mtls.keys() {
        check_port((*number).into(), &at.field(number.to_string()), findings);
    }
}
