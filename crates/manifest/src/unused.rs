//! What objects say that has no effect yet: listed, so that nothing is passed over in silence.

use crate::document::Unused;
use crate::object::Object;
use crate::validate::unused_mesh_settings;

/// Everything of an object that is known and not used, each as the words that a list shows.
pub(crate) fn unused(object: &Object) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for annotation in ["ambient.istio.io/bypass-inbound-capture", "ambient.istio.io/dns-capture"] {
        if object.annotation(annotation).is_some() {
            found.push(format!("annotation {annotation}"));
        }
    }
    match object {
        Object::ConfigMap(map) => {
            found.extend(unused_mesh_settings(map).into_iter().map(|name| format!("mesh setting {name}")));
        }
        Object::Service(service) => {
            let Some(spec) = &service.spec else { return found };
            let says = [
                ("sessionAffinity", spec.session_affinity.as_deref() == Some("ClientIP")),
                ("externalIPs", spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty())),
            ];
            let says = says.into_iter().filter(|(_, there)| *there);
            found.extend(says.map(|(name, _)| format!("Service with {name}")));
        }
        // A waypoint's business, and there are none yet: nobody enforces it.
        Object::AuthorizationPolicy(policy) if policy.spec.targets().next().is_some() => {
            found.push("AuthorizationPolicy with targetRefs".to_owned());
        }
        Object::Gateway(gateway) if gateway.waypoint().is_none() && gateway.leads_to().is_none() => {
            found.push("Gateway that is neither a waypoint nor between networks".to_owned());
        }
        _ => {}
    }
    found
}

/// The same as entries of a list.
pub(crate) fn entries<'o>(
    object: &'o Object,
    file: &'o std::sync::Arc<str>,
    line: u32,
) -> impl Iterator<Item = Unused> + 'o {
    unused(object).into_iter().map(move |kind| Unused {
        kind,
        group: String::new(),
        name: object.name().to_owned(),
        file: file.clone(),
        line,
    })
}

#[cfg(test)]
mod tests {
    fn listed(text: &str) -> Vec<String> {
        let parsed = crate::parse("f.yaml", text);
        assert_eq!(parsed.problems, []);
        parsed.unused.into_iter().map(|unused| unused.kind).collect()
    }

    #[test]
    fn settings_of_a_service_without_effect_are_listed() {
        let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}], sessionAffinity: ClientIP}\n";
        assert_eq!(listed(text), ["Service with sessionAffinity"]);
        let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}], internalTrafficPolicy: Local, sessionAffinity: None}\n";
        assert_eq!(listed(text), [] as [&str; 0]);
    }

    #[test]
    fn a_policy_that_only_a_waypoint_could_enforce_is_listed() {
        let policy = |spec: &str| {
            format!(
                "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
            )
        };
        let attached =
            policy("{targetRefs: [{kind: Service, group: '', name: web}], action: DENY, rules: [{}]}");
        assert_eq!(listed(&attached), ["AuthorizationPolicy with targetRefs"]);
        assert_eq!(listed(&policy("{action: DENY, rules: [{}]}")), [] as [&str; 0]);
    }

    #[test]
    fn a_mesh_setting_without_effect_is_listed() {
        let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    trustDomain: a.example\n    meshMTLS: {minProtocolVersion: TLSV1_3}\n";
        assert_eq!(listed(text), ["mesh setting meshMTLS"]);
    }
}
