//! What a tunnel's accepting end reads first: a ClientHello, or what pretends to be one, in pieces of any size. Nobody is let in
//! without a certificate, what is answered stays small, and after an alert nothing more is taken.

#![no_main]

use std::io::Read;
use std::sync::{Arc, LazyLock};

use identity::signer::{Signer, SignerSettings};
use identity::{Clock, Curve, KeyPair, LiveBundle, Svid, SystemClock, TlsIdentity, TrustDomains};
use libfuzzer_sys::fuzz_target;
use model::{SpiffeId, TrustDomain};

/// More than a server's flight with our certificates.
const ANSWER_MAX: usize = 16 << 10;

static SERVER: LazyLock<Arc<rustls::ServerConfig>> = LazyLock::new(|| {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let signer = Signer::ephemeral(SignerSettings::default(), Arc::clone(&clock)).expect("an authority");
    let id: SpiffeId = "spiffe://cluster.local/ns/a/sa/b".parse().expect("an identity");
    let key = KeyPair::generate(Curve::P256).expect("a key");
    let signed = signer.sign(&key.request(&id).expect("a request"), &id, None).expect("a certificate");
    let svid = Svid::from_response(&id, key, &signed.chain, clock.now()).expect("the certificate asked for");
    let bundle = LiveBundle::new(signer.roots().clone());
    let trusted = TrustDomains::of([TrustDomain::default()]);
    TlsIdentity::new(svid, bundle, trusted, clock).server_config()
});

fuzz_target!(|data: &[u8]| {
    let Some((size, mut rest)) = data.split_first() else { return };
    let size = usize::from(*size) + 1;
    let mut session = rustls::ServerConnection::new(Arc::clone(&SERVER)).expect("a configuration that holds");
    let mut answered = 0;
    while !rest.is_empty() {
        let (mut piece, left) = rest.split_at(size.min(rest.len()));
        rest = left;
        while !piece.is_empty() && session.wants_read() {
            if session.read_tls(&mut piece).is_err() {
                return;
            }
            let taken = session.process_new_packets();
            let mut answer = Vec::new();
            while session.wants_write() {
                session.write_tls(&mut answer).expect("memory takes it");
            }
            answered += answer.len();
            assert!(answered <= ANSWER_MAX, "{answered} bytes of answer");
            assert!(session.peer_certificates().is_none(), "a certificate that none of us has signed");
            assert!(session.is_handshaking(), "somebody is let in without a certificate");
            if taken.is_err() {
                assert!(session.process_new_packets().is_err(), "what has failed does not go on");
                return;
            }
            let mut plain = Vec::new();
            let _ = session.reader().read_to_end(&mut plain);
            assert!(plain.is_empty(), "bytes before the handshake is over");
        }
    }
});
