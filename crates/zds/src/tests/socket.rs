use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use net::seqpacket::SeqPacketListener;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::{Registry, pod};
use crate::agent::{AddError, Redirection, RemoveError, Server, Standing, Workload};
use crate::ztunnel::{Client, Event};
use crate::{Exemption, Kept, PodState, PodUid, Stage, Turn, encode_hello};

pub(super) struct Agent {
    pub(super) server: Server,
    pub(super) path: PathBuf,
    serving: JoinHandle<()>,
    _folder: TempDir,
}

pub(super) fn some_fd() -> OwnedFd {
    File::open("/proc/self/comm").unwrap().into()
}

pub(super) fn agent() -> Agent {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("zds.sock");
    let redirection =
        Redirection { mark: 0x0a40_0000, mask: 0x0fc0_0000, exempt: Exemption::Storage(Arc::new(some_fd())) };
    let server = Server::new(Some(redirection));
    let serving = serve(&server, &path);
    Agent { server, path, serving, _folder: folder }
}

fn serve(server: &Server, path: &PathBuf) -> JoinHandle<()> {
    let listener = SeqPacketListener::bind(path).unwrap();
    let server = server.clone();
    tokio::spawn(async move { server.serve(listener).await })
}

/// Handles events until one satisfies the question.
pub(super) async fn until(
    client: &mut Client,
    registry: &mut Registry,
    mut question: impl FnMut(&Registry) -> bool,
) {
    while !question(registry) {
        let (event, answer) = client.next().await;
        let result = registry.apply(event);
        answer.send(result.map(|()| registry.kept.clone())).await;
    }
}

#[tokio::test]
async fn pods_arrive_with_their_descriptors() {
    let agent = agent();
    let map = Some(Arc::new(some_fd()));
    agent.server.put(Workload { listener_map: map, ..pod("a", "one") });
    agent.server.set_complete();
    let mut client = Client::new(&agent.path);
    let (event, answer) = client.next().await;
    assert!(matches!(event, Event::Redirection { mark: 0x0a40_0000, mask: 0x0fc0_0000, .. }), "{event:?}");
    answer.send(Ok(Kept::default())).await;
    let (event, answer) = client.next().await;
    assert!(matches!(event, Event::Turn(Turn::Serve)), "{event:?}");
    answer.send(Ok(Kept::default())).await;
    let (event, answer) = client.next().await;
    let Event::Add { uid, netns, listener_map, .. } = event else { panic!("{event:?}") };
    assert_eq!((uid.as_str(), netns), ("a", net::Netns::current().unwrap()));
    assert!(listener_map.is_some());
    answer.send(Ok(Kept::default())).await;
    let (event, answer) = client.next().await;
    assert!(matches!(event, Event::SnapshotSent { ref named } if named.len() == 1), "{event:?}");
    answer.send(Ok(Kept::default())).await;
}

#[tokio::test]
async fn adding_ends_when_ztunnel_has_answered() {
    let agent = agent();
    agent.server.set_complete();
    let mut client = Client::new(&agent.path);
    let mut registry = Registry { refuse: [PodUid::new("bad")].into(), ..Registry::default() };
    let ztunnel = tokio::spawn(async move {
        until(&mut client, &mut registry, |r| r.complete && r.has(&[("good", "one")])).await;
        until(&mut client, &mut registry, |r| r.pods.is_empty()).await;
    });
    let refused = agent.server.add(pod("bad", "one")).await;
    assert_eq!(refused, Err(AddError::Refused("no room".into())));
    assert_eq!(agent.server.standing(&PodUid::new("bad")), Some(Standing::Refused("no room".into())));
    agent.server.add(pod("good", "one")).await.unwrap();
    assert_eq!(agent.server.standing(&PodUid::new("good")), Some(Standing::Served));
    agent.server.remove(&PodUid::new("good")).await.unwrap();
    ztunnel.await.unwrap();
}

#[tokio::test]
async fn removing_what_ztunnel_never_knew_ends_at_once() {
    let agent = agent();
    agent.server.set_complete();
    assert_eq!(agent.server.remove(&PodUid::new("a")).await, Err(RemoveError::NotConnected));
    let mut client = Client::new(&agent.path);
    let mut registry = Registry::default();
    until(&mut client, &mut registry, |r| r.complete).await;
    agent.server.remove(&PodUid::new("a")).await.unwrap();
}

#[tokio::test]
async fn an_agent_that_restarts_is_found_again_and_has_the_last_word() {
    let mut agent = agent();
    agent.server.put(pod("a", "one"));
    agent.server.set_complete();
    let mut client = Client::new(&agent.path);
    let mut registry = Registry::default();
    until(&mut client, &mut registry, |r| r.complete).await;
    agent.serving.abort();
    let _ = (&mut agent.serving).await;
    let second = Server::new(None);
    second.put(pod("b", "two"));
    second.set_complete();
    let _serving = serve(&second, &agent.path);
    until(&mut client, &mut registry, |r| r.has(&[("b", "two")])).await;
}

