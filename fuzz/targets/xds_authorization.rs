//! Policies from the control plane: none may panic, and what one means survives being said again.

#![no_main]

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use authz::{CompiledPolicy, Connection, Effect, PolicySet};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use model::{Policy, SpiffeId};
use xds::{Defaults, Resource, TypeUrl, decode, encode};

fuzz_target!(|data: &[u8]| {
    let defaults = Defaults::default();
    let bytes = Bytes::copy_from_slice(data);
    let _ = decode::resource(TypeUrl::Authorization, bytes.clone(), &defaults);
    let Ok(first) = decode::content(TypeUrl::Authorization, bytes, &defaults) else { return };
    let second = decode::content(TypeUrl::Authorization, encode::content(&first, &defaults), &defaults)
        .expect("what we write can be read");
    let third = decode::content(TypeUrl::Authorization, encode::content(&second, &defaults), &defaults);
    assert_eq!(third.as_ref(), Ok(&second), "what was written once is written the same way again");
    // What could not be read is written as what it meant, so the words may differ; the verdicts may not.
    let (Resource::Policy(first), Resource::Policy(second)) = (&first, &second) else { return };
    for connection in connections() {
        assert_eq!(effect(first, &connection), effect(second, &connection), "{connection:?}");
    }
});

fn effect(policy: &Arc<Policy>, connection: &Connection) -> Effect {
    let compiled = [Arc::new(CompiledPolicy::compile(policy.clone()))];
    PolicySet::new(&compiled, &[], &[], |_| None).decide(connection).effect()
}

fn connections() -> impl Iterator<Item = Connection> {
    let peers: [Option<SpiffeId>; 3] = [
        None,
        "spiffe://cluster.local/ns/shop/sa/frontend".parse().ok(),
        "spiffe://other.domain/ns/a/sa/default".parse().ok(),
    ];
    peers.into_iter().flat_map(|peer| {
        let v4 = Connection::new(
            peer.as_ref(),
            Ipv4Addr::new(10, 0, 0, 1).into(),
            (Ipv4Addr::LOCALHOST, 80).into(),
        );
        let v6 =
            Connection::new(peer.as_ref(), Ipv6Addr::LOCALHOST.into(), (Ipv6Addr::LOCALHOST, 8080).into());
        [v4, v6]
    })
}
