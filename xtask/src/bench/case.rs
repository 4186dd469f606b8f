//! The cases: which program makes the load, and how its output is read.

use anyhow::Context as _;
use serde_json::Value;

/// A kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Case {
    /// One TCP stream.
    Stream1,
    /// Eight TCP streams.
    Stream8,
    /// HTTP requests on one connection, one in flight.
    PingPong1,
    /// HTTP requests on 64 connections, one in flight on each.
    KeepAlive64,
    /// 16 clients, each with a new connection for each request.
    Connect16,
}

pub(super) const CASES: [Case; 5] =
    [Case::Stream1, Case::Stream8, Case::PingPong1, Case::KeepAlive64, Case::Connect16];

/// Whom to load.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// The server's address.
    pub(super) server: String,
    /// Its port for HTTP; iperf3 has a port of its own.
    pub(super) http: u16,
    /// The file that holds [`WRK_SCRIPT`].
    pub(super) wrk_script: String,
    /// The program whose `load` makes what wrk cannot.
    pub(super) own: String,
}

/// What came of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Outcome {
    /// Bytes that arrived, and how many a second.
    Streamed { bytes: f64, gigabits_per_second: f64 },
    /// Requests (or connections) that were answered, how many a second, and how long they took, in µs.
    Answered { count: f64, per_second: f64, p50: f64, p99: f64 },
}

impl Outcome {
    pub(super) fn summary(&self) -> String {
        match self {
            Self::Streamed { gigabits_per_second, .. } => format!("{gigabits_per_second:.2} Gb/s"),
            Self::Answered { per_second, p50, p99, .. } => {
                format!("{per_second:.0} a second, p50 {p50:.0} us, p99 {p99:.0} us")
            }
        }
    }
}

/// Prints what wrk measured as one line of JSON; its own report is rounded.
pub(super) const WRK_SCRIPT: &str = "\
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('RESULT {\"count\":%d,\"us\":%d,\"p50\":%f,\"p99\":%f,\"errors\":%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
";

impl Case {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Stream1 => "stream-1",
            Self::Stream8 => "stream-8",
            Self::PingPong1 => "pingpong-1",
            Self::KeepAlive64 => "keepalive-64",
            Self::Connect16 => "connect-16",
        }
    }

    /// The command to run in the client's pod.
    pub(super) fn command(self, to: &Target, seconds: u32) -> Vec<String> {
        let time = seconds.to_string();
        let owned = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let iperf = |streams: &str| owned(&["iperf3", "-c", &to.server, "-P", streams, "-t", &time, "-J"]);
        let wrk = |threads: &str, connections: &str| {
            let url = format!("http://{}:{}/", to.server, to.http);
            owned(&["wrk", "-t", threads, "-c", connections, "-d", &time, "-s", &to.wrk_script, &url])
        };
        match self {
            Self::Stream1 => iperf("1"),
            Self::Stream8 => iperf("8"),
            Self::PingPong1 => wrk("1", "1"),
            Self::KeepAlive64 => wrk("1", "64"),
            Self::Connect16 => {
                let target = format!("{}:{}", to.server, to.http);
                owned(&[&to.own, "load", "connect", &target, "--clients", "16", "--seconds", &time])
            }
        }
    }

    /// Reads the command's output.
    pub(super) fn read(self, output: &str) -> anyhow::Result<Outcome> {
        match self {
            Self::Stream1 | Self::Stream8 => streamed(output),
            Self::PingPong1 | Self::KeepAlive64 | Self::Connect16 => answered(output),
        }
    }
}

fn streamed(output: &str) -> anyhow::Result<Outcome> {
    let json: Value = serde_json::from_str(output).context("iperf3 printed no JSON")?;
    let sum = &json["end"]["sum_received"];
    let number = |key: &str| sum[key].as_f64().with_context(|| format!("iperf3 does not tell {key}"));
    Ok(Outcome::Streamed { bytes: number("bytes")?, gigabits_per_second: number("bits_per_second")? / 1e9 })
}

fn answered(output: &str) -> anyhow::Result<Outcome> {
    let line = output.lines().find_map(|l| l.strip_prefix("RESULT ")).context("there is no result")?;
    let json: Value = serde_json::from_str(line).context("the result is no JSON")?;
    let number = |key: &str| json[key].as_f64().with_context(|| format!("the result lacks {key}"));
    let (count, us, errors) = (number("count")?, number("us")?, number("errors")?);
    anyhow::ensure!(errors == 0.0, "{errors} of {count} failed");
    anyhow::ensure!(count > 0.0, "nothing was answered");
    Ok(Outcome::Answered { count, per_second: count / us * 1e6, p50: number("p50")?, p99: number("p99")? })
}

/// A server that does as little as it can.
pub(super) fn nginx(port: u16, folder: &str) -> String {
    format!(
        "daemon off;\n\
         worker_processes 1;\n\
         pid {folder}/nginx.pid;\n\
         error_log stderr crit;\n\
         events {{ worker_connections 16384; multi_accept on; }}\n\
         http {{\n\
             access_log off;\n\
             client_body_temp_path {folder}/body;\n\
             proxy_temp_path {folder}/proxy;\n\
             fastcgi_temp_path {folder}/fastcgi;\n\
             uwsgi_temp_path {folder}/uwsgi;\n\
             scgi_temp_path {folder}/scgi;\n\
             keepalive_requests 1000000000;\n\
             keepalive_timeout 600s;\n\
             server {{\n\
                 listen 0.0.0.0:{port} backlog=4096;\n\
                 location / {{ return 200 \"{body}\"; }}\n\
             }}\n\
         }}\n",
        body = "ambit ".repeat(16),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_what_arrived() {
        let json = r#"{"end":{"sum_sent":{"bytes":9},"sum_received":{"bytes":2000000000,"bits_per_second":8000000000.0}}}"#;
        let outcome = Case::Stream8.read(json).unwrap();
        assert_eq!(outcome, Outcome::Streamed { bytes: 2e9, gigabits_per_second: 8.0 });
    }

    #[test]
    fn a_rate_is_over_the_time_that_was_measured() {
        let text =
            "Running 2s test\nRESULT {\"count\":3000,\"us\":2000000,\"p50\":80,\"p99\":140.5,\"errors\":0}\n";
        let outcome = Case::PingPong1.read(text).unwrap();
        assert_eq!(outcome, Outcome::Answered { count: 3000.0, per_second: 1500.0, p50: 80.0, p99: 140.5 });
    }

    #[test]
    fn a_run_with_failures_is_none() {
        let text = "RESULT {\"count\":3000,\"us\":2000000,\"p50\":80,\"p99\":140.5,\"errors\":2}\n";
        assert_eq!(Case::KeepAlive64.read(text).unwrap_err().to_string(), "2 of 3000 failed");
    }
}
