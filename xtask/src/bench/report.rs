//! Medians and spreads, as a table for people and a list for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::case::{Case, Outcome};
use super::proxy::Both;

/// By which path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mode {
    Direct,
    Mesh,
}

impl Mode {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Mesh => "mesh",
        }
    }
}

/// All figures of all rounds.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples {
    rows: Vec<Row>,
}

/// One line of the result.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    case: &'static str,
    metric: &'static str,
    unit: &'static str,
    values: BTreeMap<Mode, Vec<f64>>,
}

impl Samples {
    /// Takes in one run: what it achieved and what the proxies used for it.
    pub(super) fn take(&mut self, case: Case, mode: Mode, outcome: &Outcome, used: Both<Duration>) {
        let name = case.name();
        let (source, destination) = (used.source.as_secs_f64(), used.destination.as_secs_f64());
        let cpu = |units: f64| [source / units, destination / units];
        match *outcome {
            Outcome::Streamed { bytes, gigabits_per_second } => {
                self.push(name, "throughput_gbps", "Gb/s", mode, gigabits_per_second);
                let [source, destination] = cpu(bytes / 1e9);
                self.push_cpu(name, "cpu_s_per_gb_src", "s/GB", mode, source);
                self.push_cpu(name, "cpu_s_per_gb_dst", "s/GB", mode, destination);
            }
            Outcome::Answered { count, per_second, p50, p99 } => {
                self.push(name, "rps", "1/s", mode, per_second);
                self.push(name, "p50_us", "us", mode, p50);
                self.push(name, "p99_us", "us", mode, p99);
                let [source, destination] = cpu(count / 1e6);
                let (of_source, of_destination) = match case {
                    Case::Connect16 => ("cpu_us_per_connection_src", "cpu_us_per_connection_dst"),
                    _ => ("cpu_us_per_request_src", "cpu_us_per_request_dst"),
                };
                self.push_cpu(name, of_source, "us", mode, source);
                self.push_cpu(name, of_destination, "us", mode, destination);
            }
        }
    }

    /// Memory of proxies with nothing to do, in bytes; the larger counts.
    pub(super) fn idle_rss(&mut self, rss: Both<u64>) {
        self.push("idle-rss", "bytes", "bytes", Mode::Mesh, rss.source.max(rss.destination) as f64);
    }

    /// Memory that an idle connection takes in each proxy, in bytes; the larger counts.
    pub(super) fn idle_connection(&mut self, each: [u64; 2]) {
        self.push("idle-connection", "bytes", "bytes", Mode::Mesh, each[0].max(each[1]) as f64);
    }

    /// What a proxy spends exists through the mesh alone.
    fn push_cpu(
        &mut self,
        case: &'static str,
        metric: &'static str,
        unit: &'static str,
        mode: Mode,
        value: f64,
    ) {
        if mode == Mode::Mesh {
            self.push(case, metric, unit, mode, value);
        }
    }

    fn push(&mut self, case: &'static str, metric: &'static str, unit: &'static str, mode: Mode, value: f64) {
        let known = self.rows.iter().position(|r| r.case == case && r.metric == metric);
        let at = known.unwrap_or_else(|| {
            // A case's rows stand together, also those that only some runs have.
            let at = self.rows.iter().rposition(|r| r.case == case).map_or(self.rows.len(), |last| last + 1);
            self.rows.insert(at, Row { case, metric, unit, values: BTreeMap::new() });
            at
        });
        self.rows[at].values.entry(mode).or_default().push(value);
    }
}

impl Row {
    fn median(&self, mode: Mode) -> Option<f64> {
        let mut values = self.values.get(&mode)?.clone();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        match values.len() {
            0 => None,
            n if n % 2 == 1 => Some(values[middle]),
            _ => Some((values[middle - 1] + values[middle]) / 2.0),
        }
    }

    /// Half the range, in percent of the median.
    fn spread(&self, mode: Mode) -> Option<f64> {
        let (values, median) = (self.values.get(&mode)?, self.median(mode)?);
        let (least, most) = values.iter().fold((f64::MAX, f64::MIN), |(l, m), v| (l.min(*v), m.max(*v)));
        (values.len() > 1 && median > 0.0).then(|| (most - least) / 2.0 / median * 100.0)
    }
}

/// The list that scripts read.
pub(super) fn json(samples: &Samples) -> Value {
    let rows = samples.rows.iter().map(|row| {
        json!({
            "case": row.case,
            "metric": row.metric,
            "unit": row.unit,
            "direct": row.median(Mode::Direct),
            "mesh": row.median(Mode::Mesh),
        })
    });
    rows.collect()
}

