//! Streams of a known content, checked at the far end, answered after the sender's half is closed.

use std::fmt::Write as _;
use std::net::SocketAddr;

use anyhow::{Context, ensure};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Reads to the end, then answers `<bytes> <sha256>\n`.
pub(crate) async fn answer(mut stream: TcpStream, _peer: SocketAddr) -> std::io::Result<()> {
    let mut hash = Sha256::new();
    let mut length = 0u64;
    let mut chunk = vec![0; 256 * 1024];
    loop {
        let n = stream.read(&mut chunk).await?;
        if n == 0 {
            break;
        }
        hash.update(&chunk[..n]);
        length += n as u64;
    }
    stream.write_all(format!("{length} {}\n", hex(&hash.finalize())).as_bytes()).await?;
    stream.shutdown().await
}

/// Sends bytes to a digest server and compares the answer.
#[derive(clap::Args)]
pub(crate) struct Send {
    /// The server, `host:port`.
    to: String,
    /// How many bytes to send.
    #[arg(long, default_value_t = 1 << 20)]
    bytes: u64,
}

impl Send {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let mut stream =
            TcpStream::connect(&self.to).await.with_context(|| format!("connect to {}", self.to))?;
        let mut hash = Sha256::new();
        let mut left = self.bytes;
        let mut pattern = Pattern::default();
        let mut chunk = vec![0; 256 * 1024];
        while left > 0 {
            let n = left.min(chunk.len() as u64) as usize;
            pattern.fill(&mut chunk[..n]);
            hash.update(&chunk[..n]);
            stream.write_all(&chunk[..n]).await.context("send")?;
            left -= n as u64;
        }
        stream.shutdown().await.context("close the sending half")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.context("read the answer")?;
        let expected = format!("{} {}\n", self.bytes, hex(&hash.finalize()));
        ensure!(answer == expected, "the server saw `{}`, sent was `{}`", answer.trim(), expected.trim());
        print(answer.trim());
        Ok(())
    }
}

/// Bytes that do not repeat in step with any buffer size (xorshift64).
struct Pattern(u64);

impl Default for Pattern {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Pattern {
    fn fill(&mut self, into: &mut [u8]) {
        for word in into.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            let bytes = self.0.to_le_bytes();
            word.copy_from_slice(&bytes[..word.len()]);
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[expect(clippy::print_stdout, reason = "the answer is what this mode is run for")]
fn print(line: &str) {
    println!("{line}");
}
