//! xDS over simulated connections: the real sessions on both sides, with messages written one after the other where gRPC
//! would stand.

use std::collections::BTreeMap;
use std::io;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use ambit_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use futures_util::{SinkExt, StreamExt};
use net::{Bind, Listener, Network};
use prost::Message;
use testkit::sim::{SimHost, SimStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout_at};
use tokio_util::bytes::Bytes;
use tokio_util::codec::{Framed, LengthDelimitedCodec};
use xds::server::{Everything, Limits, Peer, Session, Snapshot};

/// The revision that each node has acknowledged, by the node's name.
pub(crate) type Acked = BTreeMap<String, u64>;

/// The time of the simulation, for the sessions.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Messages over a connection.
pub(crate) struct Messages<In, Out> {
    framed: Framed<SimStream, LengthDelimitedCodec>,
    kinds: PhantomData<(In, Out)>,
}

impl<In: Message + Default, Out: Message> Messages<In, Out> {
    pub(crate) fn over(stream: SimStream) -> Self {
        let codec = LengthDelimitedCodec::builder().max_frame_length(64 << 20).new_codec();
        Self { framed: Framed::new(stream, codec), kinds: PhantomData }
    }

    pub(crate) async fn send(&mut self, message: &Out) -> io::Result<()> {
        self.framed.send(Bytes::from(message.encode_to_vec())).await
    }

    /// The next message; an error if there is none by a deadline. Cancel-safe.
    pub(crate) async fn next(&mut self, deadline: Option<Instant>) -> io::Result<In> {
        let next = self.framed.next();
        let frame = match deadline {
            Some(deadline) => timeout_at(deadline.into(), next).await?,
            None => next.await,
        };
        let frame = frame.ok_or(io::ErrorKind::UnexpectedEof)??;
        In::decode(frame).map_err(io::Error::other)
    }
}

/// Serves the latest snapshot to whoever connects, until it is dropped.
pub(crate) async fn serve(
    host: SimHost,
    addr: SocketAddr,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    acked: watch::Sender<Acked>,
) {
    let listener = host.listen(&Bind::plain(addr)).await.expect("a free port");
    let mut streams = JoinSet::new();
    while let Ok(accepted) = listener.accept().await {
        streams.spawn_local(stream(accepted.stream, snapshots.clone(), acked.clone()));
    }
}

/// One proxy's stream, until it breaks.
async fn stream(
    stream: SimStream,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    acked: watch::Sender<Acked>,
) -> io::Result<()> {
    let mut wire = Messages::<DeltaDiscoveryRequest, DeltaDiscoveryResponse>::over(stream);
    let peer = Peer { namespace: "istio-system".into(), service_account: "ztunnel".into(), node: None };
    let snapshot = snapshots.borrow_and_update().clone();
    let mut session = Session::new(now(), peer, Arc::new(Everything), Limits::default(), snapshot);
    loop {
        let silence = async {
            match session.deadline() {
                Some(deadline) => sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // All cancel-safe.
            request = wire.next(None) => {
                session.handle_request(now(), request?).map_err(io::Error::other)?;
            }
            changed = snapshots.changed() => {
                changed.map_err(io::Error::other)?;
                let snapshot = snapshots.borrow_and_update().clone();
                session.handle_snapshot(now(), snapshot);
            }
            () = silence => session.handle_timeout(now()).map_err(io::Error::other)?,
        }
        while let Some((response, _)) = session.poll_response(now()) {
            wire.send(&response).await?;
        }
        // Also of one that a change is nothing to.
        let status = session.status();
        acked.send_modify(|all| {
            all.insert(status.node.node.to_string(), status.acked_revision);
        });
    }
}
