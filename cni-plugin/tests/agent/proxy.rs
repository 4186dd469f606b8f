//! A small ztunnel: it speaks the node protocol, listens in pods, notes what it captured, and passes it on in plaintext.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ebpf_loader::{BypassStorage, ListenerMap, slot};
use net::seqpacket::SeqPacket;
use net::{Bind, Dial, Listener, Netns, Network, PodListener, PodNetwork, Source, Stream};
use parking_lot::Mutex;
use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use zds::ztunnel::{Client, Event};
use zds::{Exemption, Hello, Kept, PodState, PodUid, encode_hello, encode_response};

/// A connection that was captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Captured {
    pub(crate) inbound: bool,
    pub(crate) from: IpAddr,
    pub(crate) to: SocketAddr,
}

pub(crate) struct Proxy {
    captured: Arc<Mutex<Vec<Captured>>>,
    ending: watch::Receiver<Vec<PodState>>,
    served: watch::Receiver<usize>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub(crate) fn start(socket: impl Into<PathBuf>) -> Self {
        let captured = Arc::default();
        let (serving, served) = watch::channel(0);
        let (ends, ending) = watch::channel(Vec::new());
        let task = tokio::spawn(run(Client::new(socket), Arc::clone(&captured), serving, ends));
        Self { captured, ending, served, task }
    }

    /// What was captured since the last time.
    pub(crate) fn take_captured(&self) -> Vec<Captured> {
        std::mem::take(&mut *self.captured.lock())
    }

    /// Waits until so much has been said of pods that come to their end.
    pub(crate) async fn hears(&mut self, count: usize) -> Vec<PodState> {
        self.ending.wait_for(|states| states.len() >= count).await.unwrap().clone()
    }

    pub(crate) async fn serves(&mut self, pods: usize) {
        self.served.wait_for(|count| *count == pods).await.unwrap();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Notes = Arc<Mutex<Vec<Captured>>>;

async fn run(
    mut client: Client,
    captured: Notes,
    serving: watch::Sender<usize>,
    ends: watch::Sender<Vec<PodState>>,
) {
    let mut redirection = None;
    // A pod's listeners end with it; its connections go on.
    let mut pods: HashMap<PodUid, (Netns, JoinSet<()>)> = HashMap::new();
    loop {
        let (event, answer) = client.next().await;
        let result = match event {
            Event::Redirection { mark, exempt, .. } => {
                let Exemption::Storage(bypass) = exempt else { panic!("{exempt:?}") };
                redirection = Some((mark, Arc::new(BypassStorage::from_fd(bypass).unwrap())));
                Ok(())
            }
            // Told again by a new agent; its listeners are in the pinned map still.
            Event::Add { uid, netns, .. } if pods.get(&uid).is_some_and(|(known, _)| *known == netns) => {
                Ok(())
            }
            Event::Add { uid, netns, listener_map, .. } => {
                let (mark, bypass) = redirection.clone().unwrap();
                let exempt = Arc::new(move |fd: BorrowedFd<'_>| bypass.exempt(&fd));
                let network = PodNetwork::new(netns.clone(), Some(exempt));
                let map = ListenerMap::from_fd(listener_map.unwrap()).unwrap();
                pods.remove(&uid);
                serve(&network, &map, mark, &captured)
                    .map(|listening| drop(pods.insert(uid, (netns, listening))))
                    .map_err(|error| error.to_string())
            }
            Event::Keep(uid) if pods.contains_key(&uid) => Ok(()),
            Event::Keep(_) => Err("unknown".to_owned()),
            Event::Del(uid) => {
                pods.remove(&uid);
                Ok(())
            }
            Event::State(state) => {
                assert!(pods.contains_key(&state.uid), "of a pod that is served: {state:?}");
                ends.send_modify(|states| states.push(state));
                Ok(())
            }
            Event::Turn(_) => Ok(()),
            Event::SnapshotSent { named } => {
                pods.retain(|uid, _| named.contains(uid));
                Ok(())
            }
        };
        answer.send(result.map(|()| Kept::default())).await;
        serving.send_replace(pods.len());
    }
}

fn serve(network: &PodNetwork, map: &ListenerMap, mark: u32, captured: &Notes) -> io::Result<JoinSet<()>> {
    let mut listening = JoinSet::new();
    for (at, slot) in [
        ("127.0.0.1:15001", slot::OUTBOUND_V4),
        ("[::1]:15001", slot::OUTBOUND_V6),
        ("[::]:15006", slot::INBOUND),
    ] {
        let listener = network.bind(&Bind::captured(at.parse().unwrap()))?;
        map.set(slot, &listener)?;
        let inbound = (slot == slot::INBOUND).then_some(mark);
        listening.spawn(accept(PodListener::adopt(listener)?, network.clone(), inbound, captured.clone()));
    }
    let hbone = PodListener::adopt(network.bind(&Bind::plain("[::]:15008".parse().unwrap()))?)?;
    listening.spawn(async move {
        while let Ok(mut accepted) = hbone.accept().await {
            let greeting = format!("hbone {}\n", accepted.peer.ip());
            let _ = accepted.stream.write_all(greeting.as_bytes()).await;
        }
    });
    Ok(listening)
}

/// Passes on what one listener accepts: outbound to where it was going, inbound to the application with the caller's
/// address and the mark that brings the answers back.
async fn accept(listener: PodListener, network: PodNetwork, inbound: Option<u32>, captured: Notes) {
    while let Ok(mut accepted) = listener.accept().await {
        let (from, to) = (accepted.peer.ip(), accepted.original_dst);
        captured.lock().push(Captured { inbound: inbound.is_some(), from, to });
        let dial = match inbound {
            Some(mark) => Dial { to, source: Source::Foreign(from), mark: Some(mark) },
            None => Dial::to(to),
        };
        let network = network.clone();
        tokio::spawn(async move {
            match network.connect(&dial).await {
                Ok(mut onward) => drop(copy_bidirectional(&mut accepted.stream, &mut onward).await),
                Err(_) => accepted.stream.reset_on_drop(),
            }
        });
    }
}

/// Speaks the node protocol without any extension and acknowledges everything, as a ztunnel does that expects to be
/// reached by packet filter rules.
pub(crate) fn plain(socket: impl AsRef<Path>) -> JoinSet<()> {
    let socket = SeqPacket::connect(socket.as_ref()).unwrap();
    let mut plain = JoinSet::new();
    plain.spawn(async move {
        socket.send(&encode_hello(Hello::default()), &[]).await.unwrap();
        while let Ok(Some(_)) = socket.recv().await {
            socket.send(&encode_response(&Ok(Vec::new())), &[]).await.unwrap();
        }
    });
    plain
}
