//! One connection that is kept: what a test holds on to while it changes the mesh underneath.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// Keeps one connection to a greeter busy until it ends, and prints how that was: `end`, `reset`, another error, or
/// `kept` where it stood all the time.
#[derive(clap::Args)]
pub(crate) struct Hold {
    /// Where to connect: a host and a port.
    to: String,
    /// How long at most.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How long a line and its echo may take together before the next, in milliseconds.
    #[arg(long, default_value_t = 20)]
    pause_ms: u64,
}

impl Hold {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let until = Instant::now() + Duration::from_secs(self.seconds);
        let mut echoed = 0u64;
        let how = match self.exchange(until, &mut echoed).await {
            Ok(true) => "kept".to_owned(),
            Ok(false) => "end".to_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => "reset".to_owned(),
            Err(error) => error.to_string(),
        };
        let at_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
        print(&json!({ "how": how, "at_ms": at_ms, "echoed": echoed }).to_string());
        Ok(())
    }

    /// Whether it stood to the end of the time, and not only to that of the stream.
    async fn exchange(&self, until: Instant, echoed: &mut u64) -> std::io::Result<bool> {
        let stream = TcpStream::connect(&self.to).await?;
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        if lines.next_line().await?.is_none() {
            return Ok(false);
        }
        print("connected");
        while Instant::now() < until {
            write.write_all(b"still there\n").await?;
            if timeout(Duration::from_secs(10), lines.next_line()).await??.is_none() {
                return Ok(false);
            }
            *echoed += 1;
            sleep(Duration::from_millis(self.pause_ms)).await;
        }
        Ok(true)
    }
}

#[expect(clippy::print_stdout, reason = "what became of the connection is what this mode is run for")]
fn print(line: &str) {
    println!("{line}");
}
