//! The PROXY header before a connection: what is read of it can be written, and reads back as the same; a part of it is waited
//! for and never taken for the whole.

#![no_main]

use libfuzzer_sys::fuzz_target;
use net::proxy_v2::{Prelude, ProxyHeader};

fuzz_target!(|data: &[u8]| {
    let Ok(prelude) = ProxyHeader::parse(data) else { return };
    match prelude {
        Prelude::More(needed) => assert!(needed > data.len(), "it has all that it asks for"),
        Prelude::Header(header, length) => {
            assert!(length <= data.len());
            for part in [length - 1, length / 2] {
                let waiting = ProxyHeader::parse(&data[..part]);
                assert!(matches!(waiting, Ok(Prelude::More(n)) if n > part), "{waiting:?} of {part} bytes");
            }
            let Some(header) = header else { return };
            let written = header.encode().expect("it came out of a header");
            let again = ProxyHeader::parse(&written);
            assert!(matches!(again, Ok(Prelude::Header(Some(it), n)) if it == header && n == written.len()));
        }
    }
});
