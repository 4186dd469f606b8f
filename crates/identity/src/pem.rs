//! PEM texts: certificates in and out.

use std::fmt::Write;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// The most certificates that are read of one text; no chain and no bundle is longer.
const CERTIFICATES_MAX: usize = 64;

/// All certificates of a text, in order; other sections are passed over. Nothing where one cannot be decoded or there are
/// too many.
pub(crate) fn certificates(pem: &str) -> Option<Vec<CertificateDer<'static>>> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .take(CERTIFICATES_MAX + 1)
        .collect::<Result<_, _>>()
        .ok()?;
    (found.len() <= CERTIFICATES_MAX).then_some(found)
}

/// RFC 7468: base64 in lines of 64.
pub(crate) fn encode(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(der.len() * 3 / 2 + 64);
    let _ = write!(out, "-----BEGIN {label}-----");
    for (n, part) in der.chunks(3).enumerate() {
        if n % 16 == 0 {
            out.push('\n');
        }
        let byte = |i: usize| u32::from(part.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= part.len() { char::from(digit) } else { '=' });
        }
    }
    let _ = writeln!(out, "\n-----END {label}-----");
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_encoded_is_read_back(ders in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..4)) {
            let text: String = ders.iter().map(|der| encode("CERTIFICATE", der)).collect();
            let read = certificates(&text).unwrap();
            prop_assert_eq!(read.iter().map(|c| c.to_vec()).collect::<Vec<_>>(), ders);
        }

        #[test]
        fn any_text_gives_an_answer(s in "(-----BEGIN CERTIFICATE-----\n|-----END CERTIFICATE-----\n|[A-Za-z=]{0,20}\n|.){0,9}") {
            let _ = certificates(&s);
        }
    }
}
