use std::os::unix::fs::PermissionsExt;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyUsagePurpose};

use super::*;
use crate::clock::SystemClock;
use crate::keys::Curve;
use crate::svid::Svid;

fn open(dir: &Path) -> Result<Signer, OpenError> {
    Signer::open(dir, SignerSettings::default(), Arc::new(SystemClock))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Whether what the signer signs is taken.
fn issue(signer: &Signer) -> Svid {
    let id = "spiffe://cluster.local/ns/shop/sa/a".parse().unwrap();
    let key = KeyPair::generate(Curve::P256).unwrap();
    let signed = signer.sign(&key.request(&id).unwrap(), &id, None).unwrap();
    Svid::from_response(&id, key, &signed.chain, signer.clock.now()).unwrap()
}

#[test]
fn a_root_is_made_once_and_found_again() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("ca");
    let made = open(&dir).unwrap();
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.join(ROOT_KEY)), 0o600);
    let found = open(&dir).unwrap();
    assert_eq!(found.roots(), made.roots());
    assert_eq!(issue(&found).roots(), made.roots());
    let left: Vec<_> = fs::read_dir(&dir).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn programs_that_begin_at_once_agree_on_one_root() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = &tmp.path().join("ca");
    let roots: Vec<TrustBundle> = std::thread::scope(|scope| {
        let opening: Vec<_> = (0..8).map(|_| scope.spawn(|| open(dir).unwrap().roots().clone())).collect();
        opening.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(roots.iter().all(|r| *r == roots[0]));
    let left: Vec<_> = fs::read_dir(dir).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn a_key_without_its_certificate_gets_one() {
    let tmp = tempfile::tempdir().unwrap();
    open(tmp.path()).unwrap();
    fs::remove_file(tmp.path().join(ROOT_CERT)).unwrap();
    issue(&open(tmp.path()).unwrap());
}

#[test]
fn a_certificate_without_its_key_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    open(tmp.path()).unwrap();
    fs::remove_file(tmp.path().join(ROOT_KEY)).unwrap();
    assert!(matches!(open(tmp.path()), Err(OpenError::Missing { .. })));
}

#[test]
fn a_key_that_others_may_read_is_refused_with_the_remedy() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("ca");
    open(&dir).unwrap();
    chmod(&dir.join(ROOT_KEY), 0o640);
    let refused = open(&dir).unwrap_err().to_string();
    assert!(refused.contains("0640") && refused.contains("chmod 0600"), "{refused}");
    chmod(&dir.join(ROOT_KEY), 0o600);
    chmod(&dir, 0o770);
    let refused = open(&dir).unwrap_err().to_string();
    assert!(refused.contains("chmod 0750"), "{refused}");
}

#[test]
fn a_key_of_another_root_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let (a, b) = (tmp.path().join("a"), tmp.path().join("b"));
    open(&a).unwrap();
    open(&b).unwrap();
    fs::copy(b.join(ROOT_KEY), a.join(ROOT_KEY)).unwrap();
    assert!(matches!(open(&a), Err(OpenError::Mismatch { .. })));
}

/// Writes an intermediate under a root, as an operator would.
fn plug_in(dir: &Path, curve: Curve, root_in_chain: bool) {
    let authority = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
    };
    let root_key = KeyPair::generate(Curve::P384).unwrap();
    let root = authority("operator's root");
    let root_cert = root.self_signed(&root_key).unwrap();
    let key = KeyPair::generate(curve).unwrap();
    let issuer = Issuer::new(root, &root_key);
    let own = authority("operator's intermediate").signed_by(&key, &issuer).unwrap();
    let text = |der: &CertificateDer<'_>| pem::encode("CERTIFICATE", der);
    let chain = if root_in_chain { text(own.der()) + &text(root_cert.der()) } else { text(own.der()) };
    fs::write(dir.join(CA_KEY), key.to_pkcs8_pem().unwrap().as_bytes()).unwrap();
    chmod(&dir.join(CA_KEY), 0o640);
    fs::write(dir.join(CA_CERT), text(own.der())).unwrap();
    fs::write(dir.join(CHAIN), chain).unwrap();
    fs::write(dir.join(ROOT_CERT), text(root_cert.der())).unwrap();
}

#[test]
fn a_plugged_in_intermediate_signs_under_its_root() {
    for (curve, root_in_chain) in [(Curve::P256, false), (Curve::P384, true)] {
        let tmp = tempfile::tempdir().unwrap();
        plug_in(tmp.path(), curve, root_in_chain);
        let signer = open(tmp.path()).unwrap();
        let svid = issue(&signer);
        assert_eq!(svid.chain().len(), 2, "leaf and intermediate, no root");
        assert_eq!(svid.roots(), signer.roots());
    }
}

#[test]
fn an_incomplete_set_is_refused_by_the_names_of_what_is_missing() {
    let tmp = tempfile::tempdir().unwrap();
    plug_in(tmp.path(), Curve::P256, false);
    fs::remove_file(tmp.path().join(CHAIN)).unwrap();
    fs::remove_file(tmp.path().join(ROOT_CERT)).unwrap();
    let refused = open(tmp.path()).unwrap_err().to_string();
    assert!(refused.contains("cert-chain.pem, root-cert.pem"), "{refused}");
}

#[test]
fn a_plugged_in_key_that_all_may_read_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    plug_in(tmp.path(), Curve::P256, false);
    chmod(&tmp.path().join(CA_KEY), 0o644);
    assert!(matches!(open(tmp.path()), Err(OpenError::Mode { remedy: 0o640, .. })));
}

#[test]
fn a_plugged_in_rsa_intermediate_signs_too() {
    let tmp = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let own = pem::encode("CERTIFICATE", params.self_signed(&key).unwrap().der());
    for file in [CA_CERT, CHAIN, ROOT_CERT] {
        fs::write(tmp.path().join(file), &own).unwrap();
    }
    fs::write(tmp.path().join(CA_KEY), key.serialize_pem()).unwrap();
    chmod(&tmp.path().join(CA_KEY), 0o600);
    issue(&open(tmp.path()).unwrap());
}
