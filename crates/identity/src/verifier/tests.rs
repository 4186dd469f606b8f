use std::time::Duration;

use rcgen::ExtendedKeyUsagePurpose;

use super::*;
use crate::TrustBundle;
use crate::clock::{Clock, unix};
use crate::fixtures::{Mesh, id, ids, own_domain};

fn now(mesh: &Mesh) -> UnixTime {
    unix(mesh.clock.now()).unwrap()
}

fn as_server(mesh: &Mesh, leaf: &CertificateDer<'_>) -> Result<SpiffeId, PeerError> {
    ServerVerifier::new(mesh.bundle.clone(), ids(&["a", "b"]), own_domain()).check(leaf, &[], now(mesh))
}

fn as_client(mesh: &Mesh, leaf: &CertificateDer<'_>) -> Result<SpiffeId, PeerError> {
    ClientVerifier::new(mesh.bundle.clone(), own_domain()).check(leaf, &[], now(mesh))
}

fn leaf_of(mesh: &Mesh, id: &SpiffeId) -> CertificateDer<'static> {
    mesh.svid(id).chain()[0].clone()
}

#[test]
fn each_of_the_expected_identities_is_accepted() {
    let mesh = Mesh::new();
    for account in ["a", "b"] {
        let leaf = leaf_of(&mesh, &id(account));
        assert_eq!(as_server(&mesh, &leaf), Ok(id(account)));
        assert_eq!(as_client(&mesh, &leaf), Ok(id(account)));
    }
}

#[test]
fn names_of_one_trust_domain_are_one() {
    let mesh = Mesh::new();
    let domain = |name| TrustDomain::new(name).unwrap();
    let of = |name, account| SpiffeId::new(domain(name), "test", account).unwrap();
    let domains = TrustDomains::of([domain("new.example"), domain("old.example")]);
    let (old, new) = (of("old.example", "a"), of("new.example", "a"));
    let near = |expected: &SpiffeId, presented: &SpiffeId| {
        let expected = IdentitySet::one(expected.clone());
        let verifier = ServerVerifier::new(mesh.bundle.clone(), expected, domains.clone());
        verifier.check(&leaf_of(&mesh, presented), &[], now(&mesh))
    };
    assert_eq!(near(&new, &old), Ok(old.clone()));
    assert_eq!(near(&old, &new), Ok(new.clone()));
    for other in [of("old.example", "b"), of("else.example", "a")] {
        assert!(matches!(near(&new, &other), Err(PeerError::WrongIdentity { .. })), "{other}");
        assert!(near(&other, &new).is_err(), "{other}");
    }
    let foreign = of("else.example", "a");
    assert_eq!(near(&foreign, &foreign), Ok(foreign), "who is expected by name is expected");
    let far = ClientVerifier::new(mesh.bundle.clone(), domains.clone());
    assert_eq!(far.check(&leaf_of(&mesh, &old), &[], now(&mesh)), Ok(old));
}

#[test]
fn another_identity_is_refused_by_name() {
    let mesh = Mesh::new();
    let refused = as_server(&mesh, &leaf_of(&mesh, &id("c"))).unwrap_err();
    assert_eq!(refused, PeerError::WrongIdentity { expected: ids(&["a", "b"]), presented: id("c") });
    assert_eq!(
        refused.to_string(),
        "the peer is spiffe://cluster.local/ns/shop/sa/c, expected was \
         spiffe://cluster.local/ns/shop/sa/a, spiffe://cluster.local/ns/shop/sa/b"
    );
}

#[test]
fn another_trust_domain_is_refused_even_under_our_root() {
    let mesh = Mesh::new();
    let foreign: SpiffeId = "spiffe://example.org/ns/shop/sa/a".parse().unwrap();
    let leaf = leaf_of(&mesh, &foreign);
    let domains = own_domain();
    assert_eq!(
        as_client(&mesh, &leaf),
        Err(PeerError::WrongTrustDomain { accepted: domains, presented: foreign.clone() })
    );
    assert!(matches!(as_server(&mesh, &leaf), Err(PeerError::WrongIdentity { .. })));
    let alias = TrustDomains::of([TrustDomain::default(), foreign.trust_domain().clone()]);
    let verifier = ClientVerifier::new(mesh.bundle.clone(), alias);
    assert_eq!(verifier.check(&leaf, &[], now(&mesh)), Ok(foreign));
}

#[test]
fn a_certificate_of_another_root_is_refused() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    // Both roots have the same name, so that the key must decide.
    let leaf = leaf_of(&other, &id("a"));
    assert_eq!(as_server(&mesh, &leaf), Err(PeerError::UnknownRoot));
    assert_eq!(as_client(&mesh, &leaf), Err(PeerError::UnknownRoot));
}

