use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;
use thiserror::Error;
use tracing_subscriber::fmt::MakeWriter;

use super::*;
use crate::metrics::{Connection, Peer, Registry, Reporter, Security, TcpMetrics};

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl io::Write for Sink {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

fn written_by(act: impl FnOnce()) -> Vec<Value> {
    let sink = Sink::default();
    let subscriber = tracing_subscriber::fmt().json().flatten_event(true).with_writer(sink.clone()).finish();
    tracing::subscriber::with_default(subscriber, act);
    let bytes = sink.0.lock().clone();
    String::from_utf8(bytes).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn record() -> AccessRecord {
    let mut record = AccessRecord::start(
        Direction::Outbound,
        "10.0.0.1:40000".parse().unwrap(),
        "10.0.0.9:80".parse().unwrap(),
    );
    record.facts.source.workload = Some("frontend-0".into());
    record.facts.source.identity = Some("spiffe://cluster.local/ns/shop/sa/frontend".parse().unwrap());
    record
}

fn series() -> Arc<TcpSeries> {
    let connection = Connection {
        reporter: Reporter::Source,
        source: Peer::default(),
        destination: Peer::default(),
        service: None,
        security: Security::Unknown,
    };
    TcpMetrics::register(&mut Registry::default()).series(&connection)
}

#[derive(Debug, Error)]
#[error("denied by policy shop/only-frontend")]
struct Denied(#[source] io::Error);

#[test]
fn a_finished_connection_is_recorded_once_with_its_bytes() {
    let series = series();
    let lines = written_by(|| {
        let mut record = record();
        record.count_on(series.clone());
        let transfer = record.established();
        transfer.from_client(3);
        transfer.to_client(500);
        record.finish();
    });
    let [line] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!(line["message"], "connection complete");
    assert_eq!(line["target"], "access");
    assert_eq!(line["src.addr"], "10.0.0.1:40000");
    assert_eq!(line["src.workload"], "frontend-0");
    assert_eq!(line["src.identity"], "spiffe://cluster.local/ns/shop/sa/frontend");
    assert_eq!(line["direction"], "outbound");
    assert_eq!((&line["bytes_sent"], &line["bytes_recv"]), (&Value::from(3), &Value::from(500)));
    assert!(line["duration"].as_str().unwrap().ends_with("ms"));
    assert_eq!(line.get("error"), None);
    assert_eq!(line.get("dst.workload"), None, "what is unknown is left out");
    assert_eq!(series.totals(), (1, 1, 3, 500));
}

#[test]
fn the_log_takes_the_side_of_the_workload_and_the_counters_do_not() {
    let series = series();
    let lines = written_by(|| {
        let mut record = record();
        record.facts.direction = Direction::Inbound;
        record.count_on(series.clone());
        let transfer = record.established();
        transfer.from_client(3);
        transfer.to_client(500);
        record.finish();
    });
    assert_eq!((&lines[0]["bytes_sent"], &lines[0]["bytes_recv"]), (&Value::from(500), &Value::from(3)));
    assert_eq!(series.totals(), (1, 1, 3, 500));
}

#[test]
fn a_refused_connection_names_the_whole_cause_and_counts_as_failed() {
    let series = series();
    let lines = written_by(|| {
        let mut record = record();
        record.count_on(series.clone());
        record.fail(ResponseFlags::Deny, &Denied(io::Error::other("no rule matched")));
    });
    let [line] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!(line["level"], "WARN");
    assert_eq!(line["error"], "denied by policy shop/only-frontend: no rule matched");
    assert_eq!(series.totals(), (0, 0, 0, 0));
    assert_eq!(series.failures(ResponseFlags::Deny), 1);
}

#[test]
fn a_dropped_record_says_aborted() {
    let series = series();
    let lines = written_by(|| {
        let mut record = record();
        record.count_on(series.clone());
        record.established();
    });
    let [line] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!(line["error"], "aborted");
    assert_eq!(series.totals(), (1, 1, 0, 0), "an aborted connection is closed all the same");
}

#[test]
fn a_source_that_its_parent_already_quotes_is_not_repeated() {
    #[derive(Debug, Error)]
    #[error("cannot connect: {0}")]
    struct Quoting(#[source] io::Error);
    let error = Quoting(io::Error::other("refused"));
    assert_eq!(Chain(&error).to_string(), "cannot connect: refused");
}
