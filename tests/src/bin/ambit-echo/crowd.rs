//! Many connections that are only there, and readers who do not read.

use anyhow::Context;
use futures_util::{StreamExt, stream};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// Opens connections, says something on each, and then neither reads nor ends until it is ended itself.
#[derive(clap::Args)]
pub(crate) struct Crowd {
    /// Where to, `host:port`.
    to: String,
    /// How many connections.
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// How many are opened at once.
    #[arg(long, default_value_t = 64)]
    at_once: usize,
    /// A path to ask for by HTTP, whose answer is not read.
    #[arg(long)]
    get: Option<String>,
}

impl Crowd {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let addr = tokio::net::lookup_host(&self.to).await?.next().context("the name has no address")?;
        let get = self.get.as_deref();
        let open = |_| async move {
            let mut stream = TcpStream::connect(addr).await?;
            if let Some(path) = get {
                stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: held\r\n\r\n").as_bytes()).await?;
            }
            anyhow::Ok(stream)
        };
        let opened: Vec<_> =
            stream::iter(0..self.count).map(open).buffer_unordered(self.at_once).collect().await;
        let held: Vec<TcpStream> = opened.into_iter().filter_map(Result::ok).collect();
        std::future::pending::<()>().await;
        drop(held);
        Ok(())
    }
}
