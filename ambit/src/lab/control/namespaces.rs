//! Namespaces have a label of their own name, and take what is in them along when they go.

use manifest::Object;

use crate::lab::store::{Change, Mint, Store};

/// The label by which a namespace is selected.
const NAME: &str = "kubernetes.io/metadata.name";

pub(super) fn changes(store: &Store, mint: &Mint) -> Vec<Change> {
    let mut changes = Vec::new();
    for object in store.namespaces() {
        let Object::Namespace(namespace) = object else { continue };
        let name = object.name();
        if object.metadata().deletion_timestamp.is_some() {
            changes.extend(empty(store, name, mint));
            continue;
        }
        let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref());
        if object.label(NAME) != Some(name) || phase != Some("Active") {
            let mut namespace = (**namespace).clone();
            let labels = namespace.metadata.labels.get_or_insert_default();
            labels.insert(NAME.to_owned(), name.to_owned());
            namespace.status.get_or_insert_default().phase = Some("Active".to_owned());
            changes.push(Change::put(namespace));
        }
    }
    changes
}

/// Removes all of a namespace but its pods, which end in their own time, and then the namespace.
fn empty(store: &Store, name: &str, mint: &Mint) -> Vec<Change> {
    let mut inside = store.all().filter(|object| object.namespace() == name).peekable();
    if inside.peek().is_none() {
        let gone = store.namespaces().filter(|namespace| namespace.name() == name);
        return gone.map(|namespace| Change::Remove(namespace.key())).collect();
    }
    inside
        .filter_map(|object| match object {
            Object::Pod(pod) if pod.metadata.deletion_timestamp.is_some() => None,
            Object::Pod(pod) => {
                let mut pod = (**pod).clone();
                pod.metadata.deletion_timestamp = Some(mint.time());
                Some(Change::put(pod))
            }
            other => Some(Change::Remove(other.key())),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use manifest::{Kind, ObjectKey};

    use super::*;
    use crate::lab::store::tests::store;

    const SHOP: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\napiVersion: v1\nkind: Pod\n\
                        metadata: {name: a, namespace: shop}\nspec: {containers: [{name: m, command: [sleep]}]}\n---\n\
                        apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: a, namespace: shop}\n";

    fn round(store: &mut Store, mint: &mut Mint) -> bool {
        let changes = changes(store, mint);
        changes.into_iter().fold(false, |any, change| store.make(change, mint) | any)
    }

    #[test]
    fn a_namespace_can_be_selected_by_its_name() {
        let (mut store, mut mint) = store(SHOP);
        assert!(round(&mut store, &mut mint));
        assert_eq!(store.namespaces().next().unwrap().label(NAME), Some("shop"));
        assert!(!round(&mut store, &mut mint));
    }

    #[test]
    fn a_namespace_goes_after_its_pods() {
        let (mut store, mut mint) = store(SHOP);
        let mut namespace = store.namespaces().next().unwrap().clone();
        namespace.metadata_mut().deletion_timestamp = Some(mint.time());
        store.put(namespace, &mut mint);
        while round(&mut store, &mut mint) {}
        assert!(store.pod("shop", "a").unwrap().metadata.deletion_timestamp.is_some());
        assert!(!store.has(Kind::ServiceAccount, "shop", "a"));
        store.remove(&ObjectKey::new(Kind::Pod, "shop", "a"));
        round(&mut store, &mut mint);
        assert!(!store.has(Kind::Namespace, "", "shop"));
    }
}
