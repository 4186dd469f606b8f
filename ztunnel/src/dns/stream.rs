//! Questions on a connection (RFC 7766): each message with its length before it.

use std::collections::HashSet;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use dns::{Verdict, owned_exists};
use net::{Network, Stream};
use telemetry::metrics::Transport;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex, split,
};
use tokio::time::timeout;

use super::settle;
use crate::mesh::NotSynced;
use crate::pod::Served;

/// How long a client may be silent while nobody but the mesh speaks with it.
const IDLE: Duration = Duration::from_secs(60);
/// How long an end may take to accept a message.
const WRITING: Duration = Duration::from_secs(10);
/// About how many messages it is remembered that their names are owned.
const MOST_OWNED: usize = 256;
/// How much may lie between a conversation and the relay to whom the connection is for.
const PIPE: usize = 64 * 1024;

/// A client's messages on a connection, answered one by one, or relayed.
#[derive(Debug, Default)]
pub(crate) struct Conversation {
    received: BytesMut,
    /// The message that somebody else has to answer.
    pending: Option<(Bytes, bool)>,
}

impl Conversation {
    /// Answers until somebody else has to, and then says that it is so; else until the client has no more questions.
    ///
    /// # Errors
    /// If nothing is known of the mesh.
    pub(crate) async fn alone<N: Network>(
        &mut self,
        served: &Served<N>,
        client: &mut N::Stream,
    ) -> Result<bool, NotSynced> {
        loop {
            let Ok(Ok(Some(message))) = timeout(IDLE, next(client, &mut self.received)).await else {
                return Ok(false);
            };
            match decide(served, &message).await? {
                Verdict::Answer(answer) => {
                    if write(client, &framed(&answer)).await.is_err() {
                        return Ok(false);
                    }
                }
                Verdict::Relay { owned } => {
                    self.pending = Some((message, owned));
                    return Ok(true);
                }
            }
        }
    }

    /// Goes on with somebody else at the other end of the pipe that `relay` is given. What that one says reaches the
    /// client as it was said.
    pub(crate) async fn relayed<N: Network, E>(
        self,
        served: &Served<N>,
        client: &mut N::Stream,
        relay: impl AsyncFnOnce(&mut Pipe) -> Result<(), E>,
    ) -> Result<(), E> {
        let (ours, theirs) = duplex(PIPE);
        let mut theirs = Pipe(theirs);
        let mut mediating = pin!(self.mediate(served, client, ours));
        let relayed = {
            let relay = pin!(relay(&mut theirs));
            tokio::select! {
                // Once the client has gone or the other end has said all, there is nothing left to relay.
                _ = &mut mediating => return Ok(()),
                relayed = relay => relayed,
            }
        };
        drop(theirs);
        if relayed.is_ok() {
            // What is still in the pipe.
            let _ = timeout(WRITING, mediating).await;
        }
        relayed
    }

    async fn mediate<N: Network>(
        self,
        served: &Served<N>,
        client: &mut N::Stream,
        other: DuplexStream,
    ) -> io::Result<()> {
        let Self { received: mut asked, mut pending } = self;
        let (mut from_client, mut to_client) = split(client);
        let (mut from_other, mut to_other) = split(other);
        let (mut told, mut asks) = (BytesMut::new(), true);
        let mut owned_names = HashSet::new();
        loop {
            if let Some((message, owned)) = pending.take() {
                served.proxy.metrics.dns.relayed(Transport::Tcp);
                if owned && owned_names.len() < MOST_OWNED {
                    owned_names.extend(id(&message));
                }
                write(&mut to_other, &framed(&message)).await?;
            }
            tokio::select! {
                // Both cancel-safe: what was read is in the buffer.
                message = next(&mut from_client, &mut asked), if asks => match message? {
                    Some(message) => match decide(served, &message).await {
                        Ok(Verdict::Answer(answer)) => write(&mut to_client, &framed(&answer)).await?,
                        Ok(Verdict::Relay { owned }) => pending = Some((message, owned)),
                        Err(error) => return Err(io::Error::other(error)),
                    },
                    None => {
                        asks = false;
                        to_other.shutdown().await?;
                    }
                },
                message = next(&mut from_other, &mut told) => match message? {
                    Some(message) => {
                        let mut message = framed(&message);
                        if id(&message[2..]).is_some_and(|id| owned_names.remove(&id)) {
                            owned_exists(&mut message[2..]);
                        }
                        write(&mut to_client, &message).await?;
                    }
                    None => {
                        let _ = timeout(WRITING, to_client.shutdown()).await;
                        return Ok(());
                    }
                },
            }
        }
    }
}

async fn decide<N: Network>(served: &Served<N>, message: &[u8]) -> Result<Verdict, NotSynced> {
    served.proxy.metrics.dns.asked(Transport::Tcp);
    settle(served, message, true).await
}

/// The next message; nothing where there are no more. Cancel-safe.
async fn next(from: &mut (impl AsyncRead + Unpin), received: &mut BytesMut) -> io::Result<Option<Bytes>> {
    loop {
        if let Some(length) = received.first_chunk::<2>() {
            let length = usize::from(u16::from_be_bytes(*length));
            if received.len() >= 2 + length {
                received.advance(2);
                return Ok(Some(received.split_to(length).freeze()));
            }
        }
        if from.read_buf(received).await? == 0 {
            return if received.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    // A message is no longer than its length can say: it came with one, or was made to fit.
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes()[..], message].concat()
}

async fn write(to: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    timeout(WRITING, to.write_all(message)).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}

fn id(message: &[u8]) -> Option<[u8; 2]> {
    message.first_chunk().copied()
}

/// The end of a relay that stands for the client.
#[derive(Debug)]
pub(crate) struct Pipe(DuplexStream);

impl Stream for Pipe {
    fn reset_on_drop(&self) {}
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
