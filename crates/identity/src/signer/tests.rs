use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;
use crate::clock::TokioClock;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn signer(settings: SignerSettings) -> Signer {
    let clock = TokioClock::starting_at(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
    Signer::ephemeral(settings, Arc::new(clock)).unwrap()
}

fn id() -> SpiffeId {
    "spiffe://cluster.local/ns/shop/sa/a".parse().unwrap()
}

fn request() -> String {
    KeyPair::generate(Curve::P256).unwrap().request(&id()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_leaf_is_what_peers_expect() {
    let signer = signer(SignerSettings::default());
    let signed = signer.sign(&request(), &id(), None).unwrap();
    let der = pem::certificates(&signed.chain[0]).unwrap().remove(0);
    let (_, leaf) = X509Certificate::from_der(&der).unwrap();
    assert_eq!(leaf.subject().iter().count(), 0);
    assert!(
        leaf.subject_alternative_name().unwrap().unwrap().critical,
        "RFC 5280 4.2.1.6: the subject is empty"
    );
    let basic = leaf.basic_constraints().unwrap().unwrap();
    assert!(basic.critical && !basic.value.ca);
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature() && usage.value.key_encipherment());
    assert!(!usage.value.key_cert_sign());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.client_auth && extended.server_auth && !extended.any);
    assert_eq!(signed.serial, leaf.raw_serial().iter().map(|b| format!("{b:02x}")).collect::<String>());
    let roots = signer.roots().certificates();
    let (_, root) = X509Certificate::from_der(&roots[0]).unwrap();
    assert!(root.is_ca() && root.key_usage().unwrap().unwrap().value.key_cert_sign());
    assert_eq!(leaf.issuer(), root.subject());
    assert_eq!(signed.chain.len(), 2);
    assert_eq!(signed.chain[1], signer.roots().to_pem());
}

#[tokio::test(start_paused = true)]
async fn a_life_is_what_was_asked_for_within_bounds() {
    let signer = signer(SignerSettings { ttl_max: DAY * 2, ..SignerSettings::default() });
    let now = signer.clock.now();
    let life = |ttl| signer.sign(&request(), &id(), ttl).unwrap().not_after.duration_since(now).unwrap();
    assert_eq!(life(None), DAY);
    assert_eq!(life(Some(Duration::ZERO)), DAY);
    assert_eq!(life(Some(Duration::from_secs(60))), Duration::from_secs(60));
    assert_eq!(life(Some(DAY * 365)), DAY * 2);
}

#[tokio::test(start_paused = true)]
async fn nothing_outlives_the_root() {
    let signer =
        signer(SignerSettings { ttl: ROOT_LIFE * 2, ttl_max: ROOT_LIFE * 2, ..SignerSettings::default() });
    let signed = signer.sign(&request(), &id(), None).unwrap();
    assert_eq!(signed.not_after, signer.issuer_end);
    tokio::time::advance(ROOT_LIFE + DAY).await;
    assert_eq!(signer.sign(&request(), &id(), None), Err(SignerError::Expired));
}

#[test]
fn serial_numbers_do_not_repeat() {
    let serials: std::collections::BTreeSet<_> =
        (0..100).map(|_| random_serial().unwrap().to_bytes()).collect();
    assert_eq!(serials.len(), 100);
    assert!(serials.iter().all(|s| s.len() == 16 && s[0] & 0x80 == 0));
}
