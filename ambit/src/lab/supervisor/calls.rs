//! Answering the command line.

use std::io;
use std::time::Duration;

use manifest::{Kind, ObjectKey, write};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::cluster::{Message, Wish};
use super::waiting::{Awaited, Lookout, PATIENCE};
use crate::lab::api::{Laggard, MAX_LINE, Reply, Request};
use crate::lab::system::Part;

/// The longest that anybody waits for everything.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// How long a node may take to be itself again.
const AFTER_REBOOT: Duration = Duration::from_secs(60);

/// Takes callers for ever.
pub(super) async fn accept(listener: UnixListener, lookout: Lookout) {
    loop {
        match listener.accept().await {
            // Its file is root's alone; whoever got hold of it before that was set is turned away.
            Ok((stream, _)) if !stream.peer_cred().is_ok_and(|peer| peer.uid() == 0) => drop(stream),
            Ok((stream, _)) => {
                let lookout = lookout.clone();
                // It ends with its caller, and root alone can call.
                tokio::spawn(async move {
                    if let Err(error) = serve(stream, &lookout).await {
                        tracing::debug!(%error, "a caller went away");
                    }
                });
            }
            Err(error) => {
                tracing::error!(%error, "cannot take a caller");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(stream: UnixStream, lookout: &Lookout) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(reader).take(MAX_LINE as u64);
    reader.read_line(&mut line).await?;
    let request = serde_json::from_str(&line).map_err(io::Error::other)?;
    let (progress, mut told) = mpsc::channel(16);
    let answered = answer(request, lookout, progress);
    tokio::pin!(answered);
    let reply = loop {
        // Cancel-safe: the answer is only looked at, and messages stay in their channel.
        tokio::select! {
            biased;
            Some(line) = told.recv() => send(&mut writer, &Reply::Progress(line)).await?,
            reply = &mut answered => break reply,
        }
    };
    send(&mut writer, &reply.unwrap_or_else(|why| Reply::Refused(vec![why]))).await
}

async fn send(writer: &mut (impl tokio::io::AsyncWrite + Unpin), reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply).map_err(io::Error::other)?;
    line.push(b'\n');
    writer.write_all(&line).await
}

/// The answer to a request; an error is a sentence about why there is none.
async fn answer(
    request: Request,
    lookout: &Lookout,
    progress: mpsc::Sender<String>,
) -> Result<Reply, String> {
    match request {
        Request::Status => Ok(Reply::Status(Box::new(lookout.ask(Message::Status).await?))),
        Request::Await { seconds } => {
            let patience = Duration::from_secs(seconds).min(LONGEST_WAIT);
            let mut told = String::new();
            let tell = |late: &[Laggard]| {
                let line = summary(late);
                if line != told {
                    // Who does not read fast enough gets the next one.
                    let _ = progress.try_send(line.clone());
                    told = line;
                }
            };
            Ok(match lookout.until(Awaited::Everything, patience, tell).await {
                Ok(()) => Reply::Done { lines: Vec::new(), notes: Vec::new() },
                Err(waiting) => Reply::Late { lines: Vec::new(), notes: Vec::new(), waiting },
            })
        }
        Request::Apply { files, wait } => change(Wish::Apply(files), wait, lookout).await,
        Request::Delete { files, ignore_missing } => {
            change(Wish::Delete { files, ignore_missing }, true, lookout).await
        }
        Request::Label { kind, namespace, name, edits } => {
            let kind = kind_of(&kind)?;
            let namespace = if kind.is_namespaced() {
                namespace.unwrap_or_else(|| manifest::DEFAULT_NAMESPACE.to_owned())
            } else {
                String::new()
            };
            change(Wish::Label(ObjectKey::new(kind, namespace, name), edits), true, lookout).await
        }
        Request::Get { kind, namespace, name } => {
            let kind = kind_of(&kind)?;
            let objects = lookout.ask(|to| Message::Get { kind, namespace, name, to }).await?;
            Ok(Reply::Objects(objects.iter().map(write::to_value).collect()))
        }
        Request::Restart { part } => {
            let line = lookout.keeper.restart(&part.parse()?).await?;
            Ok(Reply::Done { lines: vec![line], notes: Vec::new() })
        }
        Request::Reboot { node } => {
            let _ = progress.try_send(format!("{node}: everything on it ends at once"));
            reboot(&node, lookout).await?;
            let tell = |late: &[Laggard]| drop(progress.try_send(summary(late)));
            let (lines, notes) = (vec![format!("{node} is up again")], Vec::new());
            Ok(match lookout.until(Awaited::Everything, AFTER_REBOOT, tell).await {
                Ok(()) => Reply::Done { lines, notes },
                Err(waiting) => Reply::Late { lines, notes, waiting },
            })
        }
        Request::Enter { namespace, pod } => lookout.entrance(&namespace, &pod).await.map(Reply::Entrance),
    }
}

/// Ends all that runs on a node, forgets what its kernel holds for the mesh, and starts all again: the pods first, for
/// nothing else may keep them from sending what they should not.
async fn reboot(node: &str, lookout: &Lookout) -> Result<(), String> {
    let power = |on| lookout.ask(move |to| Message::Power { node: node.to_owned(), on, to });
    let parts = [Part::Agent(node.to_owned()), Part::Ztunnel(node.to_owned())];
    let mut halted = Vec::new();
    for part in &parts {
        let no_node = |why| format!("there is no node `{node}` that could reboot: {why}");
        halted.push(lookout.keeper.halt(part).await.map_err(no_node)?);
    }
    for mut runs in power(false).await? {
        // One whose task is gone runs nothing.
        let _ = runs.wait_for(|runs| !runs).await;
    }
    let pins = lookout.place.bpffs().join("ambit").join(lookout.place.instance(node));
    match std::fs::remove_dir_all(&pins) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(format!("{}: {error}", pins.display()));
        }
        _ => {}
    }
    power(true).await?;
    drop(halted);
    Ok(())
}

