//! The text that a scrape reads.

use std::fmt::Write as _;
use std::sync::Arc;

use prometheus_client::encoding::text;

use super::Registry;

/// Everything a program counts, ready to be read. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Exposition(Arc<Registry>);

/// What to answer a scrape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The `content-type` header.
    pub content_type: &'static str,
    /// The body.
    pub body: String,
}

impl Exposition {
    /// Closes the registry: nothing can be added any more.
    pub fn new(registry: Registry) -> Self {
        Self(Arc::new(registry))
    }

    /// Renders all families in the format that the scraper's `accept` header asks for: OpenMetrics 1.0 where it is
    /// named, else Prometheus text 0.0.4, which every reader understands.
    pub fn render(&self, accept: Option<&str>) -> Rendered {
        let mut open = String::new();
        // Writing into a String fails only if a collector does, and ours do not.
        let _ = text::encode(&mut open, &self.0);
        if accept.is_some_and(|a| a.contains("application/openmetrics-text")) {
            return Rendered {
                content_type: "application/openmetrics-text; version=1.0.0; charset=utf-8",
                body: open,
            };
        }
        Rendered { content_type: "text/plain; version=0.0.4; charset=utf-8", body: classic(&open) }
    }
}

/// OpenMetrics names a counter's family without `_total` and knows words that the older format does not.
fn classic(open: &str) -> String {
    let mut out = String::with_capacity(open.len() + 512);
    let mut help = "";
    for line in open.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "unknown"));
            let suffix = if kind == "counter" { "_total" } else { "" };
            let kind = if kind == "unknown" { "untyped" } else { kind };
            let text = help.split_once(' ').map_or("", |(_, text)| text);
            let _ = writeln!(out, "# HELP {name}{suffix} {text}\n# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::super::PlainCounter;
    use super::*;

    fn exposition() -> Exposition {
        let mut registry = Registry::default();
        let counter: Counter = Counter::default();
        counter.inc();
        registry.register("istio_seen", "What was seen", counter);
        registry.register("pilot_seen", "What was seen there", PlainCounter::default());
        Exposition::new(registry)
    }

    #[test]
    fn a_scraper_that_asks_for_openmetrics_gets_it() {
        let rendered =
            exposition().render(Some("application/openmetrics-text;version=1.0.0,text/plain;q=0.5"));
        assert!(rendered.content_type.starts_with("application/openmetrics-text; version=1.0.0"));
        assert!(rendered.body.contains("# TYPE istio_seen counter\nistio_seen_total 1\n"));
        assert!(rendered.body.contains("# TYPE pilot_seen unknown\npilot_seen 0\n"));
        assert!(rendered.body.ends_with("# EOF\n"));
    }

    #[test]
    fn any_other_reader_gets_the_older_text() {
        let rendered = exposition().render(None);
        assert_eq!(rendered.content_type, "text/plain; version=0.0.4; charset=utf-8");
        let expected = "\
            # HELP istio_seen_total What was seen.\n# TYPE istio_seen_total counter\nistio_seen_total 1\n\
            # HELP pilot_seen What was seen there.\n# TYPE pilot_seen untyped\npilot_seen 0\n";
        assert_eq!(rendered.body, expected);
    }
}
