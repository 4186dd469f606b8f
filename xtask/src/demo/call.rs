//! One call with a canary, watched from three places: the caller, the cable, and the server's proxy.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use super::record::{self, Record};
use crate::lab::Lab;
use crate::wire::{Capture, Traffic};

/// The mesh's port on the cable.
const HBONE: u16 = 15008;
/// How long a caller waits for its answer, in seconds.
const PATIENCE: &str = "5";
/// How often it is looked whether packets and records have been written: 50 times a tenth of a second.
const LOOKS: u32 = 50;
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Before,
    Mesh,
    Policy,
}

impl Phase {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::Mesh => "mesh",
            Self::Policy => "policy",
        }
    }
}

/// What a call was on the cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    /// Its canary was in a packet.
    Plaintext,
    /// Its canary was in none, and all that passed on the mesh's port was TLS.
    Tls,
    /// Nothing of it passed.
    None,
}

impl Wire {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::Tls => "tls",
            Self::None => "none",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Allowed,
    Denied,
}

impl Verdict {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
        }
    }
}

/// What should be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) identity: Option<String>,
    pub(super) wire: Wire,
    pub(super) verdict: Verdict,
}

/// What was seen.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) name: &'static str,
    pub(super) phase: Phase,
    pub(super) identity: Option<String>,
    pub(super) wire: Wire,
    pub(super) verdict: Verdict,
    /// How that differs from what should be, if it does.
    pub(super) problem: Option<String>,
}

impl Told {
    pub(super) fn line(&self) -> String {
        let identity = self.identity.as_deref().unwrap_or("nobody known");
        let mark = if self.problem.is_some() { "NOT AS TOLD" } else { "as told" };
        format!(
            "{}: {} on the wire, from {identity}: {} ({mark})",
            self.name,
            self.wire.as_str(),
            self.verdict.as_str()
        )
    }
}

/// A call to be made in every act.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) name: &'static str,
    /// The caller, `namespace/name`, and its address.
    pub(super) client: String,
    pub(super) client_ip: String,
    /// The pod that should answer, `namespace/name`, and its node.
    pub(super) server: String,
    pub(super) server_node: String,
    /// The namespace and interface to watch.
    pub(super) cable: (String, String),
    /// Who the caller is once it is in the mesh.
    pub(super) identity: Option<String>,
    /// What the policy of the last act says of it.
    pub(super) by_policy: Verdict,
}

impl Call {
    /// Makes the call and tells what was seen of it.
    ///
    /// # Errors
    /// If it could not be made or watched; a call that came to nothing is no error here.
    pub(super) fn make(
        &self,
        lab: &Lab,
        scratch: &Path,
        phase: Phase,
        expected: &Expected,
    ) -> anyhow::Result<Told> {
        let canary = canary(self.name, phase);
        let in_mesh = phase != Phase::Before;
        let before = if in_mesh { self.records(lab)?.len() } else { 0 };
        let capture = Capture::start(&self.cable.0, &self.cable.1, &scratch.join(format!("{canary}.pcap")))?;
        let answer = self.ask(lab, &canary)?;
        let traffic = settled(capture, &canary, expected.wire)?;
        let record = if in_mesh { self.new_record(lab, before)? } else { None };
        let (wire, tls_problem) = on_the_wire(&traffic, &canary);
        let identity = record.as_ref().and_then(|r| r.source_identity.clone());
        let verdict = if answer.is_ok() { Verdict::Allowed } else { Verdict::Denied };
        let mut problem = tls_problem;
        let seen = Expected { identity: identity.clone(), wire, verdict };
        if seen != *expected {
            problem = Some(difference(expected, &seen, answer.as_ref().err()));
        } else if verdict == Verdict::Denied && record.as_ref().is_none_or(|r| r.error.is_none()) {
            problem = Some(
                "the caller got no answer, but the server's ztunnel has no record of refusing it".to_owned(),
            );
        }
        Ok(Told { name: self.name, phase, identity, wire, verdict, problem })
    }

