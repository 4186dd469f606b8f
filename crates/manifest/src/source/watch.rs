//! The files themselves: inotify, scanning, reading.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};

use super::Batch;
use super::shelf::{Reading, Shelf};
use crate::problem::{Position, Problem};
use crate::yaml::MAX_BYTES;

const REVISION: &str = ".revision";
/// The link that a mounted ConfigMap swaps to change all its files at once.
const CONFIG_MAP_DATA: &str = "..data";
const MAX_FOLDERS_DEEP: usize = 16;

/// What is to be looked at.
#[derive(Debug, Default)]
struct Dirty {
    /// Files, relative to the root.
    files: BTreeSet<PathBuf>,
    /// Folders and all below.
    folders: BTreeSet<PathBuf>,
    revision: bool,
    everything: bool,
}

impl Dirty {
    fn is_empty(&self) -> bool {
        self.files.is_empty() && self.folders.is_empty() && !self.revision && !self.everything
    }
}

/// Knows the files of a directory and what has happened to them.
#[derive(Debug)]
pub(super) struct Watcher {
    root: PathBuf,
    inotify: Inotify,
    /// Watched folders, relative to the root.
    folders: HashMap<WatchDescriptor, PathBuf>,
    /// Watched in the root's place while it is not there.
    above: Option<WatchDescriptor>,
    shelf: Shelf,
    /// Folders that cannot be read, and why.
    unread: BTreeMap<PathBuf, String>,
    dirty: Dirty,
    revision: Option<u64>,
    /// What is wrong with the directory itself.
    troubles: Vec<Problem>,
    loaded: bool,
    told: Option<Vec<Problem>>,
    /// The how-manieth drain from now on finds that the queue has run over.
    #[cfg(test)]
    overrun_next_drain: usize,
}

impl Watcher {
    /// A watcher and the descriptor that is readable when something has happened.
    pub(super) fn open(root: &Path) -> io::Result<(Self, OwnedFd)> {
        let inotify = Inotify::init()?;
        let queue = inotify.as_fd().try_clone_to_owned()?;
        let watcher = Self {
            root: root.to_path_buf(),
            inotify,
            folders: HashMap::new(),
            above: None,
            shelf: Shelf::default(),
            unread: BTreeMap::new(),
            dirty: Dirty { everything: true, ..Dirty::default() },
            revision: None,
            troubles: Vec::new(),
            loaded: false,
            told: None,
            #[cfg(test)]
            overrun_next_drain: 0,
        };
        Ok((watcher, queue))
    }

    /// Whether all that was known when the last step ended has been taken in.
    pub(super) fn is_idle(&self) -> bool {
        self.dirty.is_empty()
    }

    /// Takes in all that has happened; nothing where nobody needs to know.
    pub(super) fn step(&mut self) -> Option<Batch> {
        self.drain();
        let dirty = std::mem::take(&mut self.dirty);
        let (mut files, mut folders) = (dirty.files, dirty.folders);
        let there = if dirty.everything {
            self.troubles.clear();
            folders.insert(PathBuf::new());
            self.attach()
        } else {
            true
        };
        // The revision is read before the files: those that belong to it were renamed into place before it was, so
        // their events are in the queue by now.
        let mut revision = self.revision;
        if there && (dirty.revision || dirty.everything) {
            revision = self.read_revision();
            self.drain();
            files.append(&mut self.dirty.files);
            folders.append(&mut self.dirty.folders);
        }
        if there && !self.dirty.everything {
            for folder in folders {
                self.scan(&folder, &mut files);
            }
            self.loaded = true;
        } else {
            // Nothing is read now, so nothing that belongs to a newer revision has been taken in either.
            files.clear();
            revision = self.revision;
        }
        let readings: Vec<(Arc<str>, Reading)> =
            files.iter().map(|path| (name(path), self.read(path))).collect();
        let changes = self.shelf.take(readings);
        let problems: Vec<Problem> = self.troubles.iter().cloned().chain(self.shelf.problems()).collect();
        let news = !changes.upserts.is_empty()
            || !changes.deletes.is_empty()
            || !changes.unused.is_empty()
            || self.told.as_ref() != Some(&problems)
            || revision != self.revision;
        self.revision = revision;
        self.told = Some(problems.clone());
        news.then(|| Batch {
            upserts: changes.upserts,
            deletes: changes.deletes,
            revision,
            problems,
            unused: changes.unused,
            never_good: self.shelf.never_good().cloned().collect(),
            loaded: self.loaded,
        })
    }

