//! Workloads and services from the control plane: what is understood can be said again, and means the same.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use xds::{Defaults, TypeUrl, decode, encode};

fuzz_target!(|data: &[u8]| {
    let defaults = Defaults::default();
    let bytes = Bytes::copy_from_slice(data);
    let _ = decode::resource(TypeUrl::Address, bytes.clone(), &defaults);
    if let Ok(resource) = decode::content(TypeUrl::Address, bytes, &defaults) {
        let again = decode::content(TypeUrl::Address, encode::content(&resource, &defaults), &defaults);
        assert_eq!(again.as_ref(), Ok(&resource));
    }
});
