//! Log files of bounded length, and reading them.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A log longer than this is put aside, and what was put aside before is dropped.
const MAX_BYTES: u64 = 8 << 20;
/// How often the lengths are looked at.
const INTERVAL: Duration = Duration::from_secs(5);

/// Opens a log for a process to append to.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

/// What was put aside of a log.
pub(crate) fn older(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

/// Shortens the logs below a folder, again and again. Never ends; cancel-safe.
pub(crate) async fn keep_short(dir: PathBuf) {
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        ticks.tick().await;
        let dir = dir.clone();
        let work = tokio::task::spawn_blocking(move || shorten_all(&dir, MAX_BYTES));
        if let Ok(Err(error)) = work.await {
            tracing::warn!(%error, "cannot shorten a log");
        }
    }
}

fn shorten_all(dir: &Path, max: u64) -> io::Result<()> {
    for entry in fs::read_dir(dir)?.flatten() {
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            shorten_all(&path, max)?;
        } else if path.extension().is_some_and(|e| e == "log") && entry.metadata()?.len() > max {
            // Writers append, so the file can be cut under them.
            fs::copy(&path, older(&path))?;
            File::options().write(true).open(&path)?.set_len(0)?;
        }
    }
    Ok(())
}

/// The last lines of a log, one line: for telling why a process ended.
pub(crate) fn last_words(path: &Path) -> Option<String> {
    const ENOUGH: u64 = 4096;
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    io::Seek::seek(&mut file, io::SeekFrom::Start(length.saturating_sub(ENOUGH))).ok()?;
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, ENOUGH), &mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = lines[lines.len().saturating_sub(3)..].join(" | ");
    (!last.is_empty()).then_some(last)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_long_log_is_put_aside_and_its_writer_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods/a/main.log");
        let mut writer = open(&path).unwrap();
        writer.write_all(b"0123456789").unwrap();
        shorten_all(dir.path(), 5).unwrap();
        writer.write_all(b"next").unwrap();
        assert_eq!(fs::read_to_string(older(&path)).unwrap(), "0123456789");
        assert_eq!(fs::read_to_string(&path).unwrap(), "next");
        shorten_all(dir.path(), 5).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "next");
    }

    #[test]
    fn the_last_words_are_the_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        fs::write(&path, "one\ntwo\n\nthree\nfour\n").unwrap();
        assert_eq!(last_words(&path).as_deref(), Some("two | three | four"));
        assert_eq!(last_words(&dir.path().join("none")), None);
    }
}
