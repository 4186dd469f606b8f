//! A server that speaks first.

use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Greets at once, before the caller has sent anything, then echoes line by line.
pub(crate) async fn converse(mut stream: TcpStream, peer: SocketAddr) -> std::io::Result<()> {
    let (read, mut write) = stream.split();
    write.write_all(format!("hello {}\n", peer.ip()).as_bytes()).await?;
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await? {
        write.write_all(format!("{line}\n").as_bytes()).await?;
    }
    write.shutdown().await
}
