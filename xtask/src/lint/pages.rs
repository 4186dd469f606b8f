//! What the pages say is there: links lead somewhere, and tests, functions, metrics, settings, flags, admin pages, annotations,
//! files and messages that they name exist.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::repo;

/// What begins a command, which is no message.
const COMMANDS: [&str; 8] = ["ambit", "cargo", "curl", "cp", "lab", "nsenter", "perf", "tcpdump"];

/// What names of the kernel begin with, which need not occur in a program.
const KERNELS: [&str; 3] = ["SO_", "CAP_", "CONFIG_"];

/// Folders with nothing of ours to read.
const SKIPPED: [&str; 2] = ["target", "corpus"];

pub(crate) fn check() -> anyhow::Result<()> {
    let mut sources = Sources::default();
    let mut pages = Vec::new();
    for path in files(repo::root())? {
        let name = path.strip_prefix(repo::root()).unwrap_or(&path).to_string_lossy().into_owned();
        let read = || fs::read_to_string(&path).with_context(|| name.clone());
        // The names in the tests below are nobody's.
        if name.ends_with(".rs") && !name.ends_with("lint/pages.rs") || name.ends_with(".proto") {
            sources.add(&name, &read()?);
        } else if name == "README.md" || name == "ARCHITECTURE.md" || name.starts_with("docs/") {
            pages.push((name.clone(), read()?));
        }
        sources.files.insert(name);
    }
    let found: Vec<String> =
        pages.iter().flat_map(|(name, text)| faults(name, text, &pages, &sources)).collect();
    if !found.is_empty() {
        bail!("\n  {}", found.join("\n  "));
    }
    Ok(())
}

fn files(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if !path.is_dir() {
                found.push(path);
            } else if !name.starts_with('.') && !SKIPPED.contains(&&*name) {
                todo.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// What there is to name.
#[derive(Default)]
struct Sources {
    /// Each by its path in the repository.
    files: HashSet<String>,
    functions: HashSet<String>,
    words: HashSet<String>,
    /// What programs say, without the breaks of lines that the compiler takes out.
    text: String,
}

impl Sources {
    fn add(&mut self, name: &str, text: &str) {
        let words: Vec<_> = text.split(|c: char| !is_in_word(c)).filter(|word| !word.is_empty()).collect();
        self.functions.extend(words.windows(2).filter(|pair| pair[0] == "fn").map(|pair| pair[1].to_owned()));
        let stem = Path::new(name).file_stem().unwrap_or_default().to_string_lossy();
        self.words.insert(stem.into_owned());
        self.words.extend(words.iter().map(|word| (*word).to_owned()));
        let is_test = name.split('/').any(|part| part == "tests" || part == "tests.rs" || part == "testkit");
        if !is_test {
            let lines = text.split("\\\n").map(str::trim_start);
            self.text.extend(lines.chain(["\n"]));
        }
    }

    fn says(&self, text: &str) -> bool {
        self.text.contains(text)
    }

    fn quotes(&self, text: &str) -> bool {
        self.says(&format!("\"{text}\""))
    }
}

fn is_in_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// What a page says that is not so.
fn faults(name: &str, page: &str, pages: &[(String, String)], sources: &Sources) -> Vec<String> {
    let mut found = Vec::new();
    let mut code = false;
    for (n, line) in page.lines().enumerate() {
        if line.starts_with("```") {
            code = !code;
        }
        if code {
            continue;
        }
        let mut fault = |why: String| found.push(format!("{name}:{}: {why}", n + 1));
        for target in links(line) {
            if !leads_somewhere(name, target, pages, sources) {
                fault(format!("the link to {target} leads nowhere"));
            }
        }
        for span in line.split('`').skip(1).step_by(2) {
            if let Some(why) = missing(span, sources) {
                fault(format!("`{span}`: {why}"));
            }
        }
    }
    found
}

fn links(line: &str) -> Vec<&str> {
    line.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(target, _)| target)).collect()
}

fn leads_somewhere(page: &str, target: &str, pages: &[(String, String)], sources: &Sources) -> bool {
    if target.contains("://") {
        return true;
    }
    let (file, heading) = target.split_once('#').unwrap_or((target, ""));
    let mut at: Vec<&str> = page.split('/').collect();
    at.pop();
    for part in file.split('/') {
        match part {
            ".." => drop(at.pop()),
            "." => {}
            part => at.push(part),
        }
    }
    let file = if file.is_empty() { page.to_owned() } else { at.join("/") };
    if heading.is_empty() {
        return sources.files.contains(&file);
    }
    let text = pages.iter().find(|(name, _)| *name == file).map_or("", |(_, text)| text);
    text.lines().filter_map(|line| line.strip_prefix('#')).any(|line| anchor(line) == heading)
}

/// How a heading is linked to.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().chars();
    let kept = kept.filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

