//! Virtual addresses for hosts of ServiceEntries that name none.
//!
//! Each host has a place of its own in two blocks, 240.240.0.0/16 and 2001:2::/48, which nobody else uses. Where it is
//! follows from its name; where two names meet, the older declaration has the place and the other takes the next free
//! one. So the places are a function of the set of hosts: after a restart, and at another replica, they are the same.
//! It is linear probing with an order of precedence (Amble and Knuth, "Ordered hash tables", 1974).

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use k8s_openapi::jiff::Timestamp;
use manifest::kinds::{Resolution, ServiceEntry};
use manifest::{Object, ObjectKey};
use model::ServiceKey;

/// The first and the last place: neither end of a block is an address that everything takes for a host's.
const FIRST: u16 = 1;
const LAST: u16 = u16::MAX - 1;

/// A host, and the object that declares it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Holder {
    host: ServiceKey,
    object: String,
}

/// What decides between holders; the least has the place.
type Rank = (bool, Option<Timestamp>, Holder);

/// Who has which place.
#[derive(Debug, Default)]
pub(crate) struct Vips {
    seats: BTreeMap<u16, Rank>,
    places: HashMap<Holder, u16>,
}

/// The hosts of a ServiceEntry that need an address. Those of `NONE` are addressed by the clients themselves, and a
/// wildcard stands for no place in particular.
fn needy(entry: &ServiceEntry) -> impl Iterator<Item = &str> {
    let spec = &entry.spec;
    let is_needy = spec.addresses.is_empty() && spec.resolution.unwrap_or_default() != Resolution::None;
    spec.hosts.iter().map(String::as_str).filter(move |host| is_needy && !host.starts_with('*'))
}

/// The holders that an object brings.
fn holders(key: &ObjectKey, object: &Object) -> Vec<Rank> {
    let Object::ServiceEntry(entry) = object else { return Vec::new() };
    let created = entry.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let mut ranks: Vec<Rank> = needy(entry)
        .map(|host| {
            let host = ServiceKey::new(&key.namespace, host.to_lowercase());
            (created.is_none(), created, Holder { host, object: key.name.clone() })
        })
        .collect();
    ranks.sort();
    ranks.dedup();
    ranks
}

impl Vips {
    /// Seats the hosts of an object. Gives the hosts whose addresses are others now.
    pub(super) fn insert(&mut self, key: &ObjectKey, object: &Object) -> Vec<ServiceKey> {
        holders(key, object).into_iter().flat_map(|rank| self.seat(rank)).collect()
    }

    /// Frees the places of an object's hosts. Gives the hosts whose addresses are others now.
    pub(super) fn remove(&mut self, key: &ObjectKey, object: &Object) -> Vec<ServiceKey> {
        holders(key, object).into_iter().flat_map(|(_, _, holder)| self.free(&holder)).collect()
    }

    /// The addresses of a host that an object declares; none where it needs none, or where all places are taken.
    pub(crate) fn of(&self, host: &ServiceKey, object: &str) -> Vec<IpAddr> {
        let holder = Holder { host: host.clone(), object: object.to_owned() };
        let Some(place) = self.places.get(&holder) else { return Vec::new() };
        let [high, low] = place.to_be_bytes();
        let v6 = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, *place);
        vec![Ipv4Addr::new(240, 240, high, low).into(), v6.into()]
    }

    fn seat(&mut self, mut rank: Rank) -> Vec<ServiceKey> {
        let mut moved = vec![rank.2.host.clone()];
        let mut place = home(&rank.2);
        for _ in FIRST..=LAST {
            let seated = self.seats.entry(place).or_insert_with(|| rank.clone());
            if *seated >= rank {
                self.places.insert(rank.2.clone(), place);
                let other = std::mem::replace(seated, rank);
                if other == *seated {
                    return moved;
                }
                moved.push(other.2.host.clone());
                rank = other;
            }
            place = next(place);
        }
        // Everything is taken, by those that come before it.
        self.places.remove(&rank.2);
        moved
    }

    fn free(&mut self, holder: &Holder) -> Vec<ServiceKey> {
        let Some(mut place) = self.places.remove(holder) else { return Vec::new() };
        self.seats.remove(&place);
        let mut moved = vec![holder.host.clone()];
        // Who comes after it up to the next free place may be there only because it was here.
        let mut after = Vec::new();
        loop {
            place = next(place);
            let Some(rank) = self.seats.remove(&place) else { break };
            self.places.remove(&rank.2);
            after.push((place, rank));
        }
        for (_, rank) in &after {
            self.seat(rank.clone());
        }
        let others = after.into_iter().filter(|(before, rank)| self.places.get(&rank.2) != Some(before));
        moved.extend(others.map(|(_, (_, _, holder))| holder.host));
        moved
    }
}

