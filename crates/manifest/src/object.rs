//! An object of a kind that is used.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Serialize, Serializer};

use crate::kind::Kind;
use crate::kinds::{AuthorizationPolicy, Gateway, PeerAuthentication, ServiceEntry, WorkloadEntry};

macro_rules! object {
    ($($kind:ident)*) => {
        /// An object of a kind that is used.
        #[derive(Clone, Debug, PartialEq)]
        #[expect(missing_docs, reason = "the names are the kinds'")]
        pub enum Object {
            $($kind(Box<$kind>),)*
        }

        impl Object {
            /// Its kind.
            pub fn kind(&self) -> Kind {
                match self {
                    $(Self::$kind(_) => Kind::$kind,)*
                }
            }

            /// Its name, namespace, labels and the like.
            pub fn metadata(&self) -> &ObjectMeta {
                match self {
                    $(Self::$kind(object) => &object.metadata,)*
                }
            }

            /// The same, to be changed.
            pub fn metadata_mut(&mut self) -> &mut ObjectMeta {
                match self {
                    $(Self::$kind(object) => &mut object.metadata,)*
                }
            }

            /// Reads a tree as an object of a kind.
            pub(crate) fn from_node(
                kind: Kind,
                file: &std::sync::Arc<str>,
                node: &crate::yaml::Node,
            ) -> Result<Self, Vec<crate::Problem>> {
                Ok(match kind {
                    $(Kind::$kind => Self::$kind(crate::de::from_node(file, node)?),)*
                })
            }
        }

        impl Serialize for Object {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match self {
                    $(Self::$kind(object) => object.serialize(serializer),)*
                }
            }
        }

        $(impl From<$kind> for Object {
            fn from(object: $kind) -> Self {
                Self::$kind(Box::new(object))
            }
        })*
    };
}

object! {
    Namespace Node ServiceAccount ConfigMap Deployment Pod Service EndpointSlice ServiceEntry WorkloadEntry
    Gateway AuthorizationPolicy PeerAuthentication
}

impl Object {
    /// What names it.
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(self.kind(), self.namespace(), self.name())
    }

    /// Its name; empty where it has none.
    pub fn name(&self) -> &str {
        self.metadata().name.as_deref().unwrap_or_default()
    }

    /// Its namespace; empty where the kind has none.
    pub fn namespace(&self) -> &str {
        self.metadata().namespace.as_deref().unwrap_or_default()
    }

    /// A label's value.
    pub fn label(&self, key: &str) -> Option<&str> {
        label(self.metadata(), key)
    }

    /// An annotation's value.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        annotation(self.metadata(), key)
    }
}

/// A label's value.
pub fn label<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    value(metadata.labels.as_ref(), key)
}

/// An annotation's value.
pub fn annotation<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    value(metadata.annotations.as_ref(), key)
}

fn value<'a>(map: Option<&'a BTreeMap<String, String>>, key: &str) -> Option<&'a str> {
    map?.get(key).map(String::as_str)
}

/// What names an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ObjectKey {
    /// The kind.
    pub kind: Kind,
    /// The namespace; empty where the kind has none.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl ObjectKey {
    /// Joins the parts.
    pub fn new(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

/// `AuthorizationPolicy shop/allow-frontend`, `Namespace shop`.
impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}
