//! The agent's socket, and what the agent asks of it.

use std::sync::Arc;

use net::seqpacket::{Packet, SeqPacket, SeqPacketListener};
use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::session::{Handled, Sent, Session, SessionError};
use super::state::{AddError, Peer, RemoveError, Standing, State};
use super::{Redirection, Role, Workload};
use crate::{Attached, Hello, Kept, PodState, PodUid, Turn};

/// How many ztunnels may be connected at once: one, and its successor, and some that hang.
const MOST_SESSIONS: usize = 8;

/// Tells ztunnel which pods it is to serve. Cloning gives another handle on the same server.
///
/// Of several ztunnels that are connected one serves, and what it says counts. One that comes later and speaks of listeners
/// is told of the pods too, takes over when it is ready, and then the other hands over. One that does not speak of listeners
/// serves at once; an earlier one is left as it is then. Whoever is there serves if the other goes.
#[derive(Clone, Debug)]
pub struct Server(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

impl Server {
    /// A server that knows no pod, and not yet whether there are any.
    pub fn new(redirection: Option<Redirection>) -> Self {
        Self(Arc::new(Shared { state: Mutex::new(State::new(redirection)), changed: watch::Sender::new(()) }))
    }

    /// Serves connections until the future is dropped, which closes them all. A failing connection harms no other.
    pub async fn serve(&self, listener: SeqPacketListener) {
        let mut sessions = JoinSet::new();
        loop {
            tokio::select! {
                // Both cancel-safe: accept loses no connection, join_next no result.
                accepted = listener.accept(), if sessions.len() < MOST_SESSIONS => match accepted {
                    Ok(socket) => { sessions.spawn(self.clone().session(socket)); }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept ztunnel's connection");
                        // Out of descriptors, most likely: do not spin.
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    }
                },
                Some(_) = sessions.join_next() => {}
            }
        }
    }

    /// Tells a pod and waits until ztunnel has answered, however long that takes: the caller bounds it.
    ///
    /// Dropping the future leaves the pod told. A pod that is there already is told again, with what it has now.
    pub async fn add(&self, workload: Workload) -> Result<(), AddError> {
        let answer = {
            let mut state = self.0.state.lock();
            let (sender, answer) = oneshot::channel();
            let uid = workload.uid.clone();
            let generation = state.put(workload);
            state.added.entry(uid).or_default().push((generation, sender));
            answer
        };
        self.0.changed.send_replace(());
        // The sender is dropped only with the whole server.
        answer.await.unwrap_or(Err(AddError::Removed))
    }

    /// Tells a pod without waiting.
    pub fn put(&self, workload: Workload) {
        self.0.state.lock().put(workload);
        self.0.changed.send_replace(());
    }

    /// Says how far a pod is on its way out, without waiting. It is told before anything else, to a ztunnel that takes it.
    pub fn set_state(&self, state: PodState) {
        if self.0.state.lock().desired.set_state(state) {
            self.0.changed.send_replace(());
        }
    }

    /// Says that every pod there is was put. Until then no ztunnel is told that it has them all, which would make it drop
    /// the rest.
    pub fn set_complete(&self) {
        self.0.state.lock().desired.set_complete();
        self.0.changed.send_replace(());
    }

    /// Takes a pod away and waits until the connected ztunnel has answered; the caller bounds it.
    pub async fn remove(&self, uid: &PodUid) -> Result<(), RemoveError> {
        let answer = {
            let mut state = self.0.state.lock();
            state.take(uid);
            if !state.is_connected() {
                state.desired.forget_state(uid);
                return Err(RemoveError::NotConnected);
            }
            let (sender, answer) = oneshot::channel();
            state.removed.entry(uid.clone()).or_default().push(sender);
            answer
        };
        self.0.changed.send_replace(());
        answer.await.unwrap_or(Err(RemoveError::NotConnected))
    }

    /// What ztunnel has said about a pod; nothing if the pod was never told.
    pub fn standing(&self, uid: &PodUid) -> Option<Standing> {
        self.0.state.lock().standing.get(uid).cloned()
    }

    /// Whether a ztunnel is connected.
    pub fn is_connected(&self) -> bool {
        self.0.state.lock().is_connected()
    }

    /// Whether the connected ztunnel publishes its listeners, that is takes the descriptors of the redirection maps;
    /// nothing where none is connected.
    pub fn publishes_listeners(&self) -> Option<bool> {
        self.0.state.lock().served_by().map(|by| by.redirection_fds)
    }

    /// Whether the connected ztunnel answers what pods ask resolvers; nothing where none is connected.
    pub fn answers_dns(&self) -> Option<bool> {
        self.0.state.lock().served_by().map(|by| by.dns)
    }

    /// The ztunnels that are connected, the one that came first first.
    pub fn peers(&self) -> Vec<Peer> {
        self.0.state.lock().peers()
    }

    /// Notifies of every change: of pods, of their standing, of connections.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    async fn session(self, socket: SeqPacket) {
        let mut conversation = Conversation {
            server: self,
            number: None,
            core: Session::new(Instant::now().into_std()),
            socket,
        };
        match conversation.run().await {
            Ok(()) => tracing::info!("ztunnel has disconnected"),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the connection to ztunnel is given up"
                );
            }
        }
    }
}

