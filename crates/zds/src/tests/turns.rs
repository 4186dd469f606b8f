//! An old and a new ztunnel, and the listeners that pass from one to the other.

use std::net::{SocketAddr, TcpListener, TcpStream};

use net::seqpacket::SeqPacket;
use tokio::task::JoinHandle;

use super::socket::{Agent, agent, until};
use super::{Registry, pod};
use crate::agent::{Role, Standing};
use crate::ztunnel::{Client, Event};
use crate::{Hello, Kept, ListenerKind, PodUid, Turn, encode_hello, encode_response};

/// A ztunnel that hands a listener over for each pod, and where that listens.
fn with_listener() -> (Registry, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let mut kept = Kept::default();
    kept.push(ListenerKind::InboundHbone, listener.into());
    (Registry { kept, ..Registry::default() }, addr)
}

/// Runs a ztunnel until it has been told its turn.
fn run(agent: &Agent, mut registry: Registry, turn: Turn) -> JoinHandle<(Client, Registry)> {
    let mut client = Client::new(&agent.path);
    tokio::spawn(async move {
        until(&mut client, &mut registry, |r| r.turn == Some(turn)).await;
        (client, registry)
    })
}

/// Waits until the connected ztunnels, the first first, are these.
async fn roles(agent: &Agent, expected: &[Role]) {
    let mut changes = agent.server.changes();
    while !agent.server.peers().iter().map(|peer| peer.role).eq(expected.iter().copied()) {
        changes.changed().await.unwrap();
    }
}

async fn served(agent: &Agent, uid: &str) {
    let mut changes = agent.server.changes();
    while agent.server.standing(&PodUid::new(uid)) != Some(Standing::Served) {
        changes.changed().await.unwrap();
    }
}

#[tokio::test]
async fn who_waits_in_a_listener_is_accepted_by_the_next_ztunnel() {
    let agent = agent();
    agent.server.put(pod("a", "one"));
    agent.server.set_complete();
    let (mut registry, addr) = with_listener();
    let mut first = Client::new(&agent.path);
    until(&mut first, &mut registry, |r| r.complete).await;
    drop((first, registry));
    let waiting = TcpStream::connect(addr).unwrap();
    let mut second = Client::new(&agent.path);
    let kept = loop {
        let (event, answer) = second.next().await;
        if let Event::Add { kept, .. } = event {
            break kept;
        }
        answer.send(Ok(Kept::default())).await;
    };
    let listener = kept.of_kind(ListenerKind::InboundHbone).next().expect("the first one's listener");
    let listener = TcpListener::from(listener.try_clone_to_owned().unwrap());
    let (_, peer) = listener.accept().unwrap();
    assert_eq!(peer, waiting.local_addr().unwrap());
}

#[tokio::test]
async fn a_pods_listeners_are_let_go_with_the_pod() {
    let agent = agent();
    agent.server.put(pod("a", "one"));
    agent.server.set_complete();
    let (mut registry, addr) = with_listener();
    let mut client = Client::new(&agent.path);
    until(&mut client, &mut registry, |r| r.complete).await;
    let removing = agent.server.clone();
    let removing = tokio::spawn(async move { removing.remove(&PodUid::new("a")).await });
    until(&mut client, &mut registry, |r| r.pods.is_empty()).await;
    removing.await.unwrap().unwrap();
    drop(registry);
    assert!(TcpStream::connect(addr).is_err(), "nobody holds it");
}

