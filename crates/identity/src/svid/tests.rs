use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::Curve;
use crate::clock::Clock;
use crate::fixtures::{Mesh, id};

/// A key, and the answer to its request.
fn answer(mesh: &Mesh) -> (KeyPair, Vec<String>) {
    let key = KeyPair::generate(Curve::P256).unwrap();
    let chain = mesh.signer.sign(&key.request(&id("a")).unwrap(), &id("a"), None).unwrap().chain;
    (key, chain)
}

fn take(mesh: &Mesh, key: &KeyPair, response: &[String]) -> Result<Svid, IssueError> {
    Svid::from_response(&id("a"), key.clone(), response, mesh.clock.now())
}

#[test]
fn an_honest_answer_is_taken() {
    let mesh = Mesh::new();
    let (key, response) = answer(&mesh);
    let svid = take(&mesh, &key, &response).unwrap();
    assert_eq!((svid.id(), svid.chain().len()), (&id("a"), 1));
    assert_eq!(svid.roots(), mesh.signer.roots());
    assert!(svid.is_valid_at(mesh.clock.now()));
    assert!(!svid.is_valid_at(svid.not_after()));
}

#[test]
fn several_roots_and_a_root_within_the_chain_are_taken() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let (key, mut response) = answer(&mesh);
    let root = mesh.signer.roots().to_pem();
    response.insert(1, root.clone());
    *response.last_mut().unwrap() = other.signer.roots().to_pem() + &root;
    let svid = take(&mesh, &key, &response).unwrap();
    assert_eq!((svid.chain().len(), svid.roots().certificates().len()), (1, 2));
}

#[test]
fn each_fault_of_an_answer_has_its_name() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let (key, response) = answer(&mesh);
    let fault = |response: &[String]| take(&mesh, &key, response).unwrap_err();
    let leaf = response[0].clone();
    assert_eq!(fault(&[]), IssueError::Elements(0));
    assert_eq!(fault(std::slice::from_ref(&leaf)), IssueError::Elements(1));
    assert_eq!(fault(&vec![leaf.clone(); 17]), IssueError::Elements(17));
    assert_eq!(fault(&[leaf.clone(), "rubbish".into()]), IssueError::Pem(1));
    assert_eq!(fault(&[String::new(), leaf.clone()]), IssueError::Pem(0));
    let unreadable = pem::encode("CERTIFICATE", b"rubbish");
    assert_eq!(
        fault(&[leaf.clone(), unreadable.clone()]),
        IssueError::Roots(BundleError::NotACertificate(0))
    );
    assert_eq!(fault(&[unreadable, response[1].clone()]), IssueError::Leaf(IdentityError::Malformed));
    assert_eq!(fault(&[response[1].clone(), leaf.clone()]), IssueError::Leaf(IdentityError::None));
    let foreign = [leaf, other.signer.roots().to_pem()];
    assert_eq!(fault(&foreign), IssueError::Chain(PeerError::UnknownRoot));

    let stranger = KeyPair::generate(Curve::P256).unwrap();
    assert_eq!(take(&mesh, &stranger, &response).unwrap_err(), IssueError::WrongKey);
    let wrong = Svid::from_response(&id("b"), key.clone(), &response, mesh.clock.now());
    assert_eq!(wrong.unwrap_err(), IssueError::WrongIdentity { asked: id("b"), got: id("a") });
    let late = mesh.clock.now() + Duration::from_secs(48 * 3600);
    let late = Svid::from_response(&id("a"), key, &response, late).unwrap_err();
    assert!(matches!(late, IssueError::Chain(PeerError::Expired { .. })));
}

proptest! {
    #[test]
    fn any_answer_is_judged_without_harm(
        texts in proptest::collection::vec("(-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]{0,80}\n-----END CERTIFICATE-----\n|.{0,40})", 0..4),
    ) {
        let mesh = Mesh::new();
        let key = KeyPair::generate(Curve::P256).unwrap();
        prop_assert!(take(&mesh, &key, &texts).is_err());
    }
}
