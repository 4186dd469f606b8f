//! What the mesh knows of a name, for one who asks.

use std::net::IpAddr;
use std::sync::Arc;

use index::World;
use model::{Health, HealthPolicy, IpFamilies, NetworkId, Service};
use rand::Rng;
use rand::seq::SliceRandom;

use crate::message::{A, AAAA, Query, Record, respond};

/// How long an answer may be kept, in seconds. What it says holds longer as a rule: virtual addresses do not move.
pub const TTL: u32 = 30;

/// The most addresses of a service without one of its own that are told. It is what a message over TCP holds at most.
const MOST_ADDRESSES: usize = 2000;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Viewer<'a> {
    /// Its namespace, which decides what it may see.
    pub namespace: &'a str,
    /// Its network; addresses of others mean nothing to it.
    pub network: &'a NetworkId,
    /// The cluster's domain, under which services are.
    pub domain: &'a str,
    /// Whether it has an IPv6 address. Who has none is told no automatic address of that family, which it could not reach.
    pub has_v6: bool,
}

/// What to do with a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Answer with this.
    Answer(Vec<u8>),
    /// Give it to whom it was sent, and the answer back, as they are.
    Relay {
        /// The mesh knows the name, and nothing of the type: whoever says that there is no such name is mistaken
        /// ([`crate::owned_exists`]).
        owned: bool,
    },
}

/// Decides what to do with a message.
///
/// The mesh answers for addresses of the services that the one who asks may see: their virtual addresses, or those of
/// their ready endpoints in random order where they have none. All else it leaves to others, also what else there is
/// about these names. An address of a family that a name has none of is answered with nothing, so that nobody goes there
/// by another way.
///
/// `over_tcp` says how the question came, and so how much the answer may have.
pub fn decide(
    world: &World,
    viewer: &Viewer<'_>,
    message: &[u8],
    over_tcp: bool,
    rng: &mut impl Rng,
) -> Verdict {
    const NOT_OURS: Verdict = Verdict::Relay { owned: false };
    let Some(query) = Query::parse(message) else { return NOT_OURS };
    let Some(service) = query.name().and_then(|name| named(world, viewer, &name)) else { return NOT_OURS };
    let addresses = addresses(world, viewer, service, rng);
    if addresses.is_empty() || !matches!(query.kind(), A | AAAA) {
        return Verdict::Relay { owned: true };
    }
    let records = addresses.into_iter().filter_map(|ip| match (ip, query.kind()) {
        (IpAddr::V4(ip), A) => Some(Record::A(ip)),
        (IpAddr::V6(ip), AAAA) => Some(Record::Aaaa(ip)),
        _ => None,
    });
    let room = if over_tcp { crate::MOST_OVER_TCP } else { query.room() };
    Verdict::Answer(respond(&query, &records.collect::<Vec<_>>(), TTL, room))
}

/// The service that a name means: by its host name; by `service.namespace` or `service.namespace.svc`; else the wildcard
/// host that has most in common with it.
fn named<'w>(world: &'w World, viewer: &Viewer<'_>, name: &str) -> Option<&'w Arc<Service>> {
    let visible = |host: &str| world.service_named(host, viewer.namespace);
    if let Some(service) = visible(name) {
        return Some(service);
    }
    let labels = name.split('.').count();
    let short = match (labels, name.ends_with(".svc")) {
        (2, false) => visible(&format!("{name}.svc.{}", viewer.domain)),
        (3, true) => visible(&format!("{name}.{}", viewer.domain)),
        _ => None,
    };
    short.or_else(|| {
        let mut above = name.match_indices('.').map(|(dot, _)| &name[dot..]);
        above.find_map(|above| visible(&format!("*{above}")))
    })
}

/// A service's addresses, each once.
fn addresses(world: &World, viewer: &Viewer<'_>, service: &Service, rng: &mut impl Rng) -> Vec<IpAddr> {
    let own = service.addresses.iter().filter(|a| a.network == *viewer.network).map(|a| a.ip);
    let own: Vec<IpAddr> = own.filter(|ip| viewer.has_v6 || !is_automatic_v6(*ip)).collect();
    if !own.is_empty() {
        return own;
    }
    let all = service.load_balancing.health_policy == HealthPolicy::AllowAll;
    let endpoints = world.endpoints(&service.key()).iter();
    let chosen = endpoints.filter(|w| all || w.health == Health::Healthy);
    let here = chosen.filter(|w| w.network == *viewer.network).flat_map(|w| w.addresses.iter().copied());
    let mut addresses: Vec<IpAddr> = here.filter(|ip| is_of(*ip, service.ip_families)).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.shuffle(rng);
    addresses.truncate(MOST_ADDRESSES);
    addresses
}

/// Whether it is of the block from which hosts of ServiceEntries have addresses that name none, 2001:2::/48.
fn is_automatic_v6(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.segments()[..3] == [0x2001, 2, 0])
}

fn is_of(ip: IpAddr, families: IpFamilies) -> bool {
    match families {
        IpFamilies::Automatic | IpFamilies::Dual => true,
        IpFamilies::V4Only => ip.is_ipv4(),
        IpFamilies::V6Only => ip.is_ipv6(),
    }
}

#[cfg(test)]
mod tests;
