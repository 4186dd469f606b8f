//! Each namespace has the service account `default`.

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use manifest::Kind;

use crate::lab::store::{Change, Store};

pub(super) fn changes(store: &Store) -> Vec<Change> {
    let alive = store.namespaces().filter(|ns| ns.metadata().deletion_timestamp.is_none());
    let lacking = alive.filter(|ns| !store.has(Kind::ServiceAccount, ns.name(), "default"));
    lacking
        .map(|namespace| {
            let metadata = ObjectMeta {
                name: Some("default".to_owned()),
                namespace: Some(namespace.name().to_owned()),
                ..ObjectMeta::default()
            };
            Change::put(ServiceAccount { metadata, ..ServiceAccount::default() })
        })
        .collect()
}
