//! What the pages of `docs/` say, done.

use std::fs;
use std::path::{Path, PathBuf};

use testkit::lab::{Lab, eventually};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// An example: objects, and who then reaches whom.
struct Example<'a> {
    objects: String,
    lines: Vec<&'a str>,
}

/// The fenced blocks of a page, each with its language.
fn blocks(page: &str) -> Vec<(&str, Vec<&str>)> {
    let mut blocks = Vec::new();
    let mut open: Option<(&str, Vec<&str>)> = None;
    for line in page.lines() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(language), None) => open = Some((language, Vec::new())),
            (Some(_), Some(block)) => blocks.push(block),
            (None, Some((language, mut lines))) => {
                lines.push(line);
                open = Some((language, lines));
            }
            (None, None) => {}
        }
    }
    blocks
}

/// Each YAML block of the page with the block below it.
fn examples(page: &str) -> Vec<Example<'_>> {
    let blocks = blocks(page);
    let below = |pair: &[(&str, Vec<_>)]| pair[0].0 == "yaml" && pair[1].0 == "text";
    let pairs = blocks.windows(2).filter(|pair| below(pair));
    let found: Vec<_> = pairs
        .map(|pair| Example { objects: pair[0].1.join("\n") + "\n", lines: pair[1].1.clone() })
        .collect();
    assert_eq!(found.len(), blocks.iter().filter(|(language, _)| *language == "yaml").count());
    found
}

/// Whether a pod gets an answer. A connection as such says nothing: it is the pod's own proxy that takes it.
fn answers(lab: &Lab, from: &str, to: &str) -> bool {
    let (host, port) = to.split_once(':').expect("host:port");
    let (ask, answer) = match port {
        "6379" => ("PING\\r\\n", "+PONG"),
        _ => ("GET / HTTP/1.0\\r\\n\\r\\n", " 200 OK"),
    };
    let script = format!("exec 3<>/dev/tcp/{host}/{port}; printf '{ask}' >&3; head -n1 <&3");
    lab.exec(from, &["timeout", "5", "bash", "-c", &script]).stdout.contains(answer)
}

#[test]
fn the_examples_of_the_policy_page_do_what_it_says() {
    let read = |path: &Path| fs::read_to_string(path).expect("a file of the repository");
    let page = read(&repository().join("docs/policy.md"));
    let examples = examples(&page);
    assert!(examples.len() >= 5, "{}", examples.len());
    let mut shop: Vec<_> = fs::read_dir(repository().join("deploy/samples/shop"))
        .expect("the sample")
        .map(|file| file.expect("a file").path())
        .collect();
    shop.sort();
    let objects: Vec<_> = shop.iter().map(|path| read(path)).collect();
    let Some(lab) = Lab::up(&objects.join("\n---\n")) else { return };
    lab.join("shop");
    let all = ["shop/deploy/frontend", "shop/deploy/catalog", "shop/deploy/redis", "legacy/deploy/client"];
    let is_open = || {
        for from in all {
            for to in ["redis.shop:6379", "catalog.shop:8080"] {
                eventually("everybody reaches everything", || answers(&lab, from, to));
            }
        }
    };
    for example in examples {
        is_open();
        lab.apply(&example.objects).expect_ok();
        for line in example.lines {
            let words: Vec<_> = line.split_whitespace().collect();
            let (from, to, passes) = match words[..] {
                [from, "->", to, "passes"] => (from, to, true),
                [from, "->", to, "is", "denied"] => (from, to, false),
                _ => panic!("{line}"),
            };
            assert!(all.contains(&from), "{line}");
            assert_eq!(answers(&lab, from, to), passes, "{line}\n{}", example.objects);
        }
        lab.delete(&example.objects).expect_ok();
    }
}