/// The table, with the run under another congestion control below it.
pub(super) fn markdown(reno: &Samples, beside: Option<(&str, &Samples)>, rounds: usize) -> String {
    let mut text = format!(
        "# The node proxy, direct and through the mesh\n\n\
         Medians of {rounds} interleaved runs in the same namespaces, reno in each; ± is half the range. Everything runs on \
         the same {} cores, so that the ratio and the CPU per unit of work are what compares between machines.\n\n",
        std::thread::available_parallelism().map_or(1, usize::from)
    );
    text += &table(reno);
    if let Some((control, samples)) = beside {
        let _ = write!(text, "\n## One run with this host's default, {control}\n\n{}", table(samples));
    }
    text
}

fn table(samples: &Samples) -> String {
    let mut text =
        "| case | metric | unit | direct | mesh | mesh/direct |\n|---|---|---|---|---|---|\n".to_owned();
    for row in &samples.rows {
        let cell = |mode| match (row.median(mode), row.spread(mode)) {
            (None, _) => "–".to_owned(),
            (Some(median), None) => figure(median),
            (Some(median), Some(spread)) => format!("{} ±{spread:.0} %", figure(median)),
        };
        let ratio = match (row.median(Mode::Direct), row.median(Mode::Mesh)) {
            (Some(direct), Some(mesh)) if direct > 0.0 => format!("{:.2}", mesh / direct),
            _ => String::new(),
        };
        let (direct, mesh) = (cell(Mode::Direct), cell(Mode::Mesh));
        let _ =
            writeln!(text, "| {} | {} | {} | {direct} | {mesh} | {ratio} |", row.case, row.metric, row.unit);
    }
    text
}

/// Three digits that count.
fn figure(value: f64) -> String {
    let decimals = if value >= 100.0 || value == 0.0 {
        0
    } else if value >= 10.0 {
        1
    } else if value >= 1.0 {
        2
    } else {
        3
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(ms: u64) -> Both<Duration> {
        Both { source: Duration::from_millis(ms), destination: Duration::from_millis(2 * ms) }
    }

    fn stream(gigabits_per_second: f64) -> Outcome {
        Outcome::Streamed { bytes: 4e9, gigabits_per_second }
    }

    #[test]
    fn a_median_stands_beside_its_spread_and_ratio() {
        let mut samples = Samples::default();
        for rate in [10.0, 12.0, 11.0] {
            samples.take(Case::Stream1, Mode::Mesh, &stream(rate), used(1000));
        }
        samples.take(Case::Stream1, Mode::Direct, &stream(44.0), used(0));
        let table = table(&samples);
        assert!(table.contains("| stream-1 | throughput_gbps | Gb/s | 44.0 | 11.0 ±9 % | 0.25 |"), "{table}");
        assert!(table.contains("| stream-1 | cpu_s_per_gb_dst | s/GB | – | 0.500 ±0 % |  |"), "{table}");
    }

    #[test]
    fn scripts_get_every_metric_of_the_interface() {
        let mut samples = Samples::default();
        let answered = Outcome::Answered { count: 1e6, per_second: 5e5, p50: 80.0, p99: 140.0 };
        for mode in [Mode::Direct, Mode::Mesh] {
            samples.take(Case::Stream8, mode, &stream(40.0), used(400));
            samples.take(Case::KeepAlive64, mode, &answered, used(400));
            samples.take(Case::Connect16, mode, &answered, used(400));
        }
        samples.idle_rss(Both { source: 7, destination: 8 });
        samples.idle_connection([1, 2]);
        let json = json(&samples);
        let found = |case: &str, metric: &str| {
            json.as_array()
                .unwrap()
                .iter()
                .find(|r| r["case"] == case && r["metric"] == metric)
                .unwrap()
                .clone()
        };
        assert_eq!(found("stream-8", "cpu_s_per_gb_src")["direct"], Value::Null);
        assert_eq!(found("stream-8", "cpu_s_per_gb_src")["mesh"], 0.1);
        assert_eq!(found("keepalive-64", "cpu_us_per_request_dst")["mesh"], 0.8);
        assert_eq!(found("connect-16", "cpu_us_per_connection_src")["mesh"], 0.4);
        assert_eq!(found("connect-16", "p99_us")["direct"], 140.0);
        assert_eq!(found("idle-rss", "bytes")["mesh"], 8.0);
        assert_eq!(found("idle-connection", "bytes")["mesh"], 2.0);
    }
}
