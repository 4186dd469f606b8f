//! Probes: what is asked of a container, and what follows from the answers.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use k8s_openapi::api::core::v1::{self as core, Container};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use net::Netns;
use tokio::time::timeout;

use crate::enter::Entry;
use crate::lab::{http, keeper};

/// A probe, with Kubernetes' defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Probe {
    pub(super) ask: Ask,
    pub(super) initial_delay: Duration,
    pub(super) period: Duration,
    pub(super) timeout: Duration,
    successes: u32,
    failures: u32,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Ask {
    /// A command in the pod ends with 0.
    Exec(Vec<String>),
    /// A port takes connections.
    Tcp { host: Option<IpAddr>, port: u16 },
    /// A page answers with 200 to 399.
    Http { host: Option<IpAddr>, port: u16, path: String, headers: Vec<(String, String)> },
}

/// Where probes are made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standpoint<'a> {
    /// From where.
    pub(super) node: &'a Netns,
    /// The pod's address.
    pub(super) ip: Option<IpAddr>,
    /// How to get into the pod; without a command.
    pub(super) pod: &'a Entry,
    pub(super) env: &'a [(String, String)],
}

impl Probe {
    /// Reads a probe.
    ///
    /// # Errors
    /// A sentence about a probe that a lab cannot make.
    pub(super) fn of(probe: &core::Probe, container: &Container) -> Result<Self, String> {
        let number = |value: Option<i32>, default: u32, least: u32| {
            value.and_then(|v| u32::try_from(v).ok()).unwrap_or(default).max(least)
        };
        let seconds = |value, default, least| Duration::from_secs(number(value, default, least).into());
        Ok(Self {
            ask: Ask::of(probe, container)?,
            initial_delay: seconds(probe.initial_delay_seconds, 0, 0),
            period: seconds(probe.period_seconds, 10, 1),
            timeout: seconds(probe.timeout_seconds, 1, 1),
            successes: number(probe.success_threshold, 1, 1),
            failures: number(probe.failure_threshold, 3, 1),
        })
    }

    /// Asks once.
    pub(super) async fn succeeds(&self, at: &Standpoint<'_>) -> bool {
        self.ask.succeeds(at, self.timeout).await
    }
}

impl Ask {
    pub(super) fn of(probe: &core::Probe, container: &Container) -> Result<Self, String> {
        if let Some(exec) = &probe.exec {
            return Ok(Self::Exec(exec.command.clone().unwrap_or_default()));
        }
        if let Some(tcp) = &probe.tcp_socket {
            return Ok(Self::Tcp { host: host(tcp.host.as_deref())?, port: port(&tcp.port, container)? });
        }
        let Some(get) = &probe.http_get else {
            return Err("a lab knows the probes exec, tcpSocket and httpGet".to_owned());
        };
        if get.scheme.as_deref().is_some_and(|scheme| !scheme.eq_ignore_ascii_case("HTTP")) {
            return Err("a lab's probes speak HTTP, not HTTPS: use tcpSocket or exec".to_owned());
        }
        let headers = get.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone()));
        let path = get.path.as_deref().unwrap_or("/");
        Ok(Self::Http {
            host: host(get.host.as_deref())?,
            port: port(&get.port, container)?,
            path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
            headers: headers.collect(),
        })
    }

    /// As the kubelet does it: connections from the node, a command in the pod.
    pub(super) async fn succeeds(&self, at: &Standpoint<'_>, patience: Duration) -> bool {
        let address = |host: &Option<IpAddr>, port: u16| host.or(at.ip).map(|ip| SocketAddr::new(ip, port));
        match self {
            Self::Exec(command) => {
                let entry = Entry { command: command.iter().map(Into::into).collect(), ..at.pod.clone() };
                let Ok(mut child) = keeper::spawn_silent(&entry, at.env) else { return false };
                // The child is killed when it is dropped.
                matches!(timeout(patience, child.wait()).await, Ok(Ok(status)) if status.success())
            }
            Self::Tcp { host, port } => {
                let Some(to) = address(host, *port) else { return false };
                matches!(timeout(patience, http::connect(at.node, to)).await, Ok(Ok(_)))
            }
            Self::Http { host, port, path, headers } => {
                let Some(to) = address(host, *port) else { return false };
                matches!(http::get(at.node, to, path, headers, patience).await, Ok((200..=399, _)))
            }
        }
    }
}

