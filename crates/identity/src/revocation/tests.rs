use std::time::Duration;

use proptest::prelude::*;
use rcgen::{BasicConstraints, IsCa, Issuer, KeyUsagePurpose, SerialNumber};
use rustls::pki_types::{CertificateDer, UnixTime};

use super::*;
use crate::clock::{Clock, unix};
use crate::fixtures::{Mesh, id, ids, own_domain};
use crate::verifier::{ClientVerifier, ServerVerifier};
use crate::{Curve, KeyPair, TrustBundle, pem};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn now(mesh: &Mesh) -> UnixTime {
    unix(mesh.clock.now()).unwrap()
}

fn lists(pem: &str) -> Revocations {
    Revocations::from_pem(pem.as_bytes()).unwrap()
}

fn list(mesh: &Mesh, serials: &[&str]) -> Revocations {
    lists(&mesh.signer.revocation_list(serials, DAY).unwrap())
}

/// Both ends' verdict on a chain, which must be the same.
fn verdict(mesh: &Mesh, chain: &[CertificateDer<'_>]) -> Result<(), PeerError> {
    let (leaf, rest) = chain.split_first().unwrap();
    let server =
        ServerVerifier::new(mesh.bundle.clone(), ids(&["a", "b"]), own_domain()).check(leaf, rest, now(mesh));
    let client = ClientVerifier::new(mesh.bundle.clone(), own_domain()).check(leaf, rest, now(mesh));
    assert_eq!(server, client);
    client.map(drop)
}

#[test]
fn a_certificate_that_a_list_names_is_refused_and_no_other() {
    let mesh = Mesh::new();
    let (first, second) = (mesh.svid(&id("a")), mesh.svid(&id("a")));
    mesh.bundle.revoke(list(&mesh, &[first.serial()]));
    assert_eq!(verdict(&mesh, first.chain()), Err(PeerError::Revoked));
    assert_eq!(verdict(&mesh, second.chain()), Ok(()), "another certificate of the same workload");
    mesh.bundle.revoke(list(&mesh, &[]));
    assert_eq!(verdict(&mesh, first.chain()), Ok(()), "the next list names it no more");
}

#[test]
fn other_roots_do_not_lift_a_revocation() {
    let mesh = Mesh::new();
    let svid = mesh.svid(&id("a"));
    mesh.bundle.revoke(list(&mesh, &[svid.serial()]));
    let other = Mesh::new();
    let both = mesh.signer.roots().certificates().iter().chain(other.signer.roots().certificates());
    mesh.bundle.set_up(TrustBundle::from_certificates(both.cloned()).unwrap());
    assert_eq!(verdict(&mesh, svid.chain()), Err(PeerError::Revoked));
}

#[test]
fn a_list_of_another_authority_with_the_same_name_says_nothing() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let svid = mesh.svid(&id("a"));
    mesh.bundle.revoke(list(&other, &[svid.serial()]));
    assert_eq!(verdict(&mesh, svid.chain()), Ok(()));
    let both = [list(&other, &[svid.serial()]), list(&mesh, &[svid.serial()])];
    let texts = [&other, &mesh].map(|m| m.signer.revocation_list([svid.serial()], DAY).unwrap()).concat();
    assert_eq!(lists(&texts).lists(), both.len());
    mesh.bundle.revoke(lists(&texts));
    assert_eq!(
        verdict(&mesh, svid.chain()),
        Err(PeerError::Revoked),
        "the first list does not hide the second"
    );
}

