use super::*;
use crate::fixtures::Mesh;

fn roots() -> [TrustBundle; 3] {
    [(); 3].map(|()| Mesh::new().signer.roots().clone())
}

fn set(roots: &[&TrustBundle]) -> TrustBundle {
    TrustBundle::from_certificates(roots.iter().flat_map(|r| r.certificates().iter().cloned())).unwrap()
}

#[test]
fn what_holds_no_root_is_refused() {
    assert_eq!(TrustBundle::from_pem(""), Err(BundleError::Empty));
    let rubbish = pem::encode("CERTIFICATE", b"rubbish");
    assert_eq!(TrustBundle::from_pem(&rubbish), Err(BundleError::NotACertificate(0)));
    let cut = "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n";
    assert_eq!(TrustBundle::from_pem(cut), Err(BundleError::Pem));
}

#[test]
fn what_either_side_names_is_believed() {
    let [old, new, _] = roots();
    let live = LiveBundle::new(old.clone());
    assert!(!live.issued(&old), "it was believed before");
    assert!(live.issued(&new));
    assert_eq!(live.load(), set(&[&old, &new]));
    assert!(live.issued(&old), "another authority of the mesh has not heard of the new one");
    assert_eq!(live.load(), old);
    live.set_up(set(&[&old, &new]));
    assert!(!live.issued(&old));
    assert_eq!(live.load(), set(&[&old, &new]), "what was set up stays");
}

#[test]
fn a_root_that_is_taken_out_is_believed_no_more_until_a_certificate_comes_with_it() {
    let [old, new, third] = roots();
    let live = LiveBundle::new(set(&[&old, &new]));
    live.issued(&set(&[&old, &third]));
    live.set_up(new.clone());
    assert_eq!(live.load(), set(&[&new, &third]));
    live.issued(&old);
    assert_eq!(live.load(), set(&[&new, &old]));
}

#[test]
fn only_a_change_is_told() {
    let [old, new, _] = roots();
    let live = LiveBundle::new(old.clone());
    let mut changes = live.changes();
    live.set_up(old.clone());
    live.issued(&old);
    assert!(!changes.has_changed().unwrap());
    live.set_up(set(&[&old, &new]));
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    live.issued(&new);
    assert!(!changes.has_changed().unwrap());
}