#[tokio::test]
async fn the_old_one_hands_over_when_the_new_one_is_ready_and_not_before() {
    let agent = agent();
    agent.server.put(pod("a", "one"));
    agent.server.set_complete();
    let (registry, _) = with_listener();
    let old = run(&agent, registry, Turn::HandOver);
    served(&agent, "a").await;

    let mut registry = Registry { unready: true, ..Registry::default() };
    let mut new = Client::new(&agent.path);
    // It is asked more than once.
    until(&mut new, &mut registry, |r| r.times_unready == 2).await;
    assert_eq!(registry.turn, Some(Turn::StandBy));
    assert!(registry.complete && registry.with_listeners.contains(&PodUid::new("a")));
    roles(&agent, &[Role::Serves, Role::StandsBy { is_next: true }]).await;
    assert!(!old.is_finished());

    registry.unready = false;
    let (_, mut told) =
        tokio::join!(until(&mut new, &mut registry, |r| r.turn == Some(Turn::TakeOver)), async {
            old.await.unwrap()
        });
    assert_eq!(told.1.turn, Some(Turn::HandOver));
    assert!(told.1.has(&[("a", "one")]), "what it serves it goes on serving");
    assert_eq!(agent.server.standing(&PodUid::new("a")), Some(Standing::Served), "all along");

    // The new one hears of what comes, and the old one of nothing more.
    agent.server.put(pod("b", "two"));
    until(&mut new, &mut registry, |r| r.has(&[("a", "one"), ("b", "two")])).await;
    drop(new);
    let nothing = until(&mut told.0, &mut told.1, |_| false);
    assert!(tokio::time::timeout(std::time::Duration::from_millis(50), nothing).await.is_err());
}

#[tokio::test]
async fn one_that_stands_by_serves_when_the_other_dies() {
    let agent = agent();
    agent.server.put(pod("a", "one"));
    agent.server.set_complete();
    let (mut registry, _) = with_listener();
    let mut old = Client::new(&agent.path);
    until(&mut old, &mut registry, |r| r.complete).await;
    let mut standing_by = Registry { unready: true, ..Registry::default() };
    let mut new = Client::new(&agent.path);
    until(&mut new, &mut standing_by, |r| r.times_unready == 1).await;
    drop(old);
    until(&mut new, &mut standing_by, |r| r.turn == Some(Turn::Serve)).await;
    assert!(standing_by.with_listeners.contains(&PodUid::new("a")));
}

#[tokio::test]
async fn nobody_takes_over_before_the_old_one_has_answered() {
    let agent = agent();
    agent.server.set_complete();
    let (mut registry, _) = with_listener();
    let mut old = Client::new(&agent.path);
    until(&mut old, &mut registry, |r| r.complete).await;
    let taking_over = run(&agent, Registry::default(), Turn::TakeOver);
    roles(&agent, &[Role::Serves, Role::StandsBy { is_next: true }]).await;
    agent.server.put(pod("a", "one"));
    roles(&agent, &[Role::Serves, Role::StandsBy { is_next: false }]).await;
    until(&mut old, &mut registry, |r| r.has(&[("a", "one")])).await;
    let (_, new) = taking_over.await.unwrap();
    assert!(new.with_listeners.contains(&PodUid::new("a")), "and not with others of its own");
}

#[tokio::test]
async fn one_that_does_not_speak_of_turns_serves_at_once_and_disturbs_nobody() {
    let agent = agent();
    agent.server.put(pod("a", "one"));
    agent.server.set_complete();
    let (mut registry, _) = with_listener();
    let mut old = Client::new(&agent.path);
    until(&mut old, &mut registry, |r| r.complete).await;
    let plain = SeqPacket::connect(&agent.path).unwrap();
    plain.send(&encode_hello(Hello::default()), &[]).await.unwrap();
    let told = plain.recv().await.unwrap().unwrap();
    assert_eq!(told.fds.len(), 1, "the namespace alone");
    plain.send(&encode_response(&Ok(Vec::new())), &[]).await.unwrap();
    roles(&agent, &[Role::Sleeps, Role::Serves]).await;
    drop(plain);
    // And is asked for what it knew already.
    registry.pods.clear();
    until(&mut old, &mut registry, |r| r.has(&[("a", "one")])).await;
    assert_eq!(registry.turn, Some(Turn::Serve));
}
