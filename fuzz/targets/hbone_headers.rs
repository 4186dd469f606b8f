//! The headers of a CONNECT request: what is read of them can be written, and reads back as the same.

#![no_main]

use hbone::{Baggage, Forwarded, Traceparent};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // What else may stand in a header does not come out of `HeaderValue::to_str`.
    if !data.iter().all(|b| matches!(b, b'\t' | b' '..=b'~')) {
        return;
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    let baggage = Baggage::decode(text);
    let encoded = baggage.encode();
    assert_eq!(Baggage::decode(&encoded), baggage, "by way of {encoded:?}");
    if let Ok(forwarded) = text.parse::<Forwarded>() {
        let written = forwarded.to_string();
        assert_eq!(written.parse::<Forwarded>().as_ref(), Ok(&forwarded), "by way of {written:?}");
    }
    if let Ok(trace) = text.parse::<Traceparent>() {
        assert_eq!(trace.as_str(), text, "it is passed on as it came");
    }
});