#[tokio::test]
async fn an_answer_that_is_dropped_makes_a_new_connection() {
    let agent = agent();
    agent.server.put(pod("a", "one"));
    agent.server.set_complete();
    let mut client = Client::new(&agent.path);
    let (event, answer) = client.next().await;
    assert!(matches!(event, Event::Redirection { .. }));
    drop(answer);
    let mut registry = Registry::default();
    until(&mut client, &mut registry, |r| r.complete).await;
    assert!(registry.has(&[("a", "one")]));
}

#[tokio::test]
async fn garbage_harms_neither_the_agent_nor_other_connections() {
    let agent = agent();
    agent.server.set_complete();
    let garbage = net::seqpacket::SeqPacket::connect(&agent.path).unwrap();
    garbage.send(b"\xff\xff\xff", &[]).await.unwrap();
    assert!(garbage.recv().await.unwrap().is_none(), "closed");
    let plain = net::seqpacket::SeqPacket::connect(&agent.path).unwrap();
    plain.send(&encode_hello(crate::Hello::default()), &[]).await.unwrap();
    let first = plain.recv().await.unwrap().unwrap();
    assert_eq!(
        crate::decode_request(&first.bytes),
        Ok(crate::Request::SnapshotSent),
        "plain v1, no extension"
    );
}

#[tokio::test]
async fn pods_of_a_plain_ztunnel_are_served_and_not_steerable() {
    let agent = agent();
    agent.server.set_complete();
    let plain = net::seqpacket::SeqPacket::connect(&agent.path).unwrap();
    plain.send(&encode_hello(crate::Hello::default()), &[]).await.unwrap();
    plain.recv().await.unwrap().unwrap();
    plain.send(&crate::encode_response(&Ok(Vec::new())), &[]).await.unwrap();
    assert_eq!(agent.server.publishes_listeners(), Some(false));
    let server = agent.server.clone();
    let map = Some(Arc::new(some_fd()));
    let adding =
        tokio::spawn(async move { server.add(Workload { listener_map: map, ..pod("a", "one") }).await });
    let told = plain.recv().await.unwrap().unwrap();
    assert_eq!(told.fds.len(), 1, "the namespace alone");
    let addresses = vec!["10.0.0.1".parse().unwrap()];
    agent.server.set_state(PodState { uid: PodUid::new("a"), stage: Stage::Terminating, addresses });
    plain.send(&crate::encode_response(&Ok(Vec::new())), &[]).await.unwrap();
    assert_eq!(adding.await.unwrap(), Err(AddError::Unsteerable));
    assert_eq!(agent.server.standing(&PodUid::new("a")), Some(Standing::Unsteerable));
    agent.server.put(pod("b", "one"));
    let next = crate::decode_request(&plain.recv().await.unwrap().unwrap().bytes).unwrap();
    assert!(matches!(next, crate::Request::Add(_)), "it is told nothing that it does not take: {next:?}");

    let mut client = Client::new(&agent.path);
    let mut registry = Registry::default();
    until(&mut client, &mut registry, |r| r.complete).await;
    assert_eq!(agent.server.publishes_listeners(), Some(true));
    assert_eq!(agent.server.standing(&PodUid::new("a")), Some(Standing::Served));
}

#[tokio::test]
async fn a_pods_end_is_told_first_and_before_its_removal() {
    let agent = agent();
    agent.server.put(pod("a", "one"));
    agent.server.put(pod("b", "one"));
    agent.server.set_complete();
    let state = |uid: &str, stage| PodState {
        uid: PodUid::new(uid),
        stage,
        addresses: vec!["10.0.0.1".parse().unwrap()],
    };
    let mut client = Client::new(&agent.path);
    let mut registry = Registry::default();
    until(&mut client, &mut registry, |r| r.complete).await;
    agent.server.set_state(state("nobody", Stage::Ended));
    agent.server.set_state(state("a", Stage::Terminating));
    agent.server.set_state(state("b", Stage::Terminating));
    until(&mut client, &mut registry, |r| r.ending.len() == 2).await;

    // Both are news by the time that the peer listens again.
    agent.server.set_state(state("a", Stage::Ended));
    let server = agent.server.clone();
    let removing = tokio::spawn(async move { server.remove(&PodUid::new("a")).await });
    tokio::task::yield_now().await;
    until(&mut client, &mut registry, |r| r.has(&[("b", "one")])).await;
    assert_eq!(registry.ending.last(), Some(&(PodUid::new("a"), Stage::Ended)));
    assert_eq!(removing.await.unwrap(), Ok(()));

    // A ztunnel that comes anew hears of those that are still there.
    drop(client);
    let (mut client, mut anew) = (Client::new(&agent.path), Registry::default());
    until(&mut client, &mut anew, |r| r.complete && !r.ending.is_empty()).await;
    assert_eq!(anew.ending, [(PodUid::new("b"), Stage::Terminating)]);
}
