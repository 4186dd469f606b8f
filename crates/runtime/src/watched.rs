//! Files that others write while the program runs.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::time::sleep;

/// How often a file is looked at. A look is one call of the system, and sees files that are replaced by renaming and by
/// links that are set anew, as those of a ConfigMap are, without a watch on any folder.
const EVERY: Duration = Duration::from_millis(200);

/// What was written so lately may be written again without looking otherwise: clocks of file systems are coarse.
const LATELY: Duration = Duration::from_secs(2);

/// No settings, roots or revocation lists are larger.
const SIZE_MAX: u64 = 32 << 20;

/// A file, and what was last told of it.
#[derive(Debug)]
pub struct WatchedFile {
    path: PathBuf,
    look: Option<Look>,
    told: Option<Told>,
}

/// The content, or the kind of the failure.
type Told = Result<Vec<u8>, io::ErrorKind>;

/// By what a change of a file is known.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Look {
    There { device: u64, inode: u64, size: u64, written: (i64, i64), changed: (i64, i64) },
    Failed(io::ErrorKind),
}

impl WatchedFile {
    /// One of which nothing has been told.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), look: None, told: None }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its content now.
    ///
    /// # Errors
    /// If it cannot be read, or has more than 32 MiB.
    pub async fn read(&mut self) -> io::Result<Vec<u8>> {
        let look = self.look().await;
        let read = self.content(&look).await;
        self.tell(look, &read);
        read
    }

    /// Waits until its content is another than was last told, or it fails otherwise. Cancel-safe.
    ///
    /// # Errors
    /// As [`Self::read`]: once for each kind of failure, until it can be read again.
    pub async fn changed(&mut self) -> io::Result<Vec<u8>> {
        loop {
            sleep(EVERY).await;
            let look = self.look().await;
            if self.look.as_ref() == Some(&look) && !look.is_late() {
                continue;
            }
            let read = self.content(&look).await;
            if self.tell(look, &read) {
                return read;
            }
        }
    }

    async fn look(&self) -> Look {
        match tokio::fs::metadata(&self.path).await {
            Ok(m) => Look::There {
                device: m.dev(),
                inode: m.ino(),
                size: m.len(),
                written: (m.mtime(), m.mtime_nsec()),
                changed: (m.ctime(), m.ctime_nsec()),
            },
            Err(error) => Look::Failed(error.kind()),
        }
    }

    async fn content(&self, look: &Look) -> io::Result<Vec<u8>> {
        match look {
            Look::There { size, .. } if *size > SIZE_MAX => Err(io::ErrorKind::FileTooLarge.into()),
            _ => tokio::fs::read(&self.path).await,
        }
    }

    /// Whether that is news.
    fn tell(&mut self, look: Look, read: &io::Result<Vec<u8>>) -> bool {
        let told = match read {
            Ok(content) => Ok(content.clone()),
            Err(error) => Err(error.kind()),
        };
        self.look = Some(look);
        let is_news = self.told.as_ref() != Some(&told);
        self.told = Some(told);
        is_news
    }
}

impl Look {
    fn is_late(&self) -> bool {
        let Self::There { changed: (seconds, _), .. } = self else { return false };
        let changed =
            SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(*seconds).unwrap_or_default());
        // Of a time to come nothing can be said.
        SystemTime::now().duration_since(changed).map_or(true, |age| age < LATELY)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    async fn news(file: &mut WatchedFile) -> Result<String, io::ErrorKind> {
        let read = timeout(PATIENCE, file.changed()).await.expect("news");
        read.map(|content| String::from_utf8(content).unwrap()).map_err(|e| e.kind())
    }

    #[tokio::test]
    async fn each_change_is_told_once_however_it_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut file = WatchedFile::new(&path);
        assert_eq!(file.read().await.unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::write(&path, "a").unwrap();
        assert_eq!(news(&mut file).await, Ok("a".into()));
        fs::write(&path, "b").unwrap();
        assert_eq!(news(&mut file).await, Ok("b".into()), "of the same size at almost the same time");
        let other = dir.path().join("other");
        fs::write(&other, "c").unwrap();
        fs::rename(&other, &path).unwrap();
        assert_eq!(news(&mut file).await, Ok("c".into()));
        fs::write(&other, "d").unwrap();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        let told = match news(&mut file).await {
            Err(io::ErrorKind::NotFound) => news(&mut file).await,
            told => told,
        };
        assert_eq!(told, Ok("d".into()));
        fs::write(&other, "d").unwrap();
        assert!(timeout(EVERY * 3, file.changed()).await.is_err(), "the same content is no news");
        fs::remove_file(&other).unwrap();
        assert_eq!(news(&mut file).await, Err(io::ErrorKind::NotFound));
        assert!(timeout(EVERY * 3, file.changed()).await.is_err(), "it is gone once");
    }
}