#[test]
fn a_change_of_roots_takes_effect_at_once() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let verifier = ClientVerifier::new(mesh.bundle.clone(), own_domain());
    let leaf = leaf_of(&other, &id("a"));
    let both = mesh.signer.roots().certificates().iter().chain(other.signer.roots().certificates());
    mesh.bundle.set_up(TrustBundle::from_certificates(both.cloned()).unwrap());
    assert_eq!(verifier.check(&leaf, &[], now(&mesh)), Ok(id("a")));
    mesh.bundle.set_up(mesh.signer.roots().clone());
    assert_eq!(verifier.check(&leaf, &[], now(&mesh)), Err(PeerError::UnknownRoot));
}

#[test]
fn a_certificate_holds_from_its_beginning_to_its_end() {
    let mesh = Mesh::new();
    let leaf = leaf_of(&mesh, &id("a"));
    let verifier = ClientVerifier::new(mesh.bundle.clone(), own_domain());
    let at = |offset: i64| {
        let base = now(&mesh).as_secs();
        let at = base.checked_add_signed(offset).unwrap();
        verifier.check(&leaf, &[], UnixTime::since_unix_epoch(Duration::from_secs(at)))
    };
    let day = 24 * 3600;
    assert!(at(-120).is_ok() && at(day).is_ok());
    assert!(matches!(at(-121), Err(PeerError::NotYetValid { .. })));
    let Err(PeerError::Expired { now, not_after }) = at(day + 7) else { panic!() };
    assert_eq!(now - not_after, 7);
}

#[test]
fn two_identities_or_none_are_refused() {
    let mesh = Mesh::new();
    let (a, b) = (id("a").to_string(), id("b").to_string());
    let two = mesh.leaf(&[&a, &b], |_| {});
    assert_eq!(as_server(&mesh, &two), Err(IdentityError::Several(2).into()));
    assert_eq!(as_client(&mesh, &two), Err(IdentityError::Several(2).into()));
    let none = mesh.leaf(&[], |params| {
        params.subject_alt_names = vec![rcgen::SanType::DnsName("a.shop".try_into().unwrap())];
    });
    assert_eq!(as_server(&mesh, &none), Err(IdentityError::None.into()));
    let foreign = mesh.leaf(&["spiffe://cluster.local/other"], |_| {});
    assert!(matches!(as_client(&mesh, &foreign), Err(PeerError::Identity(IdentityError::Foreign(_)))));
}

#[test]
fn a_servers_certificate_does_not_make_a_client() {
    let mesh = Mesh::new();
    let leaf = mesh.leaf(&[&id("a").to_string()], |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    assert_eq!(as_server(&mesh, &leaf), Ok(id("a")));
    assert!(matches!(as_client(&mesh, &leaf), Err(PeerError::Chain(_))));
}

#[test]
fn a_workload_cannot_sign_for_another() {
    let mesh = Mesh::new();
    let thief = mesh.svid(&id("thief"));
    let mut params = mesh.signer.end_entity(None).unwrap();
    params.subject_alt_names = vec![crate::keys::uri_san(&id("a"))];
    let issuer = rcgen::Issuer::from_ca_cert_der(&thief.chain()[0], thief.key()).unwrap();
    let key = crate::KeyPair::generate(crate::Curve::P256).unwrap();
    // Even if the thief's certificate allowed signing by its key usage, it is no CA's.
    let forged = params.signed_by(&key, &issuer).unwrap();
    let verifier = ServerVerifier::new(mesh.bundle.clone(), ids(&["a"]), own_domain());
    let refused = verifier.check(forged.der(), &thief.chain()[..1], now(&mesh));
    assert!(matches!(refused, Err(PeerError::Chain(_) | PeerError::UnknownRoot)), "{refused:?}");
}

#[test]
fn errors_survive_the_way_through_the_tls_library() {
    let all = [
        PeerError::Expired { now: 20, not_after: 10 },
        PeerError::NotYetValid { now: 10, not_before: 20 },
        PeerError::UnknownRoot,
        PeerError::Chain(webpki::Error::CaUsedAsEndEntity),
        PeerError::Identity(IdentityError::Malformed),
        PeerError::Identity(IdentityError::Several(3)),
        PeerError::WrongIdentity { expected: ids(&["a"]), presented: id("b") },
    ];
    for error in all {
        let rustls::Error::InvalidCertificate(through) = rustls::Error::from(error.clone()) else { panic!() };
        assert_eq!(peer_error(&through), Some(error));
    }
}
