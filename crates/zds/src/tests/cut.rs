use std::time::{Duration, Instant};

use net::seqpacket::Packet;
use proptest::prelude::*;

use super::{Registry, pod};
use crate::agent::{Desired, Handled, Role, Sent, Session, SessionError};
use crate::ztunnel::{self, Received};
use crate::{Hello, Kept, PodUid, encode_request, encode_response};

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Two cores joined by a wire. Each packet that passes is a step; `cut_after` of them the wire breaks.
struct Wire {
    agent: Session,
    ztunnel: ztunnel::Session,
    role: Role,
    steps_left: usize,
}

struct Cut;

const ALL: Hello = Hello { redirection_fds: true, listener_fds: true, pod_state: true, dns: true };

impl Wire {
    fn connect(now: Instant, cut_after: usize) -> (Self, Vec<u8>) {
        let (ztunnel, hello) = ztunnel::Session::new();
        (Self { agent: Session::new(now), ztunnel, role: Role::Serves, steps_left: cut_after }, hello)
    }

    fn step(&mut self) -> Result<(), Cut> {
        self.steps_left = self.steps_left.checked_sub(1).ok_or(Cut)?;
        Ok(())
    }

    /// Runs until the agent has nothing to say, or the wire is cut. Returns what was sent and acknowledged.
    fn settle(
        &mut self,
        hello: Option<Vec<u8>>,
        desired: &Desired,
        registry: &mut Registry,
        now: Instant,
    ) -> Result<Vec<Sent>, Cut> {
        let mut acknowledged = Vec::new();
        if let Some(hello) = hello {
            self.step()?;
            assert_eq!(self.agent.handle(&hello, now), Ok(Handled::Hello(ALL)));
        }
        while let Some(outgoing) = self.agent.poll_send(desired, self.role, now) {
            assert!(self.agent.poll_send(desired, self.role, now).is_none(), "one message at a time");
            self.step()?;
            let fds = outgoing.fds.iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
            let answer = match self.ztunnel.handle(Packet { bytes: outgoing.bytes, fds }).unwrap() {
                Received::Event(event) => registry.apply(event).map(|()| Kept::default()),
                Received::Refuse(reason) => Err(reason),
            };
            let (answer, _) = self.ztunnel.answer(&answer);
            self.step()?;
            match self.agent.handle(&answer, now).unwrap() {
                Handled::Answered(sent, _) => acknowledged.push(sent),
                Handled::Hello(_) => panic!("an answer is no hello"),
            }
        }
        Ok(acknowledged)
    }
}

fn three_pods() -> Desired {
    let mut desired = Desired::new(None);
    for (uid, account) in [("a", "one"), ("b", "two"), ("c", "three")] {
        desired.put(pod(uid, account));
    }
    desired.set_complete();
    desired
}

#[test]
fn a_session_ends_with_both_sides_agreed() {
    let now = now();
    let (mut wire, hello) = Wire::connect(now, usize::MAX);
    let mut registry = Registry::default();
    let mut desired = three_pods();
    wire.settle(Some(hello), &desired, &mut registry, now).ok().unwrap();
    assert!(registry.complete && registry.has(&[("a", "one"), ("b", "two"), ("c", "three")]));

    desired.remove(&PodUid::new("b"));
    desired.put(pod("c", "moved"));
    let sent = wire.settle(None, &desired, &mut registry, now).ok().unwrap();
    assert_eq!(sent.len(), 2, "only what changed: {sent:?}");
    assert!(registry.has(&[("a", "one"), ("c", "moved")]));
}

#[test]
fn wherever_the_wire_is_cut_the_next_session_repairs() {
    let now = now();
    for cut_after in 0..14 {
        let mut registry = Registry::default();
        let mut desired = three_pods();
        let (mut wire, hello) = Wire::connect(now, cut_after);
        let _ = wire.settle(Some(hello), &desired, &mut registry, now);
        // While there is no connection, one pod goes, one changes, one comes.
        desired.remove(&PodUid::new("a"));
        desired.put(pod("b", "changed"));
        desired.put(pod("d", "four"));
        let (mut wire, hello) = Wire::connect(now, usize::MAX);
        wire.settle(Some(hello), &desired, &mut registry, now).ok().unwrap();
        assert!(
            registry.has(&[("b", "changed"), ("c", "three"), ("d", "four")]),
            "cut after {cut_after}: {registry:?}"
        );
    }
}

#[test]
fn the_end_of_the_snapshot_waits_for_the_agents_own() {
    let now = now();
    let mut desired = Desired::new(None);
    desired.put(pod("a", "one"));
    let mut registry = Registry::default();
    registry.pods.insert(PodUid::new("old"), "kept until all are known".into());
    let (mut wire, hello) = Wire::connect(now, usize::MAX);
    wire.settle(Some(hello), &desired, &mut registry, now).ok().unwrap();
    assert!(!registry.complete && registry.pods.len() == 2);
    desired.set_complete();
    wire.settle(None, &desired, &mut registry, now).ok().unwrap();
    assert!(registry.complete && registry.has(&[("a", "one")]));
}

