//! ztunnel's end of the socket.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use net::seqpacket::SeqPacket;
use thiserror::Error;
use tokio::time::{Instant, sleep_until};

use super::Event;
use super::session::{Received, Session, SessionError};
use crate::Kept;

const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_LONGEST: Duration = Duration::from_secs(2);

/// Listens to the agent, reconnecting for ever.
///
/// A new connection begins with all pods there are, so nothing is lost while there is none; pods go on being served.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    connected: Option<Connected>,
    backoff: Duration,
    not_before: Instant,
    /// So that an absent agent is logged once, not at each try.
    told_absent: bool,
}

#[derive(Debug)]
struct Connected {
    socket: SeqPacket,
    session: Session,
    /// The last message was handed out and its [`Answer`] was dropped.
    abandoned: bool,
}

#[derive(Debug, Error)]
enum Broken {
    #[error("the agent has disconnected")]
    Gone,
    #[error("a message of the agent was not answered")]
    Abandoned,
    #[error("the socket failed")]
    Socket(#[from] io::Error),
    #[error(transparent)]
    Session(#[from] SessionError),
}

impl Client {
    /// A client of the agent that listens, or will listen, at a path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            connected: None,
            backoff: BACKOFF_FIRST,
            not_before: Instant::now(),
            told_absent: false,
        }
    }

    /// Whether there is a connection.
    pub fn is_connected(&self) -> bool {
        self.connected.is_some()
    }

    /// The next thing that the agent says, and the means to answer it. Cancel-safe.
    ///
    /// If the answer is dropped unsent, the connection is closed and made anew.
    pub async fn next(&mut self) -> (Event, Answer<'_>) {
        let event = loop {
            match self.event().await {
                Ok(event) => break event,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the connection to the agent is lost"
                    );
                    self.connected = None;
                }
            }
        };
        (event, Answer { client: self })
    }

    async fn event(&mut self) -> Result<Event, Broken> {
        let connected = match &mut self.connected {
            Some(connected) => connected,
            none => {
                let (socket, session) =
                    connect(&self.path, &mut self.backoff, &mut self.not_before, &mut self.told_absent).await;
                none.insert(Connected { socket, session, abandoned: false })
            }
        };
        if connected.abandoned {
            return Err(Broken::Abandoned);
        }
        loop {
            let packet = connected.socket.recv().await?.ok_or(Broken::Gone)?;
            // An agent that talks is one worth returning to quickly.
            self.backoff = BACKOFF_FIRST;
            match connected.session.handle(packet)? {
                Received::Event(event) => {
                    connected.abandoned = true;
                    return Ok(event);
                }
                Received::Refuse(reason) => {
                    tracing::warn!(reason, "refused a message of the agent");
                    let refusal = Err(reason);
                    let (bytes, fds) = connected.session.answer(&refusal);
                    connected.socket.send(&bytes, &fds).await?;
                }
            }
        }
    }
}

async fn connect(
    path: &std::path::Path,
    backoff: &mut Duration,
    not_before: &mut Instant,
    told_absent: &mut bool,
) -> (SeqPacket, Session) {
    loop {
        sleep_until(*not_before).await;
        *not_before = Instant::now() + *backoff;
        *backoff = (*backoff * 2).min(BACKOFF_LONGEST);
        let (session, hello) = Session::new();
        let error = match SeqPacket::connect(path) {
            Ok(socket) => match socket.send(&hello, &[]).await {
                Ok(()) => {
                    tracing::info!(path = %path.display(), "connected to the agent");
                    *told_absent = false;
                    return (socket, session);
                }
                Err(error) => error,
            },
            Err(error) => error,
        };
        if !std::mem::replace(told_absent, true) {
            tracing::info!(path = %path.display(), %error, "the agent does not answer yet");
        }
    }
}

/// The duty to answer a message.
#[derive(Debug)]
#[must_use = "the agent waits for an answer; dropping this breaks the connection"]
pub struct Answer<'a> {
    client: &'a mut Client,
}

impl Answer<'_> {
    /// Answers: done, with the listeners of the pod that it was about for the agent to keep, or why not. If that cannot be sent the connection is made anew, and the agent will ask again.
    pub async fn send(self, answer: Result<Kept, String>) {
        let Some(connected) = &mut self.client.connected else { return };
        let (bytes, fds) = connected.session.answer(&answer);
        match connected.socket.send(&bytes, &fds).await {
            Ok(()) => connected.abandoned = false,
            Err(error) => {
                tracing::warn!(%error, "the agent cannot be answered");
                self.client.connected = None;
            }
        }
    }
}
