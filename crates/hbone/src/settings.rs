//! What both ends of a tunnel connection agree on or impose.

use std::time::Duration;

use crate::frames::Rate;

/// The least that the largest frame may be (RFC 9113 6.5.2).
const FRAME_LEAST: u32 = 16 << 10;

/// Limits and timings of tunnel connections; the defaults are those that peers use.
///
/// Windows end at 2 GiB and frames lie between 16 KiB and 16 MiB (RFC 9113 6.5.2); other values panic where they are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bytes in flight on one stream before the reader must have taken some: 4 MiB.
    pub stream_window: u32,
    /// Bytes in flight on one connection: 16 MiB.
    pub connection_window: u32,
    /// The largest frame that is accepted: 1 MiB.
    pub max_frame: u32,
    /// The largest header list that is accepted: 64 KiB.
    pub max_header_list: u32,
    /// Bytes that one stream may have buffered for sending: 256 KiB.
    pub send_buffer: usize,
    /// Streams that a server accepts at once: 200. More are refused one by one.
    pub accepted_streams: u32,
    /// Streams that a client opens on one connection: 100.
    pub streams_per_connection: usize,
    /// Streams that a peer may cancel before the server has looked at them: 100. More end the connection, which bounds
    /// what opening and cancelling in a loop can cost (CVE-2023-44487).
    pub pending_resets: usize,
    /// Streams that the peer's own mistakes may make this side reset before the connection is given up: 256.
    pub error_resets: usize,
    /// What the frames that a connection's slow readers leave lying may cost beyond their bytes: 64 MiB, where each frame
    /// below 256 bytes counts with what it lacks to them. More end the connection. It bounds what a peer can make us keep
    /// by sending byte by byte; an application that streams small messages to one that stalls must not come near it.
    pub framing_budget: usize,
    /// Frames that carry nothing ([`crate::frames`]): 20,000 at once and 10,000 a second, which is some hundred times what
    /// peers send, and a hundredth of a core. More end the connection.
    pub empty_frames: Rate,
    /// Requests that come to nothing by the peer's doing: 2,000 at once and 1,000 a second of those that it takes back before
    /// they are answered (CVE-2023-44487, where the server looks at them in time), and as many that the library refuses, for
    /// their headers or their number. They cost more than other frames: a decision and perhaps a connection to the
    /// application, or the decoding of what was packed small. More end the connection.
    pub fruitless: Rate,
    /// How long a connection to a peer may take to stand, or the answer to a CONNECT to come, before that gives a reason to
    /// look elsewhere or to ask whether the peer is there: 1 s, the time after which TCP sends a lost SYN again.
    pub hurry: Duration,
    /// How long the answer to that question may take before no more streams are opened on the connection: 2 s. Those
    /// that stand go on, because a slow path that is full answers late, too.
    pub doubt: Duration,
    /// How often a PING asks whether the peer is there: 10 s.
    pub ping_interval: Duration,
    /// How long the answer may take before the connection is given up: 20 s.
    pub ping_patience: Duration,
    /// How long a client keeps a connection without streams: 5 min.
    pub idle_release: Duration,
    /// How long reaching the peer may take, TLS included: 10 s.
    pub connect_timeout: Duration,
    /// How long the start of HTTP/2 may take: 10 s.
    pub handshake_timeout: Duration,
    /// How long the answer to a CONNECT may take, the peer's own connecting included: 15 s.
    pub answer_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            stream_window: 4 << 20,
            connection_window: 16 << 20,
            max_frame: 1 << 20,
            max_header_list: 64 << 10,
            send_buffer: 256 << 10,
            accepted_streams: 200,
            streams_per_connection: 100,
            pending_resets: 100,
            error_resets: 256,
            framing_budget: 64 << 20,
            empty_frames: Rate { burst: 20_000, per_second: 10_000 },
            fruitless: Rate { burst: 2_000, per_second: 1_000 },
            hurry: Duration::from_secs(1),
            doubt: Duration::from_secs(2),
            ping_interval: Duration::from_secs(10),
            ping_patience: Duration::from_secs(20),
            idle_release: Duration::from_secs(5 * 60),
            connect_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(15),
        }
    }
}

impl Settings {
    /// The same for a connection on which only so many bytes may be in flight to this side. One stream gets a quarter of
    /// them at most, so that a reader who stalls does not stop the others.
    pub fn within(&self, window: u32) -> Self {
        let connection_window = window.min(self.connection_window);
        let stream_window = self.stream_window.min(window / 4);
        // A frame is gathered before it is looked at, so that one that the window forbids must not be let begin.
        let max_frame = self.max_frame.min(stream_window.max(FRAME_LEAST));
        Self { connection_window, stream_window, max_frame, ..self.clone() }
    }

    pub(crate) fn server(&self) -> h2::server::Builder {
        let mut builder = h2::server::Builder::new();
        builder
            .initial_window_size(self.stream_window)
            .initial_connection_window_size(self.connection_window)
            .max_frame_size(self.max_frame)
            .max_header_list_size(self.max_header_list)
            .data_frame_budget(self.framing_budget)
            .max_send_buffer_size(self.send_buffer)
            .max_concurrent_streams(self.accepted_streams)
            .max_pending_accept_reset_streams(self.pending_resets)
            .max_local_error_reset_streams(Some(self.error_resets));
        builder
    }

    pub(crate) fn client(&self) -> h2::client::Builder {
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(self.stream_window)
            .initial_connection_window_size(self.connection_window)
            .max_frame_size(self.max_frame)
            .max_header_list_size(self.max_header_list)
            .data_frame_budget(self.framing_budget)
            .max_send_buffer_size(self.send_buffer)
            .initial_max_send_streams(self.streams_per_connection)
            .max_local_error_reset_streams(Some(self.error_resets))
            .enable_push(false);
        builder
    }
}
