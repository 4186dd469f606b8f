//! Addresses that did not answer a pod lately.
//!
//! A node that dies takes its pods along without a word, and the control plane may need the better part of a minute to
//! hear of that. Until then their addresses stand among the endpoints, and each connection that tried them first would
//! wait in vain.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::plan::Hop;

/// How long an address that did not answer is tried after all others. Then one connection tries it in its turn.
const AVOIDED: Duration = Duration::from_secs(10);

/// So many are remembered at most.
const MOST: usize = 1024;

/// The addresses that did not answer, and until when each is to be avoided.
#[derive(Debug, Default)]
pub(crate) struct Silence(RefCell<HashMap<SocketAddr, Instant>>);

impl Silence {
    /// Puts the hops last that did not answer lately. Where all did not, nothing changes.
    pub(super) fn put_last(&self, hops: &mut [Hop], now: Instant) {
        let silent = self.0.borrow();
        if hops.len() > 1 && !silent.is_empty() {
            hops.sort_by_key(|hop| silent.get(&hop.addr()).is_some_and(|until| *until > now));
        }
    }

    /// Somebody connects to an address. If it is the first one to try it again, the others wait for what he hears.
    pub(super) fn tried(&self, addr: SocketAddr, now: Instant) {
        if let Some(until) = self.0.borrow_mut().get_mut(&addr) {
            *until = (*until).max(now + AVOIDED);
        }
    }

    /// It does not answer.
    pub(super) fn note(&self, addr: SocketAddr, now: Instant) {
        let mut silent = self.0.borrow_mut();
        if silent.len() >= MOST {
            silent.retain(|_, until| *until > now);
        }
        if silent.len() < MOST {
            silent.insert(addr, now + AVOIDED);
        }
    }

    /// It answers.
    pub(super) fn forget(&self, addr: SocketAddr) {
        let mut silent = self.0.borrow_mut();
        if !silent.is_empty() {
            silent.remove(&addr);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use testkit::fixtures::pod;

    use super::*;

    fn hop(last: u8) -> Hop {
        let workload = Arc::new(pod("shop", "web").build());
        Hop::Direct { workload, addr: ([10, 0, 0, last], 80).into() }
    }

    fn order(silence: &Silence, now: Instant) -> Vec<u8> {
        let mut hops = [hop(1), hop(2), hop(3)];
        silence.put_last(&mut hops, now);
        let last = |hop: &Hop| match hop.addr().ip() {
            std::net::IpAddr::V4(ip) => ip.octets()[3],
            std::net::IpAddr::V6(_) => 0,
        };
        hops.iter().map(last).collect()
    }

    #[test]
    fn what_did_not_answer_is_asked_after_the_others_for_a_while() {
        let (silence, now) = (Silence::default(), Instant::now());
        silence.note(hop(1).addr(), now);
        assert_eq!(order(&silence, now), [2, 3, 1]);
        assert_eq!(order(&silence, now + AVOIDED), [1, 2, 3]);
    }

    #[test]
    fn one_connection_tries_it_again_for_all() {
        let (silence, now) = (Silence::default(), Instant::now());
        silence.note(hop(1).addr(), now);
        let later = now + AVOIDED;
        silence.tried(hop(1).addr(), later);
        assert_eq!(order(&silence, later), [2, 3, 1], "while it waits");
        silence.forget(hop(1).addr());
        assert_eq!(order(&silence, later), [1, 2, 3], "it has answered");
    }

    #[test]
    fn others_are_not_suspected_and_not_too_many_remembered() {
        let (silence, now) = (Silence::default(), Instant::now());
        silence.tried(hop(1).addr(), now);
        assert_eq!(order(&silence, now), [1, 2, 3]);
        for port in 0..2000 {
            silence.note(([10, 0, 0, 9], port).into(), now);
        }
        assert_eq!(silence.0.borrow().len(), MOST);
        silence.note(hop(1).addr(), now + AVOIDED);
        assert_eq!(silence.0.borrow().len(), 1, "the older ones make room");
    }
}
