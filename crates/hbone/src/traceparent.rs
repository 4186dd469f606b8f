//! The `traceparent` header, carried through untouched.

use std::str::FromStr;

use http::HeaderValue;
use thiserror::Error;

/// A W3C Trace Context `traceparent`, passed on as it came.
///
/// A proxy for bytes starts no spans; it only hands the value to the next hop and to its log. What is not of the
/// header's form is dropped by whoever parses it, as the specification asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traceparent(HeaderValue);

impl Traceparent {
    /// The header's text.
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    pub(crate) fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

impl FromStr for Traceparent {
    type Err = ParseTraceparentError;

    /// Reads `version-traceid-parentid-flags` in lower-case hexadecimals; later versions may add fields.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let mut fields = s.split('-');
        let mut field = |len: usize| {
            let text = fields.next().filter(|f| f.len() == len).ok_or(ParseTraceparentError)?;
            let hex = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            hex.then_some(text).ok_or(ParseTraceparentError)
        };
        let (version, trace, parent, _flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
        let zero = |s: &str| s.bytes().all(|b| b == b'0');
        let longer = fields.next().is_some();
        if version == "ff" || (version == "00" && longer) || zero(trace) || zero(parent) || s.len() > 256 {
            return Err(ParseTraceparentError);
        }
        HeaderValue::from_str(s).map(Self).map_err(|_| ParseTraceparentError)
    }
}

/// A text that is no `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not of the form of a traceparent")]
pub struct ParseTraceparentError;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_good_one_passes_untouched() {
        assert_eq!(GOOD.parse::<Traceparent>().unwrap().as_str(), GOOD);
        let later = format!("01{}-more", &GOOD[2..]);
        assert_eq!(later.parse::<Traceparent>().unwrap().as_str(), later);
    }

    #[test]
    fn a_bad_one_is_dropped() {
        let zero_trace = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
        let upper = GOOD.to_uppercase();
        let longer = format!("{GOOD}-more");
        for bad in ["", "00", zero_trace, &upper, &longer, &GOOD[1..], &GOOD.replacen("00", "ff", 1)] {
            assert!(bad.parse::<Traceparent>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_gives_an_answer(s in "\\PC{0,80}") {
            if let Ok(parsed) = s.parse::<Traceparent>() {
                prop_assert_eq!(parsed.as_str(), s);
            }
        }
    }
}
