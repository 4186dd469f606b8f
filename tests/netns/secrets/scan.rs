//! Finding key material in text, in whatever form it was written.
//!
//! Text is read as it stands, as hexadecimals, as base64 at each of its four alignments, as a list of decimals, and as a
//! byte string with escapes; the first two also without the separators and line ends that may stand between. A piece of a
//! secret is enough. A key that nobody knows is found by its wrapping, or by the public key that it makes.

use std::collections::HashSet;

use aws_lc_rs::agreement::{ECDH_P256, PrivateKey};

/// How much of a secret is too much.
const PIECE: usize = 16;
/// A P-256 key by itself.
const SCALAR: usize = 32;
/// The beginning of an `ECPrivateKey` (RFC 5915) of P-256 or P-384: version 1, and an octet string.
const WRAPPINGS: [&[u8]; 2] = [&[2, 1, 1, 4, 32], &[2, 1, 1, 4, 48]];

/// What must not be found.
#[derive(Default)]
pub(crate) struct Wanted {
    pieces: HashSet<Vec<u8>>,
    begins: HashSet<[u8; 2]>,
    public_keys: HashSet<Vec<u8>>,
}

/// What a search came to.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// What was found and in which form; never the secret itself.
    pub(crate) found: Vec<String>,
    /// How many byte strings were tried as keys.
    pub(crate) tried: usize,
}

impl Wanted {
    /// A secret that is known.
    pub(crate) fn secret(&mut self, secret: &[u8]) {
        for piece in secret.windows(PIECE) {
            self.begins.insert([piece[0], piece[1]]);
            self.pieces.insert(piece.to_vec());
        }
    }

    /// The private key of a certificate.
    pub(crate) fn key_of(&mut self, certificate: &[u8]) {
        // The curve's name, and a bit string with an uncompressed point.
        let curve = [0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7, 3, 0x42, 0];
        let at = certificate.windows(curve.len()).position(|w| w == curve).expect("a key on P-256");
        self.public_keys.insert(certificate[at + curve.len()..][..65].to_vec());
    }

    /// Looks for it.
    pub(crate) fn find(&self, text: &[u8]) -> Findings {
        let mut findings = Findings::default();
        let mut tried = HashSet::new();
        self.known(&mut findings, "plain text", text);
        for squeezed in [text.to_vec(), without(text, &[b"\\n", b"\n", b"\\r", b"\r", b" "])] {
            for chunk in base64(&squeezed) {
                self.all(&mut findings, &mut tried, "base64", &chunk);
            }
        }
        for squeezed in [text.to_vec(), without(text, &[b"0x", b"\\x", b":", b",", b" ", b"\n"])] {
            for chunk in hexadecimals(&squeezed) {
                self.all(&mut findings, &mut tried, "hexadecimals", &chunk);
            }
        }
        for chunk in decimals(text) {
            self.all(&mut findings, &mut tried, "decimals", &chunk);
        }
        for chunk in byte_strings(text) {
            self.all(&mut findings, &mut tried, "a byte string", &chunk);
        }
        findings.tried = tried.len();
        findings
    }

    fn known(&self, findings: &mut Findings, form: &str, bytes: &[u8]) {
        let is_piece = |w: &&[u8]| self.begins.contains(&[w[0], w[1]]) && self.pieces.contains(*w);
        if bytes.windows(PIECE).any(|w| is_piece(&w)) {
            findings.found.push(format!("a secret as {form}"));
        }
        let wrapped = WRAPPINGS.iter().any(|wrapping| has(bytes, wrapping));
        if wrapped || has(bytes, b"PRIVATE KEY") {
            findings.found.push(format!("a private key as {form}"));
        }
    }

    fn all(&self, findings: &mut Findings, tried: &mut HashSet<[u8; SCALAR]>, form: &str, bytes: &[u8]) {
        self.known(findings, form, bytes);
        for window in bytes.windows(SCALAR) {
            let scalar: [u8; SCALAR] = window.try_into().expect("its length");
            if tried.insert(scalar) && self.makes_a_public_key(&scalar) {
                findings.found.push(format!("the private key of a certificate as {form}"));
            }
        }
    }

