use manifest::{Kind, ObjectKey};

use super::*;
use crate::lab::control::services;
use crate::lab::store::tests::store;
use crate::lab::store::{Mint, Store};

const BASE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\napiVersion: v1\n\
                        kind: ServiceAccount\nmetadata: {name: frontend, namespace: shop}\n";

fn texts(yaml: &str) -> Vec<Text> {
    vec![Text { file: "a.yaml".into(), text: yaml.into() }]
}

fn told(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

fn try_apply(store: &mut Store, mint: &mut Mint, yaml: &str) -> Result<Vec<String>, Vec<String>> {
    let reading = read(&texts(yaml)).map_err(|problems| told(&problems))?;
    apply(store, &reading.documents, mint).map_err(|problems| told(&problems))
}

fn pod(namespace: &str, account: &str, command: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: a, namespace: {namespace}}}\n\
             spec: {{serviceAccountName: {account}, containers: [{{name: m, command: [{command}]}}]}}\n"
    )
}

#[test]
fn a_batch_with_one_bad_object_changes_nothing() {
    let (mut store, mut mint) = store(BASE);
    let batch = pod("shop", "frontend", "s") + &pod("shpo", "frontend", "s");
    let refused = try_apply(&mut store, &mut mint, &batch).unwrap_err();
    assert_eq!(refused, ["a.yaml:7:1: Namespace shpo is not there (did you mean `shop`?)"]);
    assert!(store.take_changed().is_empty());
}

#[test]
fn a_misspelt_account_is_refused() {
    let (mut store, mut mint) = store(BASE);
    let refused = try_apply(&mut store, &mut mint, &pod("shop", "frontned", "s")).unwrap_err();
    assert!(refused[0].ends_with("ServiceAccount shop/frontned is not there (did you mean `frontend`?)"));
}

#[test]
fn what_comes_in_the_same_batch_is_there() {
    let (mut store, mut mint) = store("");
    let lines = try_apply(&mut store, &mut mint, &(BASE.to_owned() + &pod("shop", "frontend", "s")));
    assert_eq!(lines.unwrap()[2], "Pod shop/a created");
}

#[test]
fn a_running_pod_is_not_changed_under_way() {
    let (mut store, mut mint) = store(BASE);
    try_apply(&mut store, &mut mint, &pod("shop", "frontend", "s")).unwrap();
    let again = try_apply(&mut store, &mut mint, &pod("shop", "frontend", "s")).unwrap();
    assert_eq!(again, ["Pod shop/a unchanged"]);
    let refused = try_apply(&mut store, &mut mint, &pod("shop", "frontend", "t")).unwrap_err();
    assert!(refused[0].contains("cannot be changed"), "{refused:?}");
}

#[test]
fn labels_put_on_by_hand_outlive_an_apply() {
    let (mut store, mut mint) = store("");
    let yaml = |labels: &str| {
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {labels}}}\n")
    };
    try_apply(&mut store, &mut mint, &yaml("{a: one, b: two}")).unwrap();
    let key = ObjectKey::new(Kind::Namespace, "", "shop");
    let ambient = "istio.io/dataplane-mode=ambient".parse().unwrap();
    label(&mut store, &key, &[ambient], &mut mint).unwrap();
    try_apply(&mut store, &mut mint, &yaml("{a: three}")).unwrap();
    let object = store.get(&key).unwrap();
    assert_eq!(object.label("istio.io/dataplane-mode"), Some("ambient"));
    assert_eq!((object.label("a"), object.label("b")), (Some("three"), None));
}

#[test]
fn a_service_keeps_its_virtual_ip() {
    let (mut store, mut mint) = store(BASE);
    let service = |more: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: shop}}\nspec: {{{more}ports: [{{port: 80}}]}}\n"
        )
    };
    try_apply(&mut store, &mut mint, &service("clusterIP: 10.96.9.9, ")).unwrap();
    try_apply(&mut store, &mut mint, &service("")).unwrap();
    assert_eq!(services::addresses(store.services().next().unwrap())[0].to_string(), "10.96.9.9");
    let refused = try_apply(&mut store, &mut mint, &service("clusterIP: 10.0.0.1, ")).unwrap_err();
    assert!(refused[0].contains("not in the range"), "{refused:?}");
}

#[test]
fn only_what_is_there_is_deleted() {
    let (mut store, mut mint) = store(BASE);
    let documents = read(&texts(&pod("shop", "frontend", "s"))).unwrap().documents;
    assert!(delete(&mut store, &documents, false, &mut mint).is_err());
    assert_eq!(delete(&mut store, &documents, true, &mut mint).unwrap(), [""; 0]);
    apply(&mut store, &documents, &mut mint).unwrap();
    delete(&mut store, &documents, false, &mut mint).unwrap();
    assert!(store.pod("shop", "a").unwrap().metadata.deletion_timestamp.is_some());
}

#[test]
fn known_kinds_that_are_not_used_are_listed_once() {
    let one = "---\napiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {name: x, namespace: shop}\nspec: {}\n";
    let reading = read(&texts(&one.repeat(2))).unwrap();
    assert_eq!(
        reading.notes,
        ["PodDisruptionBudget is known but not used yet (2 objects, the first in a.yaml:2)"]
    );
}

#[test]
fn labels_are_read_as_kubectl_reads_them() {
    let edit = |text: &str| text.parse::<LabelEdit>();
    assert_eq!(edit("a=b=c").unwrap(), LabelEdit { key: "a".into(), value: Some("b=c".into()) });
    assert_eq!(edit("a/b-").unwrap(), LabelEdit { key: "a/b".into(), value: None });
    assert!(edit("a").is_err() && edit("=b").is_err() && edit("-").is_err());
}

#[test]
fn a_label_that_cannot_be_is_refused() {
    let (mut store, mut mint) = store(BASE);
    let key = ObjectKey::new(Kind::Namespace, "", "shop");
    let bad = LabelEdit { key: "a".into(), value: Some("no blanks".into()) };
    assert!(label(&mut store, &key, &[bad], &mut mint).is_err());
    let nowhere = ObjectKey::new(Kind::Namespace, "", "shpo");
    let refused = label(&mut store, &nowhere, &[], &mut mint).unwrap_err();
    assert_eq!(refused, "Namespace shpo is not there (did you mean `shop`?)");
}
