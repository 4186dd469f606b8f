//! Questions in datagrams.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dns::{Verdict, failure, is_answer_to, owned_exists};
use futures_util::future::join_all;
use net::{Datagram, Datagrams, Impostor, PodNetwork};
use telemetry::metrics::Transport;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};

use super::settle;
use super::sockets::Adopted;
use crate::pod::Served;
use crate::redirection::PEERS_MARK;

/// How long the answer to a relayed question is waited for. Resolvers in applications wait 5 s, and some longer.
const PATIENCE: Duration = Duration::from_secs(15);
/// How many questions of a pod may be under way on one shard.
const MOST_UNDER_WAY: usize = 256;
/// How long is waited where the sockets fail, before it is tried again.
const PAUSE: Duration = Duration::from_millis(100);
/// As long as a datagram can be.
const LONGEST: usize = u16::MAX as usize;

/// A pod's questions on one shard.
struct Desk {
    served: Rc<Served<PodNetwork>>,
    impostor: Impostor,
    room: Arc<Semaphore>,
    /// Where an answer lies between its being taken and its being given.
    answer: RefCell<Vec<u8>>,
}

/// Takes the pod's questions on this shard until the pod leaves or the proxy drains; those under way go on in tasks of the
/// shard's.
pub(crate) async fn serve(served: Rc<Served<PodNetwork>>, questions: Adopted) {
    let Adopted { sockets, impostor } = questions;
    let leave = served.pod.leave.clone();
    let room = Arc::new(Semaphore::new(MOST_UNDER_WAY));
    let desk = Rc::new(Desk { served, impostor, room, answer: RefCell::new(vec![0; LONGEST]) });
    let taking = join_all(sockets.into_iter().map(|socket| desk.clone().take(socket)));
    tokio::select! {
        // Receiving is cancel-safe. Whose question is in the socket asks again, and by then of nobody or of the next.
        _ = taking => {}
        () = leave.cancelled() => {}
    }
}

impl Desk {
    async fn take(self: Rc<Self>, socket: Datagrams) {
        let mut buffer = vec![0; LONGEST];
        loop {
            let datagram = match socket.receive(&mut buffer).await {
                Ok(datagram) => datagram,
                Err(error) => {
                    tracing::debug!(%error, "a question cannot be received");
                    sleep(PAUSE).await;
                    continue;
                }
            };
            let dns = &self.served.proxy.metrics.dns;
            dns.asked(Transport::Udp);
            let Ok(room) = self.room.clone().try_acquire_owned() else {
                dns.dropped();
                continue;
            };
            let (desk, question) = (self.clone(), buffer[..datagram.length].to_vec());
            self.served.scope.tasks.spawn_local(async move {
                let _room = room;
                tokio::select! {
                    // Whoever asked gets no answer then, as from any server that ends.
                    () = desk.handle(&datagram, &question) => {}
                    () = desk.served.scope.stop.cancelled() => {}
                }
            });
        }
    }

    async fn handle(&self, datagram: &Datagram, question: &[u8]) {
        match settle(&self.served, question, false).await {
            Ok(Verdict::Answer(answer)) => self.give(datagram, &answer),
            Ok(Verdict::Relay { owned }) => self.relay(datagram, question, owned).await,
            // Somebody else might say that there is no such name.
            Err(_) => self.fail(datagram, question),
        }
    }

    /// Asks whom the pod asked, and gives what that one says. Silence is silence.
    async fn relay(&self, datagram: &Datagram, question: &[u8], owned: bool) {
        let dns = &self.served.proxy.metrics.dns;
        dns.relayed(Transport::Udp);
        let asked = Instant::now();
        match timeout_at(asked + PATIENCE, self.ask(datagram, question, owned)).await {
            Ok(Ok(())) => dns.answered_after(asked.elapsed().as_secs_f64()),
            Ok(Err(error)) => {
                tracing::debug!(to = %datagram.to, %error, "a resolver cannot be reached");
                dns.failed(Transport::Udp);
                // The socket of who asked would have failed at once.
                self.fail(datagram, question);
            }
            Err(_) => dns.failed(Transport::Udp),
        }
    }

    /// Each question has a socket of its own, and so a port that nobody guesses. What comes before the answer is passed
    /// on as well: who asked knows best what to make of it.
    async fn ask(&self, datagram: &Datagram, question: &[u8], owned: bool) -> io::Result<()> {
        let socket = self.served.pod.network.datagrams_to(datagram.to, PEERS_MARK)?;
        socket.send(question).await?;
        loop {
            // The other one's kernel may say that nobody is there, which makes nothing readable.
            if socket.ready(Interest::READABLE | Interest::ERROR).await?.is_error() {
                failed(&socket)?;
            }
            if self.pass(&socket, datagram, question, owned)? {
                return Ok(());
            }
        }
    }

    /// Passes on a datagram, if there is one; whether it was the answer.
    fn pass(
        &self,
        socket: &UdpSocket,
        datagram: &Datagram,
        question: &[u8],
        owned: bool,
    ) -> io::Result<bool> {
        let mut buffer = self.answer.borrow_mut();
        let length = match socket.try_recv(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        let answer = &mut buffer[..length];
        if owned {
            owned_exists(answer);
        }
        self.give(datagram, answer);
        Ok(is_answer_to(answer, question))
    }

    fn fail(&self, datagram: &Datagram, question: &[u8]) {
        if let Some(answer) = failure(question) {
            self.give(datagram, &answer);
        }
    }

    /// Answers in the name of whom the pod asked.
    fn give(&self, datagram: &Datagram, answer: &[u8]) {
        if let Err(error) = self.impostor.send(datagram.to, datagram.from, answer) {
            tracing::debug!(%error, "an answer is lost");
        }
    }
}

/// Takes the socket's error, if it has one.
fn failed(socket: &UdpSocket) -> io::Result<()> {
    let error = socket
        .try_io(Interest::ERROR, || socket.take_error()?.ok_or_else(|| io::ErrorKind::WouldBlock.into()));
    match error {
        Ok(error) => Err(error),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error),
    }
}
