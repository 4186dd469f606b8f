//! `logs`.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use inotify::{EventMask, Inotify, WatchMask};

use super::code;
use super::console::{complain, say};
use crate::lab::logs;
use crate::lab::place::Place;

/// Shows what a pod or a part of the mesh wrote.
#[derive(Debug, clap::Args)]
pub(super) struct Logs {
    /// NS/POD, ztunnel@NODE, agent@NODE, waypoint@NS/NAME, istiod or supervisor.
    of: String,
    /// Go on as more is written.
    #[arg(short, long)]
    follow: bool,
    /// Which container of a pod.
    #[arg(short, long)]
    container: Option<String>,
}

impl Logs {
    pub(super) fn run(&self, place: &Place) -> ExitCode {
        if !place.dir().exists() {
            complain(format!("no lab `{}` runs: bring one up by `ambit lab up`", place.name()));
            return ExitCode::from(code::NO_LAB);
        }
        let files = match files(place, &self.of, self.container.as_deref()) {
            Ok(files) => files,
            Err(why) => {
                complain(why);
                return ExitCode::FAILURE;
            }
        };
        let several = files.len() > 1;
        if several && self.follow {
            let names: Vec<String> = files.iter().map(|path| stem(path)).collect();
            complain(format!("which container? -c {}", names.join(" or -c ")));
            return ExitCode::FAILURE;
        }
        for path in &files {
            if several {
                say(format!("==> {} <==", stem(path)));
            }
            match show(path, self.follow) {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                    complain(format!("{}: {error}", path.display()));
                    return ExitCode::FAILURE;
                }
                _ => {}
            }
        }
        ExitCode::SUCCESS
    }
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// The logs that a word stands for.
fn files(place: &Place, of: &str, container: Option<&str>) -> Result<Vec<PathBuf>, String> {
    if of.contains("..") {
        return Err(format!("`{of}` names no log"));
    }
    if of.contains('@') || !of.contains('/') {
        let path = place.part_log(&of.replace('/', "_"));
        if path.exists() {
            return Ok(vec![path]);
        }
        let known = logs_in(&place.logs());
        let known: Vec<String> = known.iter().map(|path| stem(path)).collect();
        return Err(format!("there is no log `{of}`; there are {}, and NS/POD", known.join(", ")));
    }
    let (namespace, pod) = of.split_once('/').unwrap_or_default();
    let all = logs_in(&place.pod_logs(namespace, pod));
    let wanted: Vec<PathBuf> =
        all.iter().filter(|path| container.is_none_or(|name| stem(path) == name)).cloned().collect();
    match (wanted.is_empty(), all.is_empty()) {
        (false, _) => Ok(wanted),
        (_, true) => Err(format!("pod `{of}` has written no log, or is not there")),
        (true, false) => {
            let names: Vec<String> = all.iter().map(|path| stem(path)).collect();
            Err(format!("pod `{of}` has the containers {}", names.join(", ")))
        }
    }
}

fn logs_in(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "log"));
    paths.sort();
    paths
}

fn show(path: &Path, follow: bool) -> io::Result<()> {
    let mut out = io::stdout();
    // Watched before it is read, so that nothing falls between.
    let mut watch = if follow { Some(watch(path)?) } else { None };
    if let Ok(mut older) = File::open(logs::older(path)) {
        io::copy(&mut older, &mut out)?;
    }
    let mut file = File::open(path)?;
    let mut at = 0;
    loop {
        if file.metadata()?.len() < at {
            // It was cut; what is in it now is new.
            at = file.seek(SeekFrom::Start(0))?;
        }
        at += copy(&mut file, &mut out)?;
        let Some(watch) = &mut watch else { return Ok(()) };
        let mut buffer = [0; 4096];
        let mut events = watch.read_events_blocking(&mut buffer)?;
        // Removing a file first changes how many links it has.
        if events.any(|event| event.mask.contains(EventMask::ATTRIB)) && !path.exists() {
            copy(&mut file, &mut out)?;
            return Ok(());
        }
    }
}

fn copy(from: &mut File, to: &mut io::Stdout) -> io::Result<u64> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes)?;
    to.write_all(&bytes)?;
    to.flush()?;
    Ok(bytes.len() as u64)
}

fn watch(path: &Path) -> io::Result<Inotify> {
    let watch = Inotify::init()?;
    watch.watches().add(path, WatchMask::MODIFY | WatchMask::ATTRIB)?;
    Ok(watch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_cannot_be_named_out_of_its_folder() {
        let place = Place::of("none".parse().unwrap());
        assert!(files(&place, "../../../etc/passwd", None).is_err());
        assert!(files(&place, "x@../secret", None).is_err());
    }
}
