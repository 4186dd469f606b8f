//! The objects as files, where control plane and agents read them.
//!
//! One object a file, `<kind>/<namespace or _>/<name>.yaml`, put in place by rename; after each batch `.revision` is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use manifest::{Kind, Object, ObjectKey, write};

/// A directory of objects that this process alone writes.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    root: PathBuf,
}

/// What to do to one object's file.
#[derive(Clone, Debug)]
pub(crate) struct Edit {
    pub(crate) key: ObjectKey,
    /// The object; nothing where it is gone.
    pub(crate) object: Option<Object>,
}

impl Directory {
    pub(crate) fn create(root: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&root)?;
        // A reader that watches a folder before anything is in it misses nothing.
        for kind in Kind::ALL {
            fs::create_dir_all(root.join(folder(kind)))?;
        }
        Ok(Self { root })
    }

    /// Writes a batch, and its revision when all of it is in place. Blocks.
    pub(crate) fn write(&self, edits: &[Edit], revision: u64) -> io::Result<()> {
        for edit in edits {
            let path = self.path(&edit.key);
            match &edit.object {
                Some(object) => replace(&path, &write::to_yaml(object))?,
                None => match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                },
            }
        }
        replace(&self.root.join(".revision"), &format!("{revision}\n"))
    }

    fn path(&self, key: &ObjectKey) -> PathBuf {
        let namespace = if key.namespace.is_empty() { "_" } else { &key.namespace };
        // Names are DNS names by now: no slash is in them, and no dot in front.
        self.root.join(folder(key.kind)).join(namespace).join(format!("{}.yaml", key.name))
    }
}

fn folder(kind: Kind) -> String {
    kind.as_str().to_lowercase()
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temp = path.with_file_name(format!(".{}.new", name.trim_start_matches('.')));
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(&temp, text)?;
    fs::rename(temp, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::store::tests::objects;

    #[test]
    fn an_object_is_found_by_kind_namespace_and_name() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::create(dir.path().join("objects")).unwrap();
        let yaml = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\napiVersion: v1\n\
                    kind: ServiceAccount\nmetadata: {name: redis, namespace: shop}\n";
        let edits: Vec<Edit> =
            objects(yaml).into_iter().map(|o| Edit { key: o.key(), object: Some(o) }).collect();
        directory.write(&edits, 7).unwrap();
        let read = |path: &str| fs::read_to_string(directory.root.join(path)).unwrap();
        assert!(read("namespace/_/shop.yaml").contains("name: shop"));
        assert!(read("serviceaccount/shop/redis.yaml").contains("kind: ServiceAccount"));
        assert_eq!(read(".revision"), "7\n");
        let gone = Edit { object: None, ..edits[1].clone() };
        directory.write(&[gone.clone(), gone], 8).unwrap();
        assert!(!directory.root.join("serviceaccount/shop/redis.yaml").exists());
        let left = fs::read_dir(directory.root.join("serviceaccount/shop")).unwrap().count();
        assert_eq!(left, 0, "no temporary file stays");
    }
}
