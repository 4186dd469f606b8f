//! Names of things.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// A workload's unique name in the workload API, `cluster//Pod/namespace/name` for a Kubernetes pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Uid(Arc<str>);

impl Uid {
    /// Keeps a name as it is.
    pub fn new(uid: impl AsRef<str>) -> Self {
        Self(uid.as_ref().into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! pair {
    ($(#[$doc:meta])* $name:ident, $(#[$second_doc:meta])* $second:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name {
            /// The namespace.
            pub namespace: Arc<str>,
            $(#[$second_doc])*
            pub $second: Arc<str>,
        }

        impl $name {
            /// Joins the two parts.
            pub fn new(namespace: impl AsRef<str>, $second: impl AsRef<str>) -> Self {
                Self { namespace: namespace.as_ref().into(), $second: $second.as_ref().into() }
            }

            /// Splits `namespace/rest` at the first slash; nothing if a part is missing.
            pub fn parse(text: &str) -> Option<Self> {
                let (namespace, $second) = text.split_once('/')?;
                (!namespace.is_empty() && !$second.is_empty()).then(|| Self::new(namespace, $second))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.namespace, self.$second)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

pair!(
    /// An object of a namespace.
    NamespacedName,
    /// The object's name.
    name
);
pair!(
    /// A host name as one namespace declares it: two namespaces may declare the same host.
    NamespacedHostname,
    /// The host name, fully qualified.
    hostname
);

/// What names a service: the namespace that declares it and its host name.
pub type ServiceKey = NamespacedHostname;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_needs_both_parts() {
        assert_eq!(ServiceKey::parse("shop/a.b.c").unwrap(), ServiceKey::new("shop", "a.b.c"));
        for bad in ["", "shop", "shop/", "/host"] {
            assert_eq!(ServiceKey::parse(bad), None, "{bad}");
        }
    }
}
