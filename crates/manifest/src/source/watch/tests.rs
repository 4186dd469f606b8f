use super::*;

struct Lab {
    dir: tempfile::TempDir,
    root: PathBuf,
    watcher: Watcher,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("objects");
        fs::create_dir(&root).unwrap();
        let (watcher, _) = Watcher::open(&root).unwrap();
        Self { dir, root, watcher }
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let temp = path.with_file_name(".tmp");
        fs::write(&temp, text).unwrap();
        fs::rename(temp, path).unwrap();
    }

    fn step(&mut self) -> (Vec<String>, Vec<String>, Option<u64>) {
        let batch = self.watcher.step().unwrap_or_default();
        (
            batch.upserts.iter().map(|o| o.name().to_owned()).collect(),
            batch.deletes.into_iter().map(|k| k.name).collect(),
            batch.revision,
        )
    }
}

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
}

#[test]
fn folders_are_read_and_followed_as_they_come() {
    let mut lab = Lab::new();
    lab.write("namespace/_/a.yaml", &namespace("a"));
    lab.write("b.json", r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "b"}}"#);
    lab.write(".hidden.yaml", &namespace("hidden"));
    lab.write("readme.txt", "no yaml");
    assert_eq!(lab.step().0, ["a", "b"]);
    assert_eq!(lab.watcher.step(), None);
    lab.write("deep/er/c.yml", &namespace("c"));
    lab.write(".revision", "7\n");
    assert_eq!(lab.step(), (vec!["c".into()], vec![], Some(7)));
    lab.write("deep/er/d.yml", &namespace("d"));
    fs::remove_file(lab.root.join("b.json")).unwrap();
    assert_eq!(lab.step(), (vec!["d".into()], vec!["b".into()], Some(7)));
    fs::rename(lab.root.join("deep"), lab.dir.path().join("away")).unwrap();
    assert_eq!(lab.step().1, ["c", "d"]);
}

/// Acts as somebody whom permissions bind, which they do not bind root.
fn as_nobody<T>(act: impl FnOnce() -> T) -> T {
    nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65534));
    let result = act();
    nix::unistd::setfsuid(nix::unistd::geteuid());
    result
}

#[test]
fn a_folder_that_cannot_be_read_is_a_problem_and_never_good_until_it_can() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut lab = Lab::new();
    lab.write("open/a.yaml", &namespace("a"));
    lab.write("shut/b.yaml", &namespace("b"));
    let allow = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    allow(lab.dir.path(), 0o755);
    allow(&lab.root.join("shut"), 0o000);
    let batch = as_nobody(|| lab.watcher.step()).unwrap();
    assert_eq!(batch.upserts.len(), 1);
    let told: Vec<String> = batch.problems.iter().map(ToString::to_string).collect();
    assert_eq!(told, ["shut:1:1: cannot be read: Permission denied (os error 13)"]);
    assert_eq!(batch.never_good, ["shut".into()]);
    allow(&lab.root.join("shut"), 0o755);
    let batch = as_nobody(|| lab.watcher.step()).unwrap();
    assert_eq!((batch.upserts.len(), batch.problems, batch.never_good), (1, vec![], vec![]));
    // What it held stays while it cannot be read again.
    allow(&lab.root.join("shut"), 0o000);
    let batch = as_nobody(|| lab.watcher.step()).unwrap();
    assert_eq!(batch.deletes, []);
    allow(&lab.root.join("shut"), 0o755);
    fs::remove_dir_all(lab.root.join("shut")).unwrap();
    let batch = as_nobody(|| lab.watcher.step()).unwrap();
    assert_eq!((batch.deletes.len(), batch.problems, batch.never_good), (1, vec![], vec![]));
}

#[test]
fn a_folder_too_deep_to_be_read_is_told() {
    let mut lab = Lab::new();
    let deep = "d/".repeat(MAX_FOLDERS_DEEP);
    lab.write(&format!("{deep}a.yaml"), &namespace("a"));
    lab.write(&format!("{deep}e/b.yaml"), &namespace("b"));
    let batch = lab.watcher.step().unwrap();
    assert_eq!(batch.upserts.len(), 1);
    assert_eq!(batch.never_good, [format!("{deep}e").into()]);
}

