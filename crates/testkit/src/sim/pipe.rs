//! One direction of a connection.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use tokio::io::ReadBuf;
use tokio::time::{Instant, Sleep, sleep_until};

use super::link::Link;

/// How much may be under way or unread.
const WINDOW: usize = 256 * 1024;
/// The largest segment.
const SEGMENT: usize = 16 * 1024;

#[derive(Debug)]
pub(super) struct Pipe {
    link: Arc<Link>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Each with the time at which it arrives, which never goes back.
    queue: VecDeque<(Instant, Item)>,
    last: Instant,
    /// Bytes in the queue.
    held: usize,
    finished: bool,
    was_reset: bool,
    /// From when on the writer knows that nobody reads.
    unread_from: Option<Instant>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Debug)]
enum Item {
    Data(Bytes),
    Fin,
}

impl Pipe {
    pub(super) fn new(link: &Arc<Link>) -> Arc<Self> {
        let state = State {
            queue: VecDeque::new(),
            last: Instant::now(),
            held: 0,
            finished: false,
            was_reset: false,
            unread_from: None,
            reader: None,
            writer: None,
        };
        let pipe = Arc::new(Self { link: link.clone(), state: Mutex::new(state) });
        link.carry(&pipe);
        pipe
    }

    /// Takes some of the bytes, unless too much is under way.
    pub(super) fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let state = &mut *self.state.lock();
        if state.was_reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if state.finished || state.unread_from.is_some_and(|at| at <= Instant::now()) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let taken = bytes.len().min(SEGMENT).min(WINDOW - state.held);
        if taken == 0 && !bytes.is_empty() {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.push(&self.link, Item::Data(Bytes::copy_from_slice(&bytes[..taken])));
        state.held += taken;
        Poll::Ready(Ok(taken))
    }

    /// Says that no more will come. Once is enough.
    pub(super) fn finish(&self) {
        let state = &mut *self.state.lock();
        if !std::mem::replace(&mut state.finished, true) {
            state.push(&self.link, Item::Fin);
        }
    }

    /// Breaks it off: what is under way is lost.
    pub(super) fn reset(&self) {
        let state = &mut *self.state.lock();
        state.was_reset = true;
        state.queue.clear();
        state.wake();
    }

    /// The reader is gone. Tells whether it left anything unread, now or on its way.
    pub(super) fn abandon(&self) -> bool {
        let state = &mut *self.state.lock();
        state.unread_from = Some(Instant::now() + self.link.delay());
        state.wake();
        state.held > 0
    }

    /// Reads what has arrived. `timer` is the reader's own.
    pub(super) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        timer: &mut Option<Pin<Box<Sleep>>>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let due = {
                let state = &mut *self.state.lock();
                if state.was_reset {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                state.reader = Some(cx.waker().clone());
                let Some((due, _)) = state.queue.front() else { return Poll::Pending };
                let Some(due) = self.link.arrival(*due, cx.waker()) else { return Poll::Pending };
                if due <= Instant::now() {
                    state.take(buf);
                    return Poll::Ready(Ok(()));
                }
                due
            };
            let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
            timer.as_mut().reset(due);
            std::task::ready!(timer.as_mut().poll(cx));
        }
    }
}

impl State {
    fn push(&mut self, link: &Link, item: Item) {
        self.last = self.last.max(Instant::now() + link.delay());
        self.queue.push_back((self.last, item));
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Takes from the front; the end stays there.
    fn take(&mut self, buf: &mut ReadBuf<'_>) {
        let Some((_, Item::Data(data))) = self.queue.front_mut() else { return };
        let taken = data.len().min(buf.remaining());
        buf.put_slice(&data[..taken]);
        data.advance(taken);
        self.held -= taken;
        if data.is_empty() {
            self.queue.pop_front();
        }
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }

    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }
}