/// Where a host would like to be: FNV-1a, which is the same everywhere and always.
fn home(holder: &Holder) -> u16 {
    let name = [holder.host.namespace.as_bytes(), b"/", holder.host.hostname.as_bytes()].concat();
    let hash = name.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let folded = hash ^ (hash >> 32);
    let places = u64::from(LAST - FIRST) + 1;
    FIRST + u16::try_from(folded % places).expect("less than the number of places")
}

fn next(place: u16) -> u16 {
    if place == LAST { FIRST } else { place + 1 }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn rank(n: u16) -> Rank {
        let created = (!n.is_multiple_of(3)).then(|| Timestamp::from_second(i64::from(n % 7)).unwrap());
        let host = ServiceKey::new("shop", format!("h{n}.example.com"));
        (created.is_none(), created, Holder { host, object: format!("se{}", n % 2) })
    }

    /// By age, each takes the first free place from its own on.
    fn by_age(ranks: &BTreeSet<Rank>) -> HashMap<Holder, u16> {
        let mut taken = HashMap::new();
        let mut free: BTreeSet<u16> = (FIRST..=LAST).collect();
        for (_, _, holder) in ranks {
            let place = *free.range(home(holder)..).next().or_else(|| free.first()).expect("room");
            free.remove(&place);
            taken.insert(holder.clone(), place);
        }
        taken
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

        #[test]
        fn places_are_a_function_of_the_set_of_hosts(
            steps in proptest::collection::vec((0..9000u16, proptest::bool::weighted(0.7)), 1000..1500),
        ) {
            let (mut vips, mut set) = (Vips::default(), BTreeSet::new());
            for (step, (n, comes)) in steps.into_iter().enumerate() {
                let rank = rank(n);
                // Each would take too long.
                let before = (step % 25 == 0).then(|| vips.places.clone());
                let told = match comes {
                    true if set.insert(rank.clone()) => vips.seat(rank),
                    false if set.remove(&rank) => vips.free(&rank.2),
                    _ => Vec::new(),
                };
                let Some(before) = before else { continue };
                let hosts = before.keys().chain(vips.places.keys());
                let moved = hosts.filter(|h| before.get(h) != vips.places.get(h)).map(|h| h.host.clone());
                prop_assert_eq!(told.into_iter().collect::<BTreeSet<_>>(), moved.collect::<BTreeSet<_>>());
            }
            prop_assert_eq!(&vips.places, &by_age(&set));
            prop_assert_eq!(vips.seats.len(), vips.places.len());
        }
    }

    #[test]
    fn a_host_has_the_same_place_in_both_blocks() {
        let mut vips = Vips::default();
        let (key, (created, at, holder)) = (ServiceKey::new("shop", "api.example.com"), rank(1));
        vips.seat((created, at, Holder { host: key.clone(), ..holder.clone() }));
        let [IpAddr::V4(v4), IpAddr::V6(v6)] = vips.of(&key, &holder.object)[..] else {
            panic!("two addresses")
        };
        let [240, 240, high, low] = v4.octets() else { panic!("{v4}") };
        assert_eq!(v6.segments(), [0x2001, 2, 0, 0, 0, 0, 0, u16::from_be_bytes([high, low])]);
        assert!(vips.of(&key, "another").is_empty());
    }
}