#[test]
fn a_revision_that_changes_nothing_is_told() {
    let mut lab = Lab::new();
    lab.step();
    lab.write(".revision", "1");
    assert_eq!(lab.step().2, Some(1));
    lab.write(".revision", "2");
    assert_eq!(lab.step().2, Some(2));
    lab.write(".revision", "x");
    assert_eq!(lab.watcher.step().unwrap().problems[0].message, "no decimal number");
    lab.write(".revision", "3");
    let batch = lab.watcher.step().unwrap();
    assert_eq!((batch.revision, batch.problems), (Some(3), vec![]));
}

#[test]
fn the_directory_may_appear_late_and_its_loss_drops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("not/yet/there");
    let (mut watcher, _) = Watcher::open(&root).unwrap();
    let first = watcher.step().unwrap();
    assert!(!first.loaded && first.problems.len() == 1);
    fs::create_dir_all(&root).unwrap();
    fs::write(root.join("a.yaml"), namespace("a")).unwrap();
    let mut batch = None;
    while !watcher.is_idle() || batch.is_none() {
        batch = watcher.step().or(batch);
    }
    let batch = batch.unwrap();
    assert!(batch.loaded && batch.problems.is_empty() && batch.upserts.len() == 1, "{batch:?}");
    fs::rename(&root, dir.path().join("away")).unwrap();
    let gone = watcher.step().unwrap();
    assert_eq!(gone.deletes, []);
    assert!(gone.problems[0].message.contains("stays"));
    fs::create_dir_all(&root).unwrap();
    fs::write(root.join("b.yaml"), namespace("b")).unwrap();
    let back = watcher.step().unwrap();
    assert_eq!(back.problems, []);
    assert_eq!((back.upserts.len(), back.deletes.len()), (1, 1));
}

#[test]
fn a_mounted_config_map_changes_at_once() {
    let mut lab = Lab::new();
    let version = |n: &str| {
        let data = lab.root.join(format!("..v{n}"));
        fs::create_dir(&data).unwrap();
        fs::write(data.join("a.yaml"), namespace(&format!("a{n}"))).unwrap();
        std::os::unix::fs::symlink(format!("..v{n}"), lab.root.join("..tmp")).unwrap();
        fs::rename(lab.root.join("..tmp"), lab.root.join("..data")).unwrap();
    };
    version("1");
    std::os::unix::fs::symlink("..data/a.yaml", lab.root.join("a.yaml")).unwrap();
    let batch = lab.watcher.step().unwrap();
    assert_eq!(batch.upserts[0].name(), "a1");
    version("2");
    assert_eq!(lab.step(), (vec!["a2".into()], vec!["a1".into()], None));
}

#[test]
fn a_pipe_is_told_and_holds_nothing_up() {
    let mut lab = Lab::new();
    let made = std::process::Command::new("mkfifo").arg(lab.root.join("p.yaml")).status().unwrap();
    assert!(made.success());
    lab.write("a.yaml", &namespace("a"));
    let batch = lab.watcher.step().unwrap();
    assert_eq!(batch.upserts[0].name(), "a");
    assert_eq!(batch.problems[0].to_string(), "p.yaml:1:1: cannot be read: it is no file");
}

#[test]
fn a_revision_is_not_told_before_its_files_are_read() {
    let mut lab = Lab::new();
    lab.step();
    lab.write("a.yaml", &namespace("a"));
    lab.write(".revision", "4");
    // The queue runs over between the reading of the revision and of the files.
    lab.watcher.overrun_next_drain = 2;
    assert_eq!(lab.watcher.step(), None);
    assert!(!lab.watcher.is_idle());
    assert_eq!(lab.step(), (vec!["a".into()], vec![], Some(4)));
}

#[test]
fn what_is_no_text_is_told() {
    let mut lab = Lab::new();
    fs::write(lab.root.join("a.yaml"), [0xff, 0xfe]).unwrap();
    assert_eq!(lab.watcher.step().unwrap().problems[0].to_string(), "a.yaml:1:1: is no UTF-8 text");
    fs::remove_file(lab.root.join("a.yaml")).unwrap();
    assert_eq!(lab.watcher.step().unwrap().problems, []);
}