/// One connection with its socket.
struct Conversation {
    server: Server,
    /// Its place among the sessions, once the peer is introduced.
    number: Option<u64>,
    core: Session,
    socket: SeqPacket,
}

#[derive(Debug, Error)]
enum ConversationError {
    #[error("the socket failed")]
    Socket(#[from] std::io::Error),
    #[error(transparent)]
    Session(#[from] SessionError),
}

impl Conversation {
    async fn run(&mut self) -> Result<(), ConversationError> {
        let mut changed = self.server.0.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let now = Instant::now().into_std();
            let role = self.send_what_is_due(now).await?;
            let deadline = self.core.deadline(role, now).map(Instant::from_std);
            tokio::select! {
                // All cancel-safe: recv loses no packet, changed no change, sleeping nothing.
                packet = self.socket.recv() => match packet? {
                    Some(packet) => self.received(packet)?,
                    None => return Ok(()),
                },
                // The sender lives in the server, which lives in `self`.
                _ = changed.changed() => {}
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    if let Some(error) = self.core.expired(Instant::now().into_std()) {
                        return Err(error.into());
                    }
                }
            }
        }
    }

    /// Sends the next message if there is one. Gives the role that the peer has, once it is introduced.
    async fn send_what_is_due(&mut self, now: std::time::Instant) -> Result<Option<Role>, ConversationError> {
        let Some(number) = self.number else { return Ok(None) };
        let (role, due) = {
            let mut state = self.server.0.state.lock();
            let role = state.role(number);
            if role == Role::Serves {
                state.let_go_unknown(&self.core);
            }
            // The descriptors are duplicated, so that the lock need not be held while the packet is sent.
            let due = match self.core.poll_send(&state.desired, role, now) {
                Some(outgoing) => {
                    let fds: Result<Vec<_>, _> =
                        outgoing.fds.iter().map(|fd| fd.try_clone_to_owned()).collect();
                    Some((outgoing.bytes, fds?))
                }
                None => None,
            };
            if due.is_some() && role == Role::HandsOver {
                state.hands_over(number);
            }
            (role, due)
        };
        if let Some((bytes, fds)) = due {
            let fds: Vec<_> = fds.iter().map(std::os::fd::AsFd::as_fd).collect();
            self.socket.send(&bytes, &fds).await?;
        }
        Ok(Some(role))
    }

    fn received(&mut self, packet: Packet) -> Result<(), ConversationError> {
        match self.core.handle(&packet.bytes, Instant::now().into_std())? {
            Handled::Hello(hello) => {
                let pid = self.socket.peer_pid().ok().filter(|pid| *pid > 0);
                let Hello { redirection_fds, listener_fds, pod_state, dns } = hello;
                tracing::info!(redirection_fds, listener_fds, pod_state, dns, pid, "ztunnel has connected");
                self.number = Some(self.server.0.state.lock().arrived(hello, pid));
            }
            Handled::Answered(sent, answer) => self.answered(sent, answer, packet),
        }
        self.server.0.changed.send_replace(());
        Ok(())
    }

    fn answered(&self, sent: Sent, answer: Result<Vec<Attached>, String>, packet: Packet) {
        let Some(number) = self.number else { return };
        let is_takeover = sent == Sent::Listeners(Turn::TakeOver);
        if let Err(reason) = &answer {
            if is_takeover {
                tracing::debug!(reason, "ztunnel is not ready to take over");
            } else {
                tracing::warn!(message = ?sent, reason, "ztunnel refused");
            }
        }
        let mut state = self.server.0.state.lock();
        if is_takeover && answer.is_ok() {
            state.took_over(number, &self.core);
            return;
        }
        // What another than the one that serves answers says nothing about the pods.
        if !state.is_current(number) {
            return;
        }
        if let Some(publishes) = state.served_by().map(|by| by.redirection_fds) {
            if let (Sent::Add(uid, generation) | Sent::Keep(uid, generation), Ok(attached)) = (&sent, &answer)
            {
                let kept = Kept::of_message(attached.iter().copied().zip(packet.fds));
                state.keep(uid, *generation, kept);
            }
            state.answered(sent, answer.map(drop), publishes);
        }
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        self.server.0.state.lock().left(number);
        self.server.0.changed.send_replace(());
    }
}
