//! A CONNECT request's `:authority`: whatever is accepted has one spelling, which reads back as the same target.

#![no_main]

use hbone::Authority;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(authority) = text.parse::<Authority>() else { return };
    assert_ne!(authority.port(), 0);
    let spelt = authority.to_string();
    assert_eq!(spelt.parse::<Authority>().as_ref(), Ok(&authority), "{text:?} is spelt {spelt:?}");
});
