//! The test tiers that span programs live beside this crate: `netns/` runs real processes in real namespaces.
//! The crate itself holds only the workload that those tests, the samples and the demo talk to, `ambit-echo`.

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    fn yaml_below(dir: &Path, into: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).expect("read a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                yaml_below(&path, into);
            } else if path.extension().is_some_and(|e| e == "yaml") {
                into.push(path);
            }
        }
    }

    #[test]
    fn everything_that_is_deployed_is_valid() {
        let mut files = Vec::new();
        yaml_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy"), &mut files);
        assert!(!files.is_empty());
        for file in files {
            let text = std::fs::read_to_string(&file).expect("read a sample");
            let parsed = manifest::parse(file.display().to_string(), &text);
            let problems: Vec<String> = parsed.problems.iter().map(ToString::to_string).collect();
            assert!(problems.is_empty(), "{problems:#?}");
            assert!(!parsed.documents.is_empty(), "{}", file.display());
        }
    }
}