    fn makes_a_public_key(&self, scalar: &[u8]) -> bool {
        let public = PrivateKey::from_private_key(&ECDH_P256, scalar).ok();
        let public = public.and_then(|key| key.compute_public_key().ok());
        public.is_some_and(|public| self.public_keys.contains(public.as_ref()))
    }
}

fn has(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|w| w == needle)
}

fn without(text: &[u8], separators: &[&[u8]]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        if let Some(separator) = separators.iter().find(|s| rest.starts_with(s)) {
            rest = &rest[separator.len()..];
        } else {
            kept.push(*first);
            rest = after;
        }
    }
    kept
}

/// Runs of what `value` takes, as values.
fn runs(text: &[u8], least: usize, value: impl Fn(u8) -> Option<u8>) -> Vec<Vec<u8>> {
    let mut runs = Vec::new();
    let mut run = Vec::new();
    for byte in text.iter().copied().chain([0]) {
        match value(byte) {
            Some(value) => run.push(value),
            None if run.len() >= least => runs.push(std::mem::take(&mut run)),
            None => run.clear(),
        }
    }
    runs
}

fn hexadecimals(text: &[u8]) -> Vec<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = |digits: &[u8]| digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    runs(text, 2 * PIECE, digit).iter().flat_map(|run| [pairs(run), pairs(&run[1..])]).collect()
}

fn base64(text: &[u8]) -> Vec<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' | b'-' => Some(62),
        b'/' | b'_' => Some(63),
        _ => None,
    };
    let bytes = |digits: &[u8]| {
        let group = |group: &[u8]| {
            let bits = group.iter().fold(0u32, |bits, digit| bits << 6 | u32::from(*digit))
                << (6 * (4 - group.len()));
            bits.to_be_bytes()[1..group.len()].to_vec()
        };
        digits.chunks(4).filter(|group_of| group_of.len() > 1).flat_map(group).collect::<Vec<u8>>()
    };
    let least = PIECE * 4 / 3;
    runs(text, least, digit)
        .iter()
        .flat_map(|run| (0..4).map(|from| bytes(&run[from..])).collect::<Vec<_>>())
        .collect()
}

/// `48, 129, …`, on one line or many.
fn decimals(text: &[u8]) -> Vec<Vec<u8>> {
    let mut lists = Vec::new();
    let mut list: Vec<u8> = Vec::new();
    let mut end = |list: &mut Vec<u8>| {
        let list = std::mem::take(list);
        if list.len() >= PIECE {
            lists.push(list);
        }
    };
    let mut number: Option<u32> = None;
    for byte in text.iter().copied().chain([0]) {
        match byte {
            b'0'..=b'9' => number = Some((number.unwrap_or(0) * 10 + u32::from(byte - b'0')).min(1000)),
            _ => {
                match number.take().map(u8::try_from) {
                    Some(Ok(number)) => list.push(number),
                    Some(Err(_)) => end(&mut list),
                    None => {}
                }
                if !matches!(byte, b',' | b' ' | b'\n') {
                    end(&mut list);
                }
            }
        }
    }
    lists
}

/// `b"0\x81…"`, and ordinary strings with such escapes.
fn byte_strings(text: &[u8]) -> Vec<Vec<u8>> {
    text.split(|byte| *byte == b'\n').filter(|line| has(line, b"\\x")).map(unescape).collect()
}

fn unescape(line: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = line;
    loop {
        rest = match rest {
            [b'\\', b'x', high, low, after @ ..] => {
                let digits = std::str::from_utf8(&[*high, *low]).map(|d| u8::from_str_radix(d, 16));
                bytes.extend(digits.into_iter().flatten());
                after
            }
            [b'\\', escaped, after @ ..] => {
                bytes.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'0' => 0,
                    other => *other,
                });
                after
            }
            [byte, after @ ..] => {
                bytes.push(*byte);
                after
            }
            [] => return bytes,
        };
    }
}