    /// Moves all events of the queue to what is dirty.
    fn drain(&mut self) {
        #[cfg(test)]
        {
            self.dirty.everything |= self.overrun_next_drain == 1;
            self.overrun_next_drain = self.overrun_next_drain.saturating_sub(1);
        }
        let mut buffer = [0; 16 << 10];
        loop {
            let events: Vec<(WatchDescriptor, EventMask, Option<PathBuf>)> =
                match self.inotify.read_events(&mut buffer) {
                    Ok(events) => events.map(|e| (e.wd, e.mask, e.name.map(PathBuf::from))).collect(),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => return,
                };
            if events.is_empty() {
                return;
            }
            for (watch, mask, name) in events {
                self.note(&watch, mask, name.as_deref());
            }
        }
    }

    fn note(&mut self, watch: &WatchDescriptor, mask: EventMask, name: Option<&Path>) {
        if mask.contains(EventMask::Q_OVERFLOW) || self.above.as_ref() == Some(watch) {
            self.dirty.everything = true;
            return;
        }
        let Some(folder) = self.folders.get(watch) else { return };
        let is_root = folder.as_os_str().is_empty();
        if mask.intersects(EventMask::IGNORED | EventMask::DELETE_SELF | EventMask::MOVE_SELF) {
            self.dirty.everything |= is_root;
            if mask.contains(EventMask::IGNORED) {
                self.folders.remove(watch);
            }
            return;
        }
        let Some(name) = name else { return };
        let path = folder.join(name);
        let text = name.to_string_lossy();
        if is_root && text == REVISION {
            self.dirty.revision = true;
        } else if text == CONFIG_MAP_DATA {
            self.dirty.folders.insert(folder.clone());
        } else if text.starts_with('.') {
        } else if mask.contains(EventMask::ISDIR) {
            self.dirty.folders.insert(path);
        } else if is_object_file(name) && (!mask.contains(EventMask::CREATE) || self.is_link(&path)) {
            self.dirty.files.insert(path);
        }
    }

    /// A file that is being made is read when it is closed; a link is never closed.
    fn is_link(&self, path: &Path) -> bool {
        fs::symlink_metadata(self.root.join(path)).is_ok_and(|meta| meta.is_symlink() || meta.nlink() > 1)
    }

    /// Watches the root, or the folder in which it or a folder above it must appear.
    fn attach(&mut self) -> bool {
        if let Some(above) = self.above.take() {
            // Fails where the folder is gone, and the watch with it.
            let _ = self.inotify.watches().remove(above);
        }
        loop {
            if self.root.is_dir() && self.watch(Path::new("")) {
                return true;
            }
            let stays = if self.loaded { ", and what it held stays" } else { "" };
            let trouble = format!("the directory is not there{stays}");
            self.troubles = vec![self.trouble(&self.root, trouble)];
            let Some(parent) = self.root.ancestors().skip(1).find(|path| path.is_dir()) else { return false };
            let mask =
                WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF;
            // It may have been there already, or be there by now; the watch is in place, so look again just once.
            match self.inotify.watches().add(parent, mask | WatchMask::ONLYDIR) {
                Ok(watch) => self.above = Some(watch),
                Err(error) => {
                    self.troubles = vec![self.trouble(parent, format!("cannot be watched: {error}"))];
                    return false;
                }
            }
            if !self.root.is_dir() {
                return false;
            }
        }
    }

    fn trouble(&self, path: &Path, message: impl Into<String>) -> Problem {
        Problem::error(&path.to_string_lossy().into(), Position::START, message)
    }