    /// Asks with the canary in the request; the error is what the caller saw.
    fn ask(&self, lab: &Lab, canary: &str) -> anyhow::Result<Result<(), String>> {
        if self.server.starts_with("shop/catalog-") {
            return self.ask_catalog(lab, canary);
        }
        let output = lab.exec(
            &self.client,
            &["timeout", PATIENCE, "redis-cli", "-e", "-h", "redis.shop", "SET", "cart", canary],
        )?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if output.status.success() && said == "OK" {
            return Ok(Ok(()));
        }
        let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Ok(Err(if complaint.is_empty() { format!("{} {said}", output.status) } else { complaint }))
    }

    /// The catalog has a replica on each node; the call is made until the far one answered, for only that crosses the
    /// cable.
    fn ask_catalog(&self, lab: &Lab, canary: &str) -> anyhow::Result<Result<(), String>> {
        let url = format!("http://catalog.shop:8080/items?card={canary}");
        let (_, wanted) = self.server.split_once('/').context("a pod's name has a namespace")?;
        let mut last = String::new();
        for _ in 0..LOOKS {
            let output = lab.exec(&self.client, &["curl", "-sS", "--fail", "--max-time", PATIENCE, &url])?;
            if !output.status.success() {
                return Ok(Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
            }
            last = String::from_utf8_lossy(&output.stdout).into_owned();
            let answer: serde_json::Value = serde_json::from_str(&last).unwrap_or_default();
            if answer["pod"] == wanted {
                return Ok(Ok(()));
            }
        }
        Ok(Err(format!("in {LOOKS} calls {wanted} never answered; the last answer: {last}")))
    }

    fn records(&self, lab: &Lab) -> anyhow::Result<Vec<Record>> {
        let log = lab.run(&["lab", "logs", &format!("ztunnel@{}", self.server_node)])?;
        Ok(record::inbound_from(&log, &self.client_ip))
    }

    /// The record of this call at the server's proxy, which is written when the connection has ended.
    fn new_record(&self, lab: &Lab, known: usize) -> anyhow::Result<Option<Record>> {
        for _ in 0..LOOKS {
            if let Some(record) = self.records(lab)?.into_iter().nth(known) {
                return Ok(Some(record));
            }
            wait();
        }
        Ok(None)
    }
}

/// A word that appears nowhere by chance.
fn canary(call: &str, phase: Phase) -> String {
    let call: String = call.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("canary-{}-{call}-{:08x}", phase.as_str(), rand_word())
}

fn rand_word() -> u32 {
    use std::hash::{BuildHasher as _, Hasher as _};
    let word = std::hash::RandomState::new().build_hasher().finish();
    u32::try_from(word >> 32).unwrap_or_default()
}

/// Ends the capture once it shows what it should, or after a while: tcpdump is a little behind.
fn settled(capture: Capture, canary: &str, expected: Wire) -> anyhow::Result<Traffic> {
    for _ in 0..LOOKS / 5 {
        let seen = capture.so_far()?;
        if on_the_wire(&seen, canary).0 == expected {
            break;
        }
        wait();
    }
    capture.stop()
}

fn on_the_wire(traffic: &Traffic, canary: &str) -> (Wire, Option<String>) {
    if traffic.contains(canary) {
        return (Wire::Plaintext, None);
    }
    match traffic.tls_records(HBONE) {
        Ok(0) => (Wire::None, None),
        Ok(_) => (Wire::Tls, None),
        Err(error) => (Wire::None, Some(format!("{error:#}"))),
    }
}

fn difference(expected: &Expected, seen: &Expected, answer: Option<&String>) -> String {
    struct Seen<'a>(&'a Expected);
    impl fmt::Display for Seen<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let identity = self.0.identity.as_deref().unwrap_or("nobody known");
            write!(f, "{} on the wire from {identity}, {}", self.0.wire.as_str(), self.0.verdict.as_str())
        }
    }
    let answer = answer.map(|a| format!("; the caller saw: {a}")).unwrap_or_default();
    format!("expected {}, saw {}{answer}", Seen(expected), Seen(seen))
}

#[expect(
    clippy::disallowed_methods,
    reason = "tcpdump and the log tell nobody when they have written; we look again"
)]
fn wait() {
    std::thread::sleep(BETWEEN_LOOKS);
}
