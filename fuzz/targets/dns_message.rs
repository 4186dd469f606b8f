//! Messages to resolvers, as a pod could send them: what is answered is answered whole, what is not stays as it is.

#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use dns::{MOST_OVER_TCP, Query, Verdict, Viewer, decide, failure, is_answer_to, owned_exists};
use index::World;
use libfuzzer_sys::fuzz_target;
use model::{IpFamilies, LoadBalancing, NetworkAddr, NetworkId, Service, Visibility};
use rand::SeedableRng;
use rand::rngs::SmallRng;

const HEADER: usize = 12;
const NO_SUCH_NAME: u8 = 3;
const A: u16 = 1;
const AAAA: u16 = 28;
/// A record of an address, whose owner is a pointer: all of it but the address.
const RECORD: usize = 12;
const ADDRESSES: u8 = 60;

/// One service whose addresses need TCP, one with a single address, and a wildcard.
static WORLD: LazyLock<World> = LazyLock::new(|| {
    let services = [
        service("web.shop.svc.cluster.local", &[Ipv4Addr::new(10, 96, 0, 1).into()]),
        service("many.shop.svc.cluster.local", &many()),
        service("*.example.com", &[Ipv4Addr::new(240, 240, 0, 1).into(), Ipv6Addr::LOCALHOST.into()]),
    ];
    World::default().apply(services.map(Into::into)).0
});

fn many() -> Vec<IpAddr> {
    (0..ADDRESSES).map(|n| Ipv4Addr::new(10, 96, 1, n).into()).collect()
}

fn service(host: &str, addresses: &[IpAddr]) -> Service {
    Service {
        name: host.into(),
        namespace: "shop".into(),
        hostname: host.into(),
        addresses: addresses.iter().map(|ip| NetworkAddr::new(NetworkId::default(), *ip)).collect(),
        blocks: vec![],
        ports: Vec::new(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        load_balancing: LoadBalancing::default(),
        ip_families: IpFamilies::default(),
        canonical: false,
        ingress_use_waypoint: false,
        weighted_waypoints: Vec::new(),
        visibility: Visibility::default(),
    }
}

fn word(message: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([message[at], message[at + 1]])
}

fuzz_target!(|data: &[u8]| {
    let network = NetworkId::default();
    let viewer = Viewer { namespace: "shop", network: &network, domain: "cluster.local", has_v6: true };
    for over_tcp in [false, true] {
        match decide(&WORLD, &viewer, data, over_tcp, &mut SmallRng::seed_from_u64(1)) {
            Verdict::Answer(answer) => {
                let query = Query::parse(data).expect("only a question is answered");
                assert!(matches!(query.kind(), A | AAAA));
                assert_whole(data, &query, &answer, over_tcp);
            }
            Verdict::Relay { owned } => assert!(!owned || Query::parse(data).is_some()),
        }
    }
    if let Some(answer) = failure(data) {
        assert!(is_answer_to(&answer, data));
        assert_eq!(failure(&answer), None, "an answer is not answered");
    }
    let mut corrected = data.to_vec();
    owned_exists(&mut corrected);
    if data.get(3).is_some_and(|flags| flags & 0xf == NO_SUCH_NAME) {
        assert_eq!(corrected[3], data[3] & 0xf0);
        corrected[3] = data[3];
    }
    assert_eq!(corrected, data, "nothing else is touched");
});

/// The answer is to this question, has as many records as it says, and says so where that is not all of them.
fn assert_whole(question: &[u8], query: &Query<'_>, answer: &[u8], over_tcp: bool) {
    let room = if over_tcp { MOST_OVER_TCP } else { query.room() };
    assert!(answer.len() <= room.into());
    assert!(is_answer_to(answer, question));
    let edns = usize::from(word(question, 10)) * 11;
    let name = query.name().expect("it is known");
    let length = HEADER + if name.is_empty() { 1 } else { name.len() + 2 } + 4;
    assert_eq!(answer[HEADER..length], question[HEADER..length], "letter for letter");
    let (count, size) = (usize::from(word(answer, 6)), if query.kind() == A { 4 } else { 16 });
    assert_eq!(answer.len(), length + count * (RECORD + size) + edns);
    let is_cut = word(answer, 2) & 0x0200 != 0;
    assert!(!(over_tcp && is_cut));
    if matches!(&*name, "many.shop" | "many.shop.svc" | "many.shop.svc.cluster.local") && query.kind() == A {
        assert_eq!(is_cut, count < ADDRESSES.into());
    }
}
