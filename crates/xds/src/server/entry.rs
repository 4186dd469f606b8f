//! A resource as it is served.

use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;

use ambit_proto::discovery::Resource as WireResource;
use bytes::Bytes;
use prost::Message;
use prost_types::Any;

use crate::{Defaults, Resource, ResourceKey, TypeUrl, encode};

/// A resource, encoded once and shared by all responses that carry it.
#[derive(Clone, Debug)]
pub struct Entry {
    pub(super) type_url: TypeUrl,
    pub(super) name: Arc<str>,
    pub(super) version: Arc<str>,
    pub(super) wire: Bytes,
    pub(super) aliases: Vec<Arc<str>>,
    pub(super) groups: Vec<Arc<str>>,
    key: ResourceKey,
}

impl Entry {
    /// Encodes a resource.
    ///
    /// The version is a function of the content alone, so that a proxy that comes back, to this server or to another,
    /// is sent only what differs.
    pub fn new(resource: &Resource, defaults: &Defaults) -> Self {
        let type_url = resource.type_url();
        let key = resource.key();
        let name = key.to_string();
        let content = encode::content(resource, defaults);
        let version = version(&content);
        let (aliases, groups) = (resource.aliases(), resource.groups());
        let wire = WireResource {
            version: version.clone(),
            name: name.clone(),
            aliases: aliases.iter().map(ToString::to_string).collect(),
            resource: Some(Any { type_url: type_url.as_str().to_owned(), value: content.into() }),
        };
        Self {
            type_url,
            name: name.into(),
            version: version.into(),
            wire: wire.encode_to_vec().into(),
            aliases,
            groups,
            key,
        }
    }

    /// What names the resource.
    pub fn key(&self) -> &ResourceKey {
        &self.key
    }

    /// The resource's name on the wire.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of this state of it.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// How many bytes it adds to a response, at most.
    pub(super) fn cost(&self) -> usize {
        self.wire.len() + MESSAGE_OVERHEAD
    }
}

#[cfg(test)]
impl Entry {
    /// The resource as a server with another mind would write it: under its name, but with a content that no one can
    /// read.
    pub(crate) fn garbled(resource: &Resource) -> Self {
        let good = Self::new(resource, &Defaults::default());
        let version = format!("garbled-{}", good.version);
        let wire = WireResource {
            version: version.clone(),
            name: good.name.to_string(),
            aliases: vec![],
            resource: Some(Any { type_url: good.type_url.as_str().to_owned(), value: vec![0xff; 3] }),
        };
        Self { version: version.into(), wire: wire.encode_to_vec().into(), ..good }
    }
}

/// Key and length of one element of a repeated field, at most.
pub(super) const MESSAGE_OVERHEAD: usize = 6;

/// 64 bits distinguish the states of one name; they need not be hard to forge, because what the hash is over comes from
/// the one who asks for it to be served.
fn version(content: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(content);
    format!("{:016x}", hasher.finish())
}