#[test]
fn a_pod_without_its_namespace_is_kept_if_it_is_known() {
    let now = now();
    let mut desired = Desired::new(None);
    desired.put(crate::agent::Workload { netns: None, ..pod("a", "one") });
    desired.set_complete();
    let mut registry = Registry::default();
    registry.pods.insert(PodUid::new("a"), "one".into());
    let (mut wire, hello) = Wire::connect(now, usize::MAX);
    wire.settle(Some(hello), &desired, &mut registry, now).ok().unwrap();
    assert!(registry.has(&[("a", "one")]));
}

#[test]
fn a_refused_pod_is_told_again_later_and_later() {
    let now = now();
    let mut desired = Desired::new(None);
    desired.put(pod("a", "one"));
    desired.set_complete();
    let mut registry = Registry { refuse: [PodUid::new("a")].into(), ..Registry::default() };
    let (mut wire, hello) = Wire::connect(now, usize::MAX);
    let sent = wire.settle(Some(hello), &desired, &mut registry, now).ok().unwrap();
    assert_eq!(sent.len(), 3, "its turn, the pod once, and the end of the snapshot");
    let first = wire.agent.deadline(Some(Role::Serves), now).unwrap();
    let none = wire.agent.deadline(Some(Role::HandsOver), now);
    assert_eq!(none, None, "one that is not told anything has nothing to wait for");
    assert!(
        wire.settle(None, &desired, &mut registry, first - Duration::from_millis(1)).ok().unwrap().is_empty()
    );
    wire.settle(None, &desired, &mut registry, first).ok().unwrap();
    let second = wire.agent.deadline(Some(Role::Serves), first).unwrap();
    assert!(second - first > first - now);
    registry.refuse.clear();
    wire.settle(None, &desired, &mut registry, second).ok().unwrap();
    assert!(registry.has(&[("a", "one")]));
    assert_eq!(wire.agent.deadline(Some(Role::Serves), second), None);
}

#[test]
fn a_silent_peer_is_given_up() {
    let now = now();
    let mut agent = Session::new(now);
    let until = agent.deadline(Some(Role::Serves), now).unwrap();
    assert_eq!(agent.expired(now), None);
    assert_eq!(agent.expired(until), Some(SessionError::NoHello));
    let (_, hello) = ztunnel::Session::new();
    agent.handle(&hello, now).unwrap();
    assert_eq!(agent.deadline(Some(Role::Serves), now), None);
    agent.poll_send(&three_pods(), Role::Serves, now).unwrap();
    assert_eq!(agent.expired(agent.deadline(Some(Role::Serves), now).unwrap()), Some(SessionError::NoAnswer));
}

#[test]
fn an_answer_that_nobody_asked_for_ends_the_session() {
    let now = now();
    let mut agent = Session::new(now);
    let (_, hello) = ztunnel::Session::new();
    agent.handle(&hello, now).unwrap();
    assert_eq!(agent.handle(&encode_response(&Ok(Vec::new())), now), Err(SessionError::Unasked));
}

#[test]
fn a_message_before_the_answer_ends_the_session() {
    let (mut ztunnel, _) = ztunnel::Session::new();
    let packet = || Packet { bytes: encode_request(&crate::Request::SnapshotSent), fds: Vec::new() };
    ztunnel.handle(packet()).unwrap();
    assert_eq!(ztunnel.handle(packet()).unwrap_err(), ztunnel::SessionError::Impatient);
}

#[test]
fn what_cannot_be_done_is_answered_with_the_reason() {
    let (mut ztunnel, _) = ztunnel::Session::new();
    let mut refused = |request| {
        let reason =
            match ztunnel.handle(Packet { bytes: encode_request(&request), fds: Vec::new() }).unwrap() {
                Received::Refuse(reason) => reason,
                Received::Event(event) => panic!("{event:?}"),
            };
        ztunnel.answer(&Err(reason.clone()));
        reason
    };
    let info = pod("a", "one").info;
    let add = crate::Add { uid: PodUid::new("a"), info, attached: Vec::new(), dns: false };
    assert!(refused(crate::Request::Add(add)).contains("network namespace"));
    let redirection = crate::Request::Redirection { mark: 1, mask: 1, exempt_mark: None };
    assert!(refused(redirection).contains("first"));
    assert!(refused(crate::Request::Unknown).contains("does not know"));
}

proptest! {
    #[test]
    fn ztunnel_survives_any_packet(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..20)) {
        let (mut ztunnel, _) = ztunnel::Session::new();
        for bytes in packets {
            if ztunnel.handle(Packet { bytes, fds: Vec::new() }).is_ok() {
                ztunnel.answer(&Ok(Kept::default()));
            }
        }
    }

    #[test]
    fn the_agent_survives_any_packet(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..20)) {
        let now = now();
        let mut agent = Session::new(now);
        let desired = three_pods();
        for bytes in packets {
            let _ = agent.handle(&bytes, now);
            let _ = agent.poll_send(&desired, Role::Serves, now);
        }
    }
}
