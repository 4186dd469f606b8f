//! Wire to model: total, and exact about what it could not read.
//!
//! Nothing that arrives can panic here, and nothing is taken for something else. Where a value is unknown to this build:
//!
//! - a choice that only tunes or describes (application protocol, address families, what manages a workload) becomes
//!   its default;
//! - a choice that could weaken something if guessed becomes the careful value (an unknown status is unhealthy, an
//!   unknown visibility is the narrow one) or, where there is none, makes the resource bad;
//! - inside a policy, a match that carries anything unreadable is marked so, and then never allows and always denies.
//!
//! A bad resource is refused alone: what else came with it is used, and its last good state stays.

use ambit_proto::discovery::Resource as WireResource;
use ambit_proto::{security, workload as wire};
use bytes::Bytes;
use prost::Message;
use prost_types::Any;

use crate::{Defaults, Resource, TypeUrl};

mod error;
mod policy;
mod service;
mod unread;
mod workload;

pub use error::{DecodeError, Fault};

/// A resource that was read, with what the stream needs to know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Its name on the wire, which is the one that its content gives it.
    pub name: String,
    /// The server's name for this state of it.
    pub version: String,
    /// The content.
    pub resource: Resource,
}

/// Reads one element of a response's `resources`.
pub fn resource(type_url: TypeUrl, bytes: Bytes, defaults: &Defaults) -> Result<Decoded, DecodeError> {
    let message = WireResource::decode(bytes)
        .map_err(|e| DecodeError { resource: String::new(), fault: Fault::Garbled(e.to_string()) })?;
    let WireResource { version, resource, name, .. } = message;
    match payload(type_url, &name, resource, defaults) {
        Ok(resource) => Ok(Decoded { name, version, resource }),
        Err(fault) => Err(DecodeError { resource: name, fault }),
    }
}

fn payload(type_url: TypeUrl, name: &str, any: Option<Any>, defaults: &Defaults) -> Result<Resource, Fault> {
    let any = any.ok_or(Fault::Missing { field: "resource" })?;
    if any.type_url != type_url.as_str() {
        return Err(Fault::Type { found: any.type_url });
    }
    let resource = content(type_url, Bytes::from(any.value), defaults)?;
    let own = resource.key().to_string();
    if own != name {
        return Err(Fault::OtherName { own });
    }
    Ok(resource)
}

/// Reads the content of a resource, whatever name it came under. This is where a fuzzer should begin.
pub fn content(type_url: TypeUrl, bytes: Bytes, defaults: &Defaults) -> Result<Resource, Fault> {
    let garbled = |e: prost::DecodeError| Fault::Garbled(e.to_string());
    match type_url {
        TypeUrl::Address => match wire::Address::decode(bytes).map_err(garbled)?.r#type {
            Some(wire::address::Type::Workload(w)) => Ok(workload::read(w, defaults)?.into()),
            Some(wire::address::Type::Service(s)) => Ok(service::read(s)?.into()),
            None => Err(Fault::Missing { field: "workload or service" }),
        },
        TypeUrl::Authorization => {
            let unread = unread::Unread::find(&bytes);
            let message = security::Authorization::decode(bytes).map_err(garbled)?;
            Ok(policy::read(message, &unread)?.into())
        }
    }
}

#[cfg(test)]
mod tests;
