//! Reading what `-f` names.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::lab::admission::Text;

/// Why a file cannot be read.
#[derive(Debug, Error)]
pub(super) enum ReadError {
    #[error("{}: {source}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{}: holds no *.yaml, *.yml or *.json", .0.display())]
    Empty(PathBuf),
}

/// The texts of files, of folders with all below them, and of standard input for `-`.
pub(super) fn read(names: &[PathBuf]) -> Result<Vec<Text>, ReadError> {
    let mut texts = Vec::new();
    for name in names {
        let failed = |source| ReadError::Read { path: name.clone(), source };
        if name.as_os_str() == "-" {
            let text = io::read_to_string(io::stdin()).map_err(failed)?;
            texts.push(Text { file: "stdin".to_owned(), text });
        } else if fs::metadata(name).map_err(failed)?.is_dir() {
            let before = texts.len();
            folder(name, &mut texts)?;
            if texts.len() == before {
                return Err(ReadError::Empty(name.clone()));
            }
        } else {
            texts.push(file(name)?);
        }
    }
    Ok(texts)
}

fn folder(dir: &Path, texts: &mut Vec<Text>) -> Result<(), ReadError> {
    let failed = |source| ReadError::Read { path: dir.to_owned(), source };
    let entries = fs::read_dir(dir).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let mut paths: Vec<PathBuf> = entries.iter().map(fs::DirEntry::path).collect();
    paths.sort();
    for path in paths {
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
            continue;
        }
        if path.is_dir() {
            folder(&path, texts)?;
        } else if path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json") {
            texts.push(file(&path)?);
        }
    }
    Ok(())
}

fn file(path: &Path) -> Result<Text, ReadError> {
    let text =
        fs::read_to_string(path).map_err(|source| ReadError::Read { path: path.to_owned(), source })?;
    Ok(Text { file: path.display().to_string(), text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_read_in_order_with_all_below_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("b")).unwrap();
        for name in ["c.yml", "b/a.json", "a.yaml", ".hidden.yaml", "readme.md"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let texts = read(&[dir.path().to_owned()]).unwrap();
        let texts: Vec<&str> = texts.iter().map(|text| text.text.as_str()).collect();
        assert_eq!(texts, ["a.yaml", "b/a.json", "c.yml"]);
        assert!(matches!(read(&["/nowhere/at/all".into()]), Err(ReadError::Read { .. })));
    }
}
