//! Shards: the threads that carry connections.
//!
//! Each has a runtime of its own and a listener of its own on every port of every pod; the kernel spreads connections
//! over them. A connection lives and ends on the shard that accepted it and shares nothing that another shard writes.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use net::PodNetwork;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use runtime::Tasks;
use thiserror::Error;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;
use zds::Kept;

use crate::connections::Connections;
use crate::dns;
use crate::dns::sockets::{Part, Questions};
use crate::pod::listeners::{Opened, part};
use crate::pod::{Pod, Scope, Served, serve};
use crate::proxy::Proxy;

/// How many pods may wait to be taken up by a shard.
const COMMANDS: usize = 64;

/// The shards of the proxy. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Shards {
    shards: Arc<[Shard]>,
}

#[derive(Debug)]
struct Shard {
    commands: mpsc::Sender<Command>,
    connections: Connections,
}

/// A pod to be served, with this shard's listeners.
struct Command {
    pod: Arc<Pod<PodNetwork>>,
    listeners: Opened,
    questions: Option<Part>,
    closed: mpsc::Sender<Infallible>,
    taken: oneshot::Sender<io::Result<()>>,
}

/// Tells when all shards have closed the pod's listeners that traffic is steered to.
#[derive(Debug)]
pub struct Closed(mpsc::Receiver<Infallible>);

impl Closed {
    /// Waits for it.
    pub async fn wait(mut self) {
        // Nothing is ever sent: the end is the news.
        let _: Option<Infallible> = self.0.recv().await;
    }
}

/// Why a pod is not served.
#[derive(Debug, Error)]
pub enum ServeError {
    /// A shard cannot have or watch the sockets.
    #[error("a shard cannot take up the pod's listeners")]
    Adopt(#[from] io::Error),
    /// A shard has ended, and with it the proxy.
    #[error("the proxy is ending")]
    Ending,
}

impl Shards {
    /// Starts so many threads. They end when the tasks' drain is over.
    ///
    /// # Errors
    /// If the system gives no thread or no runtime.
    pub fn start(count: usize, proxy: &Arc<Proxy>, tasks: &Tasks) -> io::Result<Self> {
        let start = |number| start(number, proxy.clone(), tasks.clone());
        Ok(Self { shards: (0..count).map(start).collect::<io::Result<_>>()? })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.shards.len()
    }

    /// The live connections, shard by shard.
    pub fn connections(&self) -> impl Iterator<Item = &Connections> {
        self.shards.iter().map(|shard| &shard.connections)
    }

    /// Serves a pod, each shard with its part of the listeners, until the pod leaves. When this returns, all accept, or will
    /// when it is the proxy's turn.
    ///
    /// # Errors
    /// If a shard cannot; then the caller makes the pod leave.
    pub async fn serve(
        &self,
        pod: &Arc<Pod<PodNetwork>>,
        listeners: &Kept,
        questions: &Questions,
    ) -> Result<Closed, ServeError> {
        let (closed, all_closed) = mpsc::channel(1);
        for (number, shard) in self.shards.iter().enumerate() {
            let listeners = part(listeners, number, self.count())?;
            let questions = questions.part(&pod.network, number)?;
            let (taken, answer) = oneshot::channel();
            let command = Command { pod: pod.clone(), listeners, questions, closed: closed.clone(), taken };
            shard.commands.send(command).await.map_err(|_| ServeError::Ending)?;
            answer.await.map_err(|_| ServeError::Ending)??;
        }
        Ok(Closed(all_closed))
    }
}

fn start(number: usize, proxy: Arc<Proxy>, tasks: Tasks) -> io::Result<Shard> {
    let (commands, inbox) = mpsc::channel(COMMANDS);
    let connections = Connections::default();
    // A token of the shard's own, so that connections that come and go meet no other shard at its lock.
    let stop = tasks.stop_token().child_token();
    let scope = Scope { connections: connections.clone(), tasks: TaskTracker::new(), stop };
    // The runtime is made by its thread, which it must not leave; whether it could be comes back from there.
    let (made, answer) = std::sync::mpsc::sync_channel(1);
    std::thread::Builder::new().name(format!("shard-{number}")).spawn(move || {
        match Builder::new_current_thread()
            .enable_all()
            // A task is a pod's turn: the network is to be looked at after a few, and what other threads tell.
            .event_interval(4)
            .global_queue_interval(4)
            .build_local(LocalOptions::default())
        {
            Ok(runtime) => {
                let work = tasks.own_vital("shard", run(proxy, scope, inbox, tasks.clone()));
                let _ = made.send(Ok(()));
                runtime.block_on(work);
            }
            Err(error) => {
                let _ = made.send(Err(error));
            }
        }
    })?;
    answer.recv().map_err(io::Error::other)??;
    Ok(Shard { commands, connections })
}

async fn run(proxy: Arc<Proxy>, scope: Scope, mut inbox: mpsc::Receiver<Command>, tasks: Tasks) {
    let work = async {
        loop {
            tokio::select! {
                // Both cancel-safe.
                () = proxy.drain.cancelled() => break,
                command = inbox.recv() => match command {
                    Some(command) => take_up(&proxy, &scope, command),
                    None => break,
                },
            }
        }
        scope.tasks.close();
        scope.tasks.wait().await;
    };
    tokio::select! {
        // What is dropped at the stop is the wait: the connections hear the stop themselves and end a moment later.
        () = work => {}
        () = tasks.stopping() => {
            scope.tasks.close();
            scope.tasks.wait().await;
        }
    }
}

fn take_up(proxy: &Arc<Proxy>, scope: &Scope, command: Command) {
    let Command { pod, listeners, questions, closed, taken } = command;
    let adopted = listeners.adopt().and_then(|l| Ok((l, questions.map(Part::adopt).transpose()?)));
    let (listeners, questions) = match adopted {
        Ok(adopted) => adopted,
        Err(error) => {
            // If nobody waits for the answer the pod has gone already.
            let _ = taken.send(Err(error));
            return;
        }
    };
    let served = Served::new(proxy.clone(), pod, scope.clone(), SmallRng::from_os_rng());
    if let Some(questions) = questions {
        scope.tasks.spawn_local(dns::serve(served.clone(), questions));
    }
    scope.tasks.spawn_local(serve(served, listeners, closed));
    let _ = taken.send(Ok(()));
}