fn host(host: Option<&str>) -> Result<Option<IpAddr>, String> {
    host.map(|text| text.parse().map_err(|_| format!("the probe's host `{text}` is no address"))).transpose()
}

fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            ports.find(|p| p.name.as_deref() == Some(name)).map(|p| p.container_port)
        }
    };
    let number = number.and_then(|number| u16::try_from(number).ok()).filter(|number| *number != 0);
    number.ok_or_else(|| match port {
        IntOrString::Int(number) => format!("the probe's port {number} is none"),
        IntOrString::String(name) => format!("the container has no port `{name}`, which its probe asks"),
    })
}

/// Turns single answers into a verdict.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tally {
    successes: u32,
    failures: u32,
    in_a_row: (bool, u32),
    verdict: Option<bool>,
}

impl Tally {
    pub(super) fn of(probe: &Probe) -> Self {
        Self { successes: probe.successes, failures: probe.failures, in_a_row: (true, 0), verdict: None }
    }

    /// Counts an answer. True once enough successes came in a row, false once enough failures did; before that nothing is
    /// known.
    pub(super) fn count(&mut self, success: bool) -> Option<bool> {
        let so_far = if self.in_a_row.0 == success { self.in_a_row.1 } else { 0 };
        self.in_a_row = (success, so_far.saturating_add(1));
        let needed = if success { self.successes } else { self.failures };
        if self.in_a_row.1 >= needed {
            self.verdict = Some(success);
        }
        self.verdict
    }
}

/// How long to wait for the next question.
///
/// Until a container first succeeds, and for one period at most, it is asked more often than its period says, so that a
/// quick start is a quick start; what fails in that time does not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pace {
    steps: u32,
    is_steady: bool,
}

impl Pace {
    const STEP: Duration = Duration::from_millis(100);
    /// Of a container that has long started.
    pub(super) const STEADY: Self = Self { steps: 0, is_steady: true };

    /// The wait after an answer, and whether the answer counts.
    pub(super) fn after(&mut self, success: bool, probe: &Probe) -> (Duration, bool) {
        self.steps += 1;
        self.is_steady |= success || Self::STEP * self.steps >= probe.period;
        if self.is_steady { (probe.period, true) } else { (Self::STEP, false) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(yaml: &str) -> Result<Probe, String> {
        let container = r#"{"name": "m", "ports": [{"name": "http", "containerPort": 8080}]}"#;
        let container: Container = serde_json::from_str(container).unwrap();
        Probe::of(&serde_json::from_str(yaml).unwrap(), &container)
    }

    #[test]
    fn a_probe_has_the_defaults_of_kubernetes() {
        let read = probe(r#"{"httpGet": {"port": "http", "path": "ready"}}"#).unwrap();
        let ask = Ask::Http { host: None, port: 8080, path: "/ready".into(), headers: vec![] };
        assert_eq!(read.ask, ask);
        let second = Duration::from_secs(1);
        assert_eq!((read.period, read.timeout, read.failures), (10 * second, second, 3));
        assert_eq!(
            probe(r#"{"tcpSocket": {"port": "grpc"}}"#).unwrap_err(),
            "the container has no port `grpc`, which its probe asks"
        );
    }

    #[test]
    fn a_verdict_takes_as_many_in_a_row_as_the_probe_says() {
        let probe = probe(r#"{"exec": {"command": ["true"]}, "successThreshold": 2}"#).unwrap();
        let mut tally = Tally::of(&probe);
        let answers = [true, false, true, true, false, false, false];
        let verdicts = answers.map(|success| tally.count(success));
        assert_eq!(verdicts, [None, None, None, Some(true), Some(true), Some(true), Some(false)]);
    }

    #[test]
    fn a_starting_container_is_asked_often_and_its_failures_do_not_count() {
        let probe = probe(r#"{"exec": {"command": ["true"]}, "periodSeconds": 1}"#).unwrap();
        let mut pace = Pace::default();
        for _ in 0..9 {
            assert_eq!(pace.after(false, &probe), (Pace::STEP, false));
        }
        assert_eq!(pace.after(false, &probe), (probe.period, true));
        assert_eq!(pace.after(false, &probe), (probe.period, true));
    }

    #[test]
    fn after_the_first_success_the_period_holds() {
        let probe = probe(r#"{"exec": {"command": ["true"]}}"#).unwrap();
        let mut pace = Pace::default();
        assert_eq!(pace.after(true, &probe), (probe.period, true));
        assert_eq!(pace.after(false, &probe), (probe.period, true));
    }
}