#[test]
fn an_intermediate_that_is_revoked_takes_its_leaves_with_it() {
    let mesh = Mesh::new();
    let key = KeyPair::generate(Curve::P256).unwrap();
    let mut params = mesh.signer.end_entity(None).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(rcgen::DnType::CommonName, "between");
    let signed = mesh.signer.issue(&params, &key).unwrap();
    let between = pem::certificates(&signed.chain[0]).unwrap().remove(0);
    let issuer = Issuer::from_ca_cert_der(&between, key).unwrap();
    let mut leaf = mesh.leaf_params(&[&id("a").to_string()]);
    leaf.serial_number = Some(SerialNumber::from_slice(&[0x55; 8]));
    let leaf = leaf.signed_by(&KeyPair::generate(Curve::P256).unwrap(), &issuer).unwrap().der().clone();
    let chain = [leaf, between];
    assert_eq!(verdict(&mesh, &chain), Ok(()));
    mesh.bundle.revoke(list(&mesh, &[&signed.serial]));
    assert_eq!(verdict(&mesh, &chain), Err(PeerError::Revoked));
    mesh.bundle.revoke(list(&mesh, &["55".repeat(8).as_str()]));
    assert_eq!(verdict(&mesh, &chain), Ok(()), "the root has signed no such leaf");
}

#[tokio::test(start_paused = true)]
async fn a_list_goes_on_counting_when_its_successor_is_late() {
    let mesh = Mesh::new();
    let svid = mesh.svid(&id("a"));
    let pem = mesh.signer.revocation_list([svid.serial()], Duration::from_secs(60)).unwrap();
    mesh.bundle.revoke(lists(&pem));
    assert_eq!(mesh.bundle.revocations().next_update(), Some(mesh.clock.now() + Duration::from_secs(60)));
    tokio::time::advance(Duration::from_secs(3600)).await;
    assert_eq!(verdict(&mesh, svid.chain()), Err(PeerError::Revoked));
}

#[test]
fn what_holds_no_list_is_refused_as_a_whole() {
    let mesh = Mesh::new();
    let good = mesh.signer.revocation_list(["0a"], DAY).unwrap();
    assert_eq!(lists(&good).entries(), 1);
    assert!(lists(&good).issuers().all(|issuer| issuer.contains("Ambit mesh root")));
    let read = |pem: &str| Revocations::from_pem(pem.as_bytes()).map(drop);
    assert_eq!(read(""), Err(RevocationError::Empty));
    assert_eq!(read(&mesh.signer.roots().to_pem()), Err(RevocationError::Empty));
    let rubbish = good.clone() + &pem::encode("X509 CRL", b"rubbish");
    assert!(matches!(read(&rubbish), Err(RevocationError::List { list: 1, .. })));
    let cut = &good[..good.len() - 30];
    assert!(read(cut).is_err(), "one half written");
    assert!(read(&good.repeat(65)).is_err());
}

#[test]
fn a_proof_holds_until_its_certificate_or_its_root_does_not() {
    let mesh = Mesh::new();
    let (client, server) = (mesh.identity("a"), mesh.identity("b"));
    let proofs = crate::fixtures::proofs(&client, &server);
    let hold = || [&proofs.0, &proofs.1].map(|proof| proof.holds());
    assert_eq!(hold(), [Ok(()), Ok(())]);
    mesh.bundle.revoke(list(&mesh, &[client.svid().serial()]));
    assert_eq!(hold(), [Err(PeerError::Revoked), Ok(())]);
    mesh.bundle.revoke(list(&mesh, &[server.svid().serial()]));
    assert_eq!(hold(), [Ok(()), Err(PeerError::Revoked)]);
    mesh.bundle.set_up(Mesh::new().signer.roots().clone());
    assert_eq!(hold(), [Err(PeerError::UnknownRoot), Err(PeerError::UnknownRoot)]);
}

proptest! {
    #[test]
    fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Revocations::from_pem(&bytes);
        let _ = Revocations::from_pem(pem::encode("X509 CRL", &bytes).as_bytes());
    }

    #[test]
    fn a_damaged_list_gives_an_answer(at in 0usize..400, with: u8) {
        let text = Mesh::new().signer.revocation_list(["0a", "0b"], DAY).unwrap();
        let mut bytes = text.into_bytes();
        let at = at % bytes.len();
        bytes[at] = with;
        let _ = Revocations::from_pem(&bytes);
    }
}
