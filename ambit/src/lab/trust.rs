//! The names of the mesh's trust domain, which its proxies are started with.

use manifest::kinds::{MeshConfig, MeshSettings};
use manifest::{Kind, Object, ObjectKey};

use super::system;

/// The names that the mesh's settings give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TrustNames {
    own: String,
    aliases: Vec<String>,
}

impl TrustNames {
    /// Where the mesh's settings stand.
    pub(crate) fn key() -> ObjectKey {
        ObjectKey::new(Kind::ConfigMap, system::NAMESPACE, MeshConfig::CONFIG_MAP)
    }

    /// As the object there says, if there is one.
    pub(crate) fn of(object: Option<&Object>) -> Self {
        let defaults = MeshSettings::default();
        let mesh = match object {
            Some(Object::ConfigMap(map)) => manifest::mesh_settings(map, &defaults),
            _ => defaults,
        };
        Self {
            own: mesh.trust_domain.to_string(),
            aliases: mesh.trust_domain_aliases.iter().map(ToString::to_string).collect(),
        }
    }

    /// What a proxy is told.
    pub(crate) fn env(&self) -> [(String, String); 2] {
        [
            ("TRUST_DOMAIN".to_owned(), self.own.clone()),
            ("AMBIT_TRUST_DOMAIN_ALIASES".to_owned(), self.aliases.join(",")),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_told_the_names_that_the_settings_give() {
        let of = |object: Option<&Object>| TrustNames::of(object).env().map(|(_, value)| value);
        assert_eq!(of(None), ["cluster.local", ""]);
        let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    trustDomain: b.example\n    trustDomainAliases: [c.example, b.example, a.example]\n";
        let parsed = manifest::parse("t.yaml", text);
        assert_eq!(parsed.problems, []);
        let object = &parsed.documents[0].object;
        assert_eq!(object.key(), TrustNames::key());
        assert_eq!(of(Some(object)), ["b.example", "a.example,c.example"]);
    }
}