/// Why what stands between backticks is not there, if it is of a kind that can be looked up.
fn missing(span: &str, sources: &Sources) -> Option<&'static str> {
    let words: Vec<_> = span.split_whitespace().collect();
    let first = words.first().copied().unwrap_or_default();
    // A key with its value.
    let key = first.split(['=', '<', '[']).next().unwrap_or_default().trim_end_matches(':');
    if let Some(flag) = key.strip_prefix("--") {
        let field = flag.replace('-', "_");
        let there = sources.quotes(flag) || sources.words.contains(&field);
        return (!there).then_some("there is no such flag");
    }
    if words.len() >= 3 && !COMMANDS.contains(&first) && words.iter().all(|word| is_of_a_message(word)) {
        let there = pieces(&words).iter().all(|piece| sources.says(piece));
        return (!there).then_some("no program says so");
    }
    if words.len() > 2 || words.len() == 2 && !first.ends_with(':') {
        return None;
    }
    if key.contains('/') {
        return place(key, sources);
    }
    let name = key.rsplit("::").next().unwrap_or_default();
    if name.is_empty() || !name.chars().all(is_in_word) || !name.contains('_') {
        return None;
    }
    if ["ambit_", "istio_", "pilot_"].iter().any(|prefix| name.starts_with(prefix)) {
        let base = name.strip_suffix("_total").unwrap_or(name);
        let there = sources.quotes(name) || sources.quotes(base);
        return (!there).then_some("there is no such metric or name");
    }
    if KERNELS.iter().any(|prefix| name.starts_with(prefix)) {
        return None;
    }
    // A sentence is a test's name.
    let is_sentence = name.matches('_').count() > 2 && name.contains(|c: char| c.is_lowercase());
    if is_sentence && !sources.functions.contains(name) {
        return Some("there is no such test");
    }
    let there = key.split("::").all(|part| sources.words.contains(part));
    (!there).then_some("there is nothing of that name")
}

/// What has a path: files, pages, annotations.
fn place(path: &str, sources: &Sources) -> Option<&'static str> {
    let ours = |folder: &str| sources.files.iter().any(|file| file.starts_with(folder));
    if let Some(page) = path.strip_prefix('/') {
        let on_disk = ["etc", "proc", "sys", "run", "var"].iter().any(|folder| page.starts_with(folder));
        let there = match path.split_once('…') {
            Some((begin, _)) => sources.says(&format!("\"{begin}")),
            None => sources.quotes(path),
        };
        return (!on_disk && !there).then_some("there is no such page");
    }
    let (top, _) = path.split_once('/')?;
    if top.ends_with(".io") || top.ends_with(".dev") {
        let ends = |after: &str| !after.starts_with(|c: char| is_in_word(c) || c == '-');
        let mut places = sources.text.match_indices(path);
        let there = places.any(|(at, _)| ends(&sources.text[at + path.len()..]));
        return (!there).then_some("nobody knows that key");
    }
    if !ours(&format!("{top}/")) || path.contains(['…', '*', '$']) {
        return None;
    }
    let there = sources.files.contains(path) || ours(&format!("{}/", path.trim_end_matches('/')));
    (!there).then_some("there is no such file")
}

/// Words as messages have them: no code, and no YAML.
fn is_of_a_message(word: &str) -> bool {
    !word.contains(['{', '}', '(', ')', '[', ']', '$', '|', '=', '<', '"'])
}

/// The parts of a message that are always the same: what is a number, a name or left out is not.
fn pieces(words: &[&str]) -> Vec<String> {
    let varies = |word: &&str| {
        word.contains(['…', '@', '/']) || word.chars().all(|c| !c.is_lowercase()) || word.contains(':')
    };
    let same = words.split(varies).filter(|piece| !piece.is_empty());
    same.map(|piece| piece.join(" ")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = r#"
        #[arg(long)] kubelet_cgroup: PathBuf,
        env.or("CRL_PATH", "a path", x); register("ambit_repairs", help); route("/debug/pods", get(pods));
        format!("waits for {agent} to take it \
                 into the mesh"); const KEY: &str = "ambit.dev/existing-connections";
    "#;

    fn sources() -> Sources {
        let mut sources = Sources::default();
        sources.add("cni-plugin/src/agent.rs", SOURCE);
        sources.add("tests/netns/swap.rs", "fn a_proxy_that_is_killed_refuses_nobody() {}");
        sources.files.extend(["docs/a.md", "docs/b.md", "cni-plugin/src/agent.rs"].map(str::to_owned));
        sources
    }

    fn told(page: &str) -> Vec<String> {
        let other = ("docs/b.md".to_owned(), "# What is\n\n## A pod's end, and after\n".to_owned());
        faults("docs/a.md", page, &[("docs/a.md".to_owned(), page.to_owned()), other], &sources())
    }

    #[test]
    fn what_is_there_is_no_fault() {
        let page = "## Here\n[b](b.md) [b](../docs/b.md#a-pods-end-and-after) [here](#here) [far](https://example.com)
            `swap::a_proxy_that_is_killed_refuses_nobody` `ambit_repairs_total` `CRL_PATH` `--kubelet-cgroup` `--kubelet-cgroup PATH`
            `/debug/pods` `/debug/…` `ambit.dev/existing-connections: close` `cni-plugin/src/agent.rs` `cni-plugin/`
            `waits for agent@NODE to take it into the mesh` `curl -s localhost` `STRICT` `{a: [b]}` `/proc/PID/mem`
```text
`no_such_thing_at_all_here` [x](nowhere.md)
```
";
        assert_eq!(told(page), [""; 0]);
    }

    #[test]
    fn what_is_not_there_is_told_with_its_line() {
        for wrong in [
            "[b](c.md)",
            "[b](b.md#a-pods-life)",
            "[here](#there)",
            "`swap::a_proxy_that_is_killed_refuses_all`",
            "`swop::a_proxy_that_is_killed_refuses_nobody`",
            "`ambit_repair_total`",
            "`CRL_PATHS`",
            "`--kubelet-group`",
            "`/debug/pod`",
            "`/logs/…`",
            "`ambit.dev/existing-connection: close`",
            "`cni-plugin/src/agents.rs`",
            "`waits for agent@NODE to let it into the mesh`",
        ] {
            let told = told(&format!("# Here\n\nSee {wrong}.\n"));
            assert!(told.len() == 1 && told[0].starts_with("docs/a.md:3: "), "{wrong}: {told:?}");
        }
    }
}
