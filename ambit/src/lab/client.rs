//! Calling the supervisor.

use std::io;

use thiserror::Error;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use super::api::{MAX_LINE, Reply, Request};
use super::place::{LabName, Place};

/// Why there is no answer.
#[derive(Debug, Error)]
pub(crate) enum CallError {
    /// No supervisor listens.
    #[error("no lab `{0}` runs")]
    NoLab(LabName),
    #[error("the supervisor cannot be reached: {0}")]
    Connect(#[source] io::Error),
    #[error("the supervisor hung up")]
    HungUp,
    #[error("the supervisor cannot be talked to: {0}")]
    Talk(#[source] io::Error),
    #[error("the supervisor says what this `ambit` does not understand: {0}; is it of another build?")]
    Foreign(#[source] serde_json::Error),
}

/// Sends a request and waits for the answer; what comes before it is told to `progress`.
pub(crate) async fn call(
    place: &Place,
    request: &Request,
    mut progress: impl FnMut(&str),
) -> Result<Reply, CallError> {
    let stream = UnixStream::connect(place.socket()).await.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => CallError::NoLab(place.name().clone()),
        _ => CallError::Connect(error),
    })?;
    let (reader, mut writer) = stream.into_split();
    let mut line = serde_json::to_vec(request).map_err(CallError::Foreign)?;
    line.push(b'\n');
    writer.write_all(&line).await.map_err(CallError::Talk)?;
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = String::new();
        let read = (&mut reader).take(MAX_LINE as u64).read_line(&mut line).await.map_err(CallError::Talk)?;
        if read == 0 {
            return Err(CallError::HungUp);
        }
        match serde_json::from_str(&line).map_err(CallError::Foreign)? {
            Reply::Progress(line) => progress(&line),
            reply => return Ok(reply),
        }
    }
}
