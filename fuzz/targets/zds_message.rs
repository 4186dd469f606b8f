//! Packets of the node protocol, as either side could read them: what is understood can be said again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use zds::{
    decode, decode_hello, decode_request, decode_response, encode_hello, encode_request, encode_response,
};

fuzz_target!(|data: &[u8]| {
    let _ = decode(data);
    if let Ok(hello) = decode_hello(data) {
        assert_eq!(decode_hello(&encode_hello(hello)).as_ref(), Ok(&hello));
    }
    if let Ok(request) = decode_request(data) {
        assert_eq!(decode_request(&encode_request(&request)).as_ref(), Ok(&request));
    }
    if let Ok(answer) = decode_response(data) {
        assert_eq!(decode_response(&encode_response(&answer)).as_ref(), Ok(&answer));
    }
});