async fn change(wish: Wish, wait: bool, lookout: &Lookout) -> Result<Reply, String> {
    let changed = match lookout.ask(|to| Message::Change(wish, to)).await? {
        Ok(changed) => changed,
        Err(problems) => return Ok(Reply::Refused(problems)),
    };
    let awaited = Awaited::Change { changed: &changed, revision: None };
    let late = if wait { lookout.until(awaited, PATIENCE, |_| ()).await } else { Ok(()) };
    let (lines, notes) = (changed.lines, changed.notes);
    Ok(match late {
        Ok(()) => Reply::Done { lines, notes },
        Err(waiting) => Reply::Late { lines, notes, waiting },
    })
}

fn kind_of(word: &str) -> Result<Kind, String> {
    Kind::from_word(word).ok_or_else(|| {
        let words = Kind::ALL.iter().map(|kind| kind.plural());
        match manifest::nearest(word, words.clone()) {
            Some(near) => format!("there is no kind `{word}` (did you mean `{near}`?)"),
            None => format!("there is no kind `{word}`; there are {}", words.collect::<Vec<_>>().join(", ")),
        }
    })
}

/// Who is waited for, in a line.
fn summary(late: &[Laggard]) -> String {
    const SHOWN: usize = 6;
    let mut who: Vec<&str> = Vec::new();
    for laggard in late {
        if !who.contains(&laggard.who.as_str()) {
            who.push(&laggard.who);
        }
    }
    let more = who.len().saturating_sub(SHOWN);
    who.truncate(SHOWN);
    let line = who.join(", ");
    if more > 0 { format!("{line} and {more} more") } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_waited_for_is_named_once_and_briefly() {
        let late: Vec<Laggard> = (0..20).map(|n| Laggard::new(format!("pod x/{}", n / 2), "why")).collect();
        assert_eq!(summary(&late), "pod x/0, pod x/1, pod x/2, pod x/3, pod x/4, pod x/5 and 4 more");
        assert_eq!(summary(&late[..2]), "pod x/0");
    }
}