mod tests {
    use identity::signer::{Signer, SignerSettings};
    use identity::{Curve, KeyPair, SystemClock};
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    use super::*;

    fn key_and_certificate() -> (String, CertificateDer<'static>) {
        let signer =
            Signer::ephemeral(SignerSettings::default(), std::sync::Arc::new(SystemClock)).expect("a CA");
        let key = KeyPair::generate(Curve::P256).expect("a key");
        let id = crate::papers::id("app", "client");
        let signed = signer.sign(&key.request(&id).expect("a request"), &id, None).expect("a certificate");
        let pem = key.to_pkcs8_pem().expect("the key as PEM").to_string();
        (pem, CertificateDer::from_pem_slice(signed.chain[0].as_bytes()).expect("PEM"))
    }

    fn encode(bytes: &[u8]) -> String {
        const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let digit = |bits: u32, at: u32| char::from(DIGITS[(bits >> (18 - 6 * at) & 63) as usize]);
        let group = |group: &[u8]| {
            let bits = (0..3).fold(0, |bits, i| bits << 8 | u32::from(group.get(i).copied().unwrap_or(0)));
            (0..=group.len() as u32).map(|at| digit(bits, at)).collect::<String>()
        };
        bytes.chunks(3).map(group).collect()
    }

    /// A key is found without being known, by its certificate alone, in each form in which a program may write it.
    #[test]
    fn a_planted_key_is_found_in_every_form() {
        let (pem, certificate) = key_and_certificate();
        let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).expect("a key").secret_der().to_vec();
        let at = der.windows(5).position(|w| w == WRAPPINGS[0]).expect("an EC key") + 5;
        let scalar = &der[at..at + SCALAR];
        let hex = |separator: &str| scalar.iter().map(|b| format!("{b:02x}{separator}")).collect::<String>();
        let escaped = der.iter().map(|b| b.escape_ascii().to_string()).collect::<String>();
        let mut wanted = Wanted::default();
        wanted.key_of(&certificate);
        for (form, text) in [
            ("PEM", pem.clone()),
            ("PEM in a string", format!("{pem:?}")),
            ("base64", encode(&der)),
            ("base64 that begins in the middle", format!("x{}", encode(&der[at - 5..]))),
            ("a key by itself as base64", format!("key={}", encode(scalar))),
            ("hexadecimals", hex("")),
            ("hexadecimals with separators", hex(":")),
            ("Rust's hexadecimals", format!("{scalar:02x?}")),
            ("a list", format!("{scalar:?}")),
            ("a list on many lines", format!("{scalar:#?}")),
            ("a byte string", format!("b\"{escaped}\"")),
        ] {
            let findings =
                wanted.find(format!("2026-11-26T07:00:00Z TRACE made a key {text} for app\n").as_bytes());
            assert!(!findings.found.is_empty(), "{form}: {text}");
        }
    }

    #[test]
    fn a_piece_of_a_secret_is_found() {
        let mut wanted = Wanted::default();
        let token = "0f3b9ac1d27e4455aa01c0ffee992211";
        wanted.secret(token.as_bytes());
        for text in [format!("Bearer {}", &token[8..]), encode(format!("Bearer {token}").as_bytes())] {
            assert!(!wanted.find(text.as_bytes()).found.is_empty(), "{text}");
        }
        assert!(wanted.find(&token.as_bytes()[..PIECE - 1]).found.is_empty());
    }

    #[test]
    fn what_is_public_is_not_found() {
        let (_, certificate) = key_and_certificate();
        let mut wanted = Wanted::default();
        wanted.key_of(&certificate);
        for text in [format!("{certificate:?}"), encode(&certificate), format!("{:?}", &certificate[..])] {
            let findings = wanted.find(text.as_bytes());
            assert!(findings.found.is_empty(), "{findings:?}");
            assert!(findings.tried > 100, "it was looked into");
        }
    }
}
