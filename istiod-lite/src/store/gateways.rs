//! Gateways, by what leads to them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use manifest::gateway::{GATEWAY_NAME, named_waypoints};
use manifest::{Object, ObjectKey};
use model::NamespacedName;

use super::take_out;

/// What leads to Gateways.
#[derive(Debug, Default)]
pub(crate) struct Gateways {
    /// What names a Gateway as its waypoint, or as that of all in it.
    users: HashMap<NamespacedName, BTreeSet<ObjectKey>>,
    /// What a Gateway is made of.
    parts: HashMap<NamespacedName, BTreeSet<ObjectKey>>,
    /// The Gateways that lead to a network.
    leading_to: BTreeMap<String, BTreeSet<NamespacedName>>,
}

impl Gateways {
    pub(super) fn insert(&mut self, key: &ObjectKey, object: &Object) {
        for gateway in named_waypoints(object).names() {
            self.users.entry(gateway.clone()).or_default().insert(key.clone());
        }
        if let Some(gateway) = part_of(key, object) {
            self.parts.entry(gateway).or_default().insert(key.clone());
        }
        if let Some(network) = leads_to(object) {
            let name = NamespacedName::new(&key.namespace, &key.name);
            self.leading_to.entry(network.to_owned()).or_default().insert(name);
        }
    }

    pub(super) fn remove(&mut self, key: &ObjectKey, object: &Object) {
        for gateway in named_waypoints(object).names() {
            take_out(&mut self.users, gateway, key);
        }
        if let Some(gateway) = part_of(key, object) {
            take_out(&mut self.parts, &gateway, key);
        }
        if let Some(network) = leads_to(object)
            && let Some(gateways) = self.leading_to.get_mut(network)
        {
            gateways.remove(&NamespacedName::new(&key.namespace, &key.name));
        }
    }

    /// What names a Gateway as its waypoint.
    pub(super) fn users(&self, gateway: &NamespacedName) -> impl Iterator<Item = &ObjectKey> {
        self.users.get(gateway).into_iter().flatten()
    }

    /// What a Gateway is made of.
    pub(super) fn parts(&self, gateway: &NamespacedName) -> impl Iterator<Item = &ObjectKey> {
        self.parts.get(gateway).into_iter().flatten()
    }

    /// The Gateways that lead to a network, by name.
    pub(crate) fn leading_to(&self, network: &str) -> impl Iterator<Item = &NamespacedName> {
        self.leading_to.get(network).into_iter().flatten()
    }
}

/// The Gateway that an object is a part of: by its label, or, for a Service, by its name.
fn part_of(key: &ObjectKey, object: &Object) -> Option<NamespacedName> {
    let name = match object {
        Object::Pod(_) | Object::WorkloadEntry(_) => object.label(GATEWAY_NAME)?,
        Object::Service(_) => object.label(GATEWAY_NAME).unwrap_or(object.name()),
        _ => return None,
    };
    Some(NamespacedName::new(&key.namespace, name))
}

fn leads_to(object: &Object) -> Option<&str> {
    match object {
        Object::Gateway(gateway) => gateway.leads_to(),
        _ => None,
    }
}