    fn watch(&mut self, folder: &Path) -> bool {
        let mask = WatchMask::CREATE
            | WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let path = self.root.join(folder);
        match self.inotify.watches().add(&path, mask) {
            Ok(watch) => {
                self.folders.insert(watch, folder.to_path_buf());
                true
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            // Then it cannot be read either, which is told.
            Err(error)
                if error.kind() == io::ErrorKind::PermissionDenied && !folder.as_os_str().is_empty() =>
            {
                false
            }
            Err(error) => {
                let trouble = self.trouble(&path, format!("cannot be watched: {error}"));
                if !self.troubles.contains(&trouble) {
                    self.troubles.push(trouble);
                }
                false
            }
        }
    }

    /// Marks all files at and below a folder: those that are there and those that were. A folder that cannot be read is
    /// marked like a file that cannot: what it holds is as unknown.
    fn scan(&mut self, folder: &Path, files: &mut BTreeSet<PathBuf>) {
        let known = self.shelf.files().map(|file| Path::new(&**file));
        files.extend(known.filter(|file| file.starts_with(folder)).map(Path::to_path_buf));
        self.unread.retain(|known, _| !known.starts_with(folder));
        let mut open = vec![folder.to_path_buf()];
        while let Some(folder) = open.pop() {
            let read = if folder.components().count() > MAX_FOLDERS_DEEP {
                Err(format!("is more than {MAX_FOLDERS_DEEP} folders deep, and what it holds is not read"))
            } else {
                // Watched before it is read, so that nothing falls between.
                self.watch(&folder);
                entries(&self.root.join(&folder)).map_err(|error| format!("cannot be read: {error}"))
            };
            let entries = match read {
                Ok(entries) => entries,
                Err(reason) => {
                    files.insert(folder.clone());
                    self.unread.insert(folder, reason);
                    continue;
                }
            };
            for entry in entries {
                let name = entry.file_name();
                if name.to_string_lossy().starts_with('.') {
                    continue;
                }
                let path = folder.join(&name);
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => open.push(path),
                    _ if is_object_file(Path::new(&name)) => drop(files.insert(path)),
                    _ => {}
                }
            }
        }
    }

    fn read(&self, path: &Path) -> Reading {
        match self.unread.get(path) {
            Some(reason) => Reading::Unreadable(reason.clone()),
            None => read(&self.root.join(path)),
        }
    }

    fn read_revision(&mut self) -> Option<u64> {
        let path = self.root.join(REVISION);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.revision,
            Err(_) => String::new(),
        };
        let trouble = self.trouble(Path::new(REVISION), "no decimal number");
        self.troubles.retain(|known| *known != trouble);
        match text.trim().parse() {
            Ok(revision) => Some(revision),
            Err(_) => {
                self.troubles.push(trouble);
                self.revision
            }
        }
    }
}

/// All of a folder's entries; none where it is gone, which its parent tells too.
fn entries(folder: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(folder).and_then(Iterator::collect) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        result => result,
    }
}

fn is_object_file(name: &Path) -> bool {
    matches!(name.extension().and_then(OsStr::to_str), Some("yaml" | "yml" | "json"))
}

/// The name in problems: relative to the root, since the root is the same for all.
fn name(path: &Path) -> Arc<str> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    path.to_string_lossy().into()
}

fn read(path: &Path) -> Reading {
    // Looked at before it is opened: opening a pipe waits for a writer, who may never come.
    let special = || io::Error::other("it is no file");
    let open = fs::metadata(path).and_then(|meta| match meta.is_file() || meta.is_dir() {
        true => fs::File::open(path),
        false => Err(special()),
    });
    let mut file = match open {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Reading::Gone;
        }
        Err(error) => return Reading::Unreadable(format!("cannot be read: {error}")),
    };
    match file.metadata() {
        Ok(meta) if meta.is_dir() => return Reading::Gone,
        Ok(meta) if !meta.is_file() => return Reading::Unreadable("is no file".to_owned()),
        _ => {}
    }
    let mut bytes = Vec::new();
    // One byte more than is allowed, so that too much is noticed.
    match file.by_ref().take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => return Reading::Unreadable(format!("cannot be read: {error}")),
    }
    match String::from_utf8(bytes) {
        Ok(text) => Reading::Text(text),
        Err(_) => Reading::Unreadable("is no UTF-8 text".to_owned()),
    }
}

#[cfg(test)]
mod tests;
